"""Layers that predict their weights: what they compute, learn, save and become; and what they refuse."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paramcompress import predict
from paramcompress.dictionaries.data import FromData
from paramcompress.dictionaries.supports import support
from paramcompress.errors import PredictionError, SingularKernelError

GRID = (8, 5)
N_IN = 40


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


DICTIONARIES: dict[str, Callable[[], predict.Dictionary]] = {
    "squared-exponential": lambda: predict.SquaredExponential(GRID),
    "covariance": lambda: predict.Covariance(random(80, N_IN)),
    "autoencoder": lambda: predict.Autoencoder(random(80, N_IN), hidden=30, epochs=1),
    "k-means": lambda: predict.KMeans(random(80, N_IN), k=30),
    "cosine": lambda: predict.Cosine(GRID),
    "random": lambda: predict.RandomFixed(),
    "connections": lambda: predict.RandomConnections(),
    "learned": lambda: predict.LearnedLowRank(),
    "pca": lambda: predict.PCA(random(80, N_IN)),
    "down-sampling": lambda: predict.DownSampling(GRID),
}
EACH = pytest.mark.parametrize("kind", DICTIONARIES)


def linear(kind: str = "squared-exponential", **options: Any) -> predict.PredictedLinear:
    size = options if "fraction" in options or "n_support" in options else {"n_support": 8, **options}
    return predict.PredictedLinear(N_IN, 25, dictionary=DICTIONARIES[kind](), **size)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(N_IN, 30), nn.Sigmoid(), nn.Linear(30, 20), nn.Sigmoid(), nn.Linear(20, 10))


# ------------------------------------------------------------------------------------------- what they compute


@EACH
@pytest.mark.parametrize("groups", [1, 3, 5])
def test_output_is_that_of_the_predicted_weight(kind: str, groups: int) -> None:
    """W_j = C_j D_j^T by the definition, also where the features cannot be shared out equally."""
    layer = linear(kind, groups=groups)
    recipe, x = layer.cooked, random(6, N_IN)
    rows = [recipe.rows(j) for j in range(recipe.groups)]
    assert (rows[0].start, rows[-1].stop) == (0, 25)
    assert all(a.stop == b.start for a, b in pairwise(rows))
    weight = torch.cat([layer.learned[rows[j]] @ layer.dictionary[j] for j in range(recipe.groups)])
    assert torch.allclose(layer(x), x @ weight.T + layer.bias, atol=1e-5)
    assert torch.allclose(layer.dense_weight(), weight, atol=1e-6)


@EACH
def test_what_is_learned_and_what_is_fixed(kind: str) -> None:
    """One step of a plain optimizer moves the learned numbers and the bias, and no fixed dictionary."""
    layer = linear(kind, groups=5)
    before = copy.deepcopy(layer.state_dict()) | {"dictionary": layer.dictionary.detach().clone()}
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(random(6, N_IN)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in layer.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"learned", "bias"} | ({"dictionary"} if kind == "learned" else set())
    assert torch.equal(layer.dictionary, before["dictionary"]) == (kind != "learned")


@EACH
def test_dictionaries_are_orthonormal(kind: str) -> None:
    """To the grid's rounding: entries are off by up to 2**-16, so products of unit vectors by 2 * 2**-16 * sqrt(n)."""
    if kind == "learned":
        pytest.skip("its atoms are trained")
    for atoms in linear(kind, groups=3).dictionary.double():
        assert float((atoms @ atoms.T - torch.eye(len(atoms))).abs().max()) < 2.0**-15 * N_IN**0.5


@EACH
@pytest.mark.parametrize("orthonormal", [True, False])
def test_starts_as_large_as_torch_does(kind: str, orthonormal: bool) -> None:
    """Mean square length of a feature: 1 / 3, as n_in uniform numbers up to 1 / sqrt(n_in) have. Truncated singular
    vectors keep less."""
    weight = linear(kind, groups=5, orthonormal=orthonormal).dense_weight()
    length = float(weight.square().sum(1).mean())
    assert length < 1 / 3 if kind == "learned" else length == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("variant", ["kernel", "raw"])
def test_orthonormalisation_is_folded_into_the_coefficients(variant: str) -> None:
    """Before and after, a layer of the same seed starts as the same weights but for the grid and a common factor."""
    plain, folded = (linear(variant=variant, orthonormal=one, seed=3).dense_weight() for one in (False, True))
    assert float(functional.cosine_similarity(plain.flatten(), folded.flatten(), dim=0)) > 1 - 1e-5


