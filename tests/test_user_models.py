"""Models as people write them, with data: that draw, remember, change what they are given, or call modules otherwise.

What is asked of each is that data help as they do elsewhere, or that one line says why not.
"""

from __future__ import annotations

import collections
import copy
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import paramcompress
from paramcompress import calibrated, inputs
from paramcompress.calibration import calibrate
from paramcompress.calls import mapped
from paramcompress.errors import BudgetError, CalibrationError
from paramcompress.guide import Guide
from paramcompress.inputs import weights_of
from paramcompress.lockstep import called_again, calls_of, run_in_lockstep
from paramcompress.modules import canonical_names, check_model, copied, for_one_run
from paramcompress.moments import SecondMoments
from paramcompress.per_sample import GaussNewton


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def change(model: nn.Module, weights: dict[str, Tensor], batches: list[Tensor]) -> float:
    """Squared relative change of what a model gives."""
    squeezed = copied(model)
    squeezed.load_state_dict(weights, strict=False)
    with torch.no_grad():
        pairs = [(model(x.clone()), squeezed(x.clone())) for x in batches]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in model.state_dict().items()}


# ------------------------------------------------------------------------------------------- what a run does


class Sampled(nn.Module):
    """Draws what lies between its halves, also where it is only used."""

    noisy = True

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Linear(32, 8), nn.Linear(8, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        z = self.down(x)
        z = z + torch.randn_like(z) if self.noisy else z
        return self.out(functional.relu(self.up(z)))


def test_models_that_draw_draw_the_same_in_both_models(tmp_path: Path) -> None:
    """Or each weight would be fitted to the difference of two draws: worse than without data."""
    model = Sampled().eval()
    batches = [torch.randn(64, 32) for _ in range(4)]
    before = torch.get_rng_state()
    paramcompress.squeeze(model.state_dict(), tmp_path / "with", model=model, batches=batches, target_size=1800)
    assert torch.equal(torch.get_rng_state(), before), "what others draw is left alone"
    paramcompress.squeeze(model.state_dict(), tmp_path / "without", target_size=1800)
    model.noisy = False
    found = [change(model, paramcompress.load_file(tmp_path / name), batches) for name in ("with", "without")]
    assert found[0] < found[1]


class Steps(nn.Module):
    """Three layers and a normalisation, step by step or all at once. What the first step sees is like no other."""

    by_step = True

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(32, 48), nn.BatchNorm1d(48), nn.Linear(48, 24)

    def layers(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(functional.relu(self.norm(self.first(x))))
        return found

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_step:
            return self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return torch.stack([self.layers(x[:, step]) for step in range(x.shape[1])], 1)


def steps(n: int) -> Tensor:
    x = torch.randn(n, 8, 6) @ torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 0.01 * torch.randn(n, 32)
    return x


def test_a_layer_in_a_loop_is_fitted_to_all_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted to its first call, as of a sound that begins with silence, it would forget the others."""
    model = Steps().eval()
    batches = [steps(24) for _ in range(4)]
    with torch.no_grad():
        for x in batches:
            model.norm.train()(model.first(x.flatten(0, 1)))
    model.eval()
    seen: list[int] = []
    normalise = calibrated._Rehearsal._normalisation

    def spy(self: Any, path: str, original: Any, squeezed: Any, calls: list[Any]) -> None:
        seen.append(sum(len(mine[0][0]) for mine, _ in calls))
        normalise(self, path, original, squeezed, calls)

    monkeypatch.setattr(calibrated._Rehearsal, "_normalisation", spy)
    found = []
    for by_step in (True, False):
        model.by_step = by_step
        options = {"model": model, "batches": batches, "target_size": 2200, "force": True}
        paramcompress.squeeze(model.state_dict(), tmp_path / "x", **options)
        found.append(change(model, paramcompress.load_file(tmp_path / "x"), [steps(100)]))
    assert found[0] < 1.3 * found[1]
    assert set(seen) == {4 * 24 * 8}


@pytest.mark.parametrize("outwards", [True, False])
def test_a_layer_of_a_single_number(outwards: bool, tmp_path: Path) -> None:
    """As time goes into a net, or a score comes out: a metric of one column, and a convolution of one feature."""
    sides = (1, 8) if outwards else (8, 1)
    model = nn.Sequential(
        nn.Conv1d(sides[0], 64, 1), nn.ReLU(), nn.Conv1d(64, 64, 3), nn.ReLU(), nn.Conv1d(64, sides[1], 1)
    )
    batches = [torch.randn(32, sides[0], 9) for _ in range(3)]
    options = {"model": model, "batches": batches, "target_size": 4000}
    report = paramcompress.squeeze(model.state_dict(), tmp_path / "x", **options)
    assert all(one.output_error is not None for one in report.layers if one.name.endswith("weight"))
    assert not any("without data" in note for note in report.notes)
    assert change(model, paramcompress.load_file(tmp_path / "x"), [torch.randn(100, sides[0], 9)]) < 0.05


def test_long_convolutions_have_data(tmp_path: Path) -> None:
    """As of sound: kernels of more than 16 steps are read as a stack of matrices."""
    model = nn.Sequential(
        nn.Conv1d(2, 16, 40), nn.ReLU(), nn.Conv1d(16, 16, 40), nn.ReLU(), nn.Conv1d(16, 4, 20)
    ).eval()
    kernel = torch.hann_window(15)[None, None]

    def sounds(n: int) -> Tensor:
        return functional.conv1d(torch.randn(2 * n, 1, 200), kernel).reshape(n, 2, -1)

    options = {"model": model, "batches": [sounds(16) for _ in range(4)]}
    report = paramcompress.squeeze(model.state_dict(), tmp_path / "with", target_size=3000, **options)
    paramcompress.squeeze(model.state_dict(), tmp_path / "without", target_size=3000)
    assert not any("without data" in note for note in report.notes)
    found = [change(model, paramcompress.load_file(tmp_path / name), [sounds(64)]) for name in ("with", "without")]
    assert found[0] < 0.5 * found[1]


def test_first_calls_that_are_like_all_others_serve_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a net that is called with two images: no runs are made for the second."""
    model = Steps().eval()
    batches = [torch.randn(200, 2, 32) for _ in range(3)]
    monkeypatch.setattr(calibrated, "calls_of", lambda *_: pytest.fail("a run for what is known"))
    paramcompress.squeeze(model.state_dict(), tmp_path / "x", model=model, batches=batches, target_size=2200)


def test_calls_are_found_as_they_were() -> None:
    """In a run of their own: nothing is left behind, and what was changed in place since was another tensor."""

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.state = nn.Linear(3, 3), nn.Linear(3, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.state += 1
            y: Tensor = self.twice(x) + self.once(x)
            x += 1
            return y + self.twice(input=x)

    model, x = Adds().eval(), torch.zeros(2, 3)
    assert called_again(model, x, 1, ["", "once", "twice"]) == {"twice"}
    (first, _), (_, second) = calls_of(model, x, 1, "twice")
    assert torch.equal(first[0], torch.zeros(2, 3))
    assert torch.equal(second["input"], torch.ones(2, 3))
    assert model.state == 0
    assert not model.twice._forward_pre_hooks


def test_both_models_draw_what_belongs_to_the_batch() -> None:
    model, x = Sampled().eval(), torch.randn(6, 32)
    met: list[Any] = []
    run_in_lockstep((model, copy.deepcopy(model)), [x, x], ["up"], lambda _, calls: met.extend(calls))
    (first, its_first), (second, its_second) = ((mine[0][0], its[0][0]) for mine, its in met)
    assert torch.equal(first, its_first)
    assert torch.equal(second, its_second)
    assert not torch.equal(first, second)


class InPlace(nn.Module):
    """Normalises what it is given in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: dict[str, Tensor]) -> Tensor:
        x.div_(2).sub_(1)
        mask["kept"].mul_(0.5)
        return self.last(functional.relu(self.first(x * mask["kept"])))


def test_batches_stay_as_they_are() -> None:
    model, x, mask = InPlace(), torch.randn(6, 8), {"kept": torch.ones(6, 1)}
    given = x.clone(), {"kept": mask["kept"].clone()}
    seen: list[Tensor] = []
    run_in_lockstep(
        (model, copy.deepcopy(model)),
        [(x, mask)],
        ["first"],
        lambda _, calls: seen.extend(call[0][0] for call in calls[0]),
    )
    calibrate(model, [(x, mask)])
    assert torch.equal(x, given[0])
    assert torch.equal(mask["kept"], given[1]["kept"])
    for one in seen:
        torch.testing.assert_close(one, (given[0] / 2 - 1) * 0.5)


class Remembering(nn.Module):
    """Keeps on itself, in a list and in a buffer what it needs behind the next module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.kept: list[Tensor] = []
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.skip = x
        self.kept.append(x)
        self.mean = x.mean(0)
        y = self.first(x) + self.skip + self.kept.pop() + self.mean
        return self.last(y)


def test_what_a_run_keeps_in_modules_is_its_own() -> None:
    """Of several sizes: what another batch had left would not even fit."""
    model = Remembering().eval()
    batches = [torch.randn(n, 4) for n in (3, 3, 5)]
    met: list[Any] = []
    run_in_lockstep(
        (model, copy.deepcopy(model)), batches, ["first", "last"], lambda path, calls: met.append((path, calls))
    )
    assert [path for path, _ in met] == ["first", "last"]
    for x, (mine, its) in zip(batches, met[1][1], strict=True):
        expected = model.first(x) + 2 * x + x.mean(0)
        torch.testing.assert_close(mine[0][0], expected)
        torch.testing.assert_close(its[0][0], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_copy_for_one_run_shares_parameters_hooks_and_modules() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model.append(model[0])
    heard: list[int] = []
    model[0].register_forward_pre_hook(lambda *_: heard.append(1))
    twin = for_one_run(model)
    assert twin[0] is twin[2] is not model[0]
    model[0].weight.data = torch.eye(3)
    x = torch.randn(2, 3)
    torch.testing.assert_close(twin(x), model(x))
    assert len(heard) == 4
    scripted = torch.jit.script(nn.Linear(2, 2))
    assert for_one_run(scripted) is scripted


class Hooked(nn.Module):
    """Takes what a hook of its own has kept, and what a child finds through its parent."""

    class Child(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + self.parent[0].context

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), self.Child(4, 4)
        self.last.parent = [self]
        self.features: dict[str, Tensor] = {}
        self.first.register_forward_hook(self.keep)

    def keep(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.features["first"] = output

    def forward(self, x: Tensor) -> Tensor:
        self.context = x
        return self.last(self.first(x) + self.features.pop("first"))


def test_what_hooks_and_children_reach_belongs_to_the_same_run() -> None:
    model = Hooked().eval()
    batches = [torch.randn(n, 4) for n in (3, 5)]
    met: list[Any] = []
    run_in_lockstep((model, copied(model)), batches, ["first", "last"], lambda path, calls: met.append((path, calls)))
    for x, (mine, _) in zip(batches, met[1][1], strict=True):
        torch.testing.assert_close(mine[0][0], 2 * model.first(x))
    assert len(calibrate(model, batches).layers) == 2


def test_an_interrupted_run_leaves_what_others_draw_alone() -> None:
    class Interrupted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            torch.randn(3)
            raise KeyboardInterrupt

    model = Interrupted(2, 2)
    before = torch.get_rng_state()
    for call in (
        calibrate,
        lambda model, batches: run_in_lockstep((model, copied(model)), batches, [], lambda *_: None),
    ):
        with pytest.raises(KeyboardInterrupt):
            call(model, [torch.zeros(1, 2)])
        assert torch.equal(torch.get_rng_state(), before)


class Encoding(collections.UserDict[str, Tensor]):
    """As tokenizers give them: a mapping with attributes."""

    @property
    def ids(self) -> Tensor:
        return self["ids"]


class Rows(list[Tensor]):
    """A list that is made in a way of its own."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__((first, second))


def test_batches_of_other_containers_are_given_as_they_are() -> None:
    """The second and third argument, of which no input of the layer is made, are only looked at."""
    x = torch.randn(3, 4)
    batch = Encoding(ids=x), Rows(x, x), torch.ones(3, 4, requires_grad=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, encoding: Encoding, rows: Rows, at: Tensor) -> Tensor:
            (slope,) = torch.autograd.grad(at.square().sum(), at)
            return self.inner(encoding.ids + rows[0] + rows[1] + slope)

    moment = calibrate(Model(), [batch]).layers["inner.weight"]
    expected = (3 * x + 2).double()
    np.testing.assert_allclose(moment.columns[0], (expected.T @ expected / 3).numpy(), rtol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_followed_wherever_it_is_called(mode: Callable[[], Any]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 4)
    plain = calibrate(model, [x])
    with mode():
        found = calibrate(copy.deepcopy(model), [x * 1])
    assert not found.notes
    for name, moment in plain.layers.items():
        assert moment.sensitivity is not None
        np.testing.assert_allclose(found.layers[name].sensitivity, moment.sensitivity)


def test_a_batch_that_gives_nothing_takes_nothing_away() -> None:
    class Chosen(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            y = super().forward(input)
            return y[y[:, 0] > 100 * (input.mean() > 10)]

    model = Chosen(4, 3)
    moments = calibrate(model, [torch.randn(50, 4), torch.full((2, 4), 20.0)])
    assert not moments.notes
    assert moments.layers["weight"].sensitivity is not None


# ------------------------------------------------------------------------------------------- what they hold


def old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 4))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 4)
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(x)
        self.seen = {"features": [y], "of": (x, y.relu())}
        return y


@pytest.mark.parametrize("build", [old_weight_norm, pruned, Keeping])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_models_that_hold_what_they_computed_are_copied(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x = build(), torch.randn(8, 6)
    given = model(x)
    torch.testing.assert_close(copied(model)(x), given)
    paramcompress.squeeze(model.state_dict(), tmp_path / "a", model=model, batches=[x, x], max_output_error=0.1)
    assert change(model, paramcompress.load_file(tmp_path / "a"), [x]) < 0.02


def test_a_copy_shares_nothing_with_the_model() -> None:
    model = nn.Linear(3, 3)
    model.state = {"h": torch.ones(3) * model.bias.detach().requires_grad_()}
    model.state["all"] = model.state
    before = model.state["h"].detach().clone()
    copied(model).state["h"].mul_(0)
    assert torch.equal(model.state["h"], before)


def test_a_model_that_cannot_be_copied_is_said_to_be_one() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(CalibrationError, match="cannot be copied: TypeError: cannot pickle") as caught:
        calibrate(model, [torch.zeros(1, 2)])
    assert "\n" not in str(caught.value)


def test_names_that_a_checkpoint_has_are_preferred() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 4), "out": nn.Linear(4, 8, bias=False)})
    model["out"].weight = model["embedding"].weight
    names = "embedding.weight", "out.weight"
    assert canonical_names(model) == dict.fromkeys(names, "embedding.weight")
    assert canonical_names(model, {"out.weight"}) == dict.fromkeys(names, "out.weight")


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.out = nn.Embedding(100, 32), nn.Linear(32, 32), nn.Linear(32, 100, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(self.embedding(x))))


@pytest.mark.parametrize("kept", [("embedding.weight", "out.weight"), ("embedding.weight",), ("out.weight",)])
def test_what_is_tied_in_the_model_is_one(kept: tuple[str, ...], tmp_path: Path) -> None:
    """Also where the checkpoint holds it twice, or under one of its names, as safetensors files do."""
    model = Tied()
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    for name in {"embedding.weight", "out.weight"} - {*kept}:
        del weights[name]
    batches = [torch.randint(100, (16, 12)) for _ in range(4)]
    report = paramcompress.squeeze(weights, tmp_path / "a", model=model, batches=batches, target_size=2600)
    assert not [note for note in report.notes if "do not reach" in note]
    assert sum(one.bytes_after == 0 for one in report.layers) == len(kept) - 1
    found = paramcompress.load_file(tmp_path / "a")
    assert all(torch.equal(found[name], found[kept[0]]) for name in kept)
    paramcompress.squeeze(weights, tmp_path / "without", target_size=2600)
    both = [
        dict.fromkeys(("embedding.weight", "out.weight"), one[kept[0]]) | one
        for one in (found, paramcompress.load_file(tmp_path / "without"))
    ]
    assert change(model, both[0], batches) < 0.6 * change(model, both[1], batches)


def test_ties_in_another_order_and_with_settings_of_one(tmp_path: Path) -> None:
    """The name that a checkpoint has first, and of which nothing is said."""
    model = Tied()
    tied = model.state_dict()
    batches = [torch.randint(100, (16, 12)) for _ in range(2)]
    how: dict[str, Any] = {"model": model, "batches": batches, "max_output_error": 0.1}
    turned = {name: tied[name] for name in ("out.weight", "inner.weight", "inner.bias", "embedding.weight")}
    report = paramcompress.squeeze(turned, tmp_path / "a", **how)
    assert not [note for note in report.notes if "do not reach" in note]
    copies = {name: one.clone() for name, one in tied.items()}
    report = paramcompress.squeeze(copies, tmp_path / "b", layers={"embedding.weight": {"exact": True}}, **how)
    errors = {one.name: one.output_error for one in report.layers}
    assert errors["out.weight"] is not None
    assert torch.equal(paramcompress.load_file(tmp_path / "b")["embedding.weight"], tied["embedding.weight"])


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_one_is_encoded_once(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tied()
    copies = {name: one.clone() for name, one in model.state_dict().items()}
    encoded: list[str] = []
    encode = Guide.encode
    monkeypatch.setattr(
        Guide, "encode", lambda self, info, *rest: encoded.append(info.name) or encode(self, info, *rest)
    )
    paramcompress.squeeze(
        copies,
        tmp_path / "a",
        model=model,
        batches=[torch.randint(100, (9, 4))] * 2,
        max_output_error=0.1,
        workers=workers,
    )
    assert sorted(encoded) == ["embedding.weight", "inner.bias", "inner.weight"]


def test_what_is_tied_in_the_model_and_differs_in_the_checkpoint_stays_so(tmp_path: Path) -> None:
    model = Tied()
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    weights["out.weight"] *= 2
    batches = [torch.randint(100, (16, 12)) for _ in range(2)]
    paramcompress.squeeze(weights, tmp_path / "a", model=model, batches=batches, bits_per_weight=4)
    found = paramcompress.load_file(tmp_path / "a")
    for name in ("embedding.weight", "out.weight"):
        assert float((found[name] - weights[name]).norm() / weights[name].norm()) < 0.5


def test_what_is_no_tensor_in_the_state_is_no_difference() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 2}

        def set_extra_state(self, state: Any) -> None:
            pass

    check_model(Extra(2, 2), {"weight": (2, 2), "bias": (2,)})


def test_differences_are_said_in_one_line() -> None:
    with pytest.raises(CalibrationError, match="weight of the model has no shape yet"):
        check_model(nn.LazyLinear(2), {"weight": (2, 3), "bias": (2,)})
    inner = nn.Linear(2, 3)
    wrapper = nn.ModuleDict({"module": inner})
    with pytest.raises(CalibrationError, match=r"weight \(only in the checkpoint\)") as caught:
        check_model(wrapper, shapes_of(inner))
    assert "give the model inside" in str(caught.value.hint)
    with pytest.raises(CalibrationError, match=r"scaler.scale \(only in the checkpoint\)") as caught:
        check_model(inner, {**shapes_of(inner), "scaler.scale": ()})
    assert "torch.save(model.state_dict(), path)" in str(caught.value.hint)


def test_a_model_spread_over_devices_fits_its_checkpoint(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)))
    report = paramcompress.squeeze(
        model.state_dict(), tmp_path / "a", model=model, batches=[torch.randn(9, 6)] * 2, max_output_error=0.1
    )
    assert all(one.output_error is not None for one in report.layers if one.name.endswith("weight"))


# ------------------------------------------------------------------------------------------- how they call


class Experts(nn.Module):
    """Rows go where they are told, or where a first layer sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        chosen = self.gate(x).argmax(1) if to is None else to
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(x[chosen == i])
        return y


def test_an_expert_that_the_first_batch_does_not_choose() -> None:
    x = torch.randn(30, 16)
    moments = calibrate(Experts(), [(x, torch.arange(30) % 2), (x, torch.arange(30) % 3)])
    assert {"experts.0.weight", "experts.2.weight"} <= moments.layers.keys()
    assert "experts.3.weight" not in moments, "which nothing goes into"


def test_experts_that_are_given_more_by_the_squeezed_model(tmp_path: Path) -> None:
    """What goes in is not the same inputs then, so there is nothing to fit to."""
    model = Experts()
    batches = [torch.randn(50, 16) for _ in range(3)]
    report = paramcompress.squeeze(model.state_dict(), tmp_path / "a", model=model, batches=batches, target_size=1000)
    assert report.bytes_after <= 1000
    assert change(model, paramcompress.load_file(tmp_path / "a"), batches) < 0.3


class Attending(nn.Module):
    """Calls attention with all arguments by their places."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, None, False, None)[0]


class OfPlaces(nn.Embedding):
    """An embedding that is called with numbers, of which it takes whole ones."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.round().long().clamp(0, 7))


class Scaled(nn.Linear):
    def forward(self, input: Tensor, scale: float) -> Tensor:
        return super().forward(input) * scale


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places, self.scaled, self.last = OfPlaces(8, 8), Scaled(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.scaled(x, 2.0) + self.places(x[..., 0])))


class Recurrent(nn.LSTM):
    def __init__(self, size: int) -> None:
        super().__init__(size, size, batch_first=True)


def test_modules_that_are_called_as_their_kind_is_not_are_left_out_and_named(tmp_path: Path) -> None:
    model = Odd()
    batches = [torch.randn(20, 8) for _ in range(3)]
    moments = calibrate(model, batches)
    assert moments.layers.keys() == {"last.weight"}
    assert [note.partition(" is not")[0] for note in moments.notes] == [
        "scaled is called as Linear",
        "places is called as Embedding",
    ]
    report = paramcompress.squeeze(model.state_dict(), tmp_path / "a", model=model, batches=batches, target_size=800)
    assert "data do not reach places.weight, scaled.weight: coded without" in report.notes


def test_a_weight_that_is_no_parameter_is_not_followed() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)
    assert calibrate(model, [torch.randn(5, 4)]).layers.keys() == {"1.weight"}


def test_a_weight_that_another_module_calls_otherwise_is_left_out() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.places = nn.Linear(8, 8), OfPlaces(8, 8)
            self.last.weight = self.places.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + self.places(x[..., 0]))

    moments = calibrate(Both(), [torch.randn(20, 8)] * 2)
    assert not moments.layers
    assert moments.notes == ("places is called as Embedding is not: coded without data",)


def test_errors_that_are_not_the_models_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory, or one of our own: not taken for what a module is called with, nor for what cannot be followed."""

    def no_memory(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    def wrong(*_: Any) -> Any:
        raise RuntimeError("wrong")

    model, batches = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [torch.randn(5, 4)]
    with monkeypatch.context() as patch:
        patch.setitem(inputs._TABLE, nn.Linear, no_memory)
        with pytest.raises(CalibrationError, match="allocate memory"):
            calibrate(model, batches)
    monkeypatch.setattr(GaussNewton, "add", wrong)
    with pytest.raises(RuntimeError, match="wrong"):
        calibrate(model, batches)


def test_attention_with_everything_by_its_place_is_followed() -> None:
    model, x = Attending(), torch.randn(3, 5, 8)
    moments = calibrate(model, [x])
    assert moments.layers.keys() == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_parameters_of_modules_within_are_those_of_a_module_where_it_uses_them_itself() -> None:
    """Attention never calls the projection in it; an adapter within a linear layer is called for itself."""
    attention = nn.MultiheadAttention(4, 2)
    attention.before = nn.Linear(4, 4)
    assert weights_of(attention) == ["in_proj_weight", "in_proj_bias", "out_proj.weight"]
    adapted = nn.Linear(4, 4)
    adapted.adapter = nn.Linear(4, 4)
    assert weights_of(adapted) == ["weight", "bias"]


def test_a_class_made_from_a_recurrent_layer_is_one() -> None:
    moments = calibrate(nn.Sequential(Recurrent(6)), [torch.randn(3, 5, 6)])
    assert moments.layers.keys() == {"0.weight_ih_l0", "0.weight_hh_l0"}


def test_convolutions_over_nothing_count_for_nothing() -> None:
    model, x = nn.Conv2d(2, 3, 3), torch.randn(4, 2, 6, 6)
    found = [calibrate(model, batches).layers["weight"].columns for batches in ([x], [x, x[:0]])]
    np.testing.assert_array_equal(*found)


class Lowered(nn.Module):
    """Runs some of its modules in lower precision."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 8)
        self.inner: Any = nn.LSTM(16, 16, batch_first=True)
        if kind == "attention":
            self.inner = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.inner(self.first(x))
            return self.last(y[0] if isinstance(y, tuple) else y).float()


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_models_that_lower_their_precision(kind: str, tmp_path: Path) -> None:
    model = Lowered(kind).eval()
    batches = [torch.randn(8, 10, 16) for _ in range(3)]
    report = paramcompress.squeeze(model.state_dict(), tmp_path / "a", model=model, batches=batches, bits_per_weight=4)
    assert not [note for note in report.notes if "do not reach" in note]


def test_batches_that_ask_for_gradients_may_be_changed_in_place() -> None:
    features = torch.randn(6, 4, requires_grad=True) * 2
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    assert calibrate(model, [features]).layers.keys() == {"1.weight"}


def test_mappings_that_are_read_only_are_copied() -> None:
    given = types.MappingProxyType({"a": torch.ones(2), "b": [torch.ones(2)]})
    found = mapped(given, lambda one: one + 1)
    assert found["a"].tolist() == found["b"][0].tolist() == [2, 2]
    assert given["a"].tolist() == [1, 1]


class Sparse(nn.Module):
    """Of a graph, and changed in place: what it saves to be followed back cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sparse.mm(torch.eye(5).to_sparse(), self.last(x)).sigmoid()
        y[..., :2] = y[..., :2] * 2
        return y


def test_what_cannot_be_copied_is_not_followed_back() -> None:
    moments = calibrate(Sparse(), iter([torch.randn(5, 4), torch.randn(5, 4)]))
    assert moments.n_batches == 2
    assert "cannot be differentiated" in moments.notes[0]


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_nested_tensors_are_left_out(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            together = torch.nested.as_nested_tensor([x[:2], x[2:]])
            return self.last(torch.nested.to_padded_tensor(self.first(together), 0.0))

    model, batches = Nested().eval(), [torch.randn(5, 16)] * 2
    report = paramcompress.squeeze(model.state_dict(), tmp_path / "a", model=model, batches=batches, target_size=1000)
    assert "first is called as Linear is not: coded without data" in report.notes


def test_a_run_copies_no_tables_and_no_tensors() -> None:
    model = nn.Linear(2, 2)
    model.teacher = [nn.Linear(3, 3)]
    model.words = {str(i): i for i in range(2000)}
    twin = for_one_run(model)
    assert twin.teacher[0] is not model.teacher[0]
    assert twin.teacher[0].weight is model.teacher[0].weight
    assert twin.words is model.words


class Head(nn.Module):
    """Changes what it gives, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.last, self.in_place = nn.Linear(4, 4), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(x).sigmoid()
        if not self.in_place:
            return torch.cat([y[..., :2] * 2, y[..., 2:]], -1)
        y[..., :2] = y[..., :2] * 2
        return y


def test_what_is_changed_in_place_is_followed_back() -> None:
    """Though it is needed for that: the derivative of a sigmoid is told by what it gave."""
    heads = [Head(in_place=one) for one in (True, False)]
    heads[1].load_state_dict(heads[0].state_dict())
    batches = [torch.randn(5, 4) for _ in range(2)]
    found = [calibrate(one, iter(batches)) for one in heads]
    assert [one.n_batches for one in found] == [2, 2]
    assert not found[0].notes
    for one in ("sensitivity", "columns", "gauss_newton"):
        np.testing.assert_allclose(*(getattr(each.layers["last.weight"], one) for each in found))


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("has no derivative")


def test_what_cannot_be_followed_back_is_said() -> None:
    class Closed(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            found: Tensor = Opaque.apply(super().forward(input))
            return found

    moments = calibrate(Closed(4, 4), [torch.randn(5, 4)])
    assert moments.layers["weight"].sensitivity is None
    assert moments.notes == (
        "the model's output cannot be differentiated: layers share alike what the output may change",
    )


@pytest.mark.parametrize("build", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_followed(build: Any) -> None:
    nets = [nn.Sequential(build(10, 4, sparse=is_sparse), nn.Linear(4, 2)) for is_sparse in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    batches = [torch.randint(10, (6, 3))] * 2
    dense, sparse = (calibrate(one, batches) for one in nets)
    assert sparse.vectors == pytest.approx(dense.vectors)
    assert sparse.layers.keys() == dense.layers.keys()
    for name, moment in dense.layers.items():
        assert moment.sensitivity is not None
        np.testing.assert_allclose(sparse.layers[name].sensitivity, moment.sensitivity)


# ------------------------------------------------------------------------------------------- what is said


def test_a_size_in_bits_that_is_too_small_is_named_in_bytes(tmp_path: Path) -> None:
    weights = {"w": torch.randn(100, 100)}
    with pytest.raises(BudgetError, match=r"no file of 125 bytes: the smallest possible has ") as caught:
        paramcompress.squeeze(weights, tmp_path / "a", bits_per_weight=0.1)
    smallest = caught.value.smallest_bytes
    assert paramcompress.squeeze(weights, tmp_path / "a", target_size=smallest).bytes_after <= (smallest or 0)


def test_moments_of_nothing_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="reach no weight"):
        SecondMoments({}, {}, n_batches=2).save(tmp_path / "stats.safetensors")
    assert not list(tmp_path.iterdir())
