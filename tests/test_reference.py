"""The package's reader and a slow one, written from docs/format.md alone, get the same bits out of every kind of
file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import torch
from helpers import gaussian, low_rank, mixed_scales, raw, smooth_kernels, squeeze
from torch import Tensor

import paramcompress
from paramcompress import predicted
from paramcompress.codec import to_tensor
from paramcompress.container import _PHRASES, OWN, Reader
from paramcompress.prior import CLASS_PRIOR, prior_of
from paramcompress.tokens import N_TOKENS
from paramcompress.trellis import CHAIN, TRELLISES

Tensors = dict[str, Tensor]
FORMAT = Path(__file__).parents[1] / "docs" / "format.md"


def assert_same_bits(path: Path) -> dict[str, Any]:
    """Both readers agree on `path`; returns its index entries."""
    slow = reference_decoder.decode_file(path)
    fast = paramcompress.load_file(path)
    assert list(slow) == list(fast)
    for name, (dtype, shape, bits) in slow.items():
        assert (dtype, shape) == (str(fast[name].dtype).removeprefix("torch."), tuple(fast[name].shape))
        assert bits == raw(fast[name]), name
    with Reader(path) as reader:
        return dict(reader.entries)


def forced(dictionary: str, **more: Any) -> dict[str, Any]:
    return {"layers": {"*": {"dictionary": dictionary, "max_rel_error": 0.05, **more}}}


DICTIONARIES: dict[str, tuple[Callable[[np.random.Generator], Tensor], dict[str, Any]]] = {
    "none": (lambda rng: gaussian(rng, 24, 40), forced("none")),
    "patch": (lambda rng: smooth_kernels(rng, 12, 5, 3, 3), forced("patch")),
    "cosine": (lambda rng: smooth_kernels(rng, 12, 5, 3, 3), forced("cosine")),
    "cosine of one axis": (lambda rng: smooth_kernels(rng, 12, 9, 5), forced("cosine")),
    "cosine of three axes": (lambda rng: smooth_kernels(rng, 6, 4, 3, 1, 4), forced("cosine")),
    "lowrank": (lambda rng: low_rank(rng, 60, 50, 3), forced("lowrank", rank=3)),
    "mirror": (lambda rng: smooth_kernels(rng, 12, 5, 3, 3), forced("mirror")),
    "mirror of even axes": (lambda rng: smooth_kernels(rng, 12, 5, 1, 4, 4), forced("mirror")),
    "mirror of one axis": (lambda rng: smooth_kernels(rng, 24, 8, 1, 5), forced("mirror")),
    "mirror of three axes": (lambda rng: smooth_kernels(rng, 12, 5, 2, 3, 3), forced("mirror")),
    "lowrank+patch": (lambda rng: low_rank(rng, 40, 54, 2, 0.2).reshape(40, 6, 3, 3), forced("lowrank+patch", rank=2)),
    "lowrank+cosine": (lambda rng: low_rank(rng, 40, 54, 2, 0.2).reshape(40, 6, 9), forced("lowrank+cosine", rank=2)),
}


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionaries(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    make, options = DICTIONARIES[kind]
    entries = assert_same_bits(squeeze(tmp_path / "a", {"w": make(rng)}, **options))
    assert (entries["w"].codec, entries["w"].dictionary) == ("factored", kind.split(" of ")[0])


@pytest.mark.parametrize(("effort", "coder"), [("fast", 7), ("default", 3), ("max", 5)])
def test_trellises_and_blocks(effort: str, coder: int, rng: np.random.Generator, tmp_path: Path) -> None:
    """Over 65,536 tokens, so that the range coder begins a second block, and over 4,096, so that chains begin anew."""
    path = squeeze(tmp_path / "a", {"w": gaussian(rng, 280, 250)}, effort=effort, **forced("none"))
    entry = assert_same_bits(path)["w"]
    with Reader(path) as reader:
        assert (entry.home, reader.stream(entry)[5] & 7) == (OWN, coder)


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_classes_dead_rows_escapes_and_shifts(effort: str, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors = {f"w{i}": mixed_scales(rng, 40, 30) for i in range(6)}
    layers = {f"w{i}": {"max_rel_error": 10.0**-i, "dictionary": "none"} for i in range(2, 6)}
    entries = assert_same_bits(squeeze(tmp_path / "a", tensors, effort=effort, layers=layers))
    assert all(entry.codec == "factored" for entry in entries.values())


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes(dtype: str, rng: np.random.Generator, tmp_path: Path) -> None:
    weight = (0.02 * gaussian(rng, 50, 40)).to(getattr(torch, dtype))
    entries = assert_same_bits(squeeze(tmp_path / "a", {"w": weight}, max_rel_error=0.2))
    assert entries["w"].codec == "factored"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_rounding(dtype: str) -> None:
    """The slow reader's casts against torch's, on all exponents: ties, their neighbours, what rounds to zero or
    overflows."""
    bits = np.arange(0, 1 << 32, 1 << 11, dtype=np.uint64)
    bits = np.concatenate([bits, bits + 1, bits + (1 << 11) - 1]).astype(np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    expected = to_tensor(values, values.shape, getattr(torch, dtype))
    assert reference_decoder.cast(values, dtype) == raw(expected)


@pytest.mark.parametrize(
    "shape", [(300,), (3, 10, 40), (1, 1, 17, 40), (1, 30, 1), (20, 1, 1), (2, 3, 4, 2, 5), (1, 500)]
)
def test_readings_of_shapes(shape: tuple[int, ...], rng: np.random.Generator, tmp_path: Path) -> None:
    entries = assert_same_bits(
        squeeze(tmp_path / "a", {"w": gaussian(rng, *shape)}, layers={"w": {"max_rel_error": 0.1, "rank": 0}})
    )
    assert entries["w"].codec == "factored"


def test_exact_pooled_empty_and_tied(rng: np.random.Generator, tmp_path: Path) -> None:
    weight = gaussian(rng, 30, 20)
    twin = gaussian(rng, 30, 20)
    tensors = {
        "scalar": torch.tensor(3.5),
        "bool": torch.tensor([True, False, True]),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "half": gaussian(rng, 5, dtype="bfloat16"),
        "int": torch.arange(-5, 5),
        "complex": torch.complex(gaussian(rng, 3), gaussian(rng, 3)),
        "wide": torch.complex(gaussian(rng, 3, dtype="float64"), gaussian(rng, 3, dtype="float64")),
        "empty": torch.zeros(0, 3),
        "empty int": torch.zeros(2, 0, dtype=torch.int16),
        "nan": torch.tensor([[1.0, float("nan")], [float("-inf"), 2.0]]),
        "large": torch.arange(20000, dtype=torch.int32),
        "w": weight,
        "tied": weight,
        "twin": twin,
        "equal twin": twin.clone(),
        "after": gaussian(rng, 20, 20),
    }
    entries = assert_same_bits(squeeze(tmp_path / "a", tensors))
    homes = {name: entry.home for name, entry in entries.items()}
    assert set(homes.values()) == {0, 1, 2, 3}
    assert (homes["large"], homes["tied"], homes["equal twin"]) == (0, 3, 3)
    assert (entries["tied"].tied, entries["equal twin"].tied) == (True, False)


def test_the_control_a_wrong_reader_is_found(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a reader that rounds to half types by cutting off does not agree."""
    path = squeeze(tmp_path / "a", {"w": gaussian(rng, 30, 20, dtype="bfloat16")}, max_rel_error=0.02)
    cut = lambda values, dtype: (values.view(np.uint32) >> 16).astype("<u2").tobytes()  # noqa: E731
    monkeypatch.setattr(reference_decoder, "cast", cut)
    with pytest.raises(AssertionError, match="hash"):
        reference_decoder.decode_file(path)


