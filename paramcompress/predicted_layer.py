"""One layer of a predicted network to its stream, with the promise kept: as learned numbers and a recipe, or dense.

What is promised is the error of the dense weight, as for every other layer, and whichever stream is shorter is taken.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from paramcompress import codec, container, layer, metrics, predicted
from paramcompress.checkpoint import TensorInfo
from paramcompress.codec import Layout
from paramcompress.container import Entry
from paramcompress.dictionaries.recipe import Recipe
from paramcompress.fit import Choice, Effort, Unfit, fit
from paramcompress.layer import Piece, Setting, round_up
from paramcompress.predicted import PREDICTED, Prediction

_MOST_TRIES = 6


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
    dense = layer.encode(info, weight, setting, effort, seed, device, prove=prove)
    if parts is None or setting.choice != Choice() or not predicted.is_bargain(parts[0]):
        return dense
    recipe, learned, dictionary = parts
    tight = setting.limit > 0 and _within(
        info, weight, recipe, learned, dictionary, setting.limit, effort, seed, device
    )
    found = tight or _exactly(info, recipe, learned, dictionary)
    decoded = codec.to_tensor(found.reconstruct(), info.shape, weight.dtype)
    error = metrics.deviation(weight, decoded).rel_error if torch.isfinite(decoded).all() else math.inf
    stream = predicted.encode(found)
    if error > setting.limit or len(stream) >= dense.entry.n_bytes:
        return dense
    entry = Entry(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        codec=PREDICTED,
        dictionary=recipe.kind,
        rank=recipe.n_support,
        density=round_up(recipe.n_support / recipe.n_in),
        rel_error=round_up(error),
        crc=zlib.crc32(decoded.reshape(-1).view(torch.uint8).numpy().tobytes()),
        home=container.OWN if len(stream) >= container.OWN_PART_BYTES else container.POOLED,
        n_bytes=len(stream),
    )
    return Piece(entry, stream)


def _exactly(info: TensorInfo, recipe: Recipe, learned: Tensor, dictionary: Tensor | None) -> Prediction:
    """Every bit of the learned numbers."""
    dtype = predicted.exact_dtype(learned.dtype)
    flat = None if dictionary is None else dictionary.reshape(-1, recipe.n_in).to(dtype)
    return Prediction(recipe, learned.to(dtype), flat)


def _within(
    info: TensorInfo,
    weight: Tensor,
    recipe: Recipe,
    learned: Tensor,
    dictionary: Tensor | None,
    limit: float,
    effort: Effort,
    seed: int,
    device: str,
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
                fit(
                    one.numpy(),
                    Layout.of(tuple(one.shape)),
                    aim * share * float(one.norm()) ** 2,
                    effort,
                    Choice(),
                    seed,
                    device,
                )
                for one, share in zip(numbers, shares, strict=True)
            ]
        except Unfit:
            return None
        prediction = Prediction(recipe, found[0], found[1] if dictionary is not None else None)
        decoded = codec.to_tensor(prediction.reconstruct(), info.shape, weight.dtype)
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
