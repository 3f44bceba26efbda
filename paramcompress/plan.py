"""What the user asked for, worked out for every tensor: patterns to settings, a size to a common error. Opens no file.

A plan has one number that moves, the *level*: the relative error allowed in a matrix without a limit of its own, of
average size and loudness where a size is to be met (`_shares`), of any size otherwise.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramcompress.checkpoint import TensorInfo
from paramcompress.errors import BudgetError, ConfigError
from paramcompress.fit import Choice
from paramcompress.layer import FLOATS, Setting, is_variance
from paramcompress.patterns import matching
from paramcompress.records import Override

DEFAULT_MAX_REL_ERROR = 0.03
"""Where no target is given; docs/defaults.md has the measurements."""
VECTOR_LIMIT = 1e-3
"""Relative error of vectors when the target is a size."""
LONG, LONG_SHARE = 1024, 0.005
"""Numbers, and share of all, from which on a vector must be weights that some library keeps flat."""
SIZE_POWER, LOUDNESS_POWER = 0.125, -0.5
"""Under a size target, the relative error allowed in a matrix grows with these powers of its number of weights and of
their root mean square. 0.5 and 0 would make the sum of relative squares least, 0 and -1 that of squares; half way
between a quarter of the one and the other is never far from the best on the five nets measured (docs/defaults.md)."""
FARTHEST_SHARE = 8.0
"""Of the level, or its inverse: the scale of a matrix may mean nothing where a normalisation follows."""
LARGEST_LEVEL = 32.0
"""Here every matrix, however small its share, is allowed an error of 1: all zero. More than FARTHEST_SHARE."""
SMALLEST_LEVEL = 1e-6


@dataclass(frozen=True)
class Plan:
    """Settings of every tensor as a function of the level."""

    tensors: tuple[TensorInfo, ...]
    overrides: Mapping[str, Override]
    squeezed: frozenset[str]
    """Tensors that --include and --exclude leave to be squeezed."""
    vector_limit: float
    """0 keeps vectors exact."""
    shares: Mapping[str, float]
    """Of the level, for matrices, where 1 holds if nothing is said, and for long vectors that have it as these do."""

    def setting(self, info: TensorInfo, level: float) -> Setting:
        """What is done to one tensor at that level."""
        override = self.overrides.get(info.name, Override())
        if override.exact or info.dtype not in FLOATS or (info.name not in self.squeezed and override == Override()):
            return Setting(0.0)
        choice = Choice(override.dictionary, override.rank, override.density)
        by_hand = choice.rank is not None or choice.density is not None
        as_variance = is_variance(info.name) and not by_hand
        if override.max_rel_error is not None:
            return Setting(override.max_rel_error, choice, is_variance=as_variance)
        share = self.shares.get(info.name, 1.0)
        has_level = is_matrix(info.shape) or info.name in self.shares
        limit = min(level * share, 1.0) if has_level else min(self.vector_limit, level)
        if choice != Choice() and limit == 0:
            limit = level
        return Setting(limit, choice, firm=not by_hand, is_variance=as_variance)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether limits for matrices hold for a tensor of that shape: two axes, or more of which two are longer than 1;
    but for a single number.

    >>> is_matrix((1, 768)), is_matrix((768,)), is_matrix((1, 64, 1, 1)), is_matrix((1, 1))
    (True, False, False, False)
    """
    return (len(shape) == 2 and shape != (1, 1)) or (len(shape) > 2 and sum(n > 1 for n in shape) > 1)


def long_vectors(tensors: Sequence[TensorInfo]) -> frozenset[str]:
    """Names of the vectors that are a good part of a checkpoint, as no biases and scales are."""
    sizes = {info.name: math.prod(info.shape) for info in tensors if info.dtype in FLOATS and info.alias_of is None}
    least = max(LONG, LONG_SHARE * sum(sizes.values()))
    return frozenset(info.name for info in tensors if sizes.get(info.name, 0) >= least and not is_matrix(info.shape))


def make(
    tensors: Sequence[TensorInfo],
    layers: Mapping[str, Mapping[str, Any]],
    include: Sequence[str],
    exclude: Sequence[str],
    *,
    loudness: Mapping[str, float] | None = None,
) -> Plan:
    """Plan of a checkpoint.

    Args:
        layers: pattern to overrides; an exact name beats patterns, among these the later wins, key by key. A pattern
            means all names of a tensor that has several.
        include, exclude: patterns; without include all tensors are squeezed, exclude takes away from what include gave.
        loudness: root mean squares of the matrices and long vectors, where the level is to be searched for a size: then
            vectors may be coded too, and large and quiet matrices more coarsely. What is not in it has the level.

    Raises:
        ConfigError: a pattern that matches no tensor, or is no regular expression.
    """
    names = [info.name for info in tensors]
    matches = {pattern: set(matching(pattern, names)) for pattern in (*layers, *include, *exclude)}
    for pattern, found in matches.items():
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "squeeze --dry-run -v lists the names"
            raise ConfigError(f"pattern {pattern!r} matches no tensor", hint=hint)
    first = {info.name: info.alias_of or info.name for info in tensors}
    matches = {pattern: _with_ties(found, first) for pattern, found in matches.items()}
    overrides: dict[str, dict[str, Any]] = {}
    exact_last = sorted(layers, key=lambda pattern: pattern in names)
    for pattern in exact_last:
        for name in matches[pattern]:
            overrides[name] = {**overrides.get(name, {}), **layers[pattern]}
    squeezed = set(names) if not include else {name for pattern in include for name in matches[pattern]}
    squeezed -= {name for pattern in exclude for name in matches[pattern]}
    return Plan(
        tuple(tensors),
        {name: Override(**values) for name, values in overrides.items()},
        frozenset(squeezed),
        VECTOR_LIMIT if loudness is not None else 0.0,
        _shares(tensors, loudness or {}),
    )


