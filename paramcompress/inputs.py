"""What a module multiplies its weights with. Tensors in, tensors out; knows no model around the module.

`products` gives, for one call of a module, each weight's name and the inputs of its rows; the second moments of these
are what an error in the weight is measured by. Modules that are not in the table below give nothing.

Shapes: inputs (n_groups, n, n_columns): n vectors that each of n_groups equal runs of rows is multiplied with, the
columns as `codec.Layout` reads the weight. Parameters have the modules' own names: calls may use keywords.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from paramcompress.calls import Args, is_out_of_memory, mapped

MOST_POSITIONS = 256
"""Windows of one input of a convolution that are looked at: neighbours overlap, and say nearly the same."""
CHUNK = 1 << 24
"""Numbers that unfolding may put into memory at a time."""


class UnknownCallError(Exception):
    """A module is called as its kind is not."""


class Product(NamedTuple):
    """One weight and some of what it is multiplied with."""

    weight: str
    """Name within the module."""
    inputs: Tensor | None
    """(n_groups, n, n_columns); None where the rows are what is chosen or scaled by the input."""
    rows: Tensor | None = None
    """(n, n_rows) how often each row is chosen, n entries to be averaged."""
    scales: Tensor | None = None
    """(n, n_rows) what the rows are multiplied with before they are summed up."""


def products(module: nn.Module, call: Args) -> Iterator[Product]:
    """Weights of a module and their inputs in one call, in pieces of bounded size.

    Raises:
        UnknownCallError: it is of a known kind, and called as that kind is not.
    """
    try:
        yield from _products(module, call)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UnknownCallError from error


def _products(module: nn.Module, call: Args) -> Iterator[Product]:
    dtype = next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)
    # where a model lowers the precision for some of its modules, they get inputs that are not of their own
    args, kwargs = mapped(call, lambda one: one.to(dtype) if one.is_floating_point() else one)
    for kind, give in _TABLE.items():
        if isinstance(module, kind):
            yield from give(module, *args, **kwargs)
            return
    if _is_turned_linear(module):
        yield from _turned_linear(module, *args, **kwargs)


def weights_of(module: nn.Module) -> list[str]:
    """Names of a module's own parameters, which hold all that `products` may speak of: those of modules within are
    theirs, but for the projection that attention uses and never calls."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return [*names, "out_proj.weight"] if isinstance(module, nn.MultiheadAttention) else names


def is_known(module: nn.Module) -> bool:
    """Whether `products` can say anything of such a module."""
    return isinstance(module, tuple(_TABLE)) or _is_turned_linear(module)


def _is_turned_linear(module: nn.Module) -> bool:
    """Known by its name: the library that it comes from is none of ours."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2


def _linear(module: nn.Linear, input: Tensor) -> Iterator[Product]:
    yield Product("weight", input.reshape(1, -1, module.in_features))


def _convolution(module: Any, input: Tensor) -> Iterator[Product]:
    n_axes = len(module.kernel_size)
    if module.out_channels == 1 < module.in_channels and module.groups == 1:
        yield from _transposed(module, input)  # of one feature: `codec.Layout` reads the channels that go in as rows
        return
    x = padded(module, input if input.dim() == n_axes + 2 else input[None])
    if not len(x):
        return
    n_windows = min(x[0, 0].numel(), MOST_POSITIONS)
    per_input = x.shape[1] * n_windows * math.prod(module.kernel_size)
    at_a_time = max(1, CHUNK // max(per_input, 1))
    for part in torch.split(x, at_a_time):
        windows = part
        for axis in range(n_axes):
            size = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
            windows = windows.unfold(2 + axis, size, module.stride[axis])[..., :: module.dilation[axis]]
        chosen = _some(windows.shape[2 : 2 + n_axes])
        if chosen is not None:
            place: Any = (slice(None), slice(None), *chosen)
            windows = windows[place]
        # (n, channels, *positions, *kernel) -> (groups, n * positions, channels of a group * kernel)
        n, channels = part.shape[:2]
        grouped = windows.reshape(n, module.groups, channels // module.groups, -1, math.prod(module.kernel_size))
        yield Product(
            "weight", grouped.permute(1, 0, 3, 2, 4).reshape(module.groups, -1, grouped.shape[2] * grouped.shape[4])
        )


def padded(module: Any, x: Tensor) -> Tensor:
    """What a convolution slides over, for its input (n, channels, *positions)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)


