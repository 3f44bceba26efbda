"""Limits and figures mean what they say, also of tied names, of weights that were quantised before, and in numbers
that are too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gaussian
from torch import nn
from typer.testing import CliRunner

import paramcompress
from paramcompress.cli import app
from paramcompress.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("empty_folder")
FILE = "m.squeezed.safetensors"


def squeezed(tensors: dict[str, torch.Tensor], **options: Any) -> dict[str, float]:
    """Relative errors by name."""
    report = paramcompress.squeeze(tensors, FILE, force=True, **options)
    return {one.name: one.rel_error for one in report.layers}


@pytest.mark.parametrize("first", [True, False])
def test_what_is_said_of_one_name_holds_for_all_of_a_tied_weight(first: bool, rng: np.random.Generator) -> None:
    w = gaussian(rng, 50, 60)
    tied = {"emb": w, "head": w} if first else {"head": w, "emb": w}
    tensors = {**tied, "fc": gaussian(rng, 50, 60)}
    for options in ({"exclude": ["head"]}, {"include": ["fc"]}, {"layers": {"head": {"exact": True}}}):
        errors = squeezed(tensors, **options)
        assert errors["fc"] > 0
        assert errors["emb"] == errors["head"] == 0, options
        found = paramcompress.load_file(FILE)
        assert torch.equal(found["head"], w)
        assert torch.equal(found["emb"], w)
    errors = squeezed(tensors, include=["head"])
    assert errors["fc"] == 0 < errors["emb"] == errors["head"]
    errors = squeezed(tensors, layers={"head": {"max_rel_error": 0.001}})
    assert 0 < errors["emb"] == errors["head"] <= 0.001 < errors["fc"]
    errors = squeezed(tensors, layers={"*": {"max_rel_error": 0.1}, "head": {"max_rel_error": 0.01}})
    assert errors["emb"] <= 0.01, "an exact name, though only of one of the two, beats a pattern"


def quantised(kind: str, rng: np.random.Generator) -> torch.Tensor:
    w = gaussian(rng, 400, 400)
    if kind == "binary":
        return w.sign() * 0.1
    if kind == "pruned":
        return w * (w.abs() > 2.6)
    if kind == "bfloat16":
        return w.bfloat16().float()
    return (w * 30).round() / 30


@pytest.mark.parametrize("kind", ["binary", "pruned", "bfloat16", "integers"])
def test_what_takes_fewer_bytes_exact_is_kept_exact(kind: str, rng: np.random.Generator) -> None:
    tensors = {"w": quantised(kind, rng)}
    exact = paramcompress.squeeze(tensors, FILE, max_rel_error=0).bytes_after
    n_lossy = 0
    for limit in (1e-5, 1e-4, 1e-3, 1e-2, 0.1):
        report = paramcompress.squeeze(tensors, FILE, max_rel_error=limit, force=True)
        assert report.bytes_after <= exact + 64
        assert report.bytes_after < exact or report.layers[0].rel_error == 0
        n_lossy += report.layers[0].rel_error > 0
    assert n_lossy, "more error still saves bytes"
    report = paramcompress.squeeze(tensors, FILE, target_size=exact + 200, force=True)
    assert report.layers[0].rel_error == 0


def test_a_layer_kept_exactly_saves_no_more_than_it_takes(rng: np.random.Generator) -> None:
    squeezed({"bn": torch.rand(16), "w": gaussian(rng, 60, 60)}, layers={"w": {"exact": True}})
    for name in ("bn", "w"):
        found = paramcompress.explain(FILE, name)
        assert [one.bytes for one in found.choices] == [found.layer.bytes_after]


def test_a_layer_coded_without_error_is_weighed_against_exact_bytes_only() -> None:
    squeezed({"w": 0.125 * (torch.rand(100, 120, generator=torch.Generator().manual_seed(0)) < 0.01)})
    found = paramcompress.explain(FILE, "w")
    assert found.layer.rel_error == 0
    assert {one.dictionary: one.bytes for one in found.choices}["none"] == found.layer.bytes_after
    assert len(found.choices) == 2
    assert not found.useless
    assert not found.relaxed


def test_with_the_original_the_choice_in_the_file_has_its_bytes(rng: np.random.Generator) -> None:
    tensors = {"w": gaussian(rng, 60, 80)}
    torch.save(tensors, "m.pt")
    squeezed(tensors)
    found = paramcompress.explain(FILE, "w", "m.pt")
    used = next(one for one in found.choices if one.dictionary == found.layer.dictionary)
    assert used.bytes == found.layer.bytes_after


def test_a_limit_between_the_digits_that_are_stated_says_so(rng: np.random.Generator) -> None:
    tensors = {"w": gaussian(rng, 60, 80)}
    torch.save(tensors, "m.pt")
    stated = squeezed(tensors)["w"]
    Path("paramcompress.toml").write_text(f'[[check]]\npath = "{FILE}"\nmax_rel_error = {stated * 0.9995}\n')
    finding = paramcompress.check().files[0].findings[0]
    assert "rounded up to three digits" in finding.hint
    Path("paramcompress.toml").write_text(f'[[check]]\npath = "{FILE}"\nmax_rel_error = {stated / 2}\n')
    assert "rounded" not in paramcompress.check().files[0].findings[0].hint


def test_errors_that_were_only_read_are_not_said_to_be_measured(rng: np.random.Generator) -> None:
    tensors = {"w": gaussian(rng, 60, 80)}
    torch.save(tensors, "m.pt")
    squeezed(tensors)
    said = [CliRunner().invoke(app, ["verify", "-v", FILE, *more]).output for more in ([], ["m.pt"])]
    assert ["measured on the decoded file" in one for one in said] == [False, True]


@pytest.mark.parametrize("option", [("--bits-per-weight", "1e308"), ("--seed", str(2**63 - 1))])
def test_large_numbers_are_no_crash(option: tuple[str, str], rng: np.random.Generator) -> None:
    torch.save({"w": gaussian(rng, 30, 40)}, "m.pt")
    assert CliRunner().invoke(app, ["squeeze", "m.pt", *option]).exit_code == 0


def test_a_seed_that_torch_has_no_room_for_is_refused() -> None:
    torch.save({"w": torch.ones(3)}, "m.pt")
    assert CliRunner().invoke(app, ["squeeze", "m.pt", "--seed", str(2**63)]).exit_code == 2
    Path("c.toml").write_text(f"seed = {2**64}\n")
    result = CliRunner().invoke(app, ["squeeze", "m.pt", "--config", "c.toml"])
    assert result.exit_code == 2


def test_a_module_on_the_meta_device_is_filled(rng: np.random.Generator) -> None:
    state = {"weight": gaussian(rng, 30, 40), "bias": gaussian(rng, 30)}
    squeezed(state)
    with torch.device("meta"):
        model = nn.Linear(40, 30)
    paramcompress.load_into(model, FILE)
    assert torch.equal(model.weight, paramcompress.load_file(FILE)["weight"])
    assert model(torch.ones(40)).isfinite().all()


def test_a_module_in_place_of_its_tensors_is_told_so() -> None:
    with pytest.raises(CheckpointError, match="found the module Linear") as caught:
        paramcompress.squeeze(nn.Linear(3, 3), FILE)  # type: ignore[arg-type]
    assert caught.value.hint == "pass model.state_dict()"
