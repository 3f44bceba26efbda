"""Dictionaries that have to see what their layer is given: what they hold of it, samples or second moments.

Shapes: samples (n_samples, n_in), second moments (n_in, n_in).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from paramcompress.errors import PredictionError

from .contract import Dictionary

F = TypeVar("F", bound="FromData")


@dataclass(frozen=True, eq=False)
class FromData(Dictionary):
    """A dictionary that is fitted to inputs of its layer; None until it has some."""

    data: Any = field(default=None, repr=False)

    def given(self: F, data: Tensor) -> F:
        """The same fitted to inputs (n_samples, n_in)."""
        return replace(self, data=data)

    @property
    @abstractmethod
    def width(self) -> int:
        """Inputs that the data have."""

    def bound(self: F, n_in: int, kernel: Sequence[int] = ()) -> F:
        if self.data is None:
            raise PredictionError(
                f"the {self.kind} dictionary needs data, and none was given",
                hint="give it the layer's inputs, or use paramcompress.predict.layerwise",
            )
        if self.width != n_in:
            raise PredictionError(f"a {self.kind} dictionary of {self.width} inputs for a layer of {n_in}")
        return self


@dataclass(frozen=True, eq=False)
class FromSamples(FromData):
    """One that looks at samples again and again, and so keeps them."""

    data: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", as_samples(self.data))

    @property
    def samples(self) -> Tensor:
        """(n_samples, n_in) in float32 on the CPU."""
        assert self.data is not None
        return self.data

    @property
    def width(self) -> int:
        return self.samples.shape[1]


@dataclass(frozen=True, eq=False)
class FromMoments(FromData):
    """One that needs no more of its samples than their moments."""

    data: Tensor | StreamedMoments | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.data is not None and not isinstance(self.data, StreamedMoments):
            object.__setattr__(self, "data", StreamedMoments([self.data]))

    @property
    def moments(self) -> StreamedMoments:
        assert isinstance(self.data, StreamedMoments)
        return self.data

    @property
    def width(self) -> int:
        return self.moments.width

    def n_atoms(self, n: int) -> int:
        return n


class StreamedMoments:
    """First and second moments of inputs that come in batches, in float64.

    >>> import torch
    >>> moments = StreamedMoments().add(torch.eye(3)).add(torch.eye(3))
    >>> moments.n_samples, moments.second(centred=False)[0, 0].item()
    (6, 0.3333333333333333)
    """

    def __init__(self, batches: Iterable[Tensor] = ()) -> None:
        self.n_samples = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        for batch in batches:
            self.add(batch)

    def add(self, batch: Tensor) -> StreamedMoments:
        """Take in a batch (n_samples, ...); axes after the first are flattened.

        Raises:
            PredictionError: no numbers, not finite, or of another width than those before.
        """
        samples = as_samples(batch).double()
        if self._sum is not None and samples.shape[1] != len(self._sum):
            raise PredictionError(f"a batch of {samples.shape[1]} inputs after batches of {len(self._sum)}")
        if self._sum is None or self._squares is None:
            self._sum = samples.new_zeros(samples.shape[1])
            self._squares = samples.new_zeros(samples.shape[1], samples.shape[1])
        self._sum = self._sum + samples.sum(0)
        self._squares = self._squares.addmm(samples.T, samples)
        self.n_samples += len(samples)
        return self

    @property
    def width(self) -> int:
        """n_in; 0 before the first batch."""
        return 0 if self._sum is None else len(self._sum)

    def second(self, *, centred: bool) -> Tensor:
        """(n_in, n_in) E[x x^T], or the covariance."""
        if self._sum is None or self._squares is None:
            raise PredictionError("second moments of no samples")
        mean = self._sum / self.n_samples
        squares = self._squares / self.n_samples
        return squares - mean.outer(mean) if centred else squares


def as_samples(data: Tensor) -> Tensor:
    """`data` as (n_samples, n_in) in float32 on the CPU; axes after the first are flattened.

    Raises:
        PredictionError: no tensor of samples, or not only finite real numbers.
    """
    hint = "data are a tensor of finite numbers of shape (n_samples, n_in)"
    if not isinstance(data, Tensor):
        raise PredictionError(f"data of type {type(data).__name__} for a dictionary", hint=hint)
    if data.ndim < 2 or not data.numel() or data.is_complex():
        raise PredictionError(f"data of shape {tuple(data.shape)} and {data.dtype} for a dictionary", hint=hint)
    samples = data.detach().flatten(1).cpu().float()
    if not samples.isfinite().all():
        raise PredictionError(f"NaN or Inf in data of shape {tuple(data.shape)} for a dictionary", hint=hint)
    return samples
