"""The one place where exceptions become words on stderr and an exit code. Commands hold no `try`.

Errors go to stderr in words also under `--json`: stdout then stays empty, and the exit code carries the verdict.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import OutputError, ParamCompressError

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell shows for a program that SIGPIPE ended: the reader left, and nobody is there to be told."""


LAST_WORD = threading.RLock()
"""Held by whoever speaks on stderr, and by a process that is leaving until it is gone."""
_NO_FILE = {
    errno.ENAMETOOLONG: "its name is longer than the file system allows",
    errno.ESPIPE: "a pipe can be read only once: save what comes through it to a file first",
    errno.ELOOP: "its links lead in a circle",
}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Translator(TyperGroup):
    """Group of commands that ends every exception with its exit code; typer itself renders wrong usage, exit 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the command. Flags that are not given are False: typer would load pydantic, half the
        time of `check --help`, to find that None is None."""
        for flag in self.get_params(ctx):
            if flag.default is None and getattr(flag, "is_flag", False):
                flag.default = False
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def invoke(self, ctx: Any) -> Any:
        """Run the command; expected errors and interruptions end here."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except ParamCompressError as error:
            if error.exit_code == EXIT_BUG or os.environ.get("PARAMCOMPRESS_DEBUG"):
                traceback.print_exc()
            say("error", str(error), "bold red")
            if error.hint:
                say("hint", error.hint, "bold cyan")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            say("error", "interrupted", "bold red")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            _discard_output()
            raise typer.Exit(EXIT_BROKEN_PIPE) from error
        except OSError as error:
            if error.errno in _NO_FILE:  # wherever it was asked whether there is such a file
                say("error", f"{error.filename or 'an input'}: {_NO_FILE[error.errno]}", "bold red")
                raise typer.Exit(OutputError.exit_code) from error
            if error.errno not in _NO_SPACE:  # files are the business of the rooms that open them
                raise
            _discard_output()
            say("error", f"standard output: {error.strerror}", "bold red")
            raise typer.Exit(OutputError.exit_code) from error
        except EOFError as error:  # typer would take it for an impatient user and exit 1
            raise RuntimeError("input ended unexpectedly") from error
        return result

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; what still escapes is a bug, and looks like one."""
        try:
            return super().main(*args, **kwargs)
        except Exception:
            traceback.print_exc()
            say("error", "this is a bug in paramcompress; please report it with the lines above", "bold red")
            sys.exit(EXIT_BUG)


def _discard_output() -> None:
    """Let stdout lead nowhere, or the flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(label: str, text: str, style: str) -> None:
    """One line on stderr, however long, with the control characters of names and paths escaped."""
    from rich.text import Text

    from ..tables import printable
    from .terminal import console

    with LAST_WORD:
        console(stderr=True).print(Text.assemble((f"{label}: ", style), printable(text)), soft_wrap=True)
