"""Reconstruction ICA on CIFAR-10 patches, and a linear classifier on what its filters find in an image.

    min  lambda |W^T W x - x|^2 + sum sqrt(eps + (W x)^2)        x: whitened patches, W (n_features, n_in)

W is predicted from a squared exponential of width 1 over the patch, the same positions in every channel. An image is
encoded by |W x| in every window, averaged over its four quadrants. Twice the features with half of each learned is the
equal budget.

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
    *(Setting("SE1", fraction) for fraction in FRACTIONS[1:]),
    Setting("SE1", 0.25, width=4),
    *(Setting(kind, 0.5) for kind in ("Cosine", "RandCon", "RandFixU")),
    *(Setting(kind, 0.5, width=2) for kind in ("Cosine", "RandCon", "RandFixU")),
)
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of the classifier; the validation images choose one."""
EPS = 1e-2


@dataclass(frozen=True)
class Patches:
    """Images, and how features are learned from their patches.

    Attributes:
        size: rows and columns of a patch.
        stride: of the windows that are encoded.
        n_features: of the plain net.
        n_patches: that features are learned from.
        steps: of L-BFGS, for the features and for the classifier.
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
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()


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
def encoded(images: Tensor, layer: nn.Module, whiten: Whitening, data: Patches, batch: int = 100) -> Tensor:
    """(n, 4 n_features): |W x| of every window, averaged over each quadrant."""
    weight = layer.weight.detach()
    out = []
    for part in images.split(batch):
        found = (whiten(windows(part, data.size, data.stride)) @ weight.T).abs()
        side = round(found.shape[1] ** 0.5)
        maps = found.transpose(1, 2).reshape(len(part), -1, side, side)
        out.append(functional.adaptive_avg_pool2d(maps, 2).flatten(1))
    return torch.cat(out)


def classified(codes: Split, steps: int) -> dict[str, float]:
    """Errors of a linear classifier, one against the rest with a squared hinge loss, at the penalty that suits the
    validation images."""
    mean, deviation = codes.training.inputs.mean(0), codes.training.inputs.std(0) + 1e-3
    scaled = [(part.inputs - mean) / deviation for part in codes]
    targets = 2 * functional.one_hot(codes.training.labels, 10).float() - 1
    best: dict[str, float] = {}
    for penalty in PENALTIES:
        machine = nn.Linear(scaled[0].shape[1], 10)
        nn.init.zeros_(machine.weight)

        def loss(machine: nn.Linear = machine, penalty: float = penalty) -> Tensor:
            hinge = (1 - targets * machine(scaled[0])).clamp(min=0).square().sum(1).mean()
            return hinge + penalty * machine.weight.square().sum()

        minimised(loss, list(machine.parameters()), steps)
        with torch.no_grad():
            validation, test = (
                round(100 * float((machine(inputs).argmax(1) != part.labels).float().mean()), 4)
                for inputs, part in zip(scaled[1:], codes[1:], strict=True)
            )
        if not best or validation < best["validation_error"]:
            best = {"validation_error": validation, "test_error": test, "penalty": penalty}
    return best


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
    codes = Split(*(Labelled(encoded(part.inputs, layer, whiten, data), part.labels) for part in parts))
    return {
        **learned(layer, [data.place]),
        "objective": round(objective, 4),
        **classified(codes, data.steps),
        "processor_s": round(time.process_time() - start, 1),
    }


def load(path: Path) -> Patches:
    training, test = read_cifar10(path)
    return Patches(training, test, 8, 2, 100, 20_000, len(test.labels) // 5, 200)


def load_digits() -> Patches:
    training, test = digits.images()
    return Patches(training, test, 5, 1, 16, 2000, 300, 60)


EXPERIMENT = Experiment("rica", "Reconstruction ICA on CIFAR-10", CIFAR_FROM, SETTINGS, load, load_digits, run)
