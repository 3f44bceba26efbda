"""Squeeze trained checkpoints into compact safetensors files, with a measured error for every layer."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BudgetError,
    CalibrationError,
    CheckpointError,
    ConfigError,
    EncodeError,
    FormatError,
    OutputError,
    ParamCompressError,
    PredictionError,
    SingularKernelError,
    UnsupportedFormatError,
    VerificationError,
)
from .records import Difference, Explanation, LayerDifference, LayerReport, Report, Sweep
from .verdicts import Verdict

if TYPE_CHECKING:
    from .calibration import calibrate
    from .differences import diff
    from .explanations import explain
    from .gate import check
    from .moments import SecondMoments
    from .pipeline import expand, inspect, load_file, load_into, open_file, squeeze, verify
    from .sweeps import sweep

    __version__: str

__all__ = [
    "BudgetError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "Difference",
    "EncodeError",
    "Explanation",
    "FormatError",
    "LayerDifference",
    "LayerReport",
    "OutputError",
    "ParamCompressError",
    "PredictionError",
    "Report",
    "SecondMoments",
    "SingularKernelError",
    "Sweep",
    "UnsupportedFormatError",
    "Verdict",
    "VerificationError",
    "__version__",
    "calibrate",
    "check",
    "diff",
    "expand",
    "explain",
    "inspect",
    "load_file",
    "load_into",
    "open_file",
    "squeeze",
    "sweep",
    "verify",
]

_HOMES = {
    "SecondMoments": ".moments",
    "calibrate": ".calibration",
    "check": ".gate",
    "diff": ".differences",
    "explain": ".explanations",
    "sweep": ".sweeps",
}


def __getattr__(name: str) -> Any:
    """The conductor's functions and the version, loaded at first use: `--help` waits for neither torch nor numba."""
    if name == "__version__":
        return _version()
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, ".pipeline"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _version() -> str:
    """As installed; looking it up takes a millisecond."""
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:  # a checkout on the path that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return __all__
