"""Two files compared: every kind of change, figures against a plain oracle, any mix of plain and squeezed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gaussian
from rich.cells import cell_len
from safetensors.torch import save_file
from torch import Tensor

import paramcompress
from paramcompress import difference_page, metrics
from paramcompress.records import Difference, LayerDifference


def save(path: Path, **tensors: Tensor) -> Path:
    torch.save({name.replace("_", "."): tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def both(rng: np.random.Generator, tmp_path: Path) -> tuple[Path, Path]:
    """An old and a new file with one layer of each change."""
    same, moved, wide = gaussian(rng, 8, 8), gaussian(rng, 6, 9), gaussian(rng, 4, 4)
    old = save(
        tmp_path / "old.pt", same=same, small_w=wide, large_w=wide, moved_here=moved, gone=gaussian(rng, 3),
        shape=gaussian(rng, 4, 2), type=gaussian(rng, 5, 5), odd=torch.tensor([1.0, math.nan]),
        zero=torch.zeros(3), count=torch.tensor([1, 2, 3]),
    )  # fmt: skip
    new = save(
        tmp_path / "new.pt", same=same, small_w=wide * 1.01, large_w=-2 * wide, moved_there=moved,
        come=gaussian(rng, 3), shape=gaussian(rng, 4, 3), type=torch.load(old)["type"].half(),
        odd=torch.tensor([2.0, math.nan]),
        zero=torch.ones(3), count=torch.tensor([1, 2, 5]),
    )  # fmt: skip
    return old, new


def by_name(difference: Difference) -> dict[str, LayerDifference]:
    return {layer.name: layer for layer in difference.layers}


def test_every_kind_of_change(both: tuple[Path, Path]) -> None:
    difference = paramcompress.diff(*both)
    found = by_name(difference)
    assert {name: layer.change for name, layer in found.items()} == {
        "gone": "removed", "come": "added", "shape": "reshaped", "type": "retyped", "moved.there": "renamed",
        "odd": "changed", "zero": "changed", "large.w": "changed", "small.w": "changed", "count": "changed",
        "same": "same",
    }  # fmt: skip
    assert found["moved.there"].old_name == "moved.here"
    assert (found["shape"].old_shape, found["shape"].new_shape) == ((4, 2), (4, 3))
    assert (found["type"].old_dtype, found["type"].new_dtype) == ("float32", "float16")
    assert 0 < (found["type"].rel_change or 0) < 1e-3
    assert (found["gone"].new_shape, found["gone"].new_bytes, found["gone"].old_bytes) == (None, 0, 12)
    assert (difference.old_bytes, difference.new_bytes) == tuple(path.stat().st_size for path in both)


def test_what_many_layers_have_is_renamed_only_with_its_last_word(tmp_path: Path) -> None:
    """And to the name that is most alike."""
    ones, empty = torch.ones(4), torch.empty(0)
    old = {
        "a.1.norm.weight": ones,
        "a.2.norm.weight": ones * 1,
        "fc.bias": ones * 0,
        "mask": empty,
        "steps": torch.tensor(3),
    }
    new = {
        "b.2.norm.weight": ones,
        "b.1.norm.weight": ones * 1,
        "other.scale": ones * 0,
        "cache": empty,
        "seed": torch.tensor(3),
    }
    found = by_name(paramcompress.diff(save(tmp_path / "a.pt", **old), save(tmp_path / "b.pt", **new)))
    assert {layer.old_name: name for name, layer in found.items() if layer.change == "renamed"} == {
        "a.1.norm.weight": "b.1.norm.weight",
        "a.2.norm.weight": "b.2.norm.weight",
    }
    assert {name for name, layer in found.items() if layer.change == "added"} == {"other.scale", "cache", "seed"}


def test_the_figures(both: tuple[Path, Path]) -> None:
    found = by_name(paramcompress.diff(*both))
    assert found["small.w"].rel_change == pytest.approx(0.01, rel=1e-5)
    assert found["small.w"].cosine == pytest.approx(1)
    assert found["large.w"].rel_change == pytest.approx(3)
    assert found["large.w"].cosine == pytest.approx(-1)
    assert found["large.w"].max_abs_change == pytest.approx(3 * float(torch.load(both[0])["large.w"].abs().max()))
    assert found["count"].max_abs_change == 2
    assert found["count"].rel_change == pytest.approx(2 / math.sqrt(14))
    assert (found["same"].rel_change, found["same"].max_abs_change) == (0.0, 0.0)
    nothing_to_say = found["odd"], found["gone"], found["shape"]
    assert {(one.rel_change, one.cosine, one.max_abs_change) for one in nothing_to_say} == {(None, None, None)}
    assert (found["zero"].rel_change, found["zero"].cosine, found["zero"].max_abs_change) == (None, None, 1.0)


def test_what_matters_stands_first(both: tuple[Path, Path]) -> None:
    layers = paramcompress.diff(*both).layers
    assert [layer.change for layer in layers][:5] == ["removed", "added", "reshaped", "retyped", "renamed"]
    changed = [layer.rel_change for layer in layers if layer.change == "changed" and layer.rel_change is not None]
    assert changed == sorted(changed, reverse=True)
    assert layers[-1].change == "same"


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_cosine_against_numpy(rng: np.random.Generator, scale: float) -> None:
    a, b = gaussian(rng, 30, 7), gaussian(rng, 30, 7)
    x, y = (one.double().numpy().ravel() for one in (a, b))
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert metrics.cosine(a * scale, b) == pytest.approx(expected, abs=1e-6)
    assert metrics.cosine(a, torch.zeros(30, 7)) is None
    assert metrics.cosine(torch.empty(0), torch.empty(0)) is None
    with pytest.raises(ValueError, match="shapes"):
        metrics.cosine(a, b[1:])


def test_any_mix_of_plain_and_squeezed(rng: np.random.Generator, tmp_path: Path) -> None:
    state = {"fc.weight": gaussian(rng, 40, 40), "fc.bias": gaussian(rng, 40)}
    torch.save({"state_dict": state}, tmp_path / "m.pt")
    save_file(state, tmp_path / "m.safetensors")
    report = paramcompress.squeeze(tmp_path / "m.pt", tmp_path / "m.sq", max_rel_error=0.05)
    error = report.layers[0].rel_error
    for plain in ("m.pt", "m.safetensors"):
        to, back = (
            paramcompress.diff(tmp_path / plain, tmp_path / "m.sq"),
            paramcompress.diff(tmp_path / "m.sq", tmp_path / plain),
        )
        assert by_name(to)["fc.weight"].rel_change == pytest.approx(error, rel=1e-9)
        assert by_name(to)["fc.bias"].change == "same"
        assert (
            by_name(to)["fc.weight"].new_bytes == by_name(back)["fc.weight"].old_bytes == report.layers[0].bytes_after
        )
    assert {one.change for one in paramcompress.diff(tmp_path / "m.pt", tmp_path / "m.safetensors").layers} == {"same"}
    assert {one.change for one in paramcompress.diff(tmp_path / "m.sq", tmp_path / "m.sq").layers} == {"same"}


@pytest.mark.parametrize("dtype", ["bool", "int64", "complex64", "bfloat16", "float8_e4m3fn", "float64"])
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    old = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).to(getattr(torch, dtype))
    save(tmp_path / "a.pt", w=old)
    save(tmp_path / "b.pt", w=old.flip(0))
    (layer,) = paramcompress.diff(tmp_path / "a.pt", tmp_path / "b.pt").layers
    assert (layer.rel_change, layer.cosine, layer.max_abs_change) == (pytest.approx(math.sqrt(2)), 0.0, 1.0)


def test_one_tensor_of_each_file_at_a_time(both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from paramcompress.checkpoint import Checkpoint

    alive: list[weakref.ref[Tensor]] = []
    most = 0
    load = Checkpoint.load

    def counted(self: Checkpoint, name: str) -> Tensor:
        nonlocal most
        tensor = load(self, name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in alive))
        return tensor

    monkeypatch.setattr(Checkpoint, "load", counted)
    paramcompress.diff(*both)
    assert most == 2


# ---- the page


def plain(difference: Difference, **options: Any) -> list[str]:
    return [line.plain for line in difference_page.render(difference, **{"width": 80, **options})]


@pytest.mark.parametrize("width", [60, 80])
def test_the_page_fits(both: tuple[Path, Path], width: int) -> None:
    lines = plain(paramcompress.diff(*both), width=width)
    assert max(map(cell_len, lines[:12])) <= width
    assert "moved.here is now moved.there" in lines
    assert "+ 1 layer is the same bit for bit" in lines
    assert lines[-1].endswith("; 1 removed, 1 added, 1 reshaped, 1 retyped, 1 renamed, 5 changed")
    assert any(line.startswith("same") for line in plain(paramcompress.diff(*both), width=width, verbose=True))


def test_nothing_changed(both: tuple[Path, Path]) -> None:
    lines = plain(paramcompress.diff(both[0], both[0]))
    assert lines[0] == "10 layers are the same bit for bit"
    assert lines[1].endswith("nothing changed")


def test_json_holds_no_nan(both: tuple[Path, Path]) -> None:
    found = json.loads(difference_page.to_json(paramcompress.diff(*both)))
    assert found["schema"] == 1
    assert len(found["layers"]) == 11
