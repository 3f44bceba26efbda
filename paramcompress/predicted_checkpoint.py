"""A predicted network's checkpoint as the dense one that it stands for: `NAME.weight` where `NAME.learned` was.

What makes a layer predicted is its recipe (`NAME.recipe`, JSON as bytes) beside `NAME.learned`. Everything else is as
it was. Encodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from paramcompress.checkpoint import Checkpoint, TensorInfo, renamed
from paramcompress.checkpoint.records import torch_dtype
from paramcompress.dictionaries.recipe import Recipe

_DTYPES = ("float64", "float32", "float16", "bfloat16")
_MOST_RECIPE_BYTES = 1 << 22


@dataclass(frozen=True)
class DenseView(Checkpoint):
    """A checkpoint of dense weights, some of which are predicted when they are loaded."""

    predictions: dict[str, Callable[[], tuple[Recipe, Tensor, Tensor | None]]] = field(default_factory=dict, repr=False)
    """Dense name -> recipe, C (n_out, n_support), D^T (J, n_support, n_in) if the recipe does not bring it back."""
    inner: Checkpoint | None = None
    """What it is a view of; closed with it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.inner is not None:
            self.inner.__exit__(kind, error, trace)


def dense_view(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with dense weights for its predicted layers; itself if it has none.

    A layer whose parts do not fit together stays the tensors that it is.
    """
    infos = {info.name: info for info in checkpoint.tensors}
    recipes = {
        stem: recipe
        for name in infos
        if name.rpartition(".")[2] == "learned"
        and (recipe := _recipe(checkpoint, infos, stem := name.removesuffix("learned"))) is not None
    }
    if not recipes:
        return checkpoint
    names: dict[str, str | None] = {}
    for stem, recipe in recipes.items():
        names |= {f"{stem}learned": f"{stem}weight", f"{stem}recipe": None}
        if recipe.stored:
            names[f"{stem}dictionary"] = None
    tree, found = renamed(checkpoint.tree, names)
    if found != set(names):
        return checkpoint

    def parts(stem: str) -> tuple[Recipe, Tensor, Tensor | None]:
        recipe = recipes[stem]
        stored = checkpoint.load(f"{stem}dictionary") if recipe.stored else None
        return recipe, checkpoint.load(f"{stem}learned"), stored

    tensors: list[TensorInfo] = []
    readers: dict[str, Callable[[], Tensor]] = {
        info.name: partial(checkpoint.load, info.name) for info in checkpoint.tensors if info.name not in names
    }
    for info in checkpoint.tensors:
        stem = info.name.removesuffix("learned")
        if names.get(info.name, info.name) is None:
            continue
        alias = names.get(info.alias_of, info.alias_of) if info.alias_of is not None else None
        if info.name in names:
            info = replace(info, name=f"{stem}weight", shape=recipes[stem].shape)
            readers[info.name] = partial(_predicted, partial(parts, stem))
        tensors.append(replace(info, alias_of=alias))
    kept = {one.name: getattr(checkpoint, one.name) for one in fields(checkpoint) if one.name != "_readers"}
    kept |= {
        "tensors": tuple(tensors),
        "tree": tree,
        "notes": (*checkpoint.notes, _note(recipes.values())),
    }
    return DenseView(
        **kept,
        _readers=readers,
        inner=checkpoint,
        predictions={f"{stem}weight": partial(parts, stem) for stem in recipes},
    )


def _note(recipes: Iterable[Recipe]) -> str:
    sizes = [(one.n_out * one.n_support, one.n_out * one.n_in) for one in recipes]
    learned, dense = (sum(each) for each in zip(*sizes, strict=True))
    where = "1 layer" if len(sizes) == 1 else f"{len(sizes)} layers"
    return (
        f"{dense:,} weights of {where} are predicted from {learned:,} coefficients; sizes before are of dense weights"
    )


def parts_of(checkpoint: Checkpoint, name: str) -> tuple[Recipe, Tensor, Tensor | None] | None:
    """What a dense weight is predicted from; None where it is not."""
    find = checkpoint.predictions.get(name) if isinstance(checkpoint, DenseView) else None
    return None if find is None else find()


def _predicted(parts: Callable[[], tuple[Recipe, Tensor, Tensor | None]]) -> Tensor:
    """The dense weight, in the bits that `expand` gives where nothing was lost."""
    recipe, learned, stored = parts()
    dictionary = recipe.regenerated() if stored is None else stored.float().numpy()
    weight = recipe.weight(learned.float().numpy(), dictionary)
    return torch.from_numpy(weight).reshape(recipe.shape).to(learned.dtype)


def _recipe(checkpoint: Checkpoint, infos: dict[str, TensorInfo], stem: str) -> Recipe | None:
    """The recipe beside `learned`, if the parts of the layer fit it."""
    learned, text = infos[f"{stem}learned"], infos.get(f"{stem}recipe")
    if text is None or text.dtype != "uint8" or len(text.shape) != 1 or text.shape[0] > _MOST_RECIPE_BYTES:
        return None
    if learned.dtype not in _DTYPES or f"{stem}weight" in infos:
        return None
    try:
        recipe = Recipe.from_json(checkpoint.load(text.name).numpy().tobytes())
    except ValueError:
        return None
    stored = infos.get(f"{stem}dictionary")
    size = recipe.groups, recipe.n_support, recipe.n_in
    fits = learned.shape == (recipe.n_out, recipe.n_support) and (stored is not None) == recipe.stored
    if stored is not None:
        fits = fits and stored.shape == size and torch_dtype(stored.dtype).is_floating_point
    # a tied learned matrix needs its twin to be a layer of the same recipe
    alias = learned.alias_of
    if fits and alias is not None:
        twin = infos.get(f"{alias.removesuffix('learned')}recipe")
        fits = twin is not None and bool(torch.equal(checkpoint.load(twin.name), checkpoint.load(text.name)))
    return recipe if fits else None