def test_variants_differ() -> None:
    """Ridge regression predicts smoother weights than sums of bumps: the control of the test above."""
    kernel, raw = (linear(variant=variant, seed=3).dense_weight() for variant in ("kernel", "raw"))
    assert float(functional.cosine_similarity(kernel.flatten(), raw.flatten(), dim=0)) < 0.99


def test_kernel_ridge_regression_is_the_papers() -> None:
    """U = K_(.,alpha) (K_alpha + ridge)^-1, written out, where nothing is made orthonormal."""
    layer = predict.PredictedLinear(
        N_IN, 25, dictionary=predict.SquaredExponential(GRID, sigma=1.3, ridge=0.2), n_support=8, orthonormal=False
    )
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(5.0)).double()
    kernel = torch.exp(-torch.cdist(places, places).square() / (2 * 1.3**2))
    alpha = torch.from_numpy(support("tied", predict.SquaredExponential(GRID), N_IN, 8, 0, tuple(layer.cooked.seed)))
    solved = kernel[:, alpha] @ torch.linalg.inv(kernel[alpha][:, alpha] + 0.2 * torch.eye(8))
    assert torch.allclose(layer.dictionary[0].T.double(), solved, atol=2.0**-14)


@pytest.mark.parametrize("groups", [1, 4, 3])
@pytest.mark.parametrize("how", [{"padding": 1}, {"stride": 2, "padding": (0, 2)}, {"dilation": 2, "padding": "same"}])
def test_both_orders_of_a_convolution_are_equal(groups: int, how: dict[str, Any]) -> None:
    """Filters put together, and fixed convolution followed by a 1x1: outputs and gradients, in float64."""
    layers = [
        predict.PredictedConv2d(
            3, 16, 3, dictionary=predict.SquaredExponential(), fraction=0.4, groups=groups, order=order, **how
        ).double()
        for order in ("filters", "features")
    ]
    x = random(2, 3, 9, 8).double()
    outs = [layer(x) for layer in layers]
    assert torch.allclose(*outs, rtol=1e-12, atol=1e-12)
    for out in outs:
        out.square().sum().backward()
    assert torch.allclose(layers[0].learned.grad, layers[1].learned.grad, rtol=1e-10, atol=1e-10)
    dense = functional.conv2d(
        x, layers[0].weight, layers[0].bias, layers[0].stride, layers[0].padding, layers[0].dilation
    )
    assert torch.allclose(outs[1], dense, rtol=1e-12, atol=1e-12)


def test_channels_share_a_support_and_nothing_else() -> None:
    layer = predict.PredictedConv2d(3, 8, 5, dictionary=predict.SquaredExponential(), fraction=0.25)
    atoms = layer.dictionary[0].view(3, 6, 3, 25)
    for channel in range(3):
        assert torch.equal(atoms[channel, :, channel], atoms[0, :, 0])
        others = [c for c in range(3) if c != channel]
        assert not atoms[channel][:, others].any()


def test_column_groups_have_supports_of_their_own() -> None:
    layer = linear("connections", groups=5)
    supports = [tuple(one.any(0).nonzero().flatten().tolist()) for one in layer.dictionary]
    assert len(set(supports)) == 5
    assert {len(one) for one in supports} == {8}


