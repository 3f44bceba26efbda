"""Training a classifier so that nets can be compared: one loop, one decaying rate, the epoch chosen on validation data.

Every net of an experiment is trained by the same recipe. Errors are in percent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from paramcompress import predict

from .images import Labelled


class Split(NamedTuple):
    """What is learned from, what chooses the epoch, and what is reported."""

    training: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True)
class Recipe:
    """How the nets of an experiment are trained.

    Attributes:
        epochs: the rate reaches zero after as many, along half a cosine.
        learning_rate: of Adam, for numbers of a dense layer; see `parameter_groups`.
        batch: samples of one step; what is left over at the end of an epoch waits for the next.
        warmup: steps over which the rate rises.
        decay: weight of the Frobenius decay of layers whose atoms are learned, too; the others have none.
    """

    epochs: int
    learning_rate: float = 1e-3
    batch: int = 128
    warmup: int = 200
    decay: float = 0.0


class Outcome(NamedTuple):
    """Errors in percent at the epoch (from 1) of the lowest validation error, the first of equals; time of all."""

    validation_error: float
    test_error: float
    epoch: int
    processor_s: float


def split(training: Labelled, test: Labelled, n_validation: int, seed: int) -> Split:
    """`n_validation` random samples of the training data set aside.

    Every net of one seed sees the same split, and another seed another one.

    Raises:
        ValueError: no sample would be left.
    """
    if not 0 < n_validation < len(training.labels):
        raise ValueError(f"{n_validation} of {len(training.labels)} training samples set aside for validation")
    order = torch.randperm(len(training.labels), generator=torch.Generator().manual_seed(seed))
    parts = order.split([len(order) - n_validation, n_validation])
    return Split(*(Labelled(training.inputs[part], training.labels[part]) for part in parts), test)


def fit(model: nn.Module, data: Split, recipe: Recipe, seed: int) -> Outcome:
    """Train in place; errors at the best epoch on validation data. The model is left as the last epoch left it."""
    start = time.process_time()
    best = Outcome(math.inf, math.inf, 0, 0.0)
    for epoch in epochs(model, data.training, recipe, seed):
        validation_error = error(model, data.validation)
        if validation_error < best.validation_error:
            best = Outcome(validation_error, error(model, data.test), epoch, 0.0)
    return best._replace(processor_s=round(time.process_time() - start, 1))


def epochs(model: nn.Module, data: Labelled, recipe: Recipe, seed: int) -> Iterator[int]:
    """Numbers of the epochs from 1, each as it is done."""
    generator = torch.Generator().manual_seed(seed)
    groups = parameter_groups(model, recipe.learning_rate)
    optimizer = torch.optim.Adam(groups, fused=True)
    batches = len(data.labels) // recipe.batch
    if not batches:
        raise ValueError(f"{len(data.labels)} samples are less than a batch of {recipe.batch}")

    def share(step: int) -> float:
        decayed = (1 + math.cos(math.pi * step / (batches * recipe.epochs))) / 2
        return decayed * min(1.0, (step + 1) / recipe.warmup)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for chosen in torch.randperm(len(data.labels), generator=generator)[: batches * recipe.batch].split(
            recipe.batch
        ):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.inputs[chosen]), data.labels[chosen])
            (loss + recipe.decay * predict.frobenius_decay(model) if recipe.decay else loss).backward()
            optimizer.step()
            schedule.step()
        yield epoch


def parameter_groups(model: nn.Module, learning_rate: float) -> list[dict[str, object]]:
    """Every parameter with its rate.

    Adam moves each number by about the rate, so a feature of `n_in` free weights by rate * sqrt(n_in), but one of
    `n_support` coefficients of orthonormal atoms only by rate * sqrt(n_support). Coefficients get the rate times
    sqrt(n_in / n_support), so that features of predicted and of dense layers move alike.
    """
    raised = {
        id(layer.learned): math.sqrt(layer.cooked.n_in / layer.cooked.n_support)
        for layer in predict.predicted_layers(model).values()
        if not layer.is_low_rank
    }
    return [{"params": [one], "lr": learning_rate * raised.get(id(one), 1.0)} for one in model.parameters()]


@torch.no_grad()
def error(model: nn.Module, data: Labelled, batch: int = 1000) -> float:
    """Percent of the samples that are not classified as their label says."""
    model.eval()
    wrong = sum(
        int((model(inputs).argmax(1) != labels).sum())
        for inputs, labels in zip(data.inputs.split(batch), data.labels.split(batch), strict=True)
    )
    return round(100 * wrong / len(data.labels), 4)
