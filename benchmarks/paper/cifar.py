"""The convolutional net on CIFAR-10: 48 filters of 8x8, 64 of 8x8, 64 of 5x5, a dense layer of 500; all four predicted.

One column in each convolution and five in the dense layer, whose inputs lie on a grid, too. What the paper does not say
is chosen so that a processor can train it: windows of 8 x 8 stay inside the image, and pooling is by two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import digits
from .experiment import DENSE, SEEDS, SMALLER, Experiment, Setting, table
from .images import CIFAR_FROM, Labelled, read_cifar10
from .nets import Place, learned, predicted
from .training import Recipe, fit, split

FRACTIONS = (0.1, 0.25)
FIRST = "PivEmp+"
"""`PivEmp` with FIRST_TIMES the fraction in the first layer, which has 1.5 % of the weights, but on whose few atoms all
that comes after depends; the other layers learn a little less, so that the whole is the same."""
FIRST_TIMES = 4
SETTINGS = table(
    ((DENSE,), (1.0,), SEEDS),
    (("PivEmp",), (0.25,), SEEDS),
    ((FIRST,), (0.1,), SEEDS),
    (("PivEmp", FIRST, "SE", "Cosine-Cosine-Cosine-PivEmp", SMALLER, "LowRank", "Cosine", "RandFixU"), FRACTIONS, 1),
)


@dataclass(frozen=True)
class Images:
    """Data of a classifier of images, and the net and recipe that go with them.

    Attributes:
        build: the net with features scaled by a factor, (factor) to a module.
        places: its predicted layers.
        n_validation: training images set aside.
    """

    training: Labelled
    test: Labelled
    build: Callable[[float], nn.Module]
    places: tuple[Place, ...]
    n_validation: int
    recipe: Recipe


def convolutional(factor: float = 1.0) -> nn.Sequential:
    """3 x 32 x 32 -> 48 x 12 x 12 -> 64 x 5 x 5 -> 64 x 3 x 3 -> 500 -> 10.

    Pooled before they are rectified, which gives the same and leaves a fourth of the numbers to rectify.

    Args:
        factor: of features in every layer.
    """
    first, second, third, dense = (max(1, round(factor * n)) for n in (48, 64, 64, 500))
    return nn.Sequential(
        nn.Conv2d(3, first, 8), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(first, second, 8), nn.ReLU(),
        nn.Conv2d(second, third, 5, padding=2), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(9 * third, dense), nn.ReLU(), nn.Linear(dense, 10),
    )  # fmt: skip


def small(factor: float = 1.0) -> nn.Sequential:
    """The same for digits: 1 x 8 x 8 -> 12 x 6 x 6 -> 16 x 3 x 3 -> 100 -> 10."""
    first, second, dense = (max(1, round(factor * n)) for n in (12, 16, 100))
    return nn.Sequential(
        nn.Conv2d(1, first, 5, padding=1), nn.ReLU(),
        nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9 * second, dense), nn.ReLU(), nn.Linear(dense, 10),
    )  # fmt: skip


PLACES = (
    Place("0", (8, 8, 3), 1),
    Place("3", (8, 8, 48), 1),
    Place("5", (5, 5, 64), 1),
    Place("9", (3, 3, 64), 5),
)
SMALL_PLACES = (Place("0", (5, 5, 1), 1), Place("2", (5, 5, 12), 1), Place("6", (3, 3, 16), 5))


def n_weights(model: nn.Module) -> int:
    """Without biases."""
    return sum(one.numel() for one in model.parameters() if one.ndim > 1)


def equal_factor(build: Callable[[float], nn.Module], budget: int) -> float:
    """The largest factor, in hundredths, with which a dense net has at most `budget` weights."""
    fitting = [factor for factor in range(1, 101) if n_weights(build(factor / 100)) <= budget]
    return max(fitting, default=1) / 100


def more_first(fraction: float, sizes: Sequence[int]) -> list[float]:
    """Fractions of layers of so many weights, FIRST_TIMES that of all in the first, but at most 1.

    >>> more_first(0.25, (10, 310)), more_first(0.1, (10, 130))
    ([1.0, 0.22580645161290322], [0.4, 0.07692307692307693])
    """
    first = min(1.0, FIRST_TIMES * fraction)
    return [first, *[(fraction * sum(sizes) - first * sizes[0]) / sum(sizes[1:])] * (len(sizes) - 1)]


def run(setting: Setting, data: Images, seed: int) -> dict[str, Any]:
    """Train and measure one net. `smaller` has as many weights as the predicted net, last layer included."""
    torch.manual_seed(seed)
    parts = split(data.training, data.test, data.n_validation, seed)
    model = data.build(1.0)
    sizes = [model.get_submodule(place.name).weight.numel() for place in data.places]  # type: ignore[union-attr]
    inputs = parts.training.inputs
    if setting.method == SMALLER:
        budget = n_weights(model) - sum(sizes) + round(setting.fraction * sum(sizes))
        model = data.build(equal_factor(data.build, budget))
    elif setting.method == FIRST:
        predicted(model, "PivEmp", more_first(setting.fraction, sizes), data.places, inputs, seed, level=True)
    else:
        predicted(model, setting.method, setting.fraction, data.places, inputs, seed, level=True)
    return {**learned(model, data.places), **fit(model, parts, data.recipe, seed)._asdict()}


def centred(training: Labelled, test: Labelled) -> tuple[Labelled, Labelled]:
    """Both with the training images' mean and deviation of each channel taken off."""
    mean, deviation = (f(training.inputs, (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return tuple(Labelled((part.inputs - mean) / deviation, part.labels) for part in (training, test))  # type: ignore[return-value]


def load(path: Path) -> Images:
    training, test = centred(*read_cifar10(path))
    return Images(training, test, convolutional, PLACES, len(test.labels) // 5, Recipe(epochs=10, decay=1e-4))


def load_digits() -> Images:
    training, test = centred(*digits.images())
    return Images(training, test, small, SMALL_PLACES, 300, Recipe(epochs=15, batch=32, warmup=20, decay=1e-4))


EXPERIMENT = Experiment("cifar", "Convolutional net on CIFAR-10", CIFAR_FROM, SETTINGS, load, load_digits, run)
