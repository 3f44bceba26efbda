"""The one family of errors that this package raises on purpose. Each class builds its message from data.

`exit_code` is what the command line ends with; `hint` is the remedy, printed on a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterable


class ParamCompressError(Exception):
    """Base of every error a caller may expect; anything else is a bug."""

    exit_code = 3

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


class CheckpointError(ParamCompressError):
    """The input cannot be read, is unsafe to read, or is not a checkpoint."""

    def __init__(self, path: object, reason: str, *, tensor: str | None = None, hint: str | None = None) -> None:
        where = f"{path}: tensor {tensor!r}" if tensor is not None else str(path)
        super().__init__(f"{where}: {reason}", hint=hint)
        self.path, self.tensor, self.reason = path, tensor, reason


class FormatError(ParamCompressError, ValueError):
    """Not a squeezed file, or one that is damaged."""

    def __init__(self, path: object, reason: str, *, tensor: str | None = None, hint: str | None = None) -> None:
        where = f"{path}: tensor {tensor!r}" if tensor is not None else str(path)
        super().__init__(f"{where}: {reason}", hint=hint)
        self.path, self.tensor, self.reason = path, tensor, reason


class UnsupportedFormatError(FormatError):
    """A format number or codec id that this version does not know."""

    def __init__(self, path: object, what: str, found: object, supported: Iterable[object]) -> None:
        self.found, self.supported = found, tuple(supported)
        known = ", ".join(map(str, self.supported))
        super().__init__(
            path, f"{what} {found} is not known here (known: {known})", hint="update paramcompress to read this file"
        )


class OutputError(ParamCompressError):
    """The output cannot be written."""

    def __init__(self, path: object, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint=hint)
        self.path, self.reason = path, reason


class BudgetError(ParamCompressError, ValueError):
    """A size or error target cannot be met."""

    exit_code = 1

    def __init__(self, what: str, *, smallest_bytes: int | None = None, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.smallest_bytes = smallest_bytes


class EncodeError(ParamCompressError):
    """One layer could not be encoded; raised from its cause."""

    exit_code = 70

    def __init__(self, name: str, shape: tuple[int, ...], reason: str) -> None:
        super().__init__(f"layer {name!r} {shape}: {reason}")
        self.name, self.shape = name, shape


class VerificationError(ParamCompressError):
    """The decoded file breaks a promise."""

    exit_code = 4

    def __init__(self, path: object, tensor: str, found: str, promised: str) -> None:
        super().__init__(f"{path}: tensor {tensor!r}: found {found}, promised {promised}")
        self.path, self.tensor, self.found, self.promised = path, tensor, found, promised


class ConfigError(ParamCompressError, ValueError):
    """An option, pattern or configuration file that makes no sense."""

    exit_code = 2


class CalibrationError(ParamCompressError, ValueError):
    """Calibration input that does not fit the checkpoint."""

    exit_code = 2


class PredictionError(ParamCompressError, ValueError):
    """A layer, fraction, support or dictionary that weights cannot be predicted with."""

    exit_code = 2


class SingularKernelError(PredictionError):
    """The kernel matrix of a support has no inverse that can be computed; .ridge would mend it."""

    def __init__(self, n_support: int, ridge: float, needed: float) -> None:
        super().__init__(
            f"the kernel matrix of a support of {n_support} inputs is singular with ridge {ridge:g}",
            hint=f"ridge={needed:.1g} mends it",
        )
        self.n_support, self.ridge = n_support, needed