@EACH
def test_the_same_seed_is_the_same_layer(kind: str) -> None:
    """Whatever the state of torch's generator, which is left alone; another seed is another layer."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = linear(kind, groups=2, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second, third = linear(kind, groups=2, seed=4), linear(kind, groups=2, seed=5)
    assert torch.equal(first.dense_weight(), second.dense_weight())
    assert not torch.equal(first.dense_weight(), third.dense_weight())


@pytest.mark.parametrize("supports", ["uniform", "tied", "leading", "leverage", "pivoted"])
def test_supports(supports: str) -> None:
    layer = linear(groups=2, supports=supports)
    assert layer.cooked.n_support == 8
    assert layer.cooked.groups == (1 if supports == "leading" else 2)
    assert isinstance(layer.cooked.supports, list) == (supports in ("leverage", "pivoted"))


def test_leverage_and_pivots_keep_to_inputs_that_vary() -> None:
    """Half the inputs are always zero: uniform supports waste numbers on them, the others hardly any."""
    data = torch.cat([random(200, 20), torch.zeros(200, 20)], 1)
    dead = {}
    for supports in ("uniform", "leverage", "pivoted"):
        dictionary = predict.Covariance(data, shrinkage=1e-6)
        layer = predict.PredictedLinear(N_IN, 25, dictionary=dictionary, n_support=8, groups=5, supports=supports)
        dead[supports] = float(layer.dictionary[:, :, 20:].square().sum() / layer.dictionary.square().sum())
    assert dead["uniform"] > 0.25
    assert max(dead["leverage"], dead["pivoted"]) < 0.02


def test_extremes_of_the_fraction() -> None:
    """One number a feature at least; all of them span everything, so that any weight can be learned."""
    assert linear(fraction=1e-9).learned.shape == (25, 1)
    weight = random(25, N_IN)
    for kind in ("squared-exponential", "random", "covariance", "cosine"):
        whole = linear(kind, fraction=1.0, groups=2)
        whole.project(weight)
        assert torch.allclose(whole.dense_weight(), weight, atol=1e-4)


# ------------------------------------------------------------------------------------------- convert and merge


def test_convert_replaces_in_place_all_but_the_last() -> None:
    net = mlp()
    assert predict.convert(net, 0.25, predict.RandomFixed()) is net
    assert [type(one).__name__ for one in net] == ["PredictedLinear", "Sigmoid", "PredictedLinear", "Sigmoid", "Linear"]
    assert predict.learned_fraction(net) == pytest.approx((10 * 30 + 8 * 20) / (N_IN * 30 + 30 * 20))
    assert not torch.equal(net[0].dictionary[0, :8, :30], net[2].dictionary[0])


def test_convert_by_pattern() -> None:
    net = nn.ModuleDict({"features": mlp(), "head": nn.Linear(10, 4)})
    dictionaries = {"features.0": predict.SquaredExponential(GRID), "re:features\\.[24]": predict.RandomFixed()}
    predict.convert(net, 0.25, dictionaries, exclude=["*.4"], groups=2)
    assert {name: one.cooked.kind for name, one in predict.predicted_layers(net).items()} == {
        "features.0": "squared-exponential",
        "features.2": "random",
    }
    predict.convert(net, 0.5, predict.RandomFixed(), include=["head"])
    assert "head" in predict.predicted_layers(net)


def test_convert_keeps_device_dtype_mode_and_bias() -> None:
    net = nn.Sequential(nn.Linear(N_IN, 30, bias=False), nn.Linear(30, 4)).double().eval()
    predict.convert(net, 0.25, predict.RandomFixed())
    layer = net[0]
    assert isinstance(layer, predict.PredictedLinear)
    assert (layer.learned.dtype, layer.dictionary.dtype, layer.bias, layer.training) == (torch.float64,) * 2 + (
        None,
        False,
    )
    assert net(random(2, N_IN).double()).shape == (2, 4)


def test_what_is_frozen_stays_frozen() -> None:
    net = mlp()
    net[0].weight.requires_grad_(False)
    predict.convert(net, 0.25, predict.RandomFixed(), start="project")
    assert [one.requires_grad for one in (net[0].learned, net[0].bias, net[2].learned)] == [False, True, True]
    net[2].bias.requires_grad_(False)
    predict.merge(net)
    assert [one.requires_grad for one in net.parameters()] == [False, True, True, False, True, True]


def test_projecting_keeps_what_can_be_kept() -> None:
    """Of a weight that the dictionary can represent, everything; of another, the nearest, also as the inputs see it."""
    layer = linear(groups=5)
    net = nn.Sequential(nn.Linear(N_IN, 25), nn.Linear(25, 2))
    net[0].weight.data.copy_(layer.dense_weight())
    bias = net[0].bias.detach().clone()
    predict.convert(net, 8 / N_IN, predict.SquaredExponential(GRID), groups=5, start="project")
    assert torch.allclose(net[0].dense_weight(), layer.dense_weight(), atol=1e-5)
    assert torch.equal(net[0].bias, bias)

    weight, x = random(25, N_IN, seed=1), random(200, N_IN, seed=2) * torch.linspace(0.1, 2, N_IN)
    errors = {}
    for name, moment in (("plain", None), ("data", x.T @ x / len(x))):
        layer.project(weight, moment)
        rest = weight - layer.dense_weight()
        errors[name] = float(rest.norm()), float((x @ rest.T).norm())
    assert errors["plain"][0] < errors["data"][0]
    assert errors["data"][1] < errors["plain"][1]


def test_projecting_to_learned_low_rank_is_the_best_approximation() -> None:
    """Eckart-Young."""
    layer, weight = linear("learned"), random(25, N_IN)
    layer.project(weight)
    least = float(torch.linalg.svdvals(weight)[8:].norm())
    assert float((weight - layer.dense_weight()).norm()) == pytest.approx(least, rel=1e-4)


@EACH
def test_merge_gives_plain_layers(kind: str) -> None:
    net = nn.Sequential(linear(kind, groups=3), nn.Sigmoid(), nn.Linear(25, 2))
    x = random(5, N_IN)
    before = net(x)
    assert predict.merge(net) is net
    assert [type(one) for one in net] == [nn.Linear, nn.Sigmoid, nn.Linear]
    assert torch.allclose(net(x), before, atol=1e-6)
    assert net[0].weight.requires_grad


def test_merge_of_a_convolution_and_of_a_layer_itself() -> None:
    layer = predict.PredictedConv2d(3, 8, 3, 2, 1, dictionary=predict.Cosine(), fraction=0.3, bias=False)
    x = random(2, 3, 9, 9)
    dense = predict.merge(layer)
    assert type(dense) is nn.Conv2d
    assert torch.allclose(dense(x), layer(x), atol=1e-6)


def test_frobenius_decay_is_half_the_squared_norm_of_learned_products() -> None:
    net = nn.Sequential(linear("learned"), linear("random"))
    assert float(predict.frobenius_decay(net).detach()) == pytest.approx(
        float(net[0].weight.detach().square().sum()) / 2, rel=1e-5
    )
    assert predict.learned_fraction(net[:1]) == pytest.approx(8 * (N_IN + 25) / (N_IN * 25))


# ------------------------------------------------------------------------------------------- checkpoints


@EACH
def test_a_checkpoint_holds_what_is_learned_and_a_recipe(kind: str) -> None:
    layer = linear(kind, groups=3)
    regenerated = kind in ("squared-exponential", "cosine", "random", "connections", "down-sampling")
    assert set(layer.state_dict()) == {"learned", "bias", "recipe"} | (set() if regenerated else {"dictionary"})


@EACH
def test_loading_follows_the_recipe_of_the_checkpoint(kind: str) -> None:
    """Into a layer of another dictionary, support, seed and number of groups: the same function afterwards."""
    layer = linear(kind, groups=3, seed=9)
    other = linear("random" if kind != "random" else "cosine", n_support=5)
    other.load_state_dict(layer.state_dict())
    x = random(4, N_IN)
    assert torch.equal(other(x), layer(x))
    assert {name for name, _ in other.named_parameters()} == {name for name, _ in layer.named_parameters()}
    again = linear(kind, groups=3, seed=9)
    again.load_state_dict(other.state_dict())
    assert torch.equal(again(x), layer(x))


def test_a_recipe_of_another_shape_or_none_at_all() -> None:
    layer = linear()
    state = predict.PredictedLinear(N_IN, 26, dictionary=predict.RandomFixed(), n_support=8).state_dict()
    with pytest.raises(PredictionError, match=r"\(26, 40\).*\(25, 40\)"):
        layer.load_state_dict(state)
    state = layer.state_dict() | {"recipe": torch.arange(9, dtype=torch.uint8)}
    with pytest.raises(PredictionError, match="recipe"):
        layer.load_state_dict(state)


def test_copies_and_half_types() -> None:
    layer = linear(groups=5)
    x = random(3, N_IN)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.allclose(half(x.bfloat16()).float(), layer(x), atol=0.05)


@pytest.mark.parametrize("kind", ["random", "pca", "learned", "autoencoder", "k-means"])
def test_whatever_torch_makes_its_tensors_as(kind: str) -> None:
    """Under another default precision or device, a layer has that one, and the numbers that it always has."""
    expected = linear(kind, seed=3)
    data = DICTIONARIES[kind]()
    torch.set_default_dtype(torch.float64)
    try:
        double = predict.PredictedLinear(N_IN, 25, dictionary=data, n_support=8, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert double.learned.dtype == double.dictionary.dtype == torch.float64
    assert torch.equal(double.learned.float(), expected.learned)
    with torch.device("meta"):
        skeleton = predict.PredictedLinear(N_IN, 25, dictionary=data, n_support=8, seed=3)
    assert {value.device.type for value in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}


@pytest.mark.parametrize("kind", ["squared-exponential", "pca", "learned"])
@pytest.mark.parametrize("how", ["assign", "to_empty"])
def test_a_layer_comes_off_the_meta_device(kind: str, how: str) -> None:
    """As large models are loaded: what no checkpoint holds is there, too, once the checkpoint is."""
    layer, x = linear(kind, groups=3), random(4, N_IN)
    net = nn.Sequential(nn.Linear(N_IN, 25), nn.Linear(25, 2)).to("meta")
    predict.convert(net, 8 / N_IN, {"0": DICTIONARIES[kind]()}, groups=3, seed=0 if how == "to_empty" else 5)
    assert predict.merge(copy.deepcopy(net))[0].weight.is_meta
    if how == "to_empty":
        net.to_empty(device="cpu")
        assert kind != "squared-exponential" or torch.equal(net[0].dictionary, layer.dictionary)
    net[0].load_state_dict(layer.state_dict(), assign=how == "assign")
    assert torch.equal(net[0](x), layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_other_ways_to_run_a_network() -> None:
    """Compiled, exported, or with a word on why not."""
    net, x = nn.Sequential(linear(groups=3), nn.Sigmoid(), nn.Linear(25, 2)), random(4, N_IN)
    expected = net(x)
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(net, (x,)).module()(x), expected)
    with pytest.raises(PredictionError, match=r"torch\.jit\.script") as caught:
        torch.jit.script(net)
    assert "merge" in str(caught.value.hint)


# ------------------------------------------------------------------------------------------- layer by layer


def test_layerwise_fits_dictionaries_to_what_the_layers_below_give() -> None:
    net, x = mlp(), random(300, N_IN)
    predict.layerwise(
        net, x, 0.25, {"0": predict.SquaredExponential(GRID), "2": predict.Covariance()}, groups=2, pretrain_epochs=1
    )
    activations = torch.sigmoid(net[0](x)).detach()
    expected = predict.PredictedLinear(
        30, 20, dictionary=predict.Covariance(activations), n_support=8, groups=2, seed=1
    )
    # samples come in another order, so that sums differ in their last digits and atoms by a unit of the grid
    assert torch.allclose(net[2].dictionary, expected.dictionary, atol=1e-3)
    assert type(net[4]) is nn.Linear


class Backwards(nn.Module):
    """Its second layer is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = nn.Linear(30, 20), nn.Linear(N_IN, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(input=torch.sigmoid(self.lower(x)))  # type: ignore[no-any-return]


def test_layerwise_goes_up_as_the_batches_do() -> None:
    """Whatever the order of registration: the upper dictionary is made from what the predicted lower layer gives."""
    net, x = Backwards(), random(300, N_IN)
    predict.layerwise(net, x, 0.25, predict.Covariance(), include=["*er"], groups=2)
    activations = torch.sigmoid(net.lower(x)).detach()
    expected = predict.PredictedLinear(
        30, 20, dictionary=predict.Covariance(activations), n_support=8, groups=2, seed=1
    )
    assert torch.allclose(net.upper.dictionary, expected.dictionary, atol=1e-3)
    assert net(x).shape == (300, 20)  # its layers are called as dense ones are


def test_a_layerwise_run_that_fails_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(9, 9), nn.Sigmoid(), nn.Linear(9, 8), nn.Sigmoid(), nn.Linear(8, 2))
    before = list(net)
    dictionaries = {"0": predict.Covariance(), "2": predict.SquaredExponential((2, 2))}
    with pytest.raises(PredictionError, match="layer '2'"):
        predict.layerwise(net, torch.rand(50, 9), 0.5, dictionaries, pretrain_epochs=1)
    assert all(one is other for one, other in zip(net, before, strict=True))


