"""What shall guide a squeeze: where data come from, which tensors they have a say in, and what steers them.

Holds no maths: it brings checkpoint, model, batches and moments together, and checks that they belong together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramcompress import layer, metrics
from paramcompress.adam import moments_of_optimizer
from paramcompress.calibrated import Aim, Budget, Calibrated
from paramcompress.calibration import calibrate
from paramcompress.checkpoint import Checkpoint, TensorInfo
from paramcompress.errors import ConfigError, VerificationError
from paramcompress.fit import Effort
from paramcompress.layer import FLOATS, Piece, Setting
from paramcompress.modules import canonical_names, check_model, unwrapped, with_weights
from paramcompress.moments import SecondMoments
from paramcompress.plan import Plan
from paramcompress.records import Override

DEFAULT_MAX_OUTPUT_ERROR = 0.03
"""Where data are given and no target; docs/calibration.md has the measurements."""
NORMS = (1e-12, 1e12)
"""Norms between which squares have room in every sum; weights beyond are coded without data."""
Stats = SecondMoments | str | os.PathLike[str]


class Guide:
    """What data say of a checkpoint, ready to encode its tensors at a level."""

    def __init__(
        self,
        calibrated: Calibrated,
        model: nn.Module | None,
        batches: list[Any],
        options: Mapping[str, Any],
        twins: Mapping[str, str],
    ) -> None:
        self.calibrated, self.model, self.batches = calibrated, model, batches
        self.twins = twins
        """Of tensors that are one in the model, and equal in the checkpoint, the name of the first of them."""
        self.for_size = _for_size(options)
        rel_error, output_error = options.get("max_rel_error"), options.get("max_output_error")
        if not self.for_size and rel_error is None and output_error is None:
            output_error = DEFAULT_MAX_OUTPUT_ERROR
        self.limits = Aim(rel_error=rel_error, output_error=output_error)
        self.rough = False
        """Whether it is only the level that is looked for."""

    @property
    def default_target(self) -> str:
        """What steers where nothing was asked for, in words."""
        return f"max_output_error {DEFAULT_MAX_OUTPUT_ERROR} (default with data)"

    def aim(self, level: float) -> Aim:
        return Aim(level=level, rough=self.rough) if self.for_size else self.limits

    def encode(self, info: TensorInfo, tensor: Tensor, level: float) -> Piece | None:
        """Stream and entry of a tensor; None for one that data have no say in, as where all is exact.

        Where no factors keep the limit on a layer's output, it is exact: a limit on its weights would not do.
        """
        if self.for_size and level == 0:
            return None
        job = self.calibrated
        piece = job.encode(info, tensor, self.aim(level))
        if piece is None and self.limits.output_error is not None and info.name in job.fits:
            return layer.encode(info, tensor, Setting(0.0), job.effort, job.seed, job.device)
        return piece

    def check(self, file: Path, name: str, weight: Tensor, decoded: Tensor) -> float | None:
        """Relative error of what a layer gives, measured on the decoded weight; None for one that data say nothing of.

        Raises:
            VerificationError: a limit is broken.
        """
        found = self.calibrated.output_error(name, weight, decoded)
        for limit, error, what in (
            (self.limits.output_error, found, "an output error"),
            (self.limits.rel_error, metrics.deviation(weight, decoded).rel_error, "a relative error"),
        ):
            if (
                name in self.calibrated.moments
                and limit is not None
                and error is not None
                and error > limit * (1 + 1e-6)
            ):
                raise VerificationError(file, name, f"{what} of {error:.6g}", f"at most {limit:.6g}")
        return found

    def rehearse(self, level: float, expected: Mapping[str, int], n_bytes: float | None) -> bool:
        """Go through the model once from that level; False where there is none to go through.

        Args:
            expected: bytes of the tensors that this settles, at that level.
            n_bytes: what they may take together; None where no size steers.
        """
        if self.model is None:
            return False
        budget = None if n_bytes is None else Budget(expected, n_bytes)
        self.calibrated.rehearse(self.model, self.batches, self.aim(level), budget)
        return True

    def notes(self) -> list[str]:
        """What is to be said of the data and of what they did not reach."""
        return [*self.calibrated.moments.notes, *self.calibrated.notes]


def check_options(
    model: nn.Module | None,
    batches: Iterable[Any] | None,
    stats: Stats | None,
    importance: str | None,
    max_output_error: float | None,
) -> None:
    """Whether these options go together.

    Raises:
        ConfigError: they do not.
    """
    if (model is None) != (batches is None):
        missing = "model" if model is None else "data"
        raise ConfigError(f"there is no {missing}", hint="calibration takes a model and data together, or stats")
    if sum((model is not None and stats is None, stats is not None, importance is not None)) > 1:
        raise ConfigError("data, stats and importance are given together", hint="give one of them")
    if max_output_error is not None and model is None and stats is None:
        raise ConfigError("max_output_error without data", hint="add a model and data, or stats")


def make(
    checkpoint: Checkpoint,
    limits: Plan,
    options: Mapping[str, Any],
    effort: Effort,
    *,
    model: nn.Module | None,
    batches: Iterable[Any] | None,
    stats: Stats | None,
    seed: int,
    device: str,
    workers: int,
) -> Guide | None:
    """Guide of a squeeze; None where nothing is there to guide it.

    Args:
        limits: single layers with settings of their own are squeezed by these, without data.
        workers: threads for one layer of a rehearsal.

    Raises:
        CalibrationError: model, data, moments and checkpoint do not belong together.
    """
    shapes = {info.name: info.shape for info in checkpoint.tensors}
    free = {info.name: info for info in checkpoint.tensors if _is_free(info, limits)}
    kept: list[Any] = []
    twins: dict[str, str] = {}
    if model is not None and batches is not None:
        kept, model = list(batches), unwrapped(model)
        moments = measure(checkpoint, model, kept, seed, free) if stats is None else _loaded(stats)
        check_model(model, shapes)
        model = with_weights(model, checkpoint)
        twins = _twins(model, checkpoint, free)
    elif stats is not None:
        moments = _loaded(stats)
    elif options.get("importance") is not None:
        moments = moments_of_optimizer(checkpoint)
    else:
        return None
    moments.check(shapes, str(checkpoint.path or "the dict"))
    notes, weights = [], {}
    unreached = []
    for name, info in free.items():
        if name in twins:
            continue
        tensor = checkpoint.load(name)
        found = metrics.survey(tensor)
        if not found.is_finite or not NORMS[0] < found.norm < NORMS[1]:
            continue
        if len(info.shape) > 1 and name not in moments:
            unreached.append(name)
        weights[name] = tensor
    if unreached:
        more = f" and {len(unreached) - 3} more" if len(unreached) > 3 else ""
        notes.append(f"data do not reach {', '.join(unreached[:3])}{more}: coded without")
    for_size = _for_size(options)
    means_return = model is not None and for_size
    calibrated = Calibrated(moments, weights, effort, seed, device, notes, means_return, for_size, workers)
    return Guide(calibrated, model, kept, options, twins)


def measure(
    checkpoint: Checkpoint, model: nn.Module, batches: list[Any], seed: int, known: Collection[str] = ()
) -> SecondMoments:
    """Second moments of a model with the weights of a checkpoint.

    Args:
        known: names that weights get rather than others that they have, too.

    Raises:
        CalibrationError: they do not belong together, or the batches do not fit.
    """
    model = unwrapped(model)
    check_model(model, {info.name: info.shape for info in checkpoint.tensors})
    names = [*known, *(info.name for info in checkpoint.tensors if info.alias_of is None and info.name not in known)]
    return calibrate(with_weights(model, checkpoint), batches, seed=seed, known=names)


def _is_free(info: TensorInfo, limits: Plan) -> bool:
    """Whether data may have a say in a tensor: it is to be squeezed, and nothing is said of it alone."""
    is_own = info.alias_of is None and info.dtype in FLOATS and math.prod(info.shape) > 0
    return is_own and info.name in limits.squeezed and limits.overrides.get(info.name, Override()) == Override()


def _twins(model: nn.Module, checkpoint: Checkpoint, free: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Tensors that are one in the model, and equal in the checkpoint though not tied, by the name of the first."""
    names = canonical_names(model, free).items()
    pairs = [(name, first) for name, first in names if name != first and {name, first} <= free.keys()]
    return {
        name: first
        for name, first in pairs
        if free[name].dtype == free[first].dtype and torch.equal(checkpoint.load(name), checkpoint.load(first))
    }


def _for_size(options: Mapping[str, Any]) -> bool:
    return "target_size" in options or "bits_per_weight" in options


def _loaded(stats: Stats) -> SecondMoments:
    return stats if isinstance(stats, SecondMoments) else SecondMoments.load(stats)