def _some(positions: Sequence[int]) -> tuple[Tensor, ...] | None:
    """Coordinates of MOST_POSITIONS windows out of all, the same in every call; None where there are no more."""
    n = math.prod(positions)
    if n <= MOST_POSITIONS:
        return None
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:MOST_POSITIONS].sort()[0]
    return torch.unravel_index(chosen, tuple(positions))


def _transposed(module: Any, input: Tensor, output_size: Any = None) -> Iterator[Product]:
    """The weight lies (n_in, n_out, *kernel): its rows are scaled by the inputs."""
    n_axes = len(module.kernel_size)
    x = input if input.dim() == n_axes + 2 else input[None]
    yield Product("weight", None, scales=x.transpose(0, 1).reshape(x.shape[1], -1).T)


def _turned_linear(module: Any, *given: Any, **named: Any) -> Iterator[Product]:
    """A linear layer whose weight lies (n_in, n_out), as in the GPT-2 of transformers."""
    x = next(iter((*given, *named.values())), None)
    if isinstance(x, Tensor) and x.dim() and x.shape[-1] == len(module.weight):
        yield Product("weight", None, scales=x.reshape(-1, x.shape[-1]))


def _embedding(module: nn.Embedding, input: Tensor) -> Iterator[Product]:
    counts = torch.bincount(input.reshape(-1), minlength=module.num_embeddings)
    yield Product("weight", None, counts[None] / max(input.numel(), 1))


def _recurrent(module: nn.RNNBase, input: Tensor | PackedSequence, hx: Any = None) -> Iterator[Product]:
    """Inputs of each layer and direction, and the states that its recurrent weights are multiplied with.

    The layers are run one at a time to see what goes between them. States of packed sequences are those after each step
    in place of those before it, which have nearly the same moments.
    """
    x: Any = input
    states = hx if isinstance(hx, tuple) else None if hx is None else (hx,)
    n_directions = 2 if module.bidirectional else 1
    for level in range(module.num_layers):
        outputs = []
        for direction in range(n_directions):
            suffix = f"_l{level}" + "_reverse" * direction
            place = level * n_directions + direction
            start = None if states is None else tuple(state[place : place + 1] for state in states)
            one = _one_layer(module, suffix, backwards=direction == 1)
            y = one(x, start)
            data = x.data if isinstance(x, PackedSequence) else x
            yield Product(f"weight_ih{suffix}", data.reshape(1, -1, data.shape[-1]))
            before = _states_before(y, None if start is None else start[0], direction == 1, module.batch_first)
            yield Product(f"weight_hh{suffix}", before.reshape(1, -1, before.shape[-1]))
            outputs.append(y)
        if isinstance(x, PackedSequence):
            x = x._replace(data=torch.cat([y.data for y in outputs], -1))
        else:
            x = torch.cat(outputs, -1)