def test_layerwise_can_start_from_the_weights_that_are_there() -> None:
    net, x = mlp(), random(300, N_IN)
    weight = net[0].weight.detach().clone()
    predict.layerwise(net, x, 1.0, {"0": predict.PCA()}, start="project")
    assert torch.allclose(net[0].dense_weight(), weight, atol=1e-4)


def test_layerwise_of_convolutions_sees_patches() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same"), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.Flatten(), nn.Linear(128, 10)
    )
    batches = [(random(10, 3, 8, 8, seed=i),) for i in range(3)]
    predict.layerwise(net, batches, 0.3, {"0": predict.KMeans(k=20), "2": predict.PCA()}, n_samples=500)
    assert [one.cooked.kind for one in predict.predicted_layers(net).values()] == ["k-means", "pca"]
    assert net(*batches[0]).shape == (10, 10)


class TwoInputs(nn.Module):
    """Takes a signal and a mask of what counts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(N_IN, 30), nn.Linear(30, 4)

    def forward(self, signal: Tensor, mask: Tensor) -> Tensor:
        return self.upper(torch.sigmoid(self.lower(signal * mask)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "batch_of",
    [lambda x, mask: (x, mask), lambda x, mask: [x, mask], lambda x, mask: {"mask": mask, "signal": x}],
    ids=["tuple", "list", "dict"],
)
def test_batches_are_what_the_model_is_called_with(batch_of: Any) -> None:
    """As for `calibrate`: arguments, or keywords in any order. The layer sees the signal where the mask lets it."""
    net, x, mask = TwoInputs(), random(20, N_IN), (random(20, N_IN, seed=1) < 0.5).float()
    seen = predict.layer_inputs(net, "lower", [batch_of(x, mask)])
    assert torch.equal(seen.sort(0).values, (x * mask).sort(0).values)
    predict.layerwise(net, [batch_of(x, mask)], 0.5, {"lower": predict.Covariance()}, groups=2)
    assert list(predict.predicted_layers(net)) == ["lower"]


def test_inputs_of_a_convolution_are_what_its_features_multiply() -> None:
    """With every patch kept, the layer's outputs are products of the patches with its weights, as a set of numbers."""
    for layer in (nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(2, 4, (3, 2), 2, 1, bias=False)):
        x = random(3, 2, 6, 5)
        patches = predict.layer_inputs(nn.Sequential(layer), "0", x, n_samples=10_000)
        out = patches @ layer.weight.detach().flatten(1).T + (0 if layer.bias is None else layer.bias.detach())
        assert torch.allclose(out.flatten().sort().values, layer(x).detach().flatten().sort().values, atol=1e-5)


