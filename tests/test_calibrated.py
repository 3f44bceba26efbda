"""Squeezing with data, end to end: half the bytes, limits held, wrong input refused, the command and its options."""

from __future__ import annotations

import copy
import json
import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import torch
from helpers import raw
from test_cli import run
from torch import Tensor, nn

import paramcompress
from paramcompress import calibrated, job, layer, metric_fit, metric_space
from paramcompress.calibrated import HIGHEST_LEVEL, Aim, Budget, Calibrated
from paramcompress.calibration import calibrate
from paramcompress.checkpoint import TensorInfo
from paramcompress.codec import Layout, LowRank, encode_factored
from paramcompress.container import Reader
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.errors import BudgetError, CalibrationError, ConfigError
from paramcompress.fit import EFFORTS
from paramcompress.fit.ranks import quantise_factors
from paramcompress.fit.transforms import Transform
from paramcompress.layer import Piece, Setting
from paramcompress.metric_fit import Dictionary, Grid, MetricFit
from paramcompress.metric_space import Coordinates, Metric
from paramcompress.moments import SecondMoments
from paramcompress.vectors import Vector
from sample_models import models

OUT = "out.safetensors"
SAMPLES = Path(models.__file__).parent

pytestmark = pytest.mark.usefixtures("empty_folder")


def loaded(build: Any, path: str | Path) -> nn.Module:
    model: nn.Module = build()
    paramcompress.load_into(model, path)
    return model


# ------------------------------------------------------------------------------------------- one layer


def layer_of_a_net(rng: np.random.Generator) -> tuple[np.ndarray, Metric]:
    """A weight whose inputs lie near a few directions."""
    x = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 40)) + 0.1 * rng.standard_normal((4000, 40))
    return rng.standard_normal((32, 40)).astype(np.float32), Metric(np.ones(32), (x.T @ x / len(x))[None])


def test_a_higher_price_takes_fewer_bytes_and_costs_more(rng: np.random.Generator) -> None:
    weight, metric = layer_of_a_net(rng)
    fit = MetricFit(weight, Layout.of(weight.shape), metric, EFFORTS["default"])
    found = [fit.at(price) for price in (1e-4, 1e-2, 1.0)]
    costs = [metric.cost(one.reconstruct() - weight) for one in found]
    stored = [one.n_stored for one in found]
    assert costs == sorted(costs)
    assert stored == sorted(stored, reverse=True)


@pytest.mark.parametrize("price", [1e3, 1e5, 1e9])
def test_at_a_high_price_next_to_nothing_is_stored(price: float, rng: np.random.Generator) -> None:
    """Rows and columns over many octaves: none of them may drag raw bits along."""
    weight, metric = layer_of_a_net(rng)
    weight *= np.exp2(rng.integers(-12, 3, (32, 1))) * np.exp2(rng.integers(-12, 3, 40))
    fit = MetricFit(weight.astype(np.float32), Layout.of(weight.shape), metric, EFFORTS["default"])
    assert len(encode_factored(fit.at(price))) < 100


def test_directions_without_data_cost_nothing(rng: np.random.Generator) -> None:
    """The output is right where the weight is wrong: far less than for white inputs, at one price."""
    weight, metric = layer_of_a_net(rng)
    white = Metric(metric.rows, np.eye(40)[None] * np.trace(metric.columns[0]) / 40)
    fits = [MetricFit(weight, Layout.of(weight.shape), one, EFFORTS["default"]) for one in (metric, white)]
    by_data, without = (fit.at(0.01) for fit in fits)
    assert cost_and_bits(fits[0], 0.01) < 0.7 * cost_and_bits(fits[1], 0.01)
    assert len(encode_factored(by_data)) < 0.75 * len(encode_factored(without))
    relative = metric.cost(by_data.reconstruct() - weight) / metric.cost(weight)
    assert relative < 0.1
    assert np.linalg.norm(by_data.reconstruct() - weight) > 0.19 * np.linalg.norm(weight)


