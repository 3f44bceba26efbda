"""A dense net with its layers replaced by predicted ones, from the input on: the layer-wise protocol of the paper.

A dictionary that needs data gets the inputs of its layer, which the layers below make; so these are replaced and, where
asked for, trained first. They go on learning afterwards, and all dictionaries stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paramcompress import predict

from .experiment import DENSE

N_SAMPLES = 10_000
"""Training samples that dictionaries see at most; patches, where the layer is a convolution."""
N_FOR_LEVEL = 1000
"""Training samples that are enough to see how large features are."""


class Place(NamedTuple):
    """A layer to be predicted.

    Attributes:
        name: in the net.
        grid: (rows, columns[, channels]) of its inputs; None where they lie in no order.
        columns: column groups.
    """

    name: str
    grid: tuple[int, ...] | None
    columns: int


Make = Callable[[Tensor, tuple[int, ...] | None, float, int], predict.Dictionary]
"""From the layer's inputs (n_samples, n_in), its grid, fraction and seed to a dictionary."""


def sigma(grid: Sequence[int], fraction: float) -> float:
    """Width of the squared exponential, in positions: half the mean distance of learned positions, but at least 1, as
    in the paper, and at most 2. With 2.5 % learned those are 6 positions apart, and bumps of width 1 leave holes; bumps
    of width 3 blur what digits differ in (validation data of MNIST).

    >>> sigma((28, 28), 0.025), round(sigma((28, 28), 0.1), 2), sigma((28, 28), 0.5)
    (2.0, 1.58, 1.0)
    """
    return min(2.0, max(1.0, fraction ** (-1 / len(grid[:2])) / 2))


def _bumps(inputs: Tensor, grid: tuple[int, ...] | None, fraction: float, seed: int) -> predict.Dictionary:
    return predict.SquaredExponential(grid, sigma=sigma(grid or (1, 1), fraction), ridge=0.1)


KINDS: dict[str, Make] = {
    "SE": _bumps,
    "SE1": lambda inputs, grid, fraction, seed: predict.SquaredExponential(grid, sigma=1.0, ridge=0.1),
    "Emp": lambda inputs, grid, fraction, seed: predict.Covariance(inputs),
    "PivEmp": lambda inputs, grid, fraction, seed: predict.Covariance(inputs),
    "AE": lambda inputs, grid, fraction, seed: predict.Autoencoder(inputs, hidden=1000, seed=seed, epochs=5),
    "KMeans": lambda inputs, grid, fraction, seed: predict.KMeans(inputs, seed=seed),
    "PCA": lambda inputs, grid, fraction, seed: predict.PCA(inputs),
    "Cosine": lambda inputs, grid, fraction, seed: predict.Cosine(grid),
    "Down": lambda inputs, grid, fraction, seed: predict.DownSampling(grid),
    "RandFixU": lambda inputs, grid, fraction, seed: predict.RandomFixed(seed),
    "RandCon": lambda inputs, grid, fraction, seed: predict.RandomConnections(seed),
    "LowRank": lambda inputs, grid, fraction, seed: predict.LearnedLowRank(),
}
"""Dictionaries by the paper's names, and those that its reviewers asked for. SE1 has the paper's width. PivEmp is Emp
at positions chosen one by one for the variance they explain, where the paper draws them uniformly, the empty border of
the digits and all."""
SUPPORTS = {"PivEmp": "pivoted"}
"""How positions are chosen; other dictionaries have their own way."""
NEED_GRID = frozenset({"SE", "SE1", "Cosine", "Down"})
NEED_DATA = frozenset({"Emp", "PivEmp", "AE", "KMeans", "PCA"})


