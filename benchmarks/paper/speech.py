"""The speech perceptron: 11 frames of cepstra, two hidden layers of 1024, on spoken digits.

These stand in for a corpus that needs a licence. Each frame's target is the digit of its utterance, and an utterance is
what its frames say together, by summed log posteriors; so there is no phone model. The speakers of the test, and the
one whose recordings choose the epoch, are heard by no net in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import digits, mnist
from .experiment import DENSE, SEEDS, SMALLER, Experiment, Setting, table
from .images import Labelled
from .nets import learned
from .training import Recipe, Split, epochs
from .utterances import SPEECH_FROM, cepstra, read_utterances, with_context

TEST_SPEAKERS = ("theo", "yweweler")
VALIDATION_SPEAKER = "nicolas"
FRACTIONS = (0.025, 0.05, 0.1, 0.25)
SETTINGS = table(
    ((DENSE,), (1.0,), SEEDS),
    (("PivEmp",), (0.05,), SEEDS),
    (("PivEmp", "Emp", "RandFixU", "LowRank", SMALLER), FRACTIONS, 1),
)


@dataclass(frozen=True)
class Spoken:
    """Utterances as frames, in the three parts.

    Attributes:
        parts: frames with the digit of their utterance.
        utterances: for validation and test, the utterance (from 0) of each frame.
        net: what builds the nets; its own data are the training and test frames.
    """

    parts: Split
    utterances: tuple[Tensor, Tensor]
    net: mnist.Perceptron


@torch.no_grad()
def errors(model: nn.Module, frames: Labelled, utterances: Tensor, batch: int = 4096) -> tuple[float, float]:
    """Percent of frames, and of utterances by the sum of their frames' log posteriors, that are not recognised."""
    model.eval()
    posteriors = torch.cat([model(part).log_softmax(1) for part in frames.inputs.split(batch)])
    frame_error = 100 * float((posteriors.argmax(1) != frames.labels).float().mean())
    n = int(utterances.max()) + 1
    sums = torch.zeros(n, posteriors.shape[1]).index_add_(0, utterances, posteriors)
    digits_said = torch.zeros(n, dtype=torch.int64).index_copy_(0, utterances, frames.labels)
    return round(frame_error, 4), round(100 * float((sums.argmax(1) != digits_said).float().mean()), 4)


def run(setting: Setting, data: Spoken, seed: int) -> dict[str, Any]:
    """Train and measure one net; the epoch is chosen by frames of the validation speaker."""
    torch.manual_seed(seed)
    model = mnist.build(setting, data.net, data.parts, seed)
    best: dict[str, Any] = {}
    for epoch in epochs(model, data.parts.training, data.net.recipe, seed):
        of_frames, of_utterances = errors(model, data.parts.validation, data.utterances[0])
        if not best or of_frames < best["validation_error"]:
            frames, utterances = errors(model, data.parts.test, data.utterances[1])
            best = {
                "validation_error": of_frames,
                "validation_utterance_error": of_utterances,
                "frame_error": frames,
                "test_error": utterances,
                "epoch": epoch,
            }
    return {**learned(model, data.net.places), **best}


def spoken(
    features: list[np.ndarray],
    said: list[int],
    part_of: list[int],
    widths: tuple[int, int],
    columns: int,
    recipe: Recipe,
) -> Spoken:
    """Utterances (n_frames, n_in) each, with digit and part: 0 for training, 1 for validation, 2 for the test."""
    parts, numbers = [], []
    for part in range(3):
        mine = [at for at, one in enumerate(part_of) if one == part]
        lengths = torch.tensor([len(features[at]) for at in mine])
        labels = torch.tensor([said[at] for at in mine]).repeat_interleave(lengths)
        frames = torch.from_numpy(np.concatenate([features[at] for at in mine])).float()
        parts.append(Labelled(frames, labels))
        numbers.append(torch.arange(len(mine)).repeat_interleave(lengths))
    net = mnist.Perceptron(parts[0], parts[2], None, widths, columns, 0, recipe)
    return Spoken(Split(*parts), (numbers[1], numbers[2]), net)


def load(path: Path) -> Spoken:
    utterances = read_utterances(path)
    part_of = [2 if one.speaker in TEST_SPEAKERS else int(one.speaker == VALIDATION_SPEAKER) for one in utterances]
    features = [with_context(cepstra(one.samples)) for one in utterances]
    recipe = Recipe(epochs=6, batch=256, decay=1e-4)
    return spoken(features, [one.digit for one in utterances], part_of, (1024, 1024), 8, recipe)


def load_digits() -> Spoken:
    """Rows of an image as frames, with one neighbour on either side; those of a test image are heard nowhere else."""
    training, test = digits.images()
    images = torch.cat([training.inputs, test.inputs])[:, 0].numpy()
    said = torch.cat([training.labels, test.labels]).tolist()
    n = len(training.labels)
    part_of = [2 if at >= n else int(at >= n - 300) for at in range(len(said))]
    place = np.eye(8, dtype=np.float32)
    features = [np.concatenate([with_context(image, 1), place], axis=1) for image in images]
    return spoken(features, said, part_of, (100, 100), 10, Recipe(epochs=6, batch=32, warmup=20, decay=1e-4))


EXPERIMENT = Experiment("speech", "Perceptron on spoken digits", SPEECH_FROM, SETTINGS, load, load_digits, run)