def test_layer_inputs_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(N_IN, 30), nn.BatchNorm1d(30), nn.Linear(30, 4)).train()
    before = copy.deepcopy(net.state_dict())
    assert predict.layer_inputs(net, "2", random(50, N_IN), n_samples=20).shape == (20, 30)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_pretraining_lowers_the_error_of_reconstruction() -> None:
    samples = torch.sigmoid(4 * (random(300, 4) - 0.5) @ random(4, N_IN, seed=1))
    layer = linear("covariance", n_support=10)
    before = layer.learned.detach().clone()
    first = predict.pretrain(layer, samples, epochs=1, rate=0.02)
    assert predict.pretrain(layer, samples, epochs=20, rate=0.02) < 0.9 * first
    assert not torch.equal(layer.learned, before)


def test_fitting_learns_a_smooth_target_better_than_random_atoms() -> None:
    """The paper's point, in small: smooth features are learned from a fifth of their numbers with the right
    dictionary, and not with random atoms."""
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(5.0))
    target = torch.stack([torch.exp(-(places - centre).square().sum(1) / 6) for centre in places[::4]])
    x = torch.randn(400, N_IN, generator=torch.Generator().manual_seed(0))
    lost = {}
    for kind in ("squared-exponential", "random"):
        layer = predict.PredictedLinear(N_IN, len(target), dictionary=DICTIONARIES[kind](), n_support=8, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), 0.2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (layer(x) - x @ target.T).square().mean()
            loss.backward()
            optimizer.step()
        lost[kind] = float(loss.detach())
    assert lost["squared-exponential"] < 0.25 * lost["random"]


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "predict.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "predict.md", "exec"), found)
    assert f"{found['net'][0]}" == "Linear(in_features=784, out_features=500, bias=True)"
    predicted = [one.codec for one in found["report"].layers if one.name in ("0.weight", "2.weight")]
    assert predicted == ["predicted", "predicted"]
    assert set(predict.__all__) - {"Predicted", "Dictionary", "SUPPORTS"} - set(re.findall(r"\w+", page)) == UNTOLD


