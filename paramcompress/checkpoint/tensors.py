"""Tensors that are not one dense block: taken apart into ones that are, and the pickle call that puts them together.

A quantised tensor is its integers, scales and zero points; a sparse one its indices and values. Bits are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .stand_ins import Call

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
QUANTIZED = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
"""Quantised dtypes with one integer per element, and that integer's dtype."""


@dataclass(frozen=True)
class TensorRef:
    """Place of a tensor among decoded values."""

    name: str
    requires_grad: bool = False


@dataclass(frozen=True)
class Composite:
    """Place of a parameter, a sparse or a quantised tensor among decoded values; see `tensors.put_together`."""

    kind: str
    options: tuple[Any, ...]
    parts: dict[str, Any]


def take_apart(tensor: Tensor) -> tuple[str, tuple[Any, ...], dict[str, Tensor]]:
    """Kind, plain options and named parts of a sparse or quantised tensor; `dense` reads each part.

    The part "int_repr" is the quantised tensor itself: `dense` gives its integers. ValueError for any other kind.
    """
    shape = tuple(tensor.shape)
    if tensor.layout == torch.sparse_coo:
        parts = {"indices": tensor._indices(), "values": tensor._values()}
        return "sparse", ("sparse_coo", shape, tensor.is_coalesced()), parts
    if tensor.layout in _COMPRESSED:
        names = (*_COMPRESSED[tensor.layout], "values")
        return "sparse", (str(tensor.layout)[6:], shape), {name: getattr(tensor, name)() for name in names}
    if tensor.dtype in QUANTIZED and tensor.qscheme() == torch.per_tensor_affine:
        return "quantized", (tensor.q_scale(), tensor.q_zero_point()), {"int_repr": tensor}
    if tensor.dtype in QUANTIZED and tensor.qscheme() == torch.per_channel_affine:
        scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        parts = {"int_repr": tensor, "scales": scales, "zero_points": zero_points}
        return "quantized", (tensor.q_per_channel_axis(),), parts
    raise ValueError(f"{tensor.dtype} tensor of layout {tensor.layout} cannot be kept")


def put_together(whole: Composite, storage_of: Callable[[TensorRef], tuple[Any, tuple[int, ...]]]) -> Call:
    """The call, as torch.save writes it, that rebuilds a parameter or what `take_apart` took apart.

    `storage_of` gives a part's quantised storage and shape. These names are the torch file format: they cannot change.
    """
    parts = whole.parts
    no_hooks: OrderedDict[str, Any] = OrderedDict()
    match whole.kind, whole.options:
        case "parameter", (requires_grad,):
            return Call.of("torch._utils._rebuild_parameter", (parts[""], requires_grad, no_hooks))
        case "sparse", (layout, shape, *coalesced):
            layout = Call.of("torch.serialization._get_layout", (f"torch.{layout}",))
            data = (*parts.values(), torch.Size(shape), *coalesced)
            return Call.of("torch._utils._rebuild_sparse_tensor", (layout, data))
        case "quantized", (*numbers,):
            storage, shape = storage_of(parts["int_repr"])
            if len(numbers) == 2:
                scheme = (torch.per_tensor_affine, *numbers)
            else:
                scheme = (torch.per_channel_affine, parts["scales"], parts["zero_points"], *numbers)
            args = (storage, 0, shape, strides(shape), scheme, False, no_hooks)
            return Call.of("torch._utils._rebuild_qtensor", args)
    raise ValueError(f"unknown kind of tensor {whole.kind!r}")


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    return torch.empty(shape, device="meta").stride()


def dense(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, detached, with lazy conjugation carried out."""
    if tensor.is_quantized:
        return tensor.int_repr().contiguous()
    plain = tensor.detach()
    if type(plain) is not Tensor:
        plain = plain.as_subclass(Tensor)
    return plain.resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)


def identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """Equal for two tensors that are the same memory, element by element; None for an empty tensor."""
    if not tensor.numel():
        return None
    flags = tensor.is_conj(), tensor.is_neg()
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), flags
