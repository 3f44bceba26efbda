"""Files of second moments from a stranger: only the package's own errors, nothing large allocated, every promise kept.

That honest ones come back from their file is in test_calibration.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forging import safetensors_bytes
from helpers import gaussian
from reading import measured, outcome
from test_cli import run
from torch import nn

import paramcompress
from paramcompress import moments as room
from paramcompress.calibration import calibrate
from paramcompress.checkpoint import Checkpoint
from paramcompress.codec import Layout
from paramcompress.entropy import Scales, pack
from paramcompress.errors import CalibrationError, CheckpointError
from paramcompress.feedback import Feeding, Worth, quantize_in_metric
from paramcompress.fit import EFFORTS
from paramcompress.metric_fit import MetricFit
from paramcompress.metric_space import Metric
from paramcompress.moments import Moment, SecondMoments
from paramcompress.prices import cost_table
from paramcompress.trellis import TRELLISES

NAME = "1.weight"
"""Of a convolution in two groups: (4, 2, 3), a matrix (6, 6) for each group."""


class Stats:
    """A file of second moments taken apart, to be put together again with something wrong."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        self.path, self.model = measured(folder, rng)
        content = self.path.read_bytes()
        n_header = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + n_header])
        self.about: Any = json.loads(header.pop("__metadata__")[room._KEY])
        self.tensors = {
            name: np.frombuffer(content[8 + n_header :][slice(*one["data_offsets"])], "<f4")
            .reshape(one["shape"])
            .copy()
            for name, one in header.items()
        }

    def write(self, about: str | None = None) -> Path:
        header: dict[str, Any] = {"__metadata__": {room._KEY: json.dumps(self.about) if about is None else about}}
        dtypes = {"<f8": "F64", "<f4": "F32", "|u1": "U8", "<i4": "I32", "<c8": "C64"}
        at = 0
        for name, values in self.tensors.items():
            offsets = [at, at := at + values.nbytes]
            header[name] = {"dtype": dtypes[values.dtype.str], "shape": list(values.shape), "data_offsets": offsets}
        self.path.write_bytes(safetensors_bytes(header, b"".join(one.tobytes() for one in self.tensors.values())))
        return self.path

    @property
    def columns(self) -> np.ndarray:
        return self.tensors[f"{NAME}.columns"]


@pytest.fixture
def stats(tmp_path: Path, rng: np.random.Generator) -> Stats:
    return Stats(tmp_path, rng)


def squeezed(weight: torch.Tensor, moment: Moment, folder: Path, **target: Any) -> paramcompress.Report:
    """Report of one weight, squeezed by a file with its moments, and verified."""
    SecondMoments({"w": moment}, {"w": tuple(weight.shape)}).save(folder / "stats")
    return paramcompress.squeeze({"w": weight}, folder / "out", stats=folder / "stats", force=True, **target)


def test_the_control_an_honest_file_is_read(stats: Stats) -> None:
    loaded = SecondMoments.load(stats.write())
    assert loaded.shapes.keys() == {"0.weight", "1.weight", "3.weight"}
    assert [one.columns.ndim for one in loaded.layers.values()] == [2, 3, 2]


@pytest.mark.parametrize("shape", [(4, 0), (0, 4), (1, 1)])
def test_weights_of_little(shape: tuple[int, int], tmp_path: Path) -> None:
    n_rows, n_columns = shape
    moment = Moment(np.zeros((1, n_columns, n_columns)), np.ones(n_rows))
    SecondMoments({"w": moment}, {"w": shape}).save(tmp_path / "stats")
    assert SecondMoments.load(tmp_path / "stats").layers["w"].columns.shape == (1, n_columns, n_columns)


# ------------------------------------------------------------------------------------------- what is wrong in it