UNTOLD = {"layer_inputs", "predicted_layers", "pretrain"}
"""Public names that the page leaves to their docstrings."""


# ------------------------------------------------------------------------------------------- what they refuse


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), "0.5", torch.tensor(0.5)])
def test_a_fraction_outside_its_range(fraction: float) -> None:
    with pytest.raises(PredictionError, match="fraction"):
        predict.convert(mlp(), fraction, predict.RandomFixed())


def test_a_support_larger_than_the_layer_or_the_dictionary() -> None:
    with pytest.raises(PredictionError, match=r"support of 41 .*40 inputs"):
        linear(n_support=41)
    with pytest.raises(PredictionError, match=r"40 atoms from a dictionary \(autoencoder\) that has 30"):
        linear("autoencoder", fraction=1.0)
    with pytest.raises(PredictionError, match="26 for a layer of 40 inputs and 25 features"):
        linear("learned", n_support=26)


def test_a_singular_kernel_says_the_ridge_that_mends_it() -> None:
    twice = random(80, 20).repeat(1, 2)
    make = lambda ridge: predict.PredictedLinear(  # noqa: E731
        N_IN, 25, dictionary=predict.Covariance(twice, shrinkage=0, ridge=ridge), n_support=30
    )
    with pytest.raises(SingularKernelError, match="singular") as caught:
        make(0.0)
    assert caught.value.hint == f"ridge={caught.value.ridge:.1g} mends it"
    make(float(f"{caught.value.ridge:.1g}"))


