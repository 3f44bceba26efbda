"""Reconstruction ICA on CIFAR-10 patches, and a linear classifier on what its filters find in an image.

    min  lambda |W^T W x - x|^2 + sum sqrt(eps + (W x)^2)        x: whitened patches, W (n_features, n_in)

W is predicted from a squared exponential of width 1 over the patch, the same positions in every channel. An image is
encoded by the positive and the negative parts of W x in every window, averaged over its four quadrants. Twice the
features with half of each learned is the equal budget.

Sources: Le et al. 2011 (objective, L-BFGS); Coates, Ng and Lee 2011 (patches, whitening, pooling, squared hinge loss).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import digits
from .experiment import DENSE, SEEDS, Experiment, Setting
from .images import CIFAR_FROM, Labelled, read_cifar10
from .nets import Place, learned, predicted
from .training import Split, split

FRACTIONS = (0.5, 0.25, 0.1, 0.75)
SETTINGS = (
    Setting(DENSE, n_seeds=SEEDS),
    Setting("SE1", 0.5, SEEDS),
    Setting("SE1", 0.5, SEEDS, width=2),
    Setting(DENSE, n_seeds=SEEDS, width=2),
    Setting("SE1", 0.5, SEEDS, width=4),
    *(Setting("SE1", fraction) for fraction in FRACTIONS[1:]),
    Setting("SE1", 0.25, width=4),
    *(Setting(kind, 0.5) for kind in ("Cosine", "RandCon", "RandFixU")),
    *(Setting(kind, 0.5, width=2) for kind in ("Cosine", "RandCon", "RandFixU")),
)
PENALTIES = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
"""Of the classifier, each begun where the one before ended; the validation images choose one."""
EPS = 1e-2
VARIANCE_FLOOR = 1e-3
"""Added to the variance of a patch, whose pixels are in [0, 1]."""
CODE_FLOOR = 1e-6
"""Added to the deviation of a code. So small that the size of a feature is moot: an overcomplete net leaves some of its
features at a hundredth of the others' length, and their codes say as much."""


@dataclass(frozen=True)
class Patches:
    """Images, and how features are learned from their patches.

    Attributes:
        size: rows and columns of a patch.
        stride: of the windows that are encoded.
        n_features: of the plain net.
        n_patches: that features are learned from.
        steps: of L-BFGS, for the features.
        classifier_steps: of L-BFGS, for the classifier at each penalty.
        weight: lambda.
    """

    training: Labelled
    test: Labelled
    size: int
    stride: int
    n_features: int
    n_patches: int
    n_validation: int
    steps: int
    classifier_steps: int
    weight: float = 1.0

    @property
    def place(self) -> Place:
        return Place("", (self.size, self.size, self.training.inputs.shape[1]), 1)


@dataclass(frozen=True)
class Whitening:
    """Patches as the features see them: contrast normalised, then centred and whitened by `matrix` (symmetric)."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, patches: Tensor) -> Tensor:
        return (normalised(patches) - self.mean) @ self.matrix


def normalised(patches: Tensor) -> Tensor:
    """Each patch (n_in,) with mean 0 and variance 1; plain ones stay plain."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + VARIANCE_FLOOR).sqrt()


def whitening(patches: Tensor, floor: float = 0.1) -> Whitening:
    """Symmetric whitening of normalised patches; directions of less variance than `floor` are raised less."""
    seen = normalised(patches)
    mean = seen.mean(0)
    values, axes = torch.linalg.eigh(torch.cov((seen - mean).T))
    return Whitening(mean, axes @ ((values.clamp(min=0) + floor).rsqrt()[:, None] * axes.T))


def windows(images: Tensor, size: int, stride: int) -> Tensor:
    """(n, n_windows, n_in) all windows of images (n, channels, rows, columns), flattened channel first."""
    return functional.unfold(images, size, stride=stride).transpose(1, 2)


def sampled(images: Tensor, size: int, n: int, generator: torch.Generator) -> Tensor:
    """(n, n_in) patches from random images and places."""
    last = torch.tensor(images.shape[2:]) - size + 1
    which = torch.randint(len(images), (n,), generator=generator).tolist()
    at = (torch.rand(n, 2, generator=generator) * last).long().tolist()
    cut = [images[i, :, y : y + size, x : x + size] for i, (y, x) in zip(which, at, strict=True)]
    return torch.stack(cut).flatten(1)


def cost(weight: Tensor, patches: Tensor, balance: float) -> Tensor:
    """The objective per patch."""
    found = patches @ weight.T
    return balance * (found @ weight - patches).square().sum(1).mean() + (EPS + found.square()).sqrt().sum(1).mean()