@pytest.mark.parametrize("dictionary", ["none", "patch", "cosine", "mirror"])
def test_every_dictionary_comes_back_to_the_weight_at_a_low_price(dictionary: str, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((8, 4 * 9)).astype(np.float32)
    mix = rng.standard_normal((2, 18, 18))
    metric = Metric(np.ones(8), np.kron(np.ones((1, 1)), mix @ mix.transpose(0, 2, 1)))
    fit = MetricFit(weight[:, :18], Layout.of((8, 2, 3, 3)), metric, EFFORTS["default"])
    fit.dictionary = Dictionary(Transform.fitted(dictionary, weight[:, :18], fit.layout))
    found = fit.at(1e-9)
    assert found.transform == dictionary
    assert np.linalg.norm(found.reconstruct() - weight[:, :18]) < 1e-3 * np.linalg.norm(weight[:, :18])


def test_low_rank_is_found_where_it_pays(rng: np.random.Generator) -> None:
    """Atoms are nearest in the metric: the part of the weight that the data never use is no reason for one."""
    x = rng.standard_normal((4000, 64)) * np.where(np.arange(64) < 48, 1.0, 1e-3)
    strong = rng.standard_normal((96, 2)) @ rng.standard_normal((2, 64)) * np.where(np.arange(64) < 48, 1.0, 0.0)
    unused = rng.standard_normal((96, 3)) @ rng.standard_normal((3, 64)) * np.where(np.arange(64) < 48, 0.0, 9.0)
    weight = (strong + unused + 0.1 * rng.standard_normal((96, 64))).astype(np.float32)
    metric = Metric(np.ones(96), (x.T @ x / len(x))[None])
    fit = MetricFit(weight, Layout.of(weight.shape), metric, EFFORTS["default"])
    found = fit.at(0.01)
    assert found.rank >= 2
    fit.dictionary = Dictionary(Transform.fitted("none", weight, fit.layout))
    plain = fit.at(0.01)
    costs = [metric.cost(one.reconstruct() - weight) + 0.08 * len(encode_factored(one)) for one in (found, plain)]
    assert costs[0] < 0.9 * costs[1]


def test_many_directions_are_looked_for_where_some_pay(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decomposition of 128 directions takes its time; most layers have no use for 32."""
    asked = []

    def spied(weight: Tensor, rank: int, **options: Any) -> Any:
        asked.append(rank)
        return truncated_svd(weight, rank, **options)

    monkeypatch.setattr(metric_fit, "truncated_svd", spied)
    noise = rng.standard_normal((400, 400))
    many = rng.standard_normal((400, 120)) @ rng.standard_normal((120, 400)) / 11 + 0.02 * noise
    ranks = []
    for weight in (noise, many):
        white = Metric(np.ones(400), np.eye(400)[None])
        fit = MetricFit(weight.astype(np.float32), Layout.of(weight.shape), white, EFFORTS["default"])
        fit.choose_dictionary(1e-3)
        assert fit.dictionary is not None
        low_rank = fit.dictionary.low_rank
        ranks.append(0 if low_rank is None else len(low_rank.exponents))
    assert (asked, ranks) == ([32, 32, 128], [0, 128])


def test_costs_of_coupled_rows_are_those_of_the_whole_matrix(rng: np.random.Generator) -> None:
    """tr(G E M E^T), G block by block, for a matrix and for its diagonal; and G = C^T diag(d) C."""
    mix = rng.standard_normal((2, 5, 5))
    products = mix @ mix.transpose(0, 2, 1)
    root = np.sqrt(np.einsum("rii->ri", products))
    coupling, rows = products / root[:, :, None] / root[:, None, :], rng.random(10) + 0.1
    columns = rng.standard_normal((1, 7, 7))
    columns = columns @ columns.transpose(0, 2, 1)
    error = rng.standard_normal((10, 7))
    whole = np.zeros((10, 10))
    for r, place in enumerate((slice(0, 5), slice(5, 10))):
        whole[place, place] = coupling[r] * np.sqrt(np.outer(rows[place], rows[place]))
    metric = Metric(rows, columns, coupling)
    assert metric.cost(error) == pytest.approx(np.trace(whole @ error @ columns[0] @ error.T))
    diagonal = np.diag(columns[0])
    assert Metric(rows, diagonal[None], coupling).cost(error) == pytest.approx(
        np.trace(whole @ error @ np.diag(diagonal) @ error.T)
    )
    alone, chain = metric.chained
    assert chain is not None
    np.testing.assert_allclose(chain.transpose(0, 2, 1) * alone.reshape(2, 1, 5) @ chain, metric.gram)
    assert (np.triu(chain, 1) == 0).all()
    assert (alone <= rows * (1 + 1e-9)).all()


def test_what_rows_do_together_costs_less_where_that_is_known(rng: np.random.Generator) -> None:
    """The output adds rows up by fours: at one price fewer bytes, or a cheaper error, than if each counted alone."""
    weight, metric = layer_of_a_net(rng)
    together = Metric(metric.rows, metric.columns, np.kron(np.ones((4, 4)), np.eye(2))[None].repeat(4, 0))
    sums = []
    for one in (together, metric):
        found = MetricFit(weight, Layout.of(weight.shape), one, EFFORTS["default"]).at(0.01)
        sums.append(together.cost(found.reconstruct() - weight) + 0.08 * len(encode_factored(found)))
    assert sums[0] < 0.95 * sums[1]


def cost_and_bits(fit: MetricFit, price: float, grid: Grid | None = None) -> float:
    """What is minimised, on the grid that was chosen or another, without a transform."""
    fit.choose_dictionary(price)
    if grid is not None:
        fit.dictionary = Dictionary(Transform.fitted("none", fit.weight, fit.layout), grid=grid)
    found = fit.at(price)
    return fit.metric.cost(found.reconstruct() - fit.weight) + price * 8 * len(encode_factored(found))


@pytest.mark.parametrize("kind", ["alike", "some unused", "some loud"])
def test_the_step_of_theory_is_nearly_the_best(kind: str, rng: np.random.Generator) -> None:
    """Whether all columns cost alike, or half of them hold next to nothing at whatever cost, or an eighth cost most."""
    weight, columns = rng.standard_normal((48, 128)).astype(np.float32), np.ones(128)
    if kind == "some unused":
        weight[:, ::2] *= 1e-3
        columns[::2] = 30.0
    elif kind == "some loud":
        columns[::8] = 30.0
    fit = MetricFit(weight, Layout.of(weight.shape), Metric(np.ones(48), np.diag(columns)[None]), EFFORTS["fast"])
    sums = [cost_and_bits(fit, 0.1, Grid(fineness)) for fineness in (1.0, 0.7, 0.85, 1.2, 1.4)]
    assert sums[0] < 1.02 * min(sums)
    assert cost_and_bits(fit, 0.1) < 1.02 * min(sums)


def test_small_numbers_are_heeded_where_few_directions_cost_most(rng: np.random.Generator) -> None:
    """Every number is small beside the step, and yet what the rows are along four directions of 128 is worth bits."""
    weight = rng.standard_normal((64, 128)).astype(np.float32)
    directions = rng.standard_normal((4, 128))
    metric = Metric(np.ones(64), (directions.T @ directions + 0.01 * np.eye(128))[None])
    fit = MetricFit(weight, Layout.of(weight.shape), metric, EFFORTS["fast"])
    assert cost_and_bits(fit, 10.0) < 0.7 * cost_and_bits(fit, 10.0, Grid())


@pytest.mark.parametrize("by_row", [True, False])
def test_points_run_along_what_goes_together(by_row: bool, rng: np.random.Generator) -> None:
    """Inputs alike and rows alone, or rows heeded alike and inputs that have nothing to do with each other."""
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    alike = 0.9 ** np.abs(np.arange(64)[:, None] - np.arange(64))
    metric = (
        Metric(np.ones(64), alike[None]) if by_row else Metric(np.ones(64), np.eye(64)[None], alike[None], doubt=0.0)
    )
    fit = MetricFit(weight, Layout.of(weight.shape), metric, EFFORTS["default"])
    chosen, *others = (cost_and_bits(fit, 0.05, grid) for grid in (None, Grid(by_row=by_row), Grid(by_row=not by_row)))
    assert others[0] < 0.99 * others[1]
    assert chosen <= others[0] * (1 + 1e-9)
    fit.choose_dictionary(0.05)
    found = fit.at(0.05).stored
    assert found is not None
    assert found.by_row == by_row


def test_grouped_and_wide_layers_run_along_rows(rng: np.random.Generator) -> None:
    for columns in (np.ones((2, 40)), np.eye(1025)[None]):
        weight = rng.standard_normal((8, columns.shape[1])).astype(np.float32)
        fit = MetricFit(weight, Layout.of(weight.shape), Metric(np.ones(8), columns), EFFORTS["fast"])
        found = fit.at(0.05).stored
        assert found is not None
        assert found.by_row


@pytest.mark.parametrize("dictionary", ["none", "patch", "cosine", "mirror"])
def test_a_diagonal_is_the_matrix_that_it_stands_for(dictionary: str, rng: np.random.Generator) -> None:
    """Several pieces of it, two groups; low rank beside the transform where there is one group."""
    weight = rng.standard_normal((24, 40 * 9)).astype(np.float32)
    diagonal = rng.random((2, 360)) + 0.1
    whole = np.stack([np.diag(one) for one in diagonal])
    layout = Layout.of((24, 40, 3, 3))
    found = []
    for columns in (diagonal, whole):
        fit = MetricFit(weight, layout, Metric(rng.permutation(np.ones(24)), columns), EFFORTS["default"])
        fit.dictionary = Dictionary(Transform.fitted(dictionary, weight, layout))
        found.append(fit.at(0.01))
    np.testing.assert_allclose(found[0].reconstruct(), found[1].reconstruct(), rtol=1e-6, atol=1e-6)


def test_low_rank_in_a_diagonal_metric(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((48, 2)) @ rng.standard_normal((2, 200)) + 0.1 * rng.standard_normal((48, 200))
    diagonal = rng.random((1, 200)) + 0.1
    ranks = []
    for columns in (diagonal, np.diag(diagonal[0])[None]):
        metric = Metric(np.ones(48), columns)
        fit = MetricFit(weight.astype(np.float32), Layout.of(weight.shape), metric, EFFORTS["default"])
        ranks.append(fit.at(0.01).rank)
    assert ranks[0] == ranks[1] == 2


def test_only_fast_tries_no_dictionary_that_is_fitted(rng: np.random.Generator) -> None:
    """Kernels that are two patterns each, which a fitted basis has among its atoms."""
    patterns = np.linalg.qr(rng.standard_normal((9, 2)))[0]
    weight = (rng.standard_normal((64 * 48, 2)) @ patterns.T).reshape(64, 48, 3, 3).astype(np.float32)
    layout = Layout.of(weight.shape)
    metric = Metric(np.ones(64), np.eye(48 * 9)[None])
    chosen = {}
    for effort in ("fast", "default"):
        fit = MetricFit(weight.reshape(64, -1), layout, metric, EFFORTS[effort])
        fit.choose_dictionary(0.01)
        assert fit.dictionary is not None
        chosen[effort] = fit.dictionary.transform.name
    assert chosen["default"] == "patch" != chosen["fast"]


@pytest.mark.parametrize("shape", [(8, 20_000), (4, 2_500, 3, 3)])
def test_memory_goes_with_the_columns_of_a_wide_layer(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """A matrix of 20,000 columns would be 3.2 GB; a weight this wide has a diagonal in place of one."""
    weight = rng.standard_normal((shape[0], math.prod(shape[1:]))).astype(np.float32)
    metric = Metric(np.ones(len(weight)), rng.random((1, weight.shape[1])) + 0.1)
    tracemalloc.start()
    try:
        fit = MetricFit(weight, Layout.of(shape), metric, EFFORTS["default"])
        found = fit.at(0.05)
        assert tracemalloc.get_traced_memory()[1] < 1000 * weight.nbytes
    finally:
        tracemalloc.stop()
    assert found.n_stored > 0.5 * weight.size


# ------------------------------------------------------------------------------------------- the sample models

CASES = {
    "conv": ("conv_digits.pt", models.build_conv, models.digits_batches, models.digits_accuracy, 10_000),
    "mlp": ("mlp_digits.pt", models.build_mlp, models.digits_batches, models.digits_accuracy, 9_000),
}


@pytest.mark.parametrize("name", CASES)
def test_data_make_up_for_bytes(name: str) -> None:
    """At one size, far better than without data: measured on held-out images."""
    file, build, batches, accuracy, size = CASES[name]
    paramcompress.squeeze(SAMPLES / file, "without.safetensors", target_size=size)
    report = paramcompress.squeeze(SAMPLES / file, OUT, target_size=size, model=build(), batches=batches())
    assert 0.97 * size < report.bytes_after <= size
    assert Path(OUT).stat().st_size == report.bytes_after
    original = models.load(name)
    images = models.digits(held_out=True)[0]
    with torch.no_grad():
        wanted = original(images)
        errors = [
            float((loaded(build, path)(images) - wanted).square().sum() / wanted.square().sum())
            for path in ("without.safetensors", OUT)
        ]
    assert errors[1] < 0.5 * errors[0], errors
    assert accuracy(loaded(build, OUT)) >= accuracy(original) - 0.02


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_text_models(name: str) -> None:
    """Recurrent weights, attention, an embedding tied to the output, bfloat16: bits per character at one size."""
    build, checkpoint = getattr(models, f"build_{name}"), SAMPLES / f"{name}_topics.pt"
    size = {"gru": 42_000, "transformer": 90_000}[name]
    paramcompress.squeeze(checkpoint, "without.safetensors", target_size=size)
    report = paramcompress.squeeze(
        checkpoint, OUT, target_size=size, model=build(), batches=models.topics_batches()[:2]
    )
    assert not any("do not reach" in note for note in report.notes), report.notes
    without, by_data = (models.topics_bits(loaded(build, path)) for path in ("without.safetensors", OUT))
    assert by_data < without


def test_the_report_has_weight_and_output_errors() -> None:
    report = paramcompress.squeeze(
        SAMPLES / "conv_digits.pt",
        OUT,
        max_output_error=0.1,
        model=models.build_conv(),
        batches=models.digits_batches(),
    )
    matrices = [one for one in report.layers if len(one.shape) > 1]
    assert all(one.output_error is not None and 0.05 < one.output_error <= 0.1 for one in matrices)
    assert all(one.rel_error > (one.output_error or 0) for one in matrices if one.name != "conv1.weight")
    assert all(one.output_error is None for one in report.layers if len(one.shape) < 2)
    assert report.target == "max_output_error 0.1"
    values = json.loads(json.dumps(report.to_json()))
    assert values["layers"][0]["output_error"] == report.layers[0].output_error
    paramcompress.verify(OUT, SAMPLES / "conv_digits.pt")


def test_the_output_error_is_the_modules_own() -> None:
    """Against the first layer itself, run with both weights over the same images."""
    model, batches = models.load("mlp"), models.digits_batches()
    report = paramcompress.squeeze(model.state_dict(), OUT, max_output_error=0.1, model=model, batches=batches)
    squeezed, x = paramcompress.load_file(OUT), torch.cat(batches).flatten(1)
    first = report.layers[0]
    weight = model.state_dict()[first.name]
    change = (x @ (weight - squeezed[first.name]).T).norm() / (x @ weight.T).norm()
    assert first.output_error == pytest.approx(float(change), rel=1e-4)


def test_a_weight_limit_holds_where_it_is_asked_for() -> None:
    report = paramcompress.squeeze(
        SAMPLES / "conv_digits.pt", OUT, max_rel_error=0.1, model=models.build_conv(), batches=models.digits_batches()
    )
    assert all(one.rel_error <= 0.1 for one in report.layers if len(one.shape) > 1)


def test_settings_of_single_layers_hold() -> None:
    report = paramcompress.squeeze(
        SAMPLES / "conv_digits.pt",
        OUT,
        target_size="20kB",
        model=models.build_conv(),
        batches=models.digits_batches()[:2],
        layers={"conv2.weight": {"max_rel_error": 0.01}, "fc.weight": {"exact": True}},
    )
    errors = {one.name: one.rel_error for one in report.layers}
    assert 0 < errors["conv2.weight"] <= 0.01
    assert errors["fc.weight"] == 0


def test_the_same_file_every_time_and_the_model_untouched() -> None:
    model = models.build_conv().train()
    before = copy.deepcopy(model.state_dict())
    for name, workers in ((OUT, 1), ("again.safetensors", 3)):
        paramcompress.squeeze(
            SAMPLES / "conv_digits.pt",
            name,
            target_size=9000,
            model=model,
            batches=models.digits_batches()[:2],
            workers=workers,
        )
    assert Path(OUT).read_bytes() == Path("again.safetensors").read_bytes()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_file_is_like_any_other() -> None:
    """The slow reader, written from the format's page, gets the same bits out of it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 40)).eval()
    batches = list(torch.randn(4, 20, 3, 6, 6))
    paramcompress.squeeze(model.state_dict(), OUT, bits_per_weight=3, model=model, batches=batches)
    slow, fast = reference_decoder.decode_file(Path(OUT)), paramcompress.load_file(OUT)
    for name, (_, _, bits) in slow.items():
        assert bits == raw(fast[name]), name
    paramcompress.expand(OUT, "back.safetensors")


def test_layers_make_good_for_those_before_them() -> None:
    """The control: with the same moments but no model to go through, the same bytes change the output more."""
    model = models.load("conv")
    calibrate(model, models.digits_batches()).save("stats.safetensors")
    options: dict[str, Any] = {"target_size": 7000, "stats": "stats.safetensors", "force": True}
    images = models.digits(held_out=True)[0]
    changes = []
    for more in ({}, {"model": model, "batches": models.digits_batches()}):
        paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, **options, **more)
        with torch.no_grad():
            changes.append(float((loaded(models.build_conv, OUT)(images) - model(images)).square().sum()))
    assert changes[1] < 0.7 * changes[0]


def test_a_rehearsal_that_does_not_meet_the_size_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing then counts on corrections that are not made: the level is that of a squeeze without a model."""
    model = models.load("conv")
    calibrate(model, models.digits_batches()).save("stats.safetensors")
    options: dict[str, Any] = {"target_size": 7000, "stats": "stats.safetensors", "force": True}
    without = paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, **options)
    monkeypatch.setattr(job, "MOST_REHEARSALS", 0)
    report = paramcompress.squeeze(
        SAMPLES / "conv_digits.pt", OUT, model=model, batches=models.digits_batches(), **options
    )
    assert any("were not fitted to one another" in note for note in report.notes)
    assert report.bytes_after == Path(OUT).stat().st_size <= 7000
    assert report.settings["level"] == pytest.approx(without.settings["level"], rel=0.1)  # its note takes bytes, too


def a_job() -> Calibrated:
    """A small net with a normalisation, about to be squeezed to a size."""
    model = nn.Sequential(nn.Linear(24, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8)).eval()
    weights = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    moments = calibrate(model, [torch.randn(200, 24)])
    return Calibrated(moments, weights, EFFORTS["default"], 0, "cpu", means_return=True)


class Translator(nn.Module):
    """Every kind of tensor that a rehearsal settles, and some that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.conv = nn.Conv1d(24, 32, 3, bias=False)
        self.bn = nn.BatchNorm1d(32)
        self.lstm = nn.LSTM(32, 16, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = self.norm(x + self.attention(x, x, x)[0])
        x = torch.relu(self.bn(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.out(self.lstm(x)[0])


def a_translation(without: str = "") -> tuple[nn.Module, list[torch.Tensor], Calibrated]:
    """The model, its data and a job that may squeeze all of it but for one tensor."""
    torch.manual_seed(0)
    model, batches = Translator().eval(), list(torch.randint(0, 20, (4, 30, 12)))
    with torch.no_grad():
        for value in (
            model.attention.in_proj_bias,
            model.attention.out_proj.bias,
            model.bn.running_mean,
            model.bn.bias,
        ):
            value.normal_()
        model.bn.running_var.copy_(torch.rand(32) + 0.5)
    state = model.state_dict()
    weights = {name: value for name, value in state.items() if value.is_floating_point() and name != without}
    job = Calibrated(calibrate(model, batches), weights, EFFORTS["default"], 0, "cpu", means_return=True)
    return model, batches, job


def sizes(job: Calibrated, level: float) -> dict[str, int]:
    found = {}
    for name, value in job.weights.items():
        piece = job.encode(TensorInfo(name, "float32", tuple(value.shape)), value, Aim(level))
        if piece is not None:
            found[name] = piece.n_bytes
    return found


def test_it_is_known_what_a_rehearsal_settles() -> None:
    model, batches, job = a_translation()
    foretold = {name for name in job.weights if job.settled_by_rehearsal(name)}
    job.rehearse(model, batches, Aim(0.05))
    assert set(job.final) == foretold
    assert "attention.out_proj.bias" in foretold
    assert not foretold & {"norm.weight", "lstm.bias_ih_l0", "attention.in_proj_bias"}


@pytest.mark.parametrize("without", ["bn.bias", "bn.weight", "bn.running_mean", "bn.running_var", "out.bias"])
def test_what_may_not_be_moved_is_not_settled_by_a_rehearsal(without: str) -> None:
    """Since it is all zero, excluded, or told to be exact; nor what can only be moved together with it."""
    model, batches, job = a_translation(without)
    foretold = {name for name in job.weights if job.settled_by_rehearsal(name)}
    assert not job.settled_by_rehearsal(without)
    job.rehearse(model, batches, Aim(0.05))
    assert set(job.final) == foretold
    statistics = {"bn.running_mean", "bn.running_var"}
    assert (statistics <= foretold) == (without not in statistics)
    assert ({"bn.weight", "bn.bias"} <= foretold) == (without == "out.bias")


@pytest.mark.parametrize("exclude", [[], ["*.bias"]])
def test_one_rehearsal_meets_a_size(exclude: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors, too, that it leaves alone."""
    budgets = []
    start = Budget.__post_init__

    def noted(budget: Budget) -> None:
        start(budget)
        budgets.append(budget)

    monkeypatch.setattr(Budget, "__post_init__", noted)
    options = {"model": models.load("conv"), "batches": models.digits_batches(), "exclude": exclude}
    report = paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, target_size=9100, **options)
    assert 0.99 * 9100 < report.bytes_after <= 9100
    assert len(budgets) == 1
    assert abs(budgets[0].waiting) < 1, "all that was expected came"


def test_coarse_statistics_are_foretold_before_a_rehearsal_and_only_then() -> None:
    """After it they are coarse only where scale and shift made good for them."""
    model, batches, job = a_translation()
    statistics = "bn.running_mean", "bn.running_var"
    job.choose_at(0.005)
    foretold = sizes(job, 0.005)
    job.rehearse(model, batches, Aim(0.005))
    came = sizes(job, 0.005)
    for name in statistics:
        del job.final[name]
    fine = sizes(job, 0.005)
    of_both = [sum(found[name] for name in statistics) for found in (foretold, came, fine)]
    assert 0.6 < of_both[0] / of_both[1] < 1.5
    assert of_both[2] > 1.5 * of_both[1]


@pytest.mark.parametrize("zero", ["1.bias", "1.weight", "1.running_mean", "1.running_var", "3.bias"])
def test_a_vector_of_zeros_stays_one(zero: str) -> None:
    """Data have no say in it: no relative error could be stated for what else came back."""
    model = nn.Sequential(nn.Linear(24, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8)).eval()
    with torch.no_grad():
        model[1].running_var.copy_(torch.rand(64) + 0.5)
        for value in (model[1].bias, model[1].running_mean):
            value.normal_()
        model.state_dict()[zero].zero_()
    batches = list(torch.randn(4, 64, 24))
    report = paramcompress.squeeze(model.state_dict(), OUT, target_size=1800, model=model, batches=batches)
    assert not paramcompress.load_file(OUT)[zero].any()
    assert next(layer.rel_error for layer in report.layers if layer.name == zero) == 0
    squeezed = copy.deepcopy(model)
    paramcompress.load_into(squeezed, OUT)
    with torch.no_grad():
        x = torch.randn(500, 24)
        assert float((squeezed(x) - model(x)).square().mean() / model(x).square().mean()) < 0.05


def test_weights_that_are_much_of_what_is_to_come_have_a_share() -> None:
    budget = Budget({"first": 9000, "as before": 500, "last": 1000}, 11550.0)
    assert budget.share("first") == pytest.approx(9900)
    assert budget.share("last") is None, "there is more to come"
    budget.spend("first", 10300)
    budget.spend("as before", None)
    assert budget.share("last") == pytest.approx(750)
    assert budget.share("elsewhere") is None
    budget.spend("last", 900)
    assert (budget.waiting, budget.left) == (0, -150)
    assert Budget({"one": 10}, -5.0).share("one") == pytest.approx(0.01), "also where nothing is left"


@pytest.mark.parametrize("power", [0.5, 0.67, 1.0, 2.0, 4.0])
def test_a_weight_takes_its_share_whatever_the_power(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or as nearly as four tries lead."""
    job = a_job()
    name, tensor = "0.weight", job.weights["0.weight"]
    info, fit = TensorInfo(name, "float32", tuple(tensor.shape)), job.fits[name]
    tried: list[int] = []

    def piece_of(*_: object) -> Piece:
        return Piece(entry, bytes(tried[-1]))

    def at(price: float) -> None:
        tried.append(round(1000 * (price / job.price(0.1)) ** (-power / 2)))

    entry = layer.encode(info, tensor, Setting(0.1), job.effort, 0, "cpu").entry
    monkeypatch.setattr(calibrated.layer, "piece_of", piece_of)
    monkeypatch.setattr(fit, "at", at)
    for share in (700.0, 950.0, 1010.0, 1500.0):
        tried.clear()
        budget = Budget({name: 1000}, share)
        level = Aim(0.1)
        rehearsal = calibrated._Rehearsal(job, nn.Identity(), nn.Identity(), level, budget)
        monkeypatch.setattr(calibrated._Rehearsal, "aim", level)
        found = rehearsal._within_budget(info, tensor, fit)
        assert found is not None
        distances = [abs(n - share) for n in tried]
        assert abs(len(found.stream) - share) == min(distances)
        assert min(distances) < (0.01 if len(tried) < 4 else 0.05) * share
        assert len(tried) <= 4


@pytest.mark.parametrize("sizes", [[960, 1080, 1060, 900], [940, None], [None]])
def test_of_tries_the_nearest_is_kept(sizes: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes follow the level unsteadily, and what is smaller exact has no piece at all."""
    job = a_job()
    name, tensor = "0.weight", job.weights["0.weight"]
    info, fit = TensorInfo(name, "float32", tuple(tensor.shape)), job.fits[name]
    rehearsal = calibrated._Rehearsal(job, nn.Identity(), nn.Identity(), Aim(0.1), Budget({name: 1000}, 1000.0))
    entry = layer.encode(info, tensor, Setting(0.1), job.effort, 0, "cpu").entry
    pieces = [None if n is None else Piece(entry, bytes(n)) for n in sizes]
    left = iter(pieces)
    monkeypatch.setattr(fit, "at", lambda price: None)
    monkeypatch.setattr(calibrated.layer, "piece_of", lambda *_: next(left))
    assert rehearsal._within_budget(info, tensor, fit) is pieces[0]
    assert next(left, None) is None, "all were tried"


@pytest.mark.parametrize("size", [6000, 9000, 16000])
def test_a_size_is_met(size: int) -> None:
    """To a few parts in a thousand and a few bytes of the index, which is not known before."""
    report = paramcompress.squeeze(
        SAMPLES / "conv_digits.pt",
        OUT,
        target_size=size,
        model=models.load("conv"),
        batches=models.digits_batches(),
    )
    assert 0.995 * size - 10 < report.bytes_after <= size


def test_dictionaries_are_chosen_near_the_level_that_they_serve() -> None:
    """And stay while a level is searched for: its bytes must not depend on what was asked before."""
    job = a_job()
    name, tensor = "0.weight", job.weights["0.weight"]

    def stream(level: float) -> bytes:
        piece = job.encode(TensorInfo(name, "float32", tuple(tensor.shape)), tensor, Aim(level))
        assert piece is not None
        return piece.stream

    assert job.choose_at(0.11)
    first, fine, chosen = stream(0.1), stream(0.003), job.fits[name].dictionary
    assert chosen is not None
    assert stream(0.1) == first
    assert not job.choose_at(0.12)
    assert stream(0.003) == fine
    assert job.fits[name].dictionary is chosen
    assert job.choose_at(0.003)
    stream(0.003)
    assert job.fits[name].dictionary is not chosen
    assert not job.choose_at(0.0035)


@pytest.mark.parametrize("aim", [Aim(output_error=0.004), Aim(rel_error=0.004), Aim(0.01)])
def test_under_limits_dictionaries_are_chosen_near_them(aim: Aim, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with no step that would serve at one price only: every layer has a price of its own there."""
    job, chosen_at = a_job(), []
    name, tensor = "0.weight", job.weights["0.weight"]
    choose = MetricFit.choose_dictionary

    def noted(fit: MetricFit, price: float, grids: Sequence[Grid]) -> None:
        chosen_at.append((price, {one.fineness for one in grids}))
        choose(fit, price, grids)

    monkeypatch.setattr(MetricFit, "choose_dictionary", noted)
    job.encode(TensorInfo(name, "float32", tuple(tensor.shape)), tensor, aim)
    assert chosen_at == [(job.price(HIGHEST_LEVEL), {1.0, 1.4}) if aim.level else (job.price(0.004), {1.0})]


def test_no_dictionary_is_chosen_before_a_level_is_known() -> None:
    job = a_job()
    name, tensor = "0.weight", job.weights["0.weight"]
    info = TensorInfo(name, "float32", tuple(tensor.shape))
    job.encode(info, tensor, Aim(0.1, rough=True))
    assert job.fits[name].dictionary is None
    job.choose_at(0.1)
    job.encode(info, tensor, Aim(0.1, rough=True))
    assert job.fits[name].dictionary is not None


def test_points_found_roughly_take_about_as_many_bytes(rng: np.random.Generator) -> None:
    weight, metric = layer_of_a_net(rng)
    fit = MetricFit(weight, Layout.of(weight.shape), metric, EFFORTS["default"])
    for price in (1e-3, 1e-2):
        fine, rough = fit.at(price), fit.at(price, rough=True)
        assert len(encode_factored(rough)) == pytest.approx(len(encode_factored(fine)), rel=0.06)
        costs = [
            metric.cost(one.reconstruct() - weight) + price * 8 * len(encode_factored(one)) for one in (fine, rough)
        ]
        assert costs[0] < costs[1]


def lossy_layer(kind: str, rng: np.random.Generator) -> tuple[MetricFit, Coordinates]:
    """24 rows of 20 kernels, fed with inputs of some directions, that matter by up to a thousand times."""
    weight = rng.standard_normal((24, 180)).astype(np.float32)
    low_rank: LowRank | None = None
    if kind == "low rank":  # which takes nearly all
        sides = rng.standard_normal((24, 2)), rng.standard_normal((180, 2))
        low_rank = quantise_factors(*sides, np.linalg.norm(sides[0], axis=0), 1e-3)
        assert low_rank is not None
        weight = (0.1 * weight + low_rank.product()).astype(np.float32)
    x = rng.standard_normal((2, 400, 30)) @ rng.standard_normal((2, 30, 180)) + 0.1 * rng.standard_normal((2, 400, 180))
    columns = x.transpose(0, 2, 1) @ x / 400
    columns = np.einsum("gjj->gj", columns[:1]) if kind == "diagonal" else columns[: 2 if kind == "grouped" else 1]
    metric = Metric(np.exp2(rng.uniform(-5, 5, 24)), columns)
    fit = MetricFit(weight, Layout.of((24, 20, 3, 3)), metric, EFFORTS["fast"])
    return fit, fit._coordinates(Dictionary(Transform.fitted("cosine", weight, fit.layout), low_rank))


@pytest.mark.parametrize("kind", ["whole", "grouped", "low rank", "diagonal"])
def test_every_row_is_shrunk_by_a_ridge_of_its_own(kind: str, rng: np.random.Generator) -> None:
    """Nearly, and more so than roughly: a few roots do in place of eigenvectors."""
    fit, one = lossy_layer(kind, rng)
    space, n_here = one.space, 24 // one.space.n_groups
    for price in (1e-2, 1.0, 100.0):
        mu = metric_space._shrinkage(price, fit.metric.rows, one.row_square)
        assert mu.max() / mu.min() > 100
        wanted = np.empty_like(one.x)
        for metric, at in zip(space.metrics, space.places, strict=True):
            prior = np.diag(1 / space.column_square[at])
            for i in range(24):
                lost = np.linalg.solve(metric[i // n_here] + mu[i] * prior, prior @ one.x[at, i])
                wanted[at, i] = one.x[at, i] - mu[i] * lost
        sizes = np.linalg.norm(one.x, axis=0)
        lost, off, rough = (
            np.linalg.norm(found - wanted, axis=0) / sizes
            for found in (one.x, one.shrunk(price, rough=False), one.shrunk(price, rough=True))
        )
        assert off.max() < 0.08
        assert off.mean() < min(0.3 * lost.mean(), rough.mean())


def test_rows_of_narrow_layers_are_shrunk_precisely(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where points are found roughly, or a layer whose rows differ is told the wrong dictionary."""
    weight, metric = layer_of_a_net(rng)
    rows = np.exp2(rng.integers(-6, 6, len(weight)).astype(float))
    monkeypatch.setattr(metric_fit, "N_PASSES", 0)
    fit = MetricFit(weight, Layout.of(weight.shape), Metric(rows, metric.columns), EFFORTS["fast"])
    fit.dictionary = Dictionary(Transform.fitted("none", weight, fit.layout))
    fine, rough = (fit.at(1.0, rough=one).reconstruct() for one in (False, True))
    np.testing.assert_array_equal(rough, fine)
    monkeypatch.setattr(metric_fit, "WIDEST_COMPARED", 39)
    assert not np.array_equal(fit.at(1.0, rough=True).reconstruct(), fine)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_dictionaries_of_many_weights_are_compared_with_some_rows(
    coupled: bool, rank: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all rows cost is foretold, with the bytes that are told once told once, and the choice is the same."""
    weight = rng.standard_normal((256, 20, 9)).cumsum(2).reshape(256, 180).astype(np.float32) / 3
    low_rank: LowRank | None = None
    if rank:
        sides = rng.standard_normal((256, rank)), rng.standard_normal((180, rank))
        low_rank = quantise_factors(*sides, np.linalg.norm(sides[0], axis=0), 1e-3)
        assert low_rank is not None
        weight += low_rank.product()
    coupling = np.broadcast_to(np.eye(16) * 0.5 + 0.5, (16, 16, 16)) if coupled else None
    columns = np.eye(180)[None] + 0.3
    fit = MetricFit(
        weight, Layout.of((256, 20, 3, 3)), Metric(rng.uniform(1, 2, 256), columns, coupling), EFFORTS["fast"]
    )
    assert fit._of_few_rows() is fit
    candidates = [
        Dictionary(Transform.fitted(name, weight, fit.layout), one)
        for name in ("none", "cosine")
        for one in ((None, low_rank) if rank else (None,))
    ]
    whole = [fit._priced(one, 0.05).cost for one in candidates]
    monkeypatch.setattr(metric_fit, "COMPARED", weight.size // 4)
    few = fit._of_few_rows()
    assert few.rows is not None
    assert len(few.rows) == 64
    some = [few._priced(one, 0.05) for one in candidates]
    np.testing.assert_allclose([one.cost for one in some], whole, rtol=0.04)
    assert min(some, key=lambda one: one.cost).dictionary is candidates[int(np.argmin(whole))]
    fit.choose_dictionary(0.05)
    assert fit.dictionary is not None
    assert fit.dictionary.transform.name == "cosine"
    assert fit.at(0.05).reconstruct().shape == weight.shape


@pytest.mark.parametrize("bits", [2.0, 4.0])
def test_a_squeeze_with_data_encodes_all_tensors_only_a_few_times(bits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In full once before the rehearsal, whose outcome is then only counted and written; roughly a few times more."""
    seen: list[bool] = []
    size_at = job.Job.size_at

    def counted(self: job.Job, *args: Any) -> int:
        assert self.guided is not None
        seen.append(self.guided.rough)
        return size_at(self, *args)

    monkeypatch.setattr(job.Job, "size_at", counted)
    model = models.load("conv")
    paramcompress.squeeze(
        SAMPLES / "conv_digits.pt", OUT, bits_per_weight=bits, model=model, batches=models.digits_batches()
    )
    assert seen.count(False) == 2
    assert seen.count(True) <= 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_where_there_is_room_for_all_of_it_nothing_changes(dtype: torch.dtype) -> None:
    """Neither a matrix nor a vector, and no layer is fitted to another."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)).eval()
    state = {name: one.to(dtype) if one.is_floating_point() else one for name, one in model.state_dict().items()}
    exact = paramcompress.squeeze(state, OUT, max_rel_error=0)
    options: dict[str, Any] = {"model": model, "batches": [torch.randn(50, 64)], "force": True}
    report = paramcompress.squeeze(state, OUT, target_size=exact.bytes_after + 50, **options)
    assert all(one.rel_error == 0 for one in report.layers)
    assert all(torch.equal(one, state[name]) for name, one in paramcompress.load_file(OUT).items())
    assert not report.notes


def test_a_model_without_layers_to_fit_is_not_said_to_have_missed_it() -> None:
    model = nn.LayerNorm(512).eval()
    model.weight.data, model.bias.data = torch.rand(512), torch.randn(512)
    options: dict[str, Any] = {"model": model, "batches": [torch.randn(50, 512)], "force": True}
    with pytest.raises(BudgetError) as caught:
        paramcompress.squeeze(model.state_dict(), OUT, target_size=300, **options)
    smallest = caught.value.smallest_bytes
    assert smallest is not None
    report = paramcompress.squeeze(model.state_dict(), OUT, target_size=smallest, **options)
    assert smallest - 8 <= report.bytes_after <= smallest, "no room was kept for a note"


@pytest.mark.parametrize("target", [{"bits_per_weight": 1e-7}, {"target_size": 900}])
def test_a_size_that_no_file_has_is_refused_with_one_that_can_be_had(target: dict[str, Any]) -> None:
    """Also one of not a single byte."""
    model, batches = models.load("conv"), models.digits_batches()[:1]
    with pytest.raises(BudgetError, match="the smallest possible has") as caught:
        paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, model=model, batches=batches, **target)
    smallest = caught.value.smallest_bytes
    report = paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, target_size=smallest, model=model, batches=batches)
    assert report.bytes_after <= smallest


def test_scale_and_shift_that_are_made_good_may_be_coarser() -> None:
    job = a_job()
    names = ("1.weight", "1.bias", "3.bias")
    with_rehearsal = [job.vector_limit(name, job.weights[name] + 1, Aim(0.01)) for name in names]
    job.forget_rehearsal()
    alone = [job.vector_limit(name, job.weights[name] + 1, Aim(0.01)) for name in names]
    assert [a / b for a, b in zip(with_rehearsal, alone, strict=True)] == pytest.approx([2, 2, 1])


def test_coarse_statistics_are_made_good_for() -> None:
    """Mean and variance come back roughly, scale and shift so that the whole does what it did."""
    model = nn.Sequential(nn.Linear(24, 64, bias=False), nn.BatchNorm1d(64)).eval()
    statistics = model[1]
    statistics.running_mean = torch.randn(64)
    statistics.running_var = torch.rand(64) * 3 + 0.05
    statistics.weight.data, statistics.bias.data = torch.rand(64) + 0.5, torch.randn(64)
    batches = list(torch.randn(4, 64, 24))
    paramcompress.squeeze(model.state_dict(), OUT, bits_per_weight=8, model=model, batches=batches)
    back = paramcompress.load_file(OUT)
    ratio = back["1.running_var"] / statistics.running_var
    assert 0.05 < float((ratio - 1).abs().max()) < 3
    slopes = [
        state["1.weight"] / (state["1.running_var"] + statistics.eps).sqrt() for state in (model.state_dict(), back)
    ]
    assert float((slopes[1] / slopes[0] - 1).abs().max()) < 0.1
    squeezed = copy.deepcopy(model)
    paramcompress.load_into(squeezed, OUT)
    x = torch.randn(500, 24)
    with torch.no_grad():
        change = (squeezed(x) - model(x)).square().mean() / model(x).var()
    assert float(change) < 0.01


def test_regression_a_matrix_that_no_known_module_uses_may_be_as_small_as_any() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(48, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model = nn.Sequential(Odd(), nn.ReLU(), nn.Linear(64, 32)).eval()
    report = paramcompress.squeeze(
        model.state_dict(), OUT, bits_per_weight=1, model=model, batches=[torch.randn(300, 48)]
    )
    assert 0.9 < report.bytes_after / (report.n_weights / 8) <= 1
    assert any("do not reach 0.weight" in note for note in report.notes)


def test_few_inputs_are_not_believed_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 inputs of 300 features span but a part of what comes: errors must not all go where none of them is."""
    model = nn.Sequential(nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    mixing = torch.randn(300, 300) * torch.logspace(0, -1, 300)
    few, many = (torch.randn(n, 300) @ mixing.T / 10 for n in (100, 2000))

    def error() -> float:
        paramcompress.squeeze(
            model.state_dict(), OUT, force=True, bits_per_weight=3, model=model, batches=list(few.split(25))
        )
        squeezed = copy.deepcopy(model)
        paramcompress.load_into(squeezed, OUT)
        with torch.no_grad():
            return float((squeezed(many) - model(many)).square().sum())

    heeded = error()
    monkeypatch.setattr("paramcompress.moments.Scatter.noise", lambda *_: (None, None))
    assert heeded < 0.8 * error()


def test_a_turned_weight_is_squeezed_by_data() -> None:
    class Conv1D(nn.Module):
        def __init__(self, n_in: int, n_out: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(n_in, n_out) / n_in**0.5)
            self.bias = nn.Parameter(torch.randn(n_out))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    model = nn.Sequential(Conv1D(64, 128), nn.ReLU(), Conv1D(128, 32)).eval()
    x = torch.randn(1500, 64) @ (torch.randn(64, 64) * torch.logspace(0, -2, 64)).T
    sums = []
    for data in ({}, {"model": model, "batches": list(x[:500].split(100))}):
        paramcompress.squeeze(model.state_dict(), OUT, force=True, bits_per_weight=3, **data)
        squeezed = copy.deepcopy(model)
        paramcompress.load_into(squeezed, OUT)
        with torch.no_grad():
            sums.append(float((squeezed(x[500:]) - model(x[500:])).square().sum()))
    assert sums[1] < 0.5 * sums[0]


def test_vectors_that_make_good_are_said_to() -> None:
    model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    batches = [torch.randn(300, 16)]
    for data in ({}, {"model": model, "batches": batches}):
        report = paramcompress.squeeze(model.state_dict(), OUT, force=True, bits_per_weight=6, **data)
        (note,) = [note for note in report.notes if "vectors" in note]
        assert ("make good" in note) == bool(data)


def test_a_dead_channel_does_not_call_for_fine_variances() -> None:
    """It may get a larger one, which its scale makes good for. One that is heard keeps the order of magnitude."""
    sizes, ratios = [], []
    for scale in (1e-4, 0.1):
        model = nn.Sequential(nn.Linear(24, 64, bias=False), nn.BatchNorm1d(64)).eval()
        with torch.no_grad():
            model[1].running_mean.normal_()
            model[1].running_var.copy_(torch.rand(64) + 0.5)[5] = 1e-4
            model[1].weight.copy_(torch.rand(64) + 0.5)[5] = scale
            model[1].bias.normal_()
        batches = list(torch.randn(4, 64, 24))
        state = model.state_dict()
        paramcompress.squeeze(state, OUT, force=True, bits_per_weight=10, model=model, batches=batches)
        with Reader(Path(OUT)) as reader:
            sizes.append(Vector.of_record(reader.stream(reader.entries["1.running_var"])).n_bytes)
        ratios.append(float(paramcompress.load_file(OUT)["1.running_var"][5]) / 1e-4)
        squeezed, x = copy.deepcopy(model), torch.randn(500, 24)
        paramcompress.load_into(squeezed, OUT)
        with torch.no_grad():
            assert float((squeezed(x) - model(x)).square().mean() / model(x).var()) < 0.01
    assert sizes[0] < 0.5 * sizes[1]
    assert ratios[0] > 10
    assert 0.3 < ratios[1] < 5


def test_moments_in_a_file_serve_without_a_model() -> None:
    model = models.load("conv")
    calibrate(model, models.digits_batches()).save("stats.safetensors")
    paramcompress.squeeze(SAMPLES / "conv_digits.pt", "without.safetensors", target_size=9000)
    paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, target_size=9000, stats="stats.safetensors")
    images = models.digits(held_out=True)[0]
    with torch.no_grad():
        wanted = model(images)
        errors = [
            float((loaded(models.build_conv, path)(images) - wanted).square().sum())
            for path in ("without.safetensors", OUT)
        ]
    assert errors[1] < errors[0]


def test_layers_that_data_do_not_reach_are_said() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(32, 64), nn.Linear(32, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Detour()
    report = paramcompress.squeeze(
        model.state_dict(), OUT, target_size=3500, model=model, batches=[torch.randn(200, 32)]
    )
    assert any("do not reach unused.weight" in note for note in report.notes)
    errors = {one.name: one.output_error for one in report.layers}
    assert errors["used.weight"] is not None
    assert errors["unused.weight"] is None


def test_channels_that_never_fire_and_layers_of_zeros() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 8)).eval()
    model[0].bias.data[:20] = -100
    model[2].weight.data[5] = 0
    model[4].weight.data.zero_()
    paramcompress.squeeze(model.state_dict(), OUT, bits_per_weight=6, model=model, batches=[torch.randn(300, 16)])
    back = paramcompress.load_file(OUT)
    assert all(torch.isfinite(value).all() for value in back.values() if value.is_floating_point())
    assert bool((back["3.running_var"] >= 0).all())


# ------------------------------------------------------------------------------------------- an optimizer's state


def trained(steps: int = 200) -> tuple[nn.Module, dict[str, Any], Tensor]:
    """A net that learnt to heed a few of its inputs, and what its trainer would save."""
    model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x = torch.randn(512, 24) * torch.where(torch.arange(24) < 6, 2.0, 0.05)
    y = torch.stack([x[:, i] * x[:, i + 1] for i in range(4)], 1)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return model.eval(), {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, x


def test_adams_squared_gradients_tell_what_matters() -> None:
    """Rows and columns with large squares come back better."""
    model, checkpoint, _ = trained(1)
    squares = checkpoint["optimizer"]["state"][0]["exp_avg_sq"]
    rows, columns = torch.arange(48) < 24, torch.arange(24) < 12
    squares.copy_(torch.where(rows, 1.0, 1e-2)[:, None] * torch.where(columns, 1.0, 1e-2))
    torch.save(checkpoint, "train.pt")
    paramcompress.squeeze("train.pt", OUT, target_size=1700, importance="optimizer")
    error = (paramcompress.load_file(OUT)["0.weight"] - model[0].weight).detach().square()
    assert float(error[rows].mean()) < 0.5 * float(error[~rows].mean())
    assert float(error[:, columns].mean()) < 0.5 * float(error[:, ~columns].mean())


def test_importances_need_an_adam() -> None:
    model, checkpoint, _ = trained(1)
    with pytest.raises(CalibrationError, match="no optimizer state"):
        paramcompress.squeeze(model.state_dict(), OUT, importance="optimizer")
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(3, 24)).sum().backward()
    sgd.step()
    with pytest.raises(CalibrationError, match="keeps no squared gradients"):
        paramcompress.squeeze({"model": model.state_dict(), "optimizer": sgd.state_dict()}, OUT, importance="optimizer")
    checkpoint["optimizer"]["state"][0]["exp_avg_sq"] = torch.ones(3, 3)
    with pytest.raises(CalibrationError, match="do not pair off"):
        paramcompress.squeeze(checkpoint, OUT, importance="optimizer")


# ------------------------------------------------------------------------------------------- wrong input


def squeeze_conv(**options: Any) -> None:
    paramcompress.squeeze(SAMPLES / "conv_digits.pt", OUT, **options)


def test_a_model_of_other_names_lists_them() -> None:
    with pytest.raises(CalibrationError) as found:
        squeeze_conv(model=models.build_mlp(), batches=models.digits_batches())
    assert "conv1.weight (only in the checkpoint)" in str(found.value)
    assert "and " in str(found.value)
    assert "more" in str(found.value)
    assert found.value.exit_code == 2
    assert not Path(OUT).exists()


def test_a_model_of_other_shapes_says_both() -> None:
    model = models.load("mlp")
    state = model.state_dict()
    name = next(iter(state))
    state[name] = torch.zeros(3, 3)
    with pytest.raises(CalibrationError, match=r"\(\(3, 3\) in the checkpoint"):
        paramcompress.squeeze(state, OUT, model=model, batches=models.digits_batches())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": models.build_conv}, "there is no data"),
        ({"batches": models.digits_batches}, "there is no model"),
        ({"max_output_error": 0.1}, "max_output_error without data"),
        ({"stats": "x.safetensors", "importance": "optimizer"}, "given together"),
        ({"importance": "momentum"}, "expected one of optimizer"),
        ({"max_output_error": 0.1, "target_size": 10_000, "stats": "x"}, "both targets"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        squeeze_conv(**{key: value() if callable(value) else value for key, value in options.items()})


def test_moments_of_another_model_are_refused() -> None:
    calibrate(models.load("mlp"), models.digits_batches()).save("stats.safetensors")
    with pytest.raises(CalibrationError, match="second moments of another model"):
        squeeze_conv(stats="stats.safetensors")


# ------------------------------------------------------------------------------------------- the command

USER_CODE = """
from sample_models import models
build, batches = models.build_conv, models.digits_batches
def nothing(): return []
def one_tensor(): return batches()[0]
def with_labels(): return [(batch, batch) for batch in batches()]
def broken(): raise OSError("no disk")
number = 3
"""


@pytest.fixture
def user_code() -> None:
    Path("user_code.py").write_text(USER_CODE)


def test_the_commands(user_code: None) -> None:
    source = str(SAMPLES / "conv_digits.pt")
    data = ("--model", "user_code:build", "--data", "user_code:batches")
    result = run("squeeze", source, "-o", OUT, "--target-size", "9kB", *data)
    assert result.exit_code == 0, result.stderr
    assert "output" in result.stdout.splitlines()[0]
    result = run("calibrate", source, *data, "-o", "stats.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["n_batches"] == 8
    assert "conv1.weight" in SecondMoments.load("stats.safetensors")
    result = run("squeeze", source, "-o", OUT, "--force", "--max-output-error", "0.1", "--stats", "stats.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "max_output_error 0.1" in result.stdout


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("user_code", "user_code:batches", "--model 'user_code' is not PKG:FN"),
        ("no_such_module:build", "user_code:batches", "cannot import no_such_module"),
        ("user_code:no_such", "user_code:batches", "user_code has no no_such"),
        ("user_code:number", "user_code:batches", "is no function: number"),
        ("user_code:nothing", "user_code:batches", "found list, expected a torch.nn.Module"),
        ("user_code:broken", "user_code:batches", "broken() failed: OSError: no disk"),
        ("user_code:build", "user_code:one_tensor", "found Tensor, expected an iterable of batches"),
        ("user_code:build", "user_code:nothing", "there are no batches"),
        (
            "user_code:build",
            "user_code:with_labels",
            "batch 1 (tuple of tensor (64, 1, 8, 8), tensor (64, 1, 8, 8)) does not fit",
        ),
    ],
)
def test_wrong_names_are_one_line_and_exit_2(model: str, data: str, said: str, user_code: None) -> None:
    result = run("squeeze", str(SAMPLES / "conv_digits.pt"), "-o", OUT, "--model", model, "--data", data)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("error: ") == 1
    assert not Path(OUT).exists()
