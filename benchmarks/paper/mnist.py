"""The perceptron 784-500-500-10 on MNIST: two predicted layers, ten columns, every pair of dictionaries.

As in the paper but for what 2013 did not have: rectified units, Adam with a decaying rate, orthonormal atoms, and the
epoch chosen on validation data where the authors' code reports the last one's test error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import digits
from .experiment import DENSE, SEEDS, SMALLER, Experiment, Setting, table
from .images import MNIST_FROM, Labelled, read_mnist
from .nets import Place, equal_width, learned, predicted
from .training import Recipe, Split, epochs, fit, split

PAIRS = ("PivEmp", "SE-Emp", "SE-AE", "SE-KMeans", "SE-PCA", "SE1-Emp", "Emp", "AE", "Cosine-Emp", "PCA", "Down-Emp")
BLIND = ("SE-RandCon", "RandFixU", "RandCon", "LowRank")
FRACTIONS = (0.025, 0.05, 0.1, 0.25, 0.5)
WHOLE = ("PivEmp", "RandFixU")
"""With all weights learned dictionaries span the same space and differ in the start only; two show it."""
SETTINGS = table(
    ((DENSE,), (1.0,), SEEDS),
    (("PivEmp", "SE-Emp", SMALLER, "LowRank"), (0.05, 0.025), SEEDS),
    (("SE-AE",), (0.025,), SEEDS),
    ((*PAIRS, *BLIND, SMALLER), FRACTIONS, 1),
    (WHOLE, (1.0,), 1),
)


@dataclass(frozen=True)
class Perceptron:
    """Data of a classifier of flat inputs, and the net and recipe that go with them.

    Attributes:
        grid: (rows, columns) of the inputs; None where they lie in no order.
        widths: hidden units.
        n_validation: training samples set aside.
        pretrained: epochs of the layer below before a dictionary is built from what it gives.
    """

    training: Labelled
    test: Labelled
    grid: tuple[int, int] | None
    widths: tuple[int, int]
    columns: int
    n_validation: int
    recipe: Recipe
    pretrained: int = 1

    @property
    def places(self) -> tuple[Place, ...]:
        """The hidden layers; the last layer is never predicted."""
        return Place("0", self.grid, self.columns), Place("2", None, self.columns)


def perceptron(n_in: int, widths: tuple[int, int], n_out: int = 10) -> nn.Sequential:
    """Two hidden layers of rectified units; a softmax is in the loss."""
    first, second = widths
    return nn.Sequential(
        nn.Linear(n_in, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, n_out)
    )


def build(setting: Setting, data: Perceptron, parts: Split, seed: int) -> nn.Module:
    """The net of a setting, ready to be trained."""
    n_in, (first, second) = parts.training.inputs.shape[1], data.widths
    if setting.method == SMALLER:
        width = equal_width(round(setting.fraction * (n_in + second) * first) + 10 * second, n_in, 10, 2)
        return perceptron(n_in, (width, width))

    def pretrain(model: nn.Module) -> None:
        for _ in epochs(model, parts.training, replace(data.recipe, epochs=data.pretrained), seed):
            pass

    model = perceptron(n_in, data.widths)
    maker: Callable[[nn.Module], None] | None = pretrain if data.pretrained else None
    return predicted(model, setting.method, setting.fraction, data.places, parts.training.inputs, seed, pretrain=maker)


def run(setting: Setting, data: Perceptron, seed: int) -> dict[str, Any]:
    """Train and measure one net."""
    torch.manual_seed(seed)
    parts = split(data.training, data.test, data.n_validation, seed)
    model = build(setting, data, parts, seed)
    return {**learned(model, data.places), **fit(model, parts, data.recipe, seed)._asdict()}


def flat(part: Labelled) -> Labelled:
    """Inputs as vectors."""
    return Labelled(part.inputs.flatten(1), part.labels)


def load(path: Path) -> Perceptron:
    training, test = read_mnist(path)
    recipe = Recipe(epochs=15, learning_rate=3e-3, decay=1e-4)
    return Perceptron(flat(training), flat(test), (28, 28), (500, 500), 10, 10_000, recipe)


def load_digits() -> Perceptron:
    training, test = digits.images()
    recipe = Recipe(epochs=40, batch=32, warmup=20, decay=1e-4)
    return Perceptron(flat(training), flat(test), (8, 8), (100, 100), 10, 300, recipe)


EXPERIMENT = Experiment("mnist", "Perceptron on MNIST", MNIST_FROM, SETTINGS, load, load_digits, run)
