"""A user's model before it runs: whether it is that of a checkpoint, copies of it, the names of its weights. Runs none.

Models hold more than parameters: tensors that were computed from these, what the last run left behind, each other.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from paramcompress.checkpoint import Checkpoint
from paramcompress.errors import CalibrationError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_SHARED = frozenset(vars(nn.Module())) - {"_modules", "_buffers"}
"""Attributes that a copy for one run has in common with the model: parameters, hooks."""
_CONTAINERS = (dict, list, set, OrderedDict, defaultdict, deque)


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
    wrong = [f"{name} (only in the checkpoint)" for name in tensors if name not in expected]
    wrong += [f"{name} (only in the model)" for name in expected if name not in tensors and name not in optional]
    wrong += [
        f"{name} ({shape} in the checkpoint, {expected[name]} in the model)"
        for name, shape in tensors.items()
        if expected.get(name, shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        is_prefixed = all(name.startswith("module.") for name in expected)
        hint = "a checkpoint is read without a `module.` that all its names share: give the model inside"
        raise CalibrationError(
            f"the model does not fit the checkpoint: {', '.join(wrong[:5])}{more}", hint=hint if is_prefixed else ""
        )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Raises:
        CalibrationError: it holds what cannot be copied.
    """
    # tensors that were computed, such as a weight by an old weight_norm, or what the last run left, refuse to be copied
    memo = {id(one): one.detach() for module in model.modules() for one in _tensors_in(vars(module)) if not one.is_leaf}
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
    """The same model with attributes of its own beside parameters and hooks, which it shares: what one run keeps in a
    module for a later one is not what another has kept. Of containers the entries stay the same."""
    copies: dict[int, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if isinstance(module, ScriptModule):  # keeps its attributes out of sight
            return module
        if id(module) not in copies:
            twin = copies[id(module)] = object.__new__(type(module))
            for name, value in vars(module).items():
                is_own = name not in _SHARED and type(value) in _CONTAINERS
                vars(twin)[name] = copy.copy(value) if is_own else value
            children = vars(module)["_modules"]
            vars(twin)["_modules"] = {name: one if one is None else of(one) for name, one in children.items()}
        return copies[id(module)]

    return of(model)


def canonical_names(model: nn.Module, known: Collection[str] = ()) -> dict[str, str]:
    """One name of each parameter by every name that it has: the first that is `known`, or else the first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for several in names.values():
        first = next((name for name in several if name in known), several[0])
        found.update(dict.fromkeys(several, first))
    return found


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors_in(one)
    elif isinstance(value, list | tuple | set | deque):
        for one in value:
            yield from _tensors_in(one)