def _with_ties(names: set[str], first: Mapping[str, str]) -> set[str]:
    """Names with all others of the tensors that they name; `first` has the one that a tensor is stored under."""
    meant = {first[name] for name in names}
    return {name for name, stored in first.items() if stored in meant}


def _shares(tensors: Sequence[TensorInfo], loudness: Mapping[str, float]) -> dict[str, float]:
    """Of the level, for all whose loudness is known; their geometric mean is about 1."""
    logs = {
        info.name: SIZE_POWER * math.log(math.prod(info.shape)) + LOUDNESS_POWER * math.log(loudness[info.name])
        for info in tensors
        if loudness.get(info.name, 0) > 0
    }
    mean = sum(logs.values()) / max(len(logs), 1)
    return {name: min(max(math.exp(log - mean), 1 / FARTHEST_SHARE), FARTHEST_SHARE) for name, log in logs.items()}


_FARTHEST = 16.0
"""Factor by which a level is changed at a time where a power law says so."""
_GUESS_STEP = 0.3
"""Down from a level that was nearly right, in its logarithm."""


def level_for_size(target_bytes: int, size_at: Callable[[float], int], guess: float | None = None) -> float:
    """Smallest level whose file has at most `target_bytes`, as nearly as a few encodings find it.

    Args:
        size_at: bytes of the file at a level; falls as the level rises, a little unsteadily.
        guess: a level that is nearly right.

    Raises:
        BudgetError: even the largest level is too big; carries the smallest size.
    """
    smallest = size_at(LARGEST_LEVEL)
    if smallest > target_bytes:
        raise impossible(target_bytes, smallest)
    over: tuple[float, int | None]
    over, under = (SMALLEST_LEVEL, None), (LARGEST_LEVEL, smallest)
    level = guess or 0.1
    for _ in range(12):
        size = size_at(level)
        if size <= target_bytes:
            under = (level, size)
            if size >= 0.995 * target_bytes:
                break
        else:
            over = (level, size)
        if under[0] <= over[0] * 1.002:
            break
        level = _between(over, under, target_bytes, _GUESS_STEP if guess else None)
    return under[0]


def rough_level(
    target_bytes: int, size_at: Callable[[float], int], level: float, power: float, slack: float
) -> float | None:
    """A level whose file has about `target_bytes`, from one that may be far off: by a power law, then by lines between
    levels on either side. None if it would have to be the largest or the smallest.

    Args:
        size_at: as for `level_for_size`.
        level: to begin with.
        power: with which, about, bytes fall as the level rises.
        slack: share of the target within which one more step leads near enough.
    """
    ends: dict[bool, tuple[float, float]] = {}  # by whether there are too many bytes: a level, and how many
    was_over: bool | None = None
    for _ in range(8):
        size = size_at(level)
        excess = size - target_bytes
        is_over, near = excess > 0, abs(excess) <= slack * target_bytes
        if is_over is was_over:  # still: a step was too short
            power /= 1.5
            if (not is_over) in ends:  # or one end would stay for good (Illinois)
                ends[not is_over] = ends[not is_over][0], ends[not is_over][1] / 2
        was_over, ends[is_over] = is_over, (level, excess)
        if near or len(ends) == 1:
            level *= min(max((size / max(target_bytes, 1)) ** (1 / power), 1 / _FARTHEST), _FARTHEST)
        else:
            (low, much), (high, little) = ends[True], ends[False]
            level = high * (low / high) ** min(max(little / (little - much), 0.05), 0.95)
        if not SMALLEST_LEVEL < level < LARGEST_LEVEL:
            return None
        if near:
            break
    return level


def impossible(target_bytes: int, smallest: int) -> BudgetError:
    """Error for a size that cannot be met."""
    return BudgetError(
        f"no file of {target_bytes:,} bytes: the smallest possible has {smallest:,}",
        smallest_bytes=smallest,
        hint=f"ask for at least {smallest:,} bytes, or let more be squeezed (--dry-run -v without a size lists it)",
    )


def _between(over: tuple[float, int | None], under: tuple[float, int], target_bytes: int, step: float | None) -> float:
    """Level between two tried ones where a line through them, in log level, meets 99.8 % of the target; kept off the
    ends. Where the lower one was not tried, a step down, a quarter of the way unless one is given."""
    low, high = math.log(over[0]), math.log(under[0])
    if under[0] == LARGEST_LEVEL and over[0] < 0.5:  # from a relative error of 1 on hardly anything changes any more
        high = 0.0
    if over[1] is None:
        return math.exp(high - (step or (high - low) / 4))
    share = (under[1] - 0.998 * target_bytes) / (under[1] - over[1])
    return math.exp(high - (high - low) * min(max(share, 0.02), 0.98))