ABOUT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda about: about.update(version=2),
    "a version that is true": lambda about: about.update(version=True),
    "no version": lambda about: about.pop("version"),
    "shapes in a list": lambda about: about.update(shapes=[[4, 2, 3]]),
    "a shape that is a number": lambda about: about["shapes"].update({NAME: 24}),
    "a shape of texts": lambda about: about["shapes"].update({NAME: "423"}),
    "a negative size": lambda about: about["shapes"].update({NAME: [-4, 2, 3]}),
    "a size that is half": lambda about: about["shapes"].update({NAME: [4, 2, 3.5]}),
    "petabytes": lambda about: about["shapes"].update({NAME: [1 << 40, 1 << 40]}),
    "axes without end": lambda about: about["shapes"].update({NAME: [1] * 10**5 + [4, 2, 3]}),
    "a weight without moments": lambda about: about["shapes"].update(more=[3, 3]),
    "NaN for a sensitivity": lambda about: about["vectors"].update({"1.bias": float("nan")}),
    "a negative sensitivity": lambda about: about["vectors"].update({"1.bias": -1.0}),
    "a sensitivity that is a text": lambda about: about["vectors"].update({"1.bias": "much"}),
    "a sensitivity that is a list": lambda about: about["vectors"].update({"1.bias": []}),
    "batches that are a text": lambda about: about.update(n_batches="1"),
    "notes of numbers": lambda about: about.update(notes=[5]),
    "notes that are a number": lambda about: about.update(notes=5),
}


@pytest.mark.parametrize("kind", ABOUT)
def test_descriptions_that_make_no_sense(kind: str, stats: Stats) -> None:
    ABOUT[kind](stats.about)
    with pytest.raises(CalibrationError) as caught:
        SecondMoments.load(stats.write())
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"x"', '{"version": 1}', "[" * 10**5, '{"a":' * 10**5])
def test_regression_a_description_that_is_none(text: str, stats: Stats) -> None:
    """Nested deeply it was RecursionError, exit 70."""
    with pytest.raises(CalibrationError, match="found no second moments"):
        SecondMoments.load(stats.write(text))


@pytest.mark.parametrize("place", ["shapes", "vectors", "n_batches"])
def test_regression_numbers_of_a_description_without_end(place: str, stats: Stats) -> None:
    """Were OverflowError, exit 70."""
    for text in ("Infinity", "1e999", *(["1" + "0" * 400] if place == "vectors" else [])):
        about = json.dumps(stats.about | {place: "HERE" if place == "n_batches" else {NAME: "HERE"}})
        with pytest.raises(CalibrationError):
            SecondMoments.load(stats.write(about.replace('"HERE"', f"[{text}]" if place == "shapes" else text)))


TENSORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "integers": lambda columns: columns.astype("<i4"),
    "bytes": lambda columns: columns.astype("|u1"),
    "complex numbers": lambda columns: columns.astype("<c8"),
    "float64, which says more than is written": lambda columns: columns.astype("<f8"),
    "one group too many": lambda columns: np.concatenate([columns, columns[:1]]),
    "no group": lambda columns: columns[:0],
    "another matrix": lambda columns: columns[:, :5, :5],
    "no square": lambda columns: columns[:, :5],
    "a number": lambda columns: columns[0, 0, 0],
    "an axis more": lambda columns: columns[None],
    "narrow diagonals of several groups": lambda columns: np.einsum("gjj->gj", columns),
}


