"""How a model is called with a batch: a tensor, a tuple or list of arguments, or a dict of keywords.

Also what it may draw from torch's generators meanwhile: models that draw where they are only used (dropout that is
always on, a sampled code) draw the same for a batch whenever they are run over it, and leave what others draw alone.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from paramcompress.errors import ParamCompressError

Args = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of a call."""
Noise = tuple[Tensor, list[Tensor]]
"""States of torch's generators: that of the processor, and of devices in use."""


def called(model: nn.Module, batch: Any, number: int, refusal: type[ParamCompressError]) -> Any:
    """What the model gives for a batch, whose tensors stay as they are whatever the model does to its arguments.

    Raises:
        refusal: it cannot be called with it; the message names the batch and what the model said. One that is raised
            within the call goes through as it is.
    """
    try:
        with torch.enable_grad():  # a copy that asks for gradients as its tensor does, and may be changed in place
            given = mapped(batch, lambda one: one.detach().requires_grad_(one.requires_grad).clone())
        args, kwargs = arguments(given)
        return model(*args, **kwargs)
    except refusal:
        raise
    except Exception as error:  # whatever a model can raise
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise refusal(
            f"batch {number} ({described(batch)}) does not fit the model: {said}",
            hint="each batch is what the model, in float32, is called with: a tensor, a tuple or a dict; no labels",
        ) from error


def arguments(batch: Any) -> Args:
    """How a model is called with a batch."""
    if isinstance(batch, Mapping):
        return (), {str(key): value for key, value in batch.items()}
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return tuple(batch), {}
    return (batch,), {}


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with its tensors changed, in containers of containers, too; those in other objects stay as they are."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        found: Any = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        for key, value in batch.items():
            found[key] = mapped(value, change)
        return found
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(entry, change) for entry in batch))
    return type(batch)(mapped(entry, change) for entry in batch) if type(batch) in (tuple, list) else batch


def shapes_in(batch: Any) -> list[tuple[int, ...]]:
    """Shapes of the tensors of a batch; of nested ones, which have none, nothing."""
    found: list[tuple[int, ...]] = []

    def see(tensor: Tensor) -> Tensor:
        found.append(() if tensor.is_nested else tuple(tensor.shape))
        return tensor

    mapped(batch, see)
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what torch says; on a processor it does so with an error of any kind."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)


def noise() -> Noise:
    """What torch's generators will draw from here on."""
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if is_in_use else []


def set_noise(state: Noise) -> None:
    torch.set_rng_state(state[0])
    for device, one in enumerate(state[1]):
        torch.cuda.set_rng_state(one, device)


@contextlib.contextmanager
def noise_of(number: int) -> Iterator[None]:
    """While it lasts, torch's generators draw what belongs to that batch."""
    before = noise()
    try:
        torch.default_generator.manual_seed(number)
        if before[1]:
            torch.cuda.manual_seed_all(number)
        yield
    finally:
        set_noise(before)


def described(batch: Any) -> str:
    """Shape of a batch, in a few words."""
    if isinstance(batch, Tensor):
        return f"tensor {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(described(item) for item in batch[:3])}"
    if isinstance(batch, Mapping):
        return f"dict of {', '.join(map(str, list(batch)[:3]))}"
    return type(batch).__name__