@pytest.mark.parametrize("kind", ["covariance", "autoencoder", "k-means", "pca"])
def test_a_dictionary_without_the_data_it_needs(kind: str) -> None:
    empty = type(DICTIONARIES[kind]())()
    assert isinstance(empty, FromData)
    with pytest.raises(PredictionError, match=rf"layer '0': the {kind} dictionary needs data") as caught:
        predict.convert(mlp(), 0.1, empty)
    assert "layerwise" in str(caught.value.hint)
    with pytest.raises(PredictionError, match=r"finite numbers|data of shape"):
        predict.Covariance(torch.full((3, N_IN), float("nan")))
    with pytest.raises(PredictionError, match="39 inputs for a layer of 40"):
        predict.PredictedLinear(N_IN, 5, dictionary=predict.PCA(random(60, 39)), n_support=3)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.LSTM(8, 8), "LSTM"),
        (nn.Embedding(9, 8), "Embedding"),
        (nn.Conv2d(8, 8, 3, groups=8), "8 groups"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "circular"),
    ],
)
def test_a_layer_that_cannot_be_predicted(layer: nn.Module, why: str) -> None:
    with pytest.raises(PredictionError, match=f"layer 'odd': .*{why}.*cannot be predicted"):
        predict.convert(nn.ModuleDict({"odd": layer}), 0.1, {"odd": predict.RandomFixed()})


def test_other_requests_that_make_no_sense() -> None:
    cases: list[tuple[str, Callable[[], object]]] = [
        ("no layer is named 'fc'", lambda: predict.convert(mlp(), 0.1, {"fc": predict.RandomFixed()})),
        ("no layer of the model is to be", lambda: predict.convert(nn.ReLU(), 0.1, predict.RandomFixed())),
        ("no dictionary", lambda: predict.convert(mlp(), 0.1)),
        ("start 'old'", lambda: predict.convert(mlp(), 0.1, predict.RandomFixed(), start="old")),
        ("is no dictionary", lambda: linear_of("se")),
        ("needs to know how the 40 inputs lie", lambda: linear_of(predict.SquaredExponential())),
        (r"grid \(7, 5\) for a layer of 40", lambda: linear_of(predict.Cosine((7, 5)))),
        ("grid", lambda: predict.Cosine((0, 5))),
        ("sigma 0", lambda: predict.SquaredExponential(GRID, sigma=0)),
        ("shrinkage 2", lambda: predict.Covariance(shrinkage=2)),
        ("seed -1", lambda: predict.RandomFixed(-1)),
        ("seed 1.5", lambda: predict.KMeans(seed=1.5)),  # type: ignore[arg-type]
        ("1.5 clusters", lambda: predict.KMeans(k=1.5)),  # type: ignore[arg-type]
        ("rate of nan", lambda: predict.Autoencoder(rate=float("nan"))),
        ("grid 40", lambda: predict.SquaredExponential(40)),  # type: ignore[arg-type]
        ("to 2", lambda: predict.DownSampling(GRID, coarse=2)),  # type: ignore[arg-type]
        ("type ndarray", lambda: predict.PCA(random(4, N_IN).numpy())),
        ("type str", lambda: predict.KMeans("images")),  # type: ignore[arg-type]
        (r"shape \(40,\)", lambda: predict.Covariance(random(40))),
        (r"shape \(0, 40\)", lambda: predict.Covariance(random(0, N_IN))),
        ("complex64", lambda: predict.Covariance(torch.ones(3, N_IN, dtype=torch.complex64))),
        ("NaN or Inf in data", lambda: predict.KMeans(torch.full((3, N_IN), float("inf")))),
        ("26 column groups for 25 features", lambda: linear(groups=26)),
        ("0 column groups", lambda: linear(groups=0)),
        ("variant 'both'", lambda: linear(variant="both")),
        ("supports 'best'", lambda: linear(supports="best")),
        ("pivoted supports for a random", lambda: linear("random", supports="pivoted")),
        ("uniform supports for a random", lambda: linear("random", supports="uniform")),
        ("one of them", lambda: linear(fraction=0.1, n_support=3)),
        (r"support of 2\.5", lambda: linear(n_support=2.5)),
        (r"1\.5 column groups", lambda: linear(groups=1.5)),
        (r"seed 1\.5", lambda: linear(seed=1.5)),
        ("uniform supports for atoms that are learned", lambda: linear("learned", groups=5, supports="uniform")),
        (r"weight of shape \(40, 25\)", lambda: linear().project(random(N_IN, 25))),
        (r"moment of shape \(4, 4\)", lambda: linear().project(random(25, N_IN), random(4, 4))),
        ("NaN", lambda: linear().project(torch.full((25, N_IN), float("nan")))),
        ("without numbers", lambda: predict.convert(mlp().to("meta"), 0.1, predict.RandomFixed(), start="project")),
        ("order 'fast'", lambda: predict.convert(mlp(), 0.1, predict.RandomFixed(), order="fast")),
        ("OrderedDict has no layers", lambda: predict.convert(mlp().state_dict(), 0.1, predict.RandomFixed())),  # type: ignore[arg-type]
        ("RandomFixed'> is no dictionary", lambda: predict.convert(mlp(), 0.1, predict.RandomFixed)),  # type: ignore[arg-type]
        ("is no dictionary", lambda: predict.convert(mlp(), 0.1, {0: predict.RandomFixed()})),  # type: ignore[dict-item]
        ("no layer is named 'fc'", lambda: predict.convert(mlp(), 0.1, predict.RandomFixed(), exclude="fc")),
        ("named '9'", lambda: predict.layer_inputs(mlp(), "9", random(3, N_IN))),
        ("named '1'", lambda: predict.layer_inputs(mlp(), "1", random(3, N_IN))),
        (r"batch 1 \(dict of x\) does not fit", lambda: predict.layer_inputs(mlp(), "0", [{"x": random(3, N_IN)}])),
        (
            r"batch 2 \(tuple of tensor \(3, 40\), tensor \(3,\)\)",
            lambda: predict.layerwise(
                mlp(), [random(3, N_IN), (random(3, N_IN), torch.zeros(3))], 0.5, {"0": predict.PCA()}
            ),
        ),
        ("no layer of the model predicts", lambda: predict.learned_fraction(mlp())),
        ("was given nothing", lambda: predict.layer_inputs(mlp(), "0", [])),
        (
            "order 'fast'",
            lambda: predict.PredictedConv2d(3, 4, 3, dictionary=predict.Cosine(), n_support=3, order="fast"),
        ),
        ("32 inputs after batches of 40", lambda: predict.StreamedMoments([random(3, 40), random(3, 32)])),
    ]
    for message, call in cases:
        with pytest.raises(PredictionError, match=message):
            call()


