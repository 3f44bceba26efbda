"""One layer of a predicted network to its stream, with the promise kept: as learned numbers and a recipe, or dense.

What is promised is the error of the dense weight, as for every other layer, and whichever stream is shorter is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from paramcompress import codec, layer, metrics, predicted
from paramcompress.checkpoint import TensorInfo
from paramcompress.codec import Factors, Layout
from paramcompress.dictionaries.recipe import Recipe
from paramcompress.fit import Choice, Effort, Unfit, fit
from paramcompress.layer import Piece, Setting
from paramcompress.predicted import PREDICTED, Prediction

_MOST_TRIES = 6
_MANY, _FEW_OF, _NOISE_SHARE = 4096, 0.25, 0.5
"""Learned numbers that say by themselves that the dense stream is longer: so many, at most this share of the weights,
at no less than this share of the price of noise."""


def encode(
    info: TensorInfo,
    weight: Tensor,
    parts: tuple[Recipe, Tensor, Tensor | None] | None,
    setting: Setting,
    effort: Effort,
    seed: int,
    device: str,
    *,
    prove: bool = False,
) -> Piece:
    """Stream and index entry of a dense weight, which learned numbers may stand for.

    Args:
        weight: the dense weight; its error is what the limit is on.
        parts: recipe, C (n_out, n_support), and D^T (J, n_support, n_in) where the recipe does not bring it back; None
            for a layer that predicts nothing.
        prove: as `layer.encode`; a prediction is not looked at.

    Raises:
        BudgetError: as `layer.encode`.
    """
    found = None
    if parts is not None and setting.choice == Choice() and predicted.is_bargain(parts[0]):

        def fitted(matrix: Tensor, target: float) -> Factors:
            return fit(matrix.numpy(), Layout.of(tuple(matrix.shape)), target, effort, Choice(), seed, device)

        found = _encode_predicted(info, weight, *parts, setting.limit, fitted)
        if found is not None and _is_surely_shorter(found, parts[0], weight, setting.limit):
            return found
    dense = layer.encode(info, weight, setting, effort, seed, device, prove=prove)
    return found if found is not None and found.n_bytes < dense.n_bytes else dense


def _encode_predicted(
    info: TensorInfo,
    weight: Tensor,
    recipe: Recipe,
    learned: Tensor,
    dictionary: Tensor | None,
    limit: float,
    fitted: Callable[[Tensor, float], Factors],
) -> Piece | None:
    """The layer as learned numbers and a recipe; None where not even all their bits are within the limit.

    Args:
        fitted: factors of a matrix, given the squared error that they may leave.
    """
    tight = limit > 0 and _within(weight, recipe, learned, dictionary, limit, fitted)
    found = tight or _exactly(recipe, learned, dictionary)
    decoded = codec.to_tensor(found.reconstruct(), info.shape, weight.dtype)
    error = metrics.deviation(weight, decoded).rel_error if torch.isfinite(decoded).all() else math.inf
    if error > limit:
        return None
    crc = layer.crc_of(decoded)
    density = recipe.n_support / recipe.n_in
    return layer.coded(info, predicted.encode(found), PREDICTED, recipe.kind, recipe.n_support, density, error, crc)


def _is_surely_shorter(piece: Piece, recipe: Recipe, weight: Tensor, limit: float) -> bool:
    """Whether the dense stream need not be made to know that it is longer.

    Orthonormal atoms give the learned numbers the rank and the row norms of the weight. Where these numbers are many,
    and cost about what as many of a Gaussian source do, the weight has no structure either that would make the rest of
    it free.
    """
    bits = 8 * weight.element_size() if limit == 0 else math.log2(1 / min(limit, 1.0))
    n_learned = recipe.n_out * recipe.n_support
    return (
        recipe.orthonormal
        and not recipe.stored
        and _MANY <= n_learned <= _FEW_OF * weight.numel()
        and 8 * len(piece.stream) > _NOISE_SHARE * bits * n_learned
    )


def _exactly(recipe: Recipe, learned: Tensor, dictionary: Tensor | None) -> Prediction:
    """Every bit of the learned numbers."""
    dtype = predicted.exact_dtype(learned.dtype)
    flat = None if dictionary is None else dictionary.reshape(-1, recipe.n_in).to(dtype)
    return Prediction(recipe, learned.to(dtype), flat)


def _within(
    weight: Tensor,
    recipe: Recipe,
    learned: Tensor,
    dictionary: Tensor | None,
    limit: float,
    fitted: Callable[[Tensor, float], Factors],
) -> Prediction | None:
    """Coarser numbers whose weight stays within the limit; None where there are none.

    Orthonormal atoms pass errors of C on as they are. Where D is stored, it is made orthonormal first, which changes
    C and no weight, and the two share the squared error by their numbers: so a bit buys the same in both.
    """
    c, flat = learned.float(), None
    if dictionary is not None:
        c, flat = _orthonormal(recipe, c, dictionary.float())
    numbers = [one for one in (c, flat) if one is not None]
    if not all(bool(one.isfinite().all()) and float(one.norm()) > 0 for one in numbers):
        return None
    shares = [one.numel() / sum(each.numel() for each in numbers) for one in numbers]
    aim = min(limit, 1.0) ** 2
    for _ in range(_MOST_TRIES):
        try:
            found = [
                fitted(one, aim * share * float(one.norm()) ** 2) for one, share in zip(numbers, shares, strict=True)
            ]
        except Unfit:
            return None
        prediction = Prediction(recipe, found[0], found[1] if dictionary is not None else None)
        decoded = codec.to_tensor(prediction.reconstruct(), recipe.shape, weight.dtype)
        error = metrics.deviation(weight, decoded).rel_error
        if error <= limit:
            return prediction
        aim *= 0.99 * min(limit / error, 1.0) ** 2
    return None


def _orthonormal(recipe: Recipe, learned: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
    """C R^T and Q^T (J * n_support, n_in) of C D^T, D = Q R in every column group."""
    coefficients, atoms = [], []
    for j in range(recipe.groups):
        q, r = torch.linalg.qr(dictionary[j].double().T)
        coefficients.append(learned[recipe.rows(j)].double() @ r.T)
        atoms.append(q.T)
    return torch.cat(coefficients).float().contiguous(), torch.cat(atoms).float().contiguous()