# ------------------------------------------------------------------------------------------- what the page says


def test_tables_of_the_page_are_those_of_the_code() -> None:
    page = FORMAT.read_text()
    assert reference_decoder.chain() == CHAIN
    crcs = [zlib.crc32(prior_of(has_zero).astype("<i4").tobytes()) for has_zero in (True, False)]
    assert crcs == [int(one) for one in re.findall(r"crc32 are (\d+) and (\d+)", page)[0]]
    starts = re.search(
        r"Contexts 28 and 30 have\s([\d, ]+), then 1 .*? 29 and 31 have ([\d, ]+), then 1\.", page, re.DOTALL
    )
    assert starts is not None
    for known, row in zip(starts.groups(), CLASS_PRIOR.tolist(), strict=True):
        first = [int(number) for number in known.split(",")]
        assert row == first + [1] * (N_TOKENS - len(first))
    for n_states in (4, 8):
        row = re.findall(rf"^\| {n_states} \| \d \| \d \|([^|]*)\|([^|]*)\|$", page, re.MULTILINE)[0]
        assert [int(bit) for bit in row[0].split()] == TRELLISES[n_states].quantiser.tolist()
        assert [[int(a), int(b)] for a, b in re.findall(r"\((\d),(\d)\)", row[1])] == TRELLISES[
            n_states
        ].next_state.tolist()


def test_phrases_of_the_page_are_those_of_the_code() -> None:
    assert reference_decoder.phrases() == _PHRASES
    assert reference_decoder.phrases(1) == predicted._PHRASES


def test_example_of_the_page() -> None:
    stream = bytes.fromhex(FORMAT.read_text().rstrip().rsplit("\n", 1)[1])
    assert reference_decoder.symbols(stream, 2, 2, 1).tolist() == [[2, 0], [-4, 6]]
