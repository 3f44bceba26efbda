"""How a model is called with a batch: a tensor, a tuple or list of arguments, or a dict of keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paramcompress.errors import ParamCompressError

Args = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of a call."""


def called(model: nn.Module, batch: Any, number: int, refusal: type[ParamCompressError]) -> Any:
    """What the model gives for a batch.

    Raises:
        refusal: it cannot be called with it; the message names the batch and what the model said. One that is raised
            within the call goes through as it is.
    """
    args, kwargs = arguments(batch)
    try:
        return model(*args, **kwargs)
    except refusal:
        raise
    except Exception as error:  # whatever a model can raise
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise refusal(
            f"batch {number} ({described(batch)}) does not fit the model: {said}",
            hint="each batch is what the model is called with: a tensor, a tuple of arguments or a dict; no labels",
        ) from error


def arguments(batch: Any) -> Args:
    """How a model is called with a batch."""
    if isinstance(batch, Mapping):
        return (), {str(key): value for key, value in batch.items()}
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return tuple(batch), {}
    return (batch,), {}


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on that device, however they are nested."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        entries = (moved(entry, device) for entry in batch)
        return type(batch)(*entries) if hasattr(batch, "_fields") else type(batch)(entries)
    return batch


def described(batch: Any) -> str:
    """Shape of a batch, in a few words."""
    if isinstance(batch, Tensor):
        return f"tensor {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(described(item) for item in batch[:3])}"
    if isinstance(batch, Mapping):
        return f"dict of {', '.join(map(str, list(batch)[:3]))}"
    return type(batch).__name__