def minimised(loss: Callable[[], Tensor], parameters: list[nn.Parameter], steps: int) -> float:
    """L-BFGS with line search; returns the last loss."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, max_eval=2 * steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return float(loss())


@torch.no_grad()
def encoded(images: Tensor, weight: Tensor, whiten: Whitening, data: Patches, batch: int = 50) -> Tensor:
    """(n, 8 n_features): positive and negative parts of W x in every window x, each averaged over every quadrant.

    Normalising and whitening are linear but for the division by a window's deviation, so they go into the filters and
    images are convolved with them: the same as `whiten` on `windows`, which would take several times as long.
    """
    filters = weight @ whiten.matrix
    offset = (filters @ whiten.mean)[:, None, None]
    filters = filters - filters.mean(1, keepdim=True)  # takes off the mean of what it meets
    bank = filters.reshape(-1, images.shape[1], data.size, data.size)
    out = []
    for part in images.split(batch):
        mean, square = (
            functional.avg_pool2d(one, data.size, data.stride).mean(1, keepdim=True) for one in (part, part.square())
        )
        scale = (square - mean.square() + VARIANCE_FLOOR).rsqrt()
        found = functional.conv2d(part, bank, stride=data.stride) * scale - offset
        parts = torch.cat([found.clamp(min=0), (-found).clamp(min=0)], 1)
        out.append(functional.adaptive_avg_pool2d(parts, 2).flatten(1))
    return torch.cat(out)


def classified(codes: Split, steps: int) -> dict[str, float]:
    """Errors of a linear classifier, one against the rest with a squared hinge loss, at the penalty that suits the
    validation images."""
    mean, deviation = codes.training.inputs.mean(0), codes.training.inputs.std(0) + CODE_FLOOR
    scaled = [(part.inputs - mean) / deviation for part in codes]
    values, axes = torch.linalg.eigh(torch.cov(scaled[0].T))
    training, *others = (inputs @ axes for inputs in scaled)
    targets = 2 * functional.one_hot(codes.training.labels, 10).float() - 1
    weight, bias = torch.zeros(len(values), 10), torch.zeros(10)
    best: dict[str, float] = {}
    for penalty in PENALTIES:
        weight, bias = classifier(training, targets, penalty, values, (weight, bias), steps)
        validation, test = (
            round(100 * float(((inputs @ weight + bias).argmax(1) != part.labels).float().mean()), 4)
            for inputs, part in zip(others, codes[1:], strict=True)
        )
        if not best or validation < best["validation_error"]:
            best = {"validation_error": validation, "test_error": test, "penalty": penalty}
    return best


def classifier(
    codes: Tensor, targets: Tensor, penalty: float, variances: Tensor, start: tuple[Tensor, Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """Weight (n_codes, 10) and bias (10,) of least  sum (1 - t (c W + b))_+^2 / n + penalty |W|^2.

    Args:
        codes: (n, n_codes) c, along principal axes. There the loss curves about as the variance plus the penalty, and
            in weights divided by the root of that L-BFGS needs tens of steps, not thousands.
        targets: (n, 10) t, 1 of the image's class and -1 of the others.
        variances: (n_codes,) of the codes.
        start: weight and bias to go on from.
        steps: of L-BFGS, at most.
    """
    stretch = (variances.clamp(min=0) + penalty).rsqrt()[:, None]
    weight, bias = nn.Parameter(start[0] / stretch), nn.Parameter(start[1].clone())

    def loss() -> Tensor:
        hinge = (1 - targets * (codes @ (stretch * weight) + bias)).clamp(min=0).square().sum(1).mean()
        return hinge + penalty * (stretch * weight).square().sum()

    minimised(loss, [weight, bias], steps)
    return (stretch * weight).detach(), bias.detach()


def run(setting: Setting, data: Patches, seed: int) -> dict[str, Any]:
    """Learn features, encode the images with them, classify."""
    start = time.process_time()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    parts = split(data.training, data.test, data.n_validation, seed)
    raw = sampled(parts.training.inputs, data.size, data.n_patches, generator)
    whiten = whitening(raw)
    patches = whiten(raw)
    layer: nn.Module = nn.Linear(raw.shape[1], data.n_features * setting.width, bias=False)
    if setting.method != DENSE:
        layer = predicted(
            nn.Sequential(layer), setting.method, setting.fraction, [data.place._replace(name="0")], raw, seed
        )[0]
    objective = minimised(lambda: cost(layer.weight, patches, data.weight), list(layer.parameters()), data.steps)
    weight = layer.weight.detach()
    codes = Split(*(Labelled(encoded(part.inputs, weight, whiten, data), part.labels) for part in parts))
    return {
        **learned(layer, [data.place]),
        "objective": round(objective, 4),
        **classified(codes, data.classifier_steps),
        "processor_s": round(time.process_time() - start, 1),
    }


def load(path: Path) -> Patches:
    training, test = read_cifar10(path)
    return Patches(training, test, 8, 2, 50, 10_000, len(test.labels) // 5, 100, 60)


def load_digits() -> Patches:
    training, test = digits.images()
    return Patches(training, test, 5, 1, 8, 2000, 300, 60, 60)


EXPERIMENT = Experiment("rica", "Reconstruction ICA on CIFAR-10", CIFAR_FROM, SETTINGS, load, load_digits, run)