def _one_layer(module: nn.RNNBase, suffix: str, *, backwards: bool) -> Callable[[Any, Any], Any]:
    """Function from inputs and first states to the outputs of one layer of a recurrent module in one direction."""
    weights = {name: getattr(module, f"{name}{suffix}") for name in ("weight_ih", "weight_hh")}
    options: dict[str, Any] = {"bias": module.bias, "batch_first": module.batch_first}
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    kind = next(one for one in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, one))  # not a class made from it
    one = kind(weights["weight_ih"].shape[1], module.hidden_size, **options).to(weights["weight_ih"])
    one.load_state_dict(
        {f"{name[: -len(suffix)]}_l0": value for name, value in module.named_parameters() if _is_of(name, suffix)}
    )

    def run(x: Any, start: Any) -> Any:
        if isinstance(x, PackedSequence):
            padded, lengths = nn.utils.rnn.pad_packed_sequence(x)
            if backwards:
                padded = _reversed(padded, lengths)
            one.batch_first = False
            y = one(nn.utils.rnn.pack_padded_sequence(padded, lengths, enforce_sorted=False))[0]
            if backwards:
                padded = _reversed(*nn.utils.rnn.pad_packed_sequence(y))
                y = nn.utils.rnn.pack_padded_sequence(padded, lengths, enforce_sorted=False)
            return y
        time = x.dim() - 2 if module.batch_first and x.dim() == 3 else 0
        flipped = x.flip(time) if backwards else x
        first = None if start is None else (start if isinstance(module, nn.LSTM) else start[0])
        y = one(flipped, first)[0]
        return y.flip(time) if backwards else y

    return run


def _is_of(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and (suffix.endswith("_reverse") or not name.endswith("_reverse"))


def _reversed(padded: Tensor, lengths: Tensor) -> Tensor:
    """(time, n, features) with each sequence turned round within its length."""
    out = padded.clone()
    for i, length in enumerate(lengths.tolist()):
        out[:length, i] = padded[:length, i].flip(0)
    return out


def _cell(module: nn.RNNCellBase, input: Tensor, hx: Any = None) -> Iterator[Product]:
    """One step. A state that is not given is all zeros, and says nothing of what later ones are like."""
    yield Product("weight_ih", input.reshape(1, -1, module.input_size))
    if hx is not None:
        state = hx[0] if isinstance(hx, tuple | list) else hx
        yield Product("weight_hh", state.reshape(1, -1, module.hidden_size))


def _states_before(y: Any, start: Tensor | None, backwards: bool, batch_first: bool) -> Tensor:
    """What the recurrent weights saw: every state but the last, after the first one."""
    if isinstance(y, PackedSequence):
        return y.data
    time = 1 if batch_first and y.dim() == 3 else 0
    kept = y.narrow(time, 1 if backwards else 0, y.shape[time] - 1)
    if start is None:
        first = torch.zeros_like(y.select(time, 0)).unsqueeze(time)
    else:
        first = start.reshape(y.select(time, 0).shape).unsqueeze(time)
    return torch.cat([kept, first], time)


def _attention(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, *masks: Any, **more: Any,
) -> Iterator[Product]:  # fmt: skip
    """Projections of queries, keys and values, and the heads together before the projection that goes out.

    The three lie in one weight where they have one width; their inputs are then taken together: the same in
    self-attention.
    """
    if module._qkv_same_embed_dim:
        together = [x.reshape(1, -1, module.embed_dim) for x in _distinct(query, key, value)]
        yield Product("in_proj_weight", torch.cat(together, 1))
    else:
        for name, x in (("q", query), ("k", key), ("v", value)):
            yield Product(f"{name}_proj_weight", x.reshape(1, -1, x.shape[-1]))
    out = module.out_proj
    # the heads, which are not to be had otherwise: what a twin gives whose last projection changes nothing
    twin = copy.copy(module)
    twin._modules = {"out_proj": nn.Linear(module.embed_dim, module.embed_dim, bias=False).to(out.weight)}
    twin.out_proj.weight.data = torch.eye(module.embed_dim).to(out.weight)
    heads = twin.forward(query, key, value, key_padding_mask, False, *masks, **more)[0]
    yield Product("out_proj.weight", heads.reshape(1, -1, module.embed_dim))


def _distinct(*tensors: Tensor) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SHIFTED = (nn.Linear, *CONVOLUTIONS)
"""Modules whose bias, or a normalisation behind them, shifts the rows of all that their one weight gives."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLE: dict[Any, Callable[..., Iterator[Product]]] = {
    nn.Linear: _linear,
    CONVOLUTIONS: _convolution,
    _TRANSPOSED: _transposed,
    nn.Embedding: _embedding,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.MultiheadAttention: _attention,
}
