"""Which atoms a column group learns the coefficients of: the paper's index set alpha.

    uniform     any inputs, without replacement
    tied        any positions, the same in every channel
    leading     those that the dictionary names first, in every channel
    fresh       atoms that no other column group or layer has, of a dictionary that never runs out
    leverage    inputs in proportion to their ridge leverage score, [K (K + ridge)^-1]_ii
    pivoted     inputs one by one, in proportion to the variance that those before leave (randomly pivoted Cholesky)

The first four follow from the seed on every machine. The last two need linear algebra, so files list what they drew.
Sources: Alaoui, Mahoney 2015, arXiv:1411.0306; Chen, Epperly, Tropp, Webber 2022, arXiv:2207.06503, Algorithm 2.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

from .contract import UNBOUNDED, Dictionary
from .numbers import drawn, numbers

SUPPORTS = ("uniform", "tied", "leading", "fresh", "leverage", "pivoted")
FOLLOW_FROM_SEED = SUPPORTS[:4]
_FLOOR = 1e-12
"""Share of the largest score that every input has, so that there are enough to draw."""


def support(
    how: str, dictionary: Dictionary, n_in: int, n_support: int, group: int, words: tuple[int, ...]
) -> NDArray[np.int64]:
    """(n_support,) numbers of atoms, rising; with channels, atom k of channel c is c * n_atoms + k.

    Args:
        how: a name of SUPPORTS.
        n_support: a whole number for each channel, but for `uniform`.
        group: number of the column group; each has its own.
        words: seed.

    Raises:
        PredictionError: an unknown way, or one that the dictionary cannot go.
    """
    channels = dictionary.channels
    n = n_in // channels
    n_atoms = dictionary.n_atoms(n)
    stream = (*words, 0, group)
    if how == "uniform" and n_atoms < UNBOUNDED:
        return drawn(stream, n_atoms * channels, n_support)
    each = n_support // channels
    if how == "tied" and n_atoms < UNBOUNDED:
        chosen = drawn(stream, n_atoms, each)
    elif how == "leading" and n_atoms < UNBOUNDED:
        chosen = dictionary.leading(n, each)
    elif how == "fresh" and n_atoms == UNBOUNDED:
        chosen = int(numbers((*words, 0), 1)[0] >> np.uint64(24)) + np.arange(group * each, (group + 1) * each)
    elif how in ("leverage", "pivoted"):
        if not dictionary.is_kernel:
            raise PredictionError(
                f"{how} supports for a {dictionary.kind} dictionary, which has no kernel",
                hint="use a squared-exponential or covariance dictionary, or uniform supports",
            )
        pick = _leverage if how == "leverage" else _pivoted
        chosen = np.sort(pick(dictionary.kernel(n), each, dictionary.ridge, _uniform(stream, max(n, each))))
    elif how in SUPPORTS:
        raise PredictionError(f"{how} supports for a {dictionary.kind} dictionary")
    else:
        raise PredictionError(f"supports {how!r} are not known", hint=f"one of {', '.join(SUPPORTS)}")
    return (chosen + n_atoms * np.arange(channels)[:, None]).reshape(-1).astype(np.int64)


def _uniform(words: tuple[int, ...], n: int) -> NDArray[np.float64]:
    """(n,) numbers in (0, 1)."""
    return ((numbers(words, n) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _leverage(kernel: NDArray[np.float64], size: int, ridge: float, chance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Without replacement: the largest of log(u) / score (Efraimidis, Spirakis 2006)."""
    values, axes = np.linalg.eigh(kernel)
    kept = np.maximum(values, 0) / (np.maximum(values, 0) + max(ridge, _FLOOR))
    scores = (axes**2) @ kept
    scores = np.maximum(scores, _FLOOR * scores.max())
    return np.argsort(-np.log(chance[: len(kernel)]) / scores, kind="stable")[:size]


def _pivoted(kernel: NDArray[np.float64], size: int, ridge: float, chance: NDArray[np.float64]) -> NDArray[np.int64]:
    """One pivot for each number in `chance`; where nothing is left to explain, the inputs that are left, in order."""
    left = np.diag(kernel).copy()
    factor = np.zeros((len(kernel), size))
    chosen: list[int] = []
    for k in range(size):
        left[chosen] = 0
        total = np.maximum(left, 0).cumsum()
        if total[-1] <= _FLOOR * len(kernel):
            rest = np.setdiff1d(np.arange(len(kernel)), chosen)
            return np.array(chosen + rest[: size - k].tolist())
        pivot = min(int(np.searchsorted(total, chance[k] * total[-1], side="right")), len(kernel) - 1)
        column = kernel[:, pivot] - factor[:, :k] @ factor[pivot, :k]
        factor[:, k] = column / np.sqrt(max(column[pivot], _FLOOR))
        left = np.maximum(left - factor[:, k] ** 2, 0)
        chosen.append(pivot)
    return np.array(chosen)
