"""Files of earlier versions expand to the same bits, for ever. One small file for each codec, dictionary and trellis.

UPDATE_GOLDEN=1 pytest tests/test_golden.py writes those that are missing, and changes none that is there: a golden file
that no longer reads is a broken promise, not a test to be updated. Before release 1.0 a layout may change: then delete
the folder first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import torch
from helpers import files_in, gaussian, low_rank, mixed_scales, raw, smooth_kernels, squeeze
from torch import Tensor

import paramcompress
from paramcompress import predict
from paramcompress.codec import EXACT, FACTORED, TRANSFORMS
from paramcompress.container import Reader
from paramcompress.dictionaries.recipe import REGENERATED
from paramcompress.predicted import PREDICTED
from paramcompress.vectors import VECTOR

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = GOLDEN / "expected.json"
MOST_BYTES = 3072

Made = tuple[dict[str, Tensor], dict[str, Any]]


def one(weight: Tensor, dictionary: str, effort: str = "default", **more: Any) -> Made:
    return {"w": weight}, {"effort": effort, "layers": {"w": {"dictionary": dictionary, "max_rel_error": 0.1, **more}}}


def exact(rng: np.random.Generator) -> Made:
    """Every item size, pooled; and one tensor with a part of its own."""
    return {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "halves": gaussian(rng, 3, 3, dtype="bfloat16"),
        "ints": torch.arange(-3, 3),
        "complex": torch.complex(gaussian(rng, 2, dtype="float64"), gaussian(rng, 2, dtype="float64")),
        "nan": torch.tensor([[1.0, float("nan")], [float("inf"), -0.0]]),
        "own": torch.arange(8192) // 2048,
    }, {}


def same(rng: np.random.Generator) -> Made:
    """Tied, and equal without being tied."""
    weight = gaussian(rng, 18, 16)
    tensors = {"a": weight, "tied": weight, "equal": weight.clone(), "b": gaussian(rng, 4)}
    return tensors, {"max_rel_error": 0.1}


def vectors(rng: np.random.Generator) -> Made:
    """Three lengths in turns, with and without a centre, of several dtypes; numbers that may be 0, and equal ones."""
    tensors = {f"{turn}.scale": 1 + 0.1 * gaussian(rng, 12 + turn // 2) for turn in range(4)}
    tensors |= {f"{turn}.shift": gaussian(rng, 12 + turn // 2, dtype="bfloat16") for turn in range(4)}
    tensors |= {"channels": gaussian(rng, 1, 30, 1, 1, dtype="float16"), "dust": 1e-30 * gaussian(rng, 14)}
    tensors |= {"double": 1e10 * gaussian(rng, 14, dtype="float64"), "constant": torch.full((14,), 3.0)}
    return tensors, {"layers": {"*": {"max_rel_error": 0.02}, "dust": {"max_rel_error": 1.0}}}


def prefix(rng: np.random.Generator) -> Made:
    """Large enough for prefix codes; a dead row, and some of larger scale."""
    weight = gaussian(rng, 128, 64)
    weight[3] = 0
    weight[40:48] *= 4
    return one(weight, "none", "fast", max_rel_error=0.17)


def by_row(rng: np.random.Generator) -> Made:
    """Data, so that the trellis runs along rows; several of them in a chain, and a period."""
    weight = smooth_kernels(rng, 12, 4, 3, 3)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 12, 3, bias=False))
    inputs = [gaussian(rng, 8, 4, 6, 6) for _ in range(2)]
    return {"0.weight": weight}, {"model": net, "batches": inputs, "target_size": 800}


GRID = (8, 5)


def predicted_layers(rng: np.random.Generator, layers: dict[str, predict.Predicted]) -> dict[str, Tensor]:
    """Their state without biases, and with numbers that do not depend on torch's start."""
    tensors: dict[str, Tensor] = {}
    for name, one in layers.items():
        one.learned.data = gaussian(rng, *one.learned.shape, dtype=str(one.learned.dtype)[6:])
        tensors |= {f"{name}.{part}": value for part, value in one.state_dict().items() if part != "bias"}
    return tensors


def predicted(rng: np.random.Generator) -> Made:
    """Every dictionary that a recipe brings back, every way to draw supports, channels, groups of two sizes."""
    linear, bumps = predict.PredictedLinear, predict.SquaredExponential(GRID)
    layers: dict[str, predict.Predicted] = {
        "bumps": linear(40, 25, dictionary=bumps, n_support=5, groups=2),
        "raw": linear(40, 24, dictionary=predict.Cosine(GRID), n_support=4, supports="uniform", orthonormal=False),
        "conv": predict.PredictedConv2d(2, 25, 5, dictionary=predict.SquaredExponential(sigma=1.5), n_support=6),
        "waves": linear(40, 24, dictionary=predict.Cosine(GRID), n_support=4),
        "boxes": linear(40, 24, dictionary=predict.DownSampling(GRID), n_support=4),
        "random": linear(40, 24, dictionary=predict.RandomFixed(3), n_support=4, groups=2, seed=5),
        "connected": linear(40, 24, dictionary=predict.RandomConnections(), n_support=4, groups=6),
        "listed": linear(40, 24, dictionary=bumps, n_support=4, groups=2, supports="pivoted"),
    }
    return predicted_layers(rng, layers), {"max_rel_error": 0.1}


