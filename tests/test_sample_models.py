"""The committed sample checkpoints: what sample_models/README.md says of them is true, and their code fits them."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from sample_models import make, models

FOLDER = Path(models.__file__).parent
DIGITS = ["mlp", "conv"]
TOPICS = ["gru", "transformer"]
SYMBOLS_CRC = 0x2300D095
"""CRC of the held-out symbols that README's numbers were measured on (Python 3.11.7)."""


def contents(name: str) -> Any:
    """What the committed file holds; the strict loader accepts tensors and plain values only."""
    return torch.load(FOLDER / models.SAMPLES[name].file, weights_only=True)


def state_dict(name: str) -> dict[str, torch.Tensor]:
    wrapper = models.SAMPLES[name].wrapper
    return contents(name)[wrapper] if wrapper else contents(name)


def described(name: str) -> tuple[int, int, float]:
    """Weights, bytes and metric in the README table."""
    row = rf"^\| `{models.SAMPLES[name].file}` \|.*\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \w+ \|.*\|$"
    found = re.search(row, (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert found, f"README.md has no row for {name}"
    n_weights, n_bytes, metric = (cell.replace(",", "") for cell in found.groups())
    return int(n_weights), int(n_bytes), float(metric)


@pytest.mark.parametrize("name", models.SAMPLES)
def test_size_is_what_the_readme_says(name):
    n_weights, n_bytes, _ = described(name)
    assert (FOLDER / models.SAMPLES[name].file).stat().st_size == n_bytes
    assert sum(p.numel() for p in models.load(name).parameters()) == n_weights


def test_together_under_3_MB():
    made = (".squeezed.safetensors", ".expanded.pt")  # by the README's session, which runs in this folder
    found = {path for pattern in ("*.pt", "*.safetensors") for path in FOLDER.glob(pattern)}
    files = {path for path in found if not path.name.endswith(made)}
    assert {path.name for path in files} == {sample.file for sample in models.SAMPLES.values()}
    assert sum(path.stat().st_size for path in files) < 3_000_000


@pytest.mark.parametrize("name", models.SAMPLES)
def test_build_fits_the_file(name):
    built = models.SAMPLES[name].build()
    assert not built.training
    expected = {key: (value.shape, value.dtype) for key, value in built.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in state_dict(name).items()} == expected


def test_each_file_keeps_its_peculiarity():
    conv = contents("conv")
    assert set(conv) == {"epoch", "state_dict", "args"}
    assert conv["args"]["augment"] == ["shift"]
    assert conv["state_dict"]["bn1.num_batches_tracked"].dtype == torch.int64
    assert conv["state_dict"]["bn1.num_batches_tracked"] > 0
    assert contents("gru")["vocabulary"] == models.VOCABULARY
    transformer = contents("transformer")
    assert {value.dtype for value in transformer.values()} == {torch.bfloat16}
    assert transformer["embedding.weight"].data_ptr() == transformer["output.weight"].data_ptr()


def test_weights_have_the_structure_the_readme_names():
    energies = torch.linalg.svdvals(state_dict("mlp")["fc2.weight"]).square().cumsum(0)
    assert energies[2] < energies[-1] / 2 < energies[3]
    kernels = state_dict("conv")["conv3.weight"]
    neighbours = (kernels[..., 1:] * kernels[..., :-1]).mean() / kernels.square().mean()
    assert neighbours == pytest.approx(0.49, abs=0.005)


@pytest.mark.parametrize("name", DIGITS)
def test_accuracy_is_what_the_readme_says(name):
    """One image may lie on the border between two digits and fall with the CPU's rounding; four decimals are given."""
    pytest.importorskip("sklearn")
    n_images = len(models.digits(held_out=True)[1])
    accuracy = models.digits_accuracy(models.load(name))
    assert accuracy == pytest.approx(described(name)[2], rel=0, abs=1 / n_images + 0.5e-4)
    assert accuracy >= 0.97
    assert models.digits_accuracy(models.SAMPLES[name].build()) < 0.5


@pytest.mark.parametrize("name", TOPICS)
def test_bits_are_what_the_readme_says(name):
    """On the same text only rounding differs; on another Python's text, the sample of paragraphs does.

    Rounding: a logit is a sum of at most 512 products, so float32 leaves it about eps * sqrt(512) of its size (under
    50) in each of fewer than 16 layers; a bit is log 2 nats, and four decimals are given.
    Other text: both means have the standard error of their windows; five of the difference. The text changes less
    than that: from Python 3.11 to 3.13 the means lie within 0.03.
    """
    bits = models.window_bits(models.load(name))
    held_out = bytes(models.topics_symbols(held_out=True).tolist())
    if zlib.crc32(held_out) == SYMBOLS_CRC:
        tolerance = torch.finfo(torch.float32).eps * math.sqrt(512) * 50 * 16 / math.log(2) + 0.5e-4
    else:
        tolerance = 5 * math.sqrt(2) * bits.std().item() / math.sqrt(len(bits))
    assert bits.mean().item() == pytest.approx(described(name)[2], rel=0, abs=tolerance)
    assert models.topics_bits(models.SAMPLES[name].build()) > 0.9 * math.log2(len(models.VOCABULARY))


@pytest.mark.parametrize("name", models.SAMPLES)
def test_calibration_batches_are_training_inputs(name):
    if name in DIGITS:
        pytest.importorskip("sklearn")
        known = {tuple(image.flatten().tolist()) for image in models.digits(held_out=False)[0]}
        unseen = {tuple(image.flatten().tolist()) for image in models.digits(held_out=True)[0]}
    else:
        known = {tuple(window.tolist()) for window in models.windows(models.topics_symbols(held_out=False))[0]}
        unseen = {tuple(window.tolist()) for window in models.windows(models.topics_symbols(held_out=True))[0]}
    batches = models.SAMPLES[name].batches()
    items = {tuple(item.flatten().tolist()) for batch in batches for item in batch}
    assert len(batches) == 8
    assert items <= known
    assert not items & unseen
    with torch.no_grad():
        assert len(models.load(name)(batches[0])) == len(batches[0])


@pytest.mark.parametrize("name", models.SAMPLES)
def test_training_code_makes_such_a_file(name, tmp_path, monkeypatch):
    """A dozen steps, enough to see that the code runs and the file has the form of the committed one."""
    if name in DIGITS:
        pytest.importorskip("sklearn")
    train = make.TRAIN[name]
    monkeypatch.setitem(make.TRAIN, name, lambda: train(n_steps=12))
    with torch.random.fork_rng():
        row = make.make(name, tmp_path)
    made = torch.load(tmp_path / models.SAMPLES[name].file, weights_only=True)
    assert list(made) == list(contents(name))
    assert row.startswith(f"| `{models.SAMPLES[name].file}` | {described(name)[0]:,} |")
