"""Per-sample gradients against autograd, one sample at a time, and their second moments against whole Jacobians."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_calibration import LINEAR, inputs, normalised
from torch import Tensor, nn

import paramcompress
from paramcompress import per_sample
from paramcompress.calibrated import GAUSS_NEWTON, _metric
from paramcompress.calibration import calibrate
from paramcompress.codec import Layout
from paramcompress.moments import Moment, SecondMoments
from paramcompress.per_sample import GaussNewton


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def grouped(rows: Tensor, n_groups: int) -> Tensor:
    """A weight's gradient, (n_groups, rows, n_columns)."""
    return rows.reshape(n_groups, -1, Layout.of(tuple(rows.shape)).n_columns)


def one_by_one(module: Any, x: Tensor, g: Tensor, means: Tensor | None = None) -> NDArray[np.float64]:
    """Sum of J^T J, every sample with a backward pass of its own: about means, with that of a shift."""
    module = copy.deepcopy(module).double()
    n_groups, total = getattr(module, "groups", 1), 0.0
    alone = isinstance(module, per_sample.CONVOLUTIONS) and x.dim() == len(module.kernel_size) + 1
    for one, at in [(x, g)] if alone else zip(x.split(1), g.split(1), strict=True):
        weight, bias = torch.autograd.grad(module(one.double()), (module.weight, module.bias), at.double())
        rows = grouped(weight, n_groups)
        if means is not None:
            rows = rows - bias.reshape(n_groups, -1, 1) * means[:, None]
        total = total + rows.transpose(1, 2) @ rows
    return total.numpy()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_every_sample_has_its_gradient(name: str, centred: bool) -> None:
    module, x = LINEAR[name]
    if "one image" not in name:
        x = torch.cat([x, inputs(*x.shape)])
    g = torch.randn_like(module(x))
    means = torch.randn(getattr(module, "groups", 1), Layout.of(tuple(module.weight.shape)).n_columns).double()
    sums = GaussNewton()
    sums.add(module, x, g, means.numpy() if centred else None)
    expected = one_by_one(module, x, g, means if centred else None)
    np.testing.assert_allclose(sums._total, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 3, 4, 6)])
def test_samples_lie_along_the_first_axis(shape: tuple[int, ...]) -> None:
    module, x = nn.Linear(6, 5), inputs(*shape)
    g = torch.randn_like(module(x))
    sums = GaussNewton()
    sums.add(module, x, g, None)
    samples = (x[None], g[None]) if len(shape) == 1 else (x, g)
    np.testing.assert_allclose(sums._total, one_by_one(module, *samples), rtol=0, atol=1e-4)


