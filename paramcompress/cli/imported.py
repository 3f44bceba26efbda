"""Objects that options name as PKG:FN: the model's builder and the batches' maker, from the user's own code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from ..errors import CalibrationError

_HINT = "name a function without arguments as package.module:function, found from the current folder"


def call(option: str, name: str) -> Any:
    """What the function gives that `name` stands for; the current folder is on the path.

    Raises:
        CalibrationError: there is no such module or function, or it fails.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise CalibrationError(f"{option} {name!r} is not PKG:FN", hint=_HINT)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module can raise
        raise CalibrationError(f"{option} {name}: cannot import {module_name}: {_said(error)}", hint=_HINT) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        what = "has no" if function is None else "is no function:"
        raise CalibrationError(f"{option} {name}: {module_name} {what} {function_name}", hint=_HINT)
    try:
        return function()
    except Exception as error:
        raise CalibrationError(f"{option} {name}: {function_name}() failed: {_said(error)}") from error


def call_for_model(name: str) -> Any:
    """The module that a builder gives.

    Raises:
        CalibrationError: it gives something else.
    """
    from torch import nn

    model = call("--model", name)
    if not isinstance(model, nn.Module):
        raise CalibrationError(f"--model {name}: found {type(model).__name__}, expected a torch.nn.Module", hint=_HINT)
    return model


def call_for_batches(name: str) -> Any:
    """The iterable that a function gives.

    Raises:
        CalibrationError: it gives something that cannot be iterated over, or one tensor, whose rows are no batches.
    """
    from torch import Tensor

    batches = call("--data", name)
    if isinstance(batches, Tensor | str | dict) or not hasattr(batches, "__iter__"):
        raise CalibrationError(
            f"--data {name}: found {type(batches).__name__}, expected an iterable of batches", hint="give [tensor, ...]"
        )
    return batches


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
