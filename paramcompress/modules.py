"""A user's model before it runs: whether it is that of a checkpoint, copies of it, the names of its weights. Runs none.

Models hold more than parameters: tensors that were computed from these, what the last run left behind, each other.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from paramcompress.checkpoint import Checkpoint
from paramcompress.errors import CalibrationError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_TABLE = 1000
"""Entries of a container from which on it is taken for a table, a vocabulary say, and not for what a run keeps."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within what spreads it over devices, whose names have a prefix that checkpoints are read without."""
    while isinstance(model, _WRAPPERS):
        model = model.module
    return model


def check_model(model: nn.Module, tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Whether a model has the names and shapes of a checkpoint; of a tensor with several names one is enough.

    Raises:
        CalibrationError: it has not; lists the first that differ.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name, value in state.items():
        if isinstance(value, UninitializedBuffer | UninitializedParameter):
            raise CalibrationError(f"{name} of the model has no shape yet", hint="call it once where it is built")
    expected = {name: tuple(value.shape) for name, value in state.items()}
    first = canonical_names(model, tensors)
    optional = {name for name in expected if name.endswith("num_batches_tracked") or first.get(name, name) in tensors}
    beside = [f"{name} (only in the checkpoint)" for name in tensors if name not in expected]
    missing = [name for name in expected if name not in tensors and name not in optional]
    wrong = [*beside, *(f"{name} (only in the model)" for name in missing)]
    wrong += [
        f"{name} ({shape} in the checkpoint, {expected[name]} in the model)"
        for name, shape in tensors.items()
        if expected.get(name, shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        hint = ""
        if expected and all(name.startswith("module.") for name in expected):
            hint = "a checkpoint is read without a `module.` that all its names share: give the model inside"
        elif wrong == beside:
            hint = "what the model lacks has to be in a file of its own: torch.save(model.state_dict(), path)"
        raise CalibrationError(f"the model does not fit the checkpoint: {', '.join(wrong[:5])}{more}", hint=hint)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Raises:
        CalibrationError: it holds what cannot be copied.
    """
    # tensors that were computed, such as a weight by an old weight_norm, or what the last run left, refuse to be copied
    held = [one for module in model.modules() for one in _tensors_in(vars(module), set())]
    memo = {id(one): one.detach().clone() for one in held if not one.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a model may hold
        said = str(error).strip().partition("\n")[0]
        raise CalibrationError(f"the model cannot be copied: {type(error).__name__}: {said}") from error


def with_weights(model: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """A copy of a model with the weights of a checkpoint, in float32 and eval mode.

    Raises:
        CalibrationError: it cannot be copied.
    """
    model = copied(model).float()
    state = model.state_dict()
    for info in checkpoint.tensors:
        if isinstance(value := state.get(info.name), Tensor):
            value.copy_(checkpoint.load(info.name))
    return model.eval()


def for_one_run(model: nn.Module) -> nn.Module:
    """The same tensors in modules of their own: what one run keeps in a module for a later one is not what another has
    kept, unless it is written in place into a tensor. Hooks are those of now."""
    memo: dict[int, Any] = {id(one): one for module in model.modules() for one in _tensors_in(vars(module), set())}
    memo |= {id(module): module for module in model.modules() if isinstance(module, ScriptModule)}
    held = [one for module in model.modules() for one in vars(module).values()]
    memo |= {id(one): one for one in held if isinstance(one, dict | list | tuple | set) and len(one) > _TABLE}
    return copy.deepcopy(model, memo)


def canonical_names(model: nn.Module, known: Collection[str] = ()) -> dict[str, str]:
    """One name of each parameter by every name that it has: the first of all that are `known`, or else of its own."""
    order = {name: at for at, name in enumerate(known)}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for several in names.values():
        first = min(several, key=lambda name: order.get(name, len(order)))
        found.update(dict.fromkeys(several, first))
    return found


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors in containers in containers and in modules there, none of which is looked into twice."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module) and id(value) not in seen:
        seen.add(id(value))
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping | list | tuple | set | deque) and id(value) not in seen:
        seen.add(id(value))
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(one, seen)
