"""Layers that learn a few numbers of each feature and predict the other weights: torch modules like any others.

    W_j = C_j D_j^T for every column group j        C learned, D fixed

Shapes: dense weight (n_out, n_in, *kernel), learned (n_out, n_support), dictionary (J, n_support, n_in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paramcompress.dictionaries.contract import Dictionary
from paramcompress.dictionaries.recipe import Recipe
from paramcompress.errors import PredictionError

from . import build

ORDERS = ("filters", "features")


class Predicted(nn.Module):
    """What both layers are: learned numbers, a bias, fixed dictionaries, and the recipe that these come from.

    A checkpoint of it holds `learned`, `bias` and `recipe` (JSON, as a tensor of bytes), and `dictionary` only where
    the recipe does not bring it back. Loading follows the checkpoint's recipe, whatever the layer was built with.
    """

    learned: nn.Parameter
    bias: nn.Parameter | None
    recipe: Tensor
    dictionary: Tensor

    def __init__(self, wish: build.Wish, shape: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        # the same numbers wherever and in whatever precision torch makes its tensors
        with torch.device("cpu"):
            self.cooked, dictionary, folds = build.dictionaries(wish, shape)
            generator = torch.Generator().manual_seed(wish.seed)
            if wish.dictionary.is_learned:
                learned, dictionary = build.spectral_start(self.cooked, generator)
            else:
                learned = build.start(self.cooked, folds, dictionary, generator)
            self.learned = nn.Parameter(learned)
            bound = self.cooked.n_in**-0.5
            shift = learned.new_empty(shape[0]).uniform_(-bound, bound, generator=generator)
            self.bias = nn.Parameter(shift) if bias else None
            self.register_buffer("recipe", _as_bytes(self.cooked))
            self._set_dictionary(dictionary)
        default = torch.empty(0)
        self.to(default.device, default.dtype)

    def _set_dictionary(self, dictionary: Tensor) -> None:
        """Learned atoms are a parameter; fixed ones are kept in checkpoints only where no recipe brings them back."""
        if self.is_low_rank:
            self.dictionary = nn.Parameter(dictionary)
        else:
            self.register_buffer("dictionary", dictionary, persistent=self.cooked.stored)

    @property
    def is_low_rank(self) -> bool:
        """Whether the atoms are learned, too."""
        return self.cooked.kind == "learned"

    @property
    def n_learned(self) -> int:
        """Learned numbers, without the bias."""
        return self.learned.numel() + (self.dictionary.numel() if self.is_low_rank else 0)

    @property
    def n_weights(self) -> int:
        """Of the dense layer, without the bias."""
        return self.cooked.n_out * self.cooked.n_in

    @property
    def weight(self) -> Tensor:
        """(n_out, n_in, *kernel) the predicted weights, for this step."""
        groups = self.cooked.groups
        if self.cooked.n_out % groups == 0:
            stacked = self.learned.view(groups, -1, self.cooked.n_support)
            return torch.bmm(stacked, self.dictionary).view(self.cooked.shape)
        each = (self.learned[self.cooked.rows(j)] @ self.dictionary[j] for j in range(groups))
        return torch.cat(list(each)).view(self.cooked.shape)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """The same in the bits that every machine gets, and that a squeezed file expands to."""
        if self.learned.is_meta:
            return self.learned.new_empty(self.cooked.shape)
        learned, dictionary = (one.detach().cpu().float().numpy() for one in (self.learned, self.dictionary))
        dense = torch.from_numpy(self.cooked.weight(learned, dictionary)).reshape(self.cooked.shape)
        return dense.to(self.learned.device, self.learned.dtype)

    @torch.no_grad()
    def project(self, weight: Tensor, moment: Tensor | None = None) -> None:
        """Learn nothing, but take the numbers that come nearest to a dense weight.

        Minimises tr(E H E^T), E = W - W_hat: with D of a group, C = W H D (D^T H D)^-1. Learned atoms become the
        leading singular vectors of the weight first.

        Args:
            weight: of the layer's dense shape.
            moment: H (n_in, n_in), second moments of the layer's inputs; the unit matrix without.

        Raises:
            PredictionError: another shape, or not only finite numbers.
        """
        n_in = self.cooked.n_in
        for what, given, shape in (("weight", weight, self.cooked.shape), ("second moment", moment, (n_in, n_in))):
            if given is None:
                continue
            if given.shape != shape:
                raise PredictionError(f"a {what} of shape {tuple(given.shape)} for a layer where it is {shape}")
            if given.is_meta or not given.isfinite().all():
                raise PredictionError(f"a {what} without numbers, or with NaN or Inf, to project")
        wanted = weight.detach().reshape(self.cooked.n_out, -1).double()
        if self.is_low_rank:
            self.dictionary.copy_(build.leading_directions(wanted, self.cooked.n_support)[None])
        for j in range(self.cooked.groups):
            atoms = self.dictionary[j].double()
            seen = atoms if moment is None else atoms @ moment.double().to(atoms.device)
            rows = self.cooked.rows(j)
            found = torch.linalg.lstsq(seen @ atoms.T, seen @ wanted[rows].T, driver=_driver(atoms)).solution
            self.learned[rows] = found.T.to(self.learned)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Follow the recipe of the checkpoint first."""
        found = state_dict.get(f"{prefix}recipe")
        if isinstance(found, Tensor) and not found.is_meta and not found.is_complex():
            # in whatever dtype a whole state dict was turned into
            numbers = found.detach().cpu().double()
            if not ((numbers == numbers.round()) & (numbers >= 0) & (numbers < 256)).all():
                raise PredictionError(f"{prefix}recipe: no text", hint=_AVERAGED)
            self._adopt(bytes(numbers.to(torch.uint8).tolist()), prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        # load_state_dict(assign=True) takes a layer off the meta device, but for what no checkpoint holds
        if self.dictionary.is_meta and not self.learned.is_meta and not self.cooked.stored:
            self.dictionary = self._regenerated().to(self.learned)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Predicted:
        """As any module; when `to_empty` takes the layer off the meta device, what is fixed is filled in."""
        was_meta = self.recipe.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.recipe.is_meta:
            self.recipe.copy_(_as_bytes(self.cooked))
            if not self.cooked.stored:
                self.dictionary.copy_(self._regenerated())
        return self

    def _regenerated(self) -> Tensor:
        """D^T (J, n_support, n_in) as the recipe has it."""
        return torch.from_numpy(self.cooked.regenerated().copy())

    def __prepare_scriptable__(self) -> nn.Module:
        raise PredictionError(
            "torch.jit.script cannot follow a layer that predicts its weights",
            hint="merge a copy of the model first; torch.compile, torch.export and torch.jit.trace take it as it is",
        )

    def _adopt(self, text: bytes, prefix: str) -> None:
        """Become a layer of that recipe, if it is one for a layer of this shape."""
        if not self.recipe.is_meta and text == bytes(self.recipe.cpu().tolist()):
            return
        try:
            recipe = Recipe.from_json(text)
        except ValueError as error:
            raise PredictionError(f"{prefix}recipe: {error}", hint=_AVERAGED) from error
        if recipe.shape != self.cooked.shape:
            raise PredictionError(
                f"{prefix}recipe: for a weight of shape {recipe.shape}, and this layer has {self.cooked.shape}"
            )
        like = self.dictionary
        self.cooked = recipe
        self.recipe = _as_bytes(recipe).to(self.recipe.device)
        with torch.no_grad():
            self.learned.data = self.learned.new_zeros(recipe.n_out, recipe.n_support)
        size = (recipe.groups, recipe.n_support, recipe.n_in)
        made = (like.new_zeros(size) if recipe.stored else self._regenerated()).to(like.device, like.dtype)
        if self.is_low_rank and isinstance(like, nn.Parameter):
            like.data = made  # which an optimizer may know
            return
        del self.dictionary
        self._set_dictionary(made)

    def extra_repr(self) -> str:
        recipe = self.cooked
        words = f"{recipe.kind}, {recipe.n_support} of {recipe.n_in} learned, {recipe.groups} column groups"
        return words if self.bias is not None else f"{words}, bias=False"


class PredictedLinear(Predicted):
    """`nn.Linear` that learns n_support numbers of each feature.

    Args:
        in_features, out_features: as there.
        dictionary: what predicts the weights; bound to this layer.
        fraction: learned numbers / weights; or n_support, learned numbers of each feature.
        groups: J, column groups; each has a support of its own.
        bias: whether a bias is learned.
        seed: of supports and start; layers that shall differ need different ones.
        variant: `kernel` or `raw`: whether the weights start as kernel ridge regression predicts them from random
            numbers at the support, or as atoms times random numbers.
        supports: how they are drawn, a name of `SUPPORTS`; the dictionary's own way if None.
        orthonormal: whether atoms are made orthonormal; what does so is folded into `learned`.

    Raises:
        PredictionError: see `convert`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dictionary: Dictionary,
        fraction: float | None = None,
        n_support: int | None = None,
        groups: int = 1,
        bias: bool = True,
        seed: int = 0,
        variant: str = "kernel",
        supports: str | None = None,
        orthonormal: bool = True,
    ) -> None:
        wish = build.Wish(dictionary, fraction, n_support, groups, seed, variant, supports, orthonormal)
        super().__init__(wish, (out_features, in_features), bias=bias)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return functional.linear(input, self.weight, self.bias)


class PredictedConv2d(Predicted):
    """`nn.Conv2d` that learns n_support numbers of each filter. Filters are flattened as torch does: channel, row,
    column.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as there; zeros are padded.
        order: `filters` puts the filters together and convolves with them; `features` convolves with the fixed atoms
            and mixes what comes out, a 1x1 convolution. The same numbers but for rounding; which is quicker depends.
        others: as for `PredictedLinear`.

    Raises:
        PredictionError: see `convert`.
        ValueError: what `nn.Conv2d` refuses.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        dictionary: Dictionary,
        fraction: float | None = None,
        n_support: int | None = None,
        groups: int = 1,
        bias: bool = True,
        seed: int = 0,
        variant: str = "kernel",
        supports: str | None = None,
        orthonormal: bool = True,
        order: str = "filters",
    ) -> None:
        check_order(order)
        wish = build.Wish(dictionary, fraction, n_support, groups, seed, variant, supports, orthonormal)
        # torch's own layer knows which of these go together
        like: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, in_channels, out_channels, kernel_size, stride, padding, dilation, device="meta"
        )
        super().__init__(wish, tuple(like.weight.shape), bias=bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = like.kernel_size, like.stride, like.dilation
        self.padding, self.order = like.padding, order

    def forward(self, input: Tensor) -> Tensor:
        """(n, in_channels, rows, columns) -> (n, out_channels, rows, columns)."""
        if self.order == "filters":
            return functional.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)
        fixed = self.dictionary.reshape(-1, *self.cooked.shape[1:])
        maps = functional.conv2d(input, fixed, None, self.stride, self.padding, self.dilation)
        groups, mixing = self.cooked.groups, self.learned[:, :, None, None]
        if self.cooked.n_out % groups == 0:
            return functional.conv2d(maps, mixing, self.bias, groups=groups)
        parts = maps.split(self.cooked.n_support, dim=-3)  # type: ignore[no-untyped-call]
        out = torch.cat([functional.conv2d(parts[j], mixing[self.cooked.rows(j)]) for j in range(groups)], dim=-3)
        return out if self.bias is None else out + self.bias[:, None, None]


_AVERAGED = "a recipe is text in a buffer: where weights are averaged, leave buffers that hold no numbers as they are"


def check_order(order: str) -> None:
    """Raise PredictionError for what is no order of a convolution."""
    if order not in ORDERS:
        raise PredictionError(f"order {order!r} is not known", hint=f"one of {', '.join(ORDERS)}")


def _as_bytes(recipe: Recipe) -> Tensor:
    return torch.frombuffer(bytearray(recipe.to_json()), dtype=torch.uint8)


def _driver(tensor: Tensor) -> str:
    """Least squares that bear dependent atoms, where the device has them."""
    return "gelsd" if tensor.device.type == "cpu" else "gels"