@pytest.mark.parametrize("part", ["columns", "gauss_newton"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit(kind: str, part: str, stats: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is read: as matrices, a diagonal for every row would take many times the file's size."""
    stats.tensors[f"{NAME}.{part}"] = np.ascontiguousarray(TENSORS[kind](stats.tensors[f"{NAME}.{part}"]))
    monkeypatch.setattr(Checkpoint, "load", lambda *_: pytest.fail("was read"))
    with pytest.raises(CalibrationError, match=r"the moments of '1\.weight' do not fit its shape \(4, 2, 3\)"):
        SecondMoments.load(stats.write())


@pytest.mark.parametrize("part", ["rows", "sensitivity"])
def test_rows_that_do_not_fit(part: str, stats: Stats) -> None:
    stats.tensors[f"{NAME}.{part}"] = np.ones(5, "<f4")
    with pytest.raises(CalibrationError, match="do not fit its shape"):
        SecondMoments.load(stats.write())


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 2), (4, 1, 1), (2, 2, 3), (2, 3, 2)])
def test_couplings_that_do_not_fit(shape: tuple[int, ...], stats: Stats) -> None:
    """Four rows in two groups: two runs of two rows."""
    assert stats.tensors[f"{NAME}.coupling"].shape == (2, 2, 2)
    stats.tensors[f"{NAME}.coupling"] = np.ones(shape, "<f4")
    with pytest.raises(CalibrationError, match="do not fit its shape"):
        SecondMoments.load(stats.write())


@pytest.mark.parametrize("noise", [[-0.1, 0.1], [0.1, 1.1], [np.nan, 0.1], [0.1], [[0.1, 0.1]]], ids=str)
@pytest.mark.parametrize("part", ["noise", "mean_free_noise", "gauss_newton_noise"])
def test_noise_that_is_no_share(part: str, noise: list[float], stats: Stats) -> None:
    assert f"{NAME}.{part}" in stats.tensors
    stats.tensors[f"{NAME}.{part}"] = np.array(noise, np.float32)
    with pytest.raises(CalibrationError, match=r"do not fit|no means of squares"):
        SecondMoments.load(stats.write())


@pytest.mark.parametrize("part", ["noise", "gauss_newton", "gauss_newton_noise"])
def test_what_no_diagonal_has_is_refused(part: str, stats: Stats) -> None:
    columns, found = np.ones((1, 6), np.float32), stats.tensors[f"{NAME}.{part}"]
    stats.tensors = {f"{NAME}.{word}": stats.tensors[f"{NAME}.{word}"] for word in ("rows", "sensitivity")}
    stats.tensors[f"{NAME}.columns"] = columns
    stats.about |= {"shapes": {NAME: stats.about["shapes"][NAME]}}
    SecondMoments.load(stats.write())
    stats.tensors[f"{NAME}.{part}"] = columns if part == "gauss_newton" else found[:1]
    with pytest.raises(CalibrationError, match="do not fit"):
        SecondMoments.load(stats.write())


@pytest.mark.parametrize("part", ["columns", "rows"])
def test_moments_that_are_missing(part: str, stats: Stats) -> None:
    del stats.tensors[f"{NAME}.{part}"]
    with pytest.raises(CalibrationError, match="found no second moments"):
        SecondMoments.load(stats.write())


def test_tensors_that_nobody_asked_for_are_not_read(stats: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    stats.tensors["more"] = np.zeros(1000, "|u1")
    read, load = [], Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self, name: read.append(name) or load(self, name))
    SecondMoments.load(stats.write())
    assert sorted(read) == sorted(stats.tensors.keys() - {"more"})


def indefinite(columns: np.ndarray) -> np.ndarray:
    """Symmetric, its diagonal positive, no entry larger than the diagonal allows: 3 of them with -1 beside them."""
    return np.broadcast_to(2 * np.eye(6) - np.ones((6, 6)), columns.shape)