def test_they_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = nn.Conv2d(4, 6, 3, padding=1), inputs(7, 4, 8, 7)
    g, sums, given = torch.randn_like(module(x)), GaussNewton(), []
    at_weight = per_sample.at_weight
    monkeypatch.setattr(per_sample, "CHUNK", 2 * (x[0].numel() + g[0].numel() + module.weight.numel()))
    monkeypatch.setattr(per_sample, "at_weight", lambda module, x, g: given.append(len(x)) or at_weight(module, x, g))
    sums.add(module, x, g, None)
    assert given == [2, 2, 2, 1]
    expected = one_by_one(module, x, g)
    np.testing.assert_allclose(sums._total, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("module", [nn.Linear(6, 200), nn.Conv1d(12, 400, 1, groups=2)], ids=str)
def test_of_many_rows_there_are_sums_that_are_right_in_the_mean(module: Any) -> None:
    shape = (1, 12, 2) if isinstance(module, nn.Conv1d) else (1, 2, 6)
    x, sums = inputs(*shape), GaussNewton()
    g = torch.randn_like(module(x))
    for _ in range(1500):
        sums.add(module, x, g, None)
    expected = one_by_one(module, x, g)
    np.testing.assert_allclose(sums._total / 1500, expected, rtol=0, atol=0.03 * np.abs(expected).max())


class Padding(nn.Conv2d):
    """Pads by what it is given, whatever its settings say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., ::2]


@pytest.mark.parametrize(
    ("module", "shape"), [(Padding(4, 6, 3), (3, 4, 8, 7)), (Padding(4, 6, 3), (4, 8, 7)), (Halved(6, 4), (3, 6))]
)
def test_of_a_module_that_does_more_than_its_kind_nothing_is_said(module: Any, shape: tuple[int, ...]) -> None:
    moment = calibrate(nn.Sequential(module), [inputs(*shape)] * 2).layers["0.weight"]
    assert moment.sensitivity is not None
    assert moment.gauss_newton is None


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e15])
def test_gradients_of_any_size_are_squared(size: float) -> None:
    module, x = nn.Linear(6, 5), inputs(8, 3, 6)
    g = torch.randn_like(module(x))
    found = []
    for scale in (1.0, size):
        sums = GaussNewton()
        sums.add(module, x, scale * g, None)
        found.append(sums.found())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_what_is_not_known_is_not_said() -> None:
    module, x = nn.Linear(6, 5), inputs(8, 6)
    g = torch.randn_like(module(x))
    nothing, single, broken, zero = (GaussNewton() for _ in range(4))
    nothing.add(module, x[:0], g[:0], None)
    single.add(module, x[:1], g[:1], None)
    for _ in range(2):
        broken.add(module, x, g * torch.tensor([1.0, 1.0, torch.inf, 1.0, 1.0]), None)
        zero.add(module, x, 0 * g, None)
    assert [one.found() for one in (nothing, single, broken)] == [(None, None)] * 3
    columns, noise = zero.found()
    assert not columns.any()
    assert (noise == 0).all()


def test_noise_says_how_far_they_are_from_the_truth() -> None:
    """As the real distance does, in the mean over draws; about half as much of twice the samples."""
    module, n_draws = nn.Linear(20, 10), 40
    mixing = torch.randn(20, 20) * torch.logspace(0, -1, 20)

    def draw(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums = GaussNewton()
        for _ in range(4):
            x, g = torch.randn(n, 5, 20) @ mixing.T, torch.randn(n, 5, 10)
            sums.add(module, x, g, None)
        return sums.found()  # type: ignore[return-value]

    truth, _ = draw(50_000)
    for n in (2, 8):
        stated, real = [], []
        for _ in range(n_draws):
            found, noise = draw(n)
            stated.append(float(noise[0]))
            real.append(np.square(found - truth).sum() / (np.square(found).sum() - 1 / 20))
        assert np.mean(stated) == pytest.approx(np.mean(real), rel=0.25)


# ----------------------------------------------------------------------------------------------- in a model


class Pooled(nn.Module):
    """Errors at all places of an image flow together, behind operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = normalised()[:2], nn.Conv2d(4, 5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.second(torch.relu_(self.first(x))))

    def behind(self, y: Tensor) -> Tensor:
        return self.last(torch.relu_(y).mean((2, 3)))


def of_jacobian(model: Any, name: str, x: Tensor, back: Any = None) -> NDArray[np.float64]:
    """E[J^T J] of the outputs of single samples, of trace 1; `back` gives what a shift takes back for a weight."""

    def run(weight: Tensor, one: Tensor) -> Tensor:
        return back(weight, one) if back else torch.func.functional_call(model, {name: weight}, (one[None],))

    weight, total = dict(model.named_parameters())[name].detach(), 0.0
    for one in x:
        rows = torch.func.jacrev(run)(weight, one).detach().flatten(0, -weight.dim() - 1)
        rows = rows.flatten(2).flatten(0, 1)
        total = total + rows.T @ rows
    return (total / total.trace()).numpy()[None]


def test_errors_that_flow_together_behind_a_layer() -> None:
    """Against the Jacobian of every image about the mean, as a normalisation or a bias takes it back."""
    model, x = Pooled().eval(), inputs(12, 3, 6, 6)
    layers = calibrate(model, [x] * 300, n_probes=1).layers
    with torch.no_grad():
        between = torch.relu(model.first(x))

    for name, given in (("first.0", x), ("second", between)):
        layer: Any = model.get_submodule(name)
        mean = nn.functional.unfold(given, 2).mean((0, 2))

        def back(weight: Tensor, one: Tensor, layer: Any = layer, mean: Tensor = mean) -> Tensor:
            shift = (layer.weight.detach() - weight).flatten(1) @ mean
            bias = shift if layer.bias is None else layer.bias + shift
            if layer is model.second:
                return model.behind(nn.functional.conv2d(torch.relu(model.first(one[None])), weight, bias))
            return model.behind(model.second(torch.relu(model.first[1](nn.functional.conv2d(one[None], weight, bias)))))

        expected = of_jacobian(model, f"{name}.weight", x, back)
        moment = layers[f"{name}.weight"].about_means()
        assert moment.gauss_newton is not None
        distance = np.linalg.norm(moment.gauss_newton - expected)
        assert distance < 0.06 * np.linalg.norm(expected)
        assert distance < 0.2 * np.linalg.norm(moment.columns / np.trace(moment.columns[0]) - expected)
        assert moment.gauss_newton_noise < 0.01


class Recurrent(nn.Module):
    """Keeps to itself what its weights give, and calls one layer again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.again = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0][:, -1]
        return self.again(torch.tanh(self.again(y)))


def test_of_hidden_gradients_those_of_a_batch_are_followed() -> None:
    model, x = Recurrent(), inputs(6, 5, 3)
    layers = calibrate(model, [x] * 2, n_probes=1000).layers
    assert layers.keys() == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "again.weight"}
    for name, moment in layers.items():
        expected = of_jacobian(model, name, x)
        assert moment.gauss_newton is not None
        assert np.linalg.norm(moment.gauss_newton - expected) < 0.1 * np.linalg.norm(expected)


def test_a_layer_that_is_called_again_later_is_begun_anew() -> None:
    class Sometimes(Recurrent):
        """Two samples go through the layer but once, and would outweigh all others."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) > 2 else 1000 * self.again(self.rnn(x)[0][:, -1])

    model, plain, x = Sometimes(), Recurrent(), inputs(6, 5, 3)
    model.load_state_dict(plain.state_dict())
    moment = calibrate(model, [x[:2], x], n_probes=1000).layers["again.weight"]
    expected = of_jacobian(plain, "again.weight", x)
    assert moment.gauss_newton is not None
    assert np.linalg.norm(moment.gauss_newton - expected) < 0.1 * np.linalg.norm(expected)
    assert moment.means is None


def test_one_direction_of_each_batch_is_followed_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(GaussNewton, "add", lambda *_: given.append("by sample"))
    monkeypatch.setattr(GaussNewton, "add_sum", lambda *_: given.append("together"))
    monkeypatch.setattr(GaussNewton, "found", lambda _: (None, None))
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))
    calibrate(net, [inputs(5, 4)] * 2, n_probes=3)
    assert given == ["by sample"] * 2 * 3  # batches, layers
    given.clear()
    calibrate(Recurrent(), [inputs(2, 5, 3)] * 2, n_probes=3)
    assert given == ["together"] * 2 * 3 * 3  # directions, too