def kinds(method: str, n_places: int) -> list[str]:
    """Names of KINDS for each layer; one name stands for all.

    >>> kinds("SE-Emp", 2), kinds("LowRank", 2)
    (['SE', 'Emp'], ['LowRank', 'LowRank'])
    """
    names = method.split("-")
    if len(names) == 1:
        names *= n_places
    if len(names) != n_places or not set(names) <= set(KINDS):
        raise ValueError(f"{method}: expected {n_places} of {', '.join(KINDS)}, joined by dashes")
    return names


def predicted(
    model: nn.Module,
    method: str,
    fraction: float | Sequence[float],
    places: Sequence[Place],
    inputs: Tensor,
    seed: int,
    pretrain: Callable[[nn.Module], Any] | None = None,
    *,
    level: bool = False,
) -> nn.Module:
    """`model` with the layers at `places` predicted, in place; as it is if the method is `dense`.

    Args:
        fraction: of each of them, or one for each.
        inputs: training inputs of the net; of the first N_SAMPLES dictionaries see what their layer is given.
        pretrain: trains the net a little before a dictionary is built from what its lower layers give. What it does to
            layers above the place, which are still dense, is lost for those that will be predicted.
        level: whether predicted layers start at the level of dense ones, see `levelled`.
    """
    if method == DENSE:
        return model
    fractions = [fraction] * len(places) if isinstance(fraction, float) else fraction
    for at, (kind, place, fraction) in enumerate(zip(kinds(method, len(places)), places, fractions, strict=True)):
        seen = inputs[:0]
        if kind in NEED_DATA and at and pretrain is not None:
            pretrain(model)
        if kind in NEED_DATA or level:
            n_samples = N_SAMPLES if kind in NEED_DATA else N_FOR_LEVEL
            seen = predict.layer_inputs(model, place.name, inputs[:n_samples], n_samples=n_samples, seed=seed)
        dense = model.get_submodule(place.name)
        dictionary = KINDS[kind](seen, place.grid, fraction, seed)
        groups = 1 if kind == "LowRank" else place.columns
        options = {"groups": groups, "seed": 1000 * seed + at, "supports": SUPPORTS.get(kind)}
        predict.convert(model, fraction, {place.name: dictionary}, **options)  # type: ignore[arg-type]
        if level:
            levelled(model.get_submodule(place.name), dense, seen)
    return model


@torch.no_grad()
def levelled(layer: nn.Module, dense: nn.Module, inputs: Tensor) -> None:
    """Scale what a fresh predicted layer learns so that its features are as large as those of the dense layer it stands
    for, in mean square over inputs (n_samples, n_in) and without biases.

    Weights of equal length are not features of equal size: atoms are smooth, or lie where the inputs vary, and so is
    what they are multiplied with. Layer upon layer that adds up.
    """
    assert isinstance(layer, predict.Predicted)
    found, wanted = (
        (inputs @ one.weight.flatten(1).T).square().mean()  # type: ignore[operator,union-attr]
        for one in (layer, dense)
    )
    layer.learned.mul_((wanted / found).sqrt())


def learned(model: nn.Module, places: Sequence[Place]) -> dict[str, Any]:
    """Learned numbers of the layers at `places`, which is what the paper counts, and of the whole net with biases."""
    layers = [model.get_submodule(place.name) for place in places]
    of_layers = sum(
        layer.n_learned if isinstance(layer, predict.Predicted) else layer.weight.numel()  # type: ignore[union-attr]
        for layer in layers
    )
    return {"learned": of_layers, "learned_in_all": sum(one.numel() for one in model.parameters())}


def equal_width(budget: int, n_in: int, n_out: int, n_hidden: int) -> int:
    """The width of a dense net of `n_hidden` hidden layers, all as wide, with at most `budget` weights, the last layer
    included; at least 1.

    >>> equal_width(784 * 44 + 44 * 44 + 44 * 10, 784, 10, 2)
    44
    """
    a, b = n_hidden - 1, n_in + n_out
    exact = budget / b if not a else (math.sqrt(b * b + 4 * a * budget) - b) / (2 * a)
    return max(1, math.floor(exact + 1e-9))