VALUES: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "NaN beside the diagonal": ("columns", lambda one: np.where(one == one[0, 0, 1], np.nan, one)),
    "Inf in it": ("columns", lambda one: one + np.diag([np.inf, 0, 0, 0, 0, 0])),
    "a negative square": ("columns", lambda one: one - 3 * np.diag(one[0, 0])),
    "no symmetry": ("columns", lambda one: one + np.triu(np.ones((6, 6)), 1)),
    "not definite": ("columns", indefinite),
    "something beside zeros": ("columns", lambda one: one * (1 - np.eye(6))),
    "a row that is used less than never": ("rows", lambda one: -one),
    "a row that is used NaN times": ("rows", lambda one: one * np.nan),
    "a row that is used without end": ("rows", lambda one: one * np.inf),
    "negative heed": ("sensitivity", lambda one: -one),
    "NaN for heed": ("sensitivity", lambda one: one * np.nan),
    "gradients that are NaN": ("gauss_newton", lambda one: one * np.nan),
    "negative squares of gradients": ("gauss_newton", lambda one: one - 3 * np.diag(one[0, 0])),
    "gradients that are alike one way": ("gauss_newton", lambda one: one + np.triu(np.ones((6, 6)), 1)),
    "gradients that are not definite": ("gauss_newton", indefinite),
    "rows that are coupled NaN": ("coupling", lambda one: one * np.nan),
    "a row that is unlike itself": ("coupling", lambda one: one * 0.9),
    "rows more alike than the same": ("coupling", lambda one: one + 2 * (1 - np.eye(2))),
    "rows alike one way": ("mean_free_coupling", lambda one: one + np.triu(np.ones((2, 2)), 1)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_regression_numbers_that_are_no_means_of_squares(kind: str, stats: Stats) -> None:
    """Matrices that are not positive ended squeezing as a bug, exit 70; NaN and Inf were heeded."""
    part, change = VALUES[kind]
    with np.errstate(invalid="ignore"):
        stats.tensors[f"{NAME}.{part}"] = np.ascontiguousarray(change(stats.tensors[f"{NAME}.{part}"]), "<f4")
    with pytest.raises(CalibrationError, match=r"the moments of '1\.weight' are no means of squares"):
        SecondMoments.load(stats.write())


def test_a_damaged_file(stats: Stats) -> None:
    """Cut short anywhere, or longer; claims of petabytes; no file of moments at all."""
    content = stats.path.read_bytes()
    for n in [*range(0, len(content), 37), len(content) - 1]:
        stats.path.write_bytes(content[:n])
        assert outcome(lambda: SecondMoments.load(stats.path)) == "CheckpointError", n
    stats.path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        SecondMoments.load(stats.path)
    huge = {"w.columns": {"dtype": "F32", "shape": [1, 1 << 24, 1 << 24], "data_offsets": [0, 1 << 50]}}
    stats.path.write_bytes(safetensors_bytes(huge, b""))
    with pytest.raises(CheckpointError):
        SecondMoments.load(stats.path)


def test_the_command_says_so_in_one_line(stats: Stats, tmp_path: Path) -> None:
    torch.save(dict(stats.model), tmp_path / "model.pt")
    squeeze = ["squeeze", str(tmp_path / "model.pt"), "-o", str(tmp_path / "out"), "--stats", str(stats.path)]
    stats.columns[0, 0, 0] = -1
    for write, code in ((stats.write, 2), (lambda: stats.path.write_bytes(b"PK"), 3)):
        write()
        result = run(*squeeze)
        assert (result.exit_code, result.stderr.count("error:")) == (code, 1)
        assert not (tmp_path / "out").exists()


def test_names_stay_in_one_line() -> None:
    moments = SecondMoments({}, {"a\nb": (2, 2)})
    with pytest.raises(CalibrationError) as caught:
        moments.check({}, "model.pt")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- what honest ones may be

TARGETS = ({"max_output_error": 0.1}, {"max_rel_error": 0.1}, {"target_size": 2500})


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("kind", ["inputs all zero", "inputs all equal", "rows never used", "nothing is heeded"])
def test_moments_of_little_are_heeded(
    kind: str, target: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    """What a dead layer or constant inputs give: every limit holds, which `squeeze` itself verifies."""
    x, rows = rng.standard_normal((200, 24)), np.ones(32)
    columns = {"inputs all zero": np.zeros((24, 24)), "inputs all equal": np.ones((24, 24))}.get(kind, x.T @ x / 200)
    rows = rows * (kind != "rows never used")
    sensitivity = np.zeros(32) if kind == "nothing is heeded" else None
    squeezed(gaussian(rng, 32, 24), Moment(columns[None], rows, sensitivity), tmp_path, effort="fast", **target)


def test_regression_where_no_factors_keep_the_output_a_layer_is_exact(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Was VerificationError: the layer was held to a limit on its weights instead."""
    monkeypatch.setattr("paramcompress.calibrated._highest_price", lambda *_: None)
    moment = Moment(np.ones((1, 24, 24)) + 1e-9 * np.eye(24), np.ones(32))
    weight = gaussian(rng, 32, 24)
    weight -= weight.mean(1, keepdim=True)  # the inputs see next to nothing of it
    report = squeezed(weight, moment, tmp_path, max_output_error=0.1)
    assert report.layers[0].codec == "exact"


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.01), ("bfloat16", 0.002), ("float8_e4m3fn", 0.05)])
def test_regression_limits_on_the_output_hold_in_half_types(
    dtype: str, limit: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Was VerificationError: the limit was held before the weights were rounded to their dtype."""
    x = rng.standard_normal((200, 48))
    moment = Moment((x.T @ x / 200)[None], np.ones(64))
    report = squeezed(gaussian(rng, 64, 48, dtype=dtype), moment, tmp_path, max_output_error=limit)
    assert report.layers[0].codec == "factored"
    assert 0.9 * limit < (report.layers[0].output_error or 0) <= limit


def test_regression_gradients_that_are_not_finite() -> None:
    """Were heeded as NaN, which no decomposition takes."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(torch.sqrt(0 * self.first(x)))
            return found

    found = calibrate(Root(), [torch.ones(3, 4)])
    assert found.layers["first.weight"].sensitivity is None
    assert found.layers["last.weight"].sensitivity is not None
    assert any("first.weight" in note and "not finite" in note for note in found.notes)
    assert "first.bias" not in found.vectors


# ------------------------------------------------------------------------------------------- numbers beyond all use


@pytest.mark.parametrize("price", [1e-30, 1e-60, 1e-100])
def test_regression_no_step_is_finer_than_float32(price: float, rng: np.random.Generator) -> None:
    """Were numbers of 1e20 steps, which 32 bits do not hold: EncodeError, or any weights at all."""
    weight, x = gaussian(rng, 32, 24).numpy(), rng.standard_normal((200, 24))
    fit = MetricFit(weight, Layout.of(weight.shape), Metric(np.ones(32), (x.T @ x / 200)[None]), EFFORTS["fast"])
    assert np.abs(fit.at(price).reconstruct() - weight).max() < 1e-6 * np.abs(weight).max()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e37])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_sensitivities_beyond_all_use(
    scale: float, target: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    x = rng.standard_normal((200, 24))
    moment = Moment((x.T @ x / 200)[None], np.ones(32), scale * np.ones(32))
    found = outcome(lambda: squeezed(gaussian(rng, 32, 24), moment, tmp_path, effort="fast", **target))
    assert found in ("", "BudgetError")


def test_regression_costs_beyond_1e30_stay_on_the_trellis(rng: np.random.Generator) -> None:
    """Was a path read from memory that nobody had written, and indices from it: no cost was below 1e30."""
    x = 1000 * rng.standard_normal((6, 5))
    scales = Scales(20, np.zeros(5, np.int16), np.zeros(6, np.int16))
    trellis = TRELLISES[8]
    worth = Worth(np.full(5, 1e33), [Feeding(np.eye(6)[None])])
    points = quantize_in_metric(x, scales, trellis, cost_table(), worth, 1)
    pack(points, scales, trellis, by_row=True)  # refuses a point that the trellis does not allow
    assert np.abs(points - 2 * x).max() < 4 or np.abs(points - x).max() < 4