def test_wide_layers_and_embeddings_have_none() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.wide, self.output = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.output.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.output(self.wide(self.embedding(ids)))

    ids = torch.randint(7, (6, 5))
    layers = calibrate(Tied(), [ids, ids]).layers
    assert layers["wide.weight"].gauss_newton is not None
    assert layers["embedding.weight"].gauss_newton is None
    assert calibrate(Tied(), [ids, ids], widest=3).layers["wide.weight"].gauss_newton is None
    assert calibrate(Tied(), [ids, ids], n_probes=0).layers["wide.weight"].gauss_newton is None


# ------------------------------------------------------------------------------------------- in the metric


def moment_of(newton: NDArray[np.float64], noise: float, **more: Any) -> Moment:
    columns, sensitivity = np.diag([3.0, 1.0])[None], np.ones(4)
    noises = np.array([noise])
    return Moment(columns, np.ones(4), sensitivity, gauss_newton=newton, gauss_newton_noise=noises, **more)


@pytest.mark.parametrize(
    ("moment", "share"),
    [
        (moment_of(np.diag([2.0, 6.0])[None], 0.0), 1.0),
        (moment_of(np.diag([2.0, 6.0])[None], 0.5), 0.875),  # half of 1/8, at a squared distance of 1/2
        (moment_of(np.diag([2.0, 6.0])[None], 1.0), 0.75),
        (moment_of(np.diag([5.8, 2.2])[None], 0.5), 0.0),
        (moment_of(np.zeros((1, 2, 2)), 0.0), 0.0),  # a group that the output does not heed
        (moment_of(np.diag([2.0, 6.0])[None], 0.0, means=np.ones((1, 2)), mean_free=np.ones(4)), 0.0),
    ],
    ids=["certain", "half noise", "all noise", "too near", "nothing", "about means that are not taken back"],
)
def test_the_metric_goes_as_far_as_noise_lets_it(moment: Moment, share: float) -> None:
    metric = _metric(moment, np.ones((4, 2), np.float32))
    expected = np.diag([0.75, 0.25]) + GAUSS_NEWTON * share * np.diag([-0.5, 0.5])
    np.testing.assert_allclose(metric.columns[0], expected, atol=1e-12)


def test_about_means_that_are_taken_back_it_counts() -> None:
    newton = np.diag([2.0, 6.0])[None]
    moment = moment_of(newton, 0.0, means=np.zeros((1, 2)), mean_free=np.ones(4))
    metric = _metric(moment.about_means(), np.ones((4, 2), np.float32))
    assert metric.columns[0, 1, 1] > 0.25


def test_under_limits_it_does_not_count(tmp_path: Path) -> None:
    """A limit holds for what each layer gives, place by place: what averages out behind it is no reason to spend
    bytes elsewhere."""
    model = nn.Sequential(nn.Linear(32, 48, bias=False), nn.Tanh(), nn.Linear(48, 32, bias=False)).eval()
    moments = calibrate(model, [inputs(16, 20, 32) * torch.logspace(0, -1, 32) for _ in range(4)])
    rng = np.random.default_rng(0)
    for moment in moments.layers.values():  # far from what the layers are multiplied with, and sure of it
        roots = rng.standard_normal(moment.columns.shape) * np.logspace(0, -2, moment.columns.shape[1])
        moment.gauss_newton, moment.gauss_newton_noise = roots.transpose(0, 2, 1) @ roots, np.zeros(1)
    without = copy.deepcopy(moments)
    for moment in without.layers.values():
        moment.gauss_newton = None

    def content(stats: SecondMoments, **target: Any) -> bytes:
        paramcompress.squeeze(model.state_dict(), tmp_path / "out", stats=stats, force=True, **target)
        return (tmp_path / "out").read_bytes()

    assert content(moments, bits_per_weight=3) != content(without, bits_per_weight=3)
    assert content(moments, max_output_error=0.1) == content(without, max_output_error=0.1)
