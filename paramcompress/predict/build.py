"""From a dictionary and a layer's sizes to the dictionaries of its column groups, and the start of what is learned.

Shapes: W (n_out, n_in), one row a feature; the paper's W is its transpose. J column groups of features; group j has
D_j (n_in, n_support) and C_j (features, n_support), and W_j = C_j D_j^T. The paper's U is our D, its V our C^T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.dictionaries.contract import Dictionary, check_seed, is_whole
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.dictionaries.orthonormal import on_grid
from paramcompress.dictionaries.recipe import Recipe, group_atoms, is_quick
from paramcompress.dictionaries.supports import FOLLOW_FROM_SEED, support
from paramcompress.errors import PredictionError, SingularKernelError

VARIANTS = ("kernel", "raw")


@dataclass(frozen=True)
class Wish:
    """What is asked of a layer, checked.

    Raises:
        PredictionError: no dictionary, a fraction outside (0, 1], both or neither of fraction and n_support, numbers
            that are not whole, an unknown variant.
    """

    dictionary: Dictionary
    fraction: float | None = None
    """Learned numbers / weights, without biases."""
    n_support: int | None = None
    """Instead: learned numbers of each feature."""
    groups: int = 1
    """J, column groups."""
    seed: int = 0
    variant: str = "kernel"
    """`kernel`: what the layer starts as is predicted by kernel ridge regression; `raw`: by the atoms as they are."""
    supports: str | None = None
    orthonormal: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.dictionary, Dictionary):
            raise PredictionError(f"{self.dictionary!r} is no dictionary", hint="such as predict.RandomFixed()")
        if (self.fraction is None) == (self.n_support is None):
            raise PredictionError("a predicted layer takes a fraction or n_support, one of them")
        fraction: object = self.fraction
        if fraction is not None and not (isinstance(fraction, int | float | np.floating) and 0 < fraction <= 1):
            raise PredictionError(
                f"fraction {fraction!r} of the weights to be learned",
                hint="a fraction is above 0 and at most 1, such as 0.05",
            )
        if self.n_support is not None and type(self.n_support) is not int:
            raise PredictionError(f"a support of {self.n_support}", hint="n_support is a whole number")
        if not is_whole(self.groups, 1):
            raise PredictionError(f"{self.groups} column groups", hint="a whole number from 1")
        check_seed("layer", self.seed)
        if self.variant not in VARIANTS:
            raise PredictionError(f"variant {self.variant!r} is not known", hint=f"one of {', '.join(VARIANTS)}")


def dictionaries(wish: Wish, shape: tuple[int, ...]) -> tuple[Recipe, Tensor, list[Tensor]]:
    """Recipe of a layer whose dense weight has that shape, its dictionaries, and the maps that fold a start into them.

    Returns:
        recipe; D^T (J, n_support, n_in) float32; for each group F (n_support, n_support), which folds what made D
        orthonormal into the coefficients: those of the paper's U, one row a feature, times F are those of D.

    Raises:
        PredictionError: the support is larger than the layer or the dictionary; the dictionary does not fit.
        SingularKernelError: the kernel matrix of a support has no inverse.
    """
    n_out, n_in = shape[0], math.prod(shape[1:])
    dictionary = wish.dictionary.bound(n_in, shape[1:] if len(shape) > 2 else ())
    how = wish.supports or dictionary.supports
    if dictionary.is_learned and how != "leading":
        raise PredictionError(f"{how} supports for atoms that are learned, which are not chosen from any")
    # groups with the same support would be one group
    groups = 1 if how == "leading" else wish.groups
    if groups > n_out:
        raise PredictionError(f"{groups} column groups for {n_out} features")
    dictionary, n_support = _sized(wish, dictionary, n_out, n_in, how)
    seed = [wish.seed, *dictionary.seed_words]
    solved = wish.variant == "kernel" and dictionary.is_kernel
    chosen = [support(how, dictionary, n_in, n_support, j, tuple(seed)) for j in range(groups)]
    atoms: list[NDArray[np.float32]] = []
    folds: list[Tensor] = []
    for one in chosen:
        start = _predictor(dictionary, n_in, one, solved=solved)
        if wish.orthonormal:
            atoms.append(group_atoms(dictionary, n_in, one, orthonormal=True))
            folds.append(torch.from_numpy(start.T @ atoms[-1].T).float())
        else:
            atoms.append(np.ascontiguousarray(on_grid(start).T))
            folds.append(torch.eye(n_support, dtype=torch.float32))
    stored = (
        not dictionary.is_regenerated
        or (solved and not wish.orthonormal)
        or not is_quick(shape, n_support, groups, dictionary.channels)
    )
    recipe = Recipe(
        kind=dictionary.kind,
        shape=shape,
        groups=groups,
        n_support=n_support,
        supports=how if how in FOLLOW_FROM_SEED or stored else [one.tolist() for one in chosen],
        seed=seed,
        orthonormal=wish.orthonormal,
        stored=stored,
        parameters={} if stored else dictionary.parameters(),
    )
    return recipe, torch.from_numpy(np.stack(atoms)), folds


def _sized(wish: Wish, dictionary: Dictionary, n_out: int, n_in: int, how: str) -> tuple[Dictionary, int]:
    """The dictionary for its number of atoms, and n_support: whole for each channel where channels share a support."""
    if wish.n_support is not None:
        wanted = wish.n_support
    else:
        assert wish.fraction is not None
        # learned atoms are learned numbers, too
        share = n_in * n_out / (n_in + n_out) if dictionary.is_learned else n_in
        wanted = max(1, round(wish.fraction * share))
    most = min(n_in, n_out) if dictionary.is_learned else n_in
    if not 1 <= wanted <= most:
        raise PredictionError(
            f"a support of {wanted} for a layer of {n_in} inputs and {n_out} features", hint=f"it may be 1 to {most}"
        )
    channels = 1 if how == "uniform" else dictionary.channels
    dictionary, each = dictionary.sized(max(1, round(wanted / channels)))
    n_atoms = dictionary.n_atoms(n_in // dictionary.channels) * (dictionary.channels // channels)
    if each > n_atoms:
        raise PredictionError(f"a support of {each} atoms from a dictionary ({dictionary.kind}) that has {n_atoms}")
    return dictionary, each * channels


def _predictor(dictionary: Dictionary, n_in: int, chosen: NDArray[np.int64], *, solved: bool) -> NDArray[np.float64]:
    """The paper's U (n_in, n_support): k_alpha^T (K_alpha + ridge)^-1 where it is solved for, else the atoms."""
    channels = dictionary.channels
    n, n_atoms = n_in // channels, dictionary.n_atoms(n_in // channels)
    out = np.zeros((n_in, len(chosen)))
    made: dict[bytes, NDArray[np.float64]] = {}
    for channel in range(channels):
        columns = np.flatnonzero(chosen // n_atoms == channel)
        local = chosen[columns] - channel * n_atoms
        if (key := local.tobytes()) not in made:
            atoms = dictionary.atoms(n, local)
            made[key] = _solved(atoms, local, dictionary.ridge) if solved else atoms
        out[channel * n : (channel + 1) * n, columns] = made[key]
    return out


def _solved(atoms: NDArray[np.float64], chosen: NDArray[np.int64], ridge: float) -> NDArray[np.float64]:
    """atoms (K_alpha + ridge)^-1, K_alpha the rows `chosen` of the atoms."""
    if not len(chosen):
        return atoms
    kernel = torch.from_numpy(atoms[chosen])
    factor, info = torch.linalg.cholesky_ex(kernel + ridge * torch.eye(len(chosen), dtype=torch.float64))
    # a pivot near rounding has no digits left
    least = len(chosen) * torch.finfo(torch.float64).eps * float(kernel.diagonal().max())
    if int(info) or float(factor.diagonal().square().min()) <= least:
        raise SingularKernelError(len(chosen), ridge, max(1e-6, 100 * least))
    solved: NDArray[np.float64] = torch.cholesky_solve(torch.from_numpy(atoms.T.copy()), factor).T.numpy()
    return solved


def start(recipe: Recipe, folds: list[Tensor], dictionary: Tensor, generator: torch.Generator) -> Tensor:
    """C (n_out, n_support) of random weights, as large on average as torch's own start of a dense layer.

    What is drawn are the paper's coefficients, so that weights begin as the variant predicts them; each group is then
    scaled so that its features have the mean square length 1 / 3 that uniform weights up to 1 / sqrt(n_in) have.
    """
    groups = []
    for j, fold in enumerate(folds):
        rows = recipe.rows(j)
        drawn = dictionary.new_empty(rows.stop - rows.start, recipe.n_support)
        drawn = drawn.uniform_(-1, 1, generator=generator) @ fold
        gram = dictionary[j] @ dictionary[j].T
        length = float(((drawn @ gram) * drawn).sum().clamp(min=1e-30) / len(drawn)) ** 0.5
        groups.append(drawn / (length * math.sqrt(3)))
    return torch.cat(groups)


def spectral_start(recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """C (n_out, r) and D^T (1, r, n_in) of learned low rank: the leading singular vectors of a dense start, each with
    the root of its singular value (Khodak et al. 2021, arXiv:2105.01029)."""
    dense = torch.empty(recipe.n_out, recipe.n_in, dtype=torch.float32)
    dense = dense.uniform_(-1, 1, generator=generator) / math.sqrt(recipe.n_in)
    atoms, coefficients, values = truncated_svd(dense, recipe.n_support, generator=generator)
    roots = values.clamp(min=1e-30).sqrt()
    return (coefficients / roots).contiguous(), (atoms * roots).T[None].contiguous()


def leading_directions(weight: Tensor, rank: int) -> Tensor:
    """D^T (rank, n_in): the right singular vectors of a weight (n_out, n_in) with the largest singular values."""
    atoms: Tensor = torch.linalg.svd(weight, full_matrices=False)[2][:rank]
    return atoms