def predicted_stored(rng: np.random.Generator) -> Made:
    """Dictionaries beside their recipes, in both codecs; numbers kept bit by bit."""
    linear, samples = predict.PredictedLinear, gaussian(rng, 60, 30)
    layers: dict[str, predict.Predicted] = {
        "stored": linear(30, 40, dictionary=predict.Covariance(samples), n_support=2, groups=2),
        "kept": linear(30, 12, dictionary=predict.PCA(samples), n_support=2),
        "halves": linear(40, 12, dictionary=predict.SquaredExponential(GRID), n_support=2),
    }
    layers["halves"].to(torch.bfloat16)
    exact = {"exact": True}
    return predicted_layers(rng, layers), {"max_rel_error": 0.1, "layers": {"kept.*": exact, "halves.*": exact}}


MAKERS: dict[str, Callable[[np.random.Generator], Made]] = {
    "exact": exact,
    "same": same,
    "none-fast": lambda rng: one(gaussian(rng, 20, 16), "none", "fast"),
    "prefix": prefix,
    "none-default": lambda rng: one(gaussian(rng, 20, 16), "none"),
    "none-max": lambda rng: one(gaussian(rng, 20, 16), "none", "max"),
    "classes": lambda rng: one(mixed_scales(rng, 20, 16), "none", max_rel_error=1e-6),
    "pruned-max": lambda rng: one(gaussian(rng, 20, 16).clamp(min=0), "none", "max"),
    "vector": lambda rng: one(gaussian(rng, 200), "none"),
    "vectors": vectors,
    "bfloat16": lambda rng: one(gaussian(rng, 20, 16, dtype="bfloat16"), "none"),
    "float8": lambda rng: one(gaussian(rng, 20, 16, dtype="float8_e4m3fn"), "none"),
    "patch": lambda rng: one(smooth_kernels(rng, 8, 6, 3, 3), "patch"),
    "cosine": lambda rng: one(smooth_kernels(rng, 8, 6, 3, 3), "cosine"),
    "mirror": lambda rng: one(smooth_kernels(rng, 8, 6, 3, 3), "mirror"),
    "lowrank": lambda rng: one(low_rank(rng, 24, 20, 2), "lowrank", rank=2),
    "lowrank+patch": lambda rng: one(low_rank(rng, 20, 36, 2, 0.3).reshape(20, 4, 3, 3), "lowrank+patch", rank=2),
    "lowrank+mirror": lambda rng: one(low_rank(rng, 20, 30, 2, 0.3).reshape(20, 2, 3, 5), "lowrank+mirror", rank=2),
    "by-row": by_row,
    "predicted": predicted,
    "predicted-stored": predicted_stored,
    "lowrank+cosine": lambda rng: one(low_rank(rng, 20, 36, 2, 0.3).reshape(20, 4, 9), "lowrank+cosine", rank=2),
}
EACH = pytest.mark.parametrize("name", MAKERS)


def path_of(name: str) -> Path:
    return GOLDEN / f"{name}.safetensors"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def state(path: Path) -> dict[str, Any]:
    """What is remembered of a file: its own hash, and that of every tensor in it."""
    tensors = paramcompress.load_file(path)
    return {
        "file": digest(path.read_bytes()),
        "tensors": {key: [str(w.dtype), list(w.shape), digest(raw(w))] for key, w in tensors.items()},
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The remembered state of all golden files, those that are missing made first if UPDATE_GOLDEN=1 asks for it."""
    known = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.mkdir(exist_ok=True)
        for name, make in MAKERS.items():
            if not path_of(name).exists():
                tensors, options = make(np.random.default_rng(1))
                known[name] = state(squeeze(path_of(name), tensors, **options))
        EXPECTED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


@EACH
def test_expands_to_the_same_bits(name: str, expected: dict[str, Any]) -> None:
    assert name in expected, "missing: see the docstring of this file"
    assert state(path_of(name)) == expected[name]
    paramcompress.verify(path_of(name))


@EACH
def test_the_slow_decoder_agrees(name: str, expected: dict[str, Any]) -> None:
    found = reference_decoder.decode_file(path_of(name))
    assert {key: digest(bits) for key, (_, _, bits) in found.items()} == {
        key: bits for key, (_, _, bits) in expected[name]["tensors"].items()
    }


@EACH
def test_small(name: str, expected: dict[str, Any]) -> None:
    assert path_of(name).stat().st_size <= MOST_BYTES


def test_nothing_is_missing_and_nothing_is_left_over(expected: dict[str, Any]) -> None:
    assert set(expected) == set(MAKERS)
    assert files_in(GOLDEN) == sorted([EXPECTED.name, *(path_of(name).name for name in MAKERS)])


def test_every_codec_dictionary_trellis_and_home_is_there(expected: dict[str, Any]) -> None:
    """The gatekeeper: a new codec id or dictionary needs a golden file."""
    codecs, dictionaries, kinds, coders, homes, orders = set(), set(), set(), set(), set(), set()
    for name in MAKERS:
        with Reader(path_of(name)) as reader:
            for entry in reader.index.entries:
                codecs.add(entry.codec)
                (kinds if entry.codec == PREDICTED else dictionaries).add(entry.dictionary)
                homes.add(entry.home)
                if entry.codec == FACTORED and entry.same_as is None:
                    orders.add(reader.stream(entry)[0] & 32)
                if entry.codec == FACTORED and entry.dictionary == "none" and entry.same_as is None:
                    coders.add(reader.stream(entry)[5] & 7)
    assert codecs == {EXACT, FACTORED, PREDICTED, VECTOR}
    assert kinds == {*REGENERATED, "covariance", "pca"}
    assert dictionaries == {f"{low}{name}" for low in ("", "lowrank+") for name in TRANSFORMS} - {"lowrank+none"} | {
        "lowrank"
    }
    assert coders == {0, 3, 4, 5, 6, 7}, "four states, 1 and 2, are in the format, and no effort uses them"
    assert homes == {0, 1, 2, 3, 4}
    assert orders == {0, 32}, "points column by column and row by row"