def linear_of(dictionary: Any) -> predict.PredictedLinear:
    return predict.PredictedLinear(N_IN, 25, dictionary=dictionary, n_support=8)


# ------------------------------------------------------------------------------------------- state dicts of all kinds


def test_a_recipe_in_another_dtype_is_heeded() -> None:
    def made(seed: int) -> nn.Module:
        return predict.convert(
            nn.Sequential(nn.Linear(36, 36), nn.Linear(36, 4)), 0.2, predict.RandomFixed(), seed=seed
        )

    one, other = made(0), made(7)
    other.load_state_dict({name: value.half() for name, value in one.state_dict().items()})
    x = torch.rand(8, 36)
    torch.testing.assert_close(other(x), one(x), rtol=0.01, atol=0.01)
    averaged = {name: value.double() * 0.999 for name, value in one.state_dict().items()}
    with pytest.raises(PredictionError, match="recipe: no text") as caught:
        other.load_state_dict(averaged)
    assert "averaged" in str(caught.value.hint)


def of_low_rank(seed: int) -> nn.Module:
    torch.manual_seed(1)
    return predict.convert(nn.Sequential(nn.Linear(36, 36), nn.Linear(36, 4)), 0.2, predict.LearnedLowRank(), seed=seed)


def test_loading_another_recipe_keeps_parameters_that_an_optimizer_knows() -> None:
    one, other = of_low_rank(0), of_low_rank(7)
    known = dict(other.named_parameters())
    other[0].dictionary.requires_grad_(False)
    other.load_state_dict(one.state_dict())
    assert all(known[name] is parameter for name, parameter in other.named_parameters())
    assert not other[0].dictionary.requires_grad
    torch.testing.assert_close(other[0].dictionary, one[0].dictionary)


def test_numbers_that_a_checkpoint_lacks_are_numbers() -> None:
    one, other = of_low_rank(0), of_low_rank(7)
    state = {name: value for name, value in one.state_dict().items() if name != "0.learned"}
    other.load_state_dict(state, strict=False)
    assert not other[0].learned.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pretrained_in_full(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(36, 20), nn.Sigmoid(), nn.Linear(20, 4)).to(dtype)
    with torch.no_grad():
        found = predict.layerwise(model, torch.rand(64, 36).to(dtype), 0.2, predict.RandomFixed(), pretrain_epochs=1)
    assert all(one.isfinite().all() and one.dtype == dtype for one in found.parameters())
