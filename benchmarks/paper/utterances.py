"""Spoken digits, and what a speech network sees of them: frames of cepstral features with their neighbours.

Shapes: samples (n,) float32 in [-1, 1], cepstra (n_frames, 39), context (n_frames, 39 * 11).
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPEECH_FROM = "https://github.com/Jakobovski/free-spoken-digit-dataset (folder recordings)"
RATE_HZ = 8000
WINDOW, STEP = 200, 80
"""Samples of a frame and from one frame to the next: 25 ms and 10 ms."""
N_FFT, N_MEL, N_CEPSTRA = 256, 23, 12
N_CONTEXT = 5
"""Frames on either side of the one that is classified: 11 in all."""
MU = 255


class Utterance(NamedTuple):
    """One spoken digit."""

    samples: np.ndarray
    digit: int
    speaker: str
    take: int


def read_utterances(path: Path) -> list[Utterance]:
    """All spoken digits, by speaker, digit and take.

    Args:
        path: a folder of `{digit}_{speaker}_{take}.wav` (8 kHz, mono, 16 bits), the collection as it is handed out; or
            one npz file, or the folder of it, of mu-law bytes (`audio`, `offsets`, `label`, `speaker`, `take`).

    Raises:
        FileNotFoundError: neither is there; says where the recordings are to be had.
        ValueError: a recording has another rate, width or number of channels.
    """
    files = [path] if path.suffix == ".npz" else sorted(path.glob("*.npz"))
    recordings = sorted(path.glob("*_*_*.wav"))
    if recordings:
        found = [_recording(file) for file in recordings]
    elif files:
        found = list(_companded(files[0]))
    else:
        raise FileNotFoundError(f"{path}: no npz file and no recordings. Spoken digits: {SPEECH_FROM}")
    return sorted(found, key=lambda one: (one.speaker, one.digit, one.take))


def _recording(path: Path) -> Utterance:
    digit, speaker, take = path.stem.split("_")
    with wave.open(str(path), "rb") as file:
        found = file.getframerate(), file.getsampwidth(), file.getnchannels()
        if found != (RATE_HZ, 2, 1):
            raise ValueError(f"{path}: found {found} (Hz, bytes, channels), expected {(RATE_HZ, 2, 1)}")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    return Utterance(samples, int(digit), speaker, int(take))


def _companded(path: Path) -> Iterator[Utterance]:
    with np.load(path) as arrays:
        samples, offsets = expanded(arrays["audio"]), arrays["offsets"]
        of_each = zip(arrays["label"], arrays["speaker"], arrays["take"], strict=True)
        for at, (digit, speaker, take) in enumerate(of_each):
            yield Utterance(samples[offsets[at] : offsets[at + 1]], int(digit), str(speaker), int(take))


def expanded(codes: np.ndarray) -> np.ndarray:
    """Mu-law bytes, 0 to 255 from the lowest amplitude to the highest, as samples in [-1, 1]."""
    level = codes.astype(np.float32) / (MU / 2) - 1
    return np.sign(level) * np.expm1(np.abs(level) * np.log1p(np.float32(MU))) / MU


def cepstra(samples: np.ndarray) -> np.ndarray:
    """12 mel-frequency cepstral coefficients and the log energy of each frame, with first and second differences.

    Each utterance's coefficients have mean 0 and variance 1 over its frames, which takes off most of what the
    microphone adds.

    Args:
        samples: padded with zeros to one frame where there are fewer.

    Returns:
        (n_frames, 39) float32.

    Source: Davis and Mermelstein 1980, with a Hamming window and pre-emphasis by 0.97.
    """
    samples = np.append(samples[:1], samples[1:] - np.float32(0.97) * samples[:-1])
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::STEP]
    energy = np.log(np.square(frames).sum(1, keepdims=True) + 1e-8)
    power = np.square(np.abs(np.fft.rfft(frames * np.hamming(WINDOW), N_FFT)))
    static = np.concatenate([np.log(power @ mel_filters().T + 1e-8) @ cosines().T, energy], axis=1)
    both = np.concatenate([static, differences(static)], axis=1)
    whole = np.concatenate([both, differences(both[:, static.shape[1] :])], axis=1)
    return ((whole - whole.mean(0)) / (whole.std(0) + 1e-3)).astype(np.float32)


def mel_filters() -> np.ndarray:
    """(N_MEL, N_FFT / 2 + 1): triangles of equal width on the mel scale, from 0 Hz to half the rate."""
    highest = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, N_MEL + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    at = np.linspace(0, RATE_HZ / 2, N_FFT // 2 + 1)
    return np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None)


def cosines() -> np.ndarray:
    """(N_CEPSTRA, N_MEL): the cosine transform without its constant."""
    order, at = np.arange(1, N_CEPSTRA + 1)[:, None], np.arange(N_MEL) + 0.5
    return np.sqrt(2 / N_MEL) * np.cos(np.pi * order * at / N_MEL)


def differences(features: np.ndarray) -> np.ndarray:
    """The slope of each feature over five frames, by least squares; ends are repeated."""
    n = len(features)
    padded = np.pad(features, ((2, 2), (0, 0)), mode="edge")
    return sum(k * (padded[2 + k : 2 + k + n] - padded[2 - k : 2 - k + n]) for k in (1, 2)) / 10


def with_context(features: np.ndarray, n_context: int = N_CONTEXT) -> np.ndarray:
    """Each frame with `n_context` neighbours on either side, first to last; ends are repeated.

    Returns:
        (n_frames, n_features * (2 n_context + 1)).
    """
    padded = np.pad(features, ((n_context, n_context), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * n_context + 1, axis=0)
    return windows.transpose(0, 2, 1).reshape(len(features), -1)
