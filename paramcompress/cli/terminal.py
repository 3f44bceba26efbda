"""Consoles, the progress bar, and what commands print: the product on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from .. import report
from ..records import Progress, Report, Sweep
from ..tables import printable


class _Console(Console):
    """A console that prints text as it is and leaves a broken pipe to the translator."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError being handled


def console(*, stderr: bool = False) -> Console:
    """Console without markup, emoji or highlighting: layer names and paths are data.

    rich takes care of NO_COLOR, of plain text where nobody looks, and of 80 columns where the width is unknown.
    """
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def progress(verb: str, *, quiet: bool) -> Iterator[Progress | None]:
    """One bar over all layers, by bytes, with the time left; None where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
    with Bar(*columns, console=console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda _layer, done, total: bar.update(task, completed=done, total=total)


def show(result: Report, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """`result` on stdout: as JSON and nothing else, or as a table unless `quiet`."""
    out = console()
    if as_json:
        print(report.to_json(result))
    elif not quiet:
        ascii_only = out.options.ascii_only
        out.print(*report.render(result, width=out.width, verbose=verbose, ascii_only=ascii_only), sep="\n")


def show_sweep(result: Sweep, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """The same for a sweep."""
    out = console()
    if as_json:
        print(report.to_json(result))
    elif not quiet:
        ascii_only = out.options.ascii_only
        out.print(*report.render_sweep(result, width=out.width, verbose=verbose, ascii_only=ascii_only), sep="\n")


def say(text: str) -> None:
    """One line on stdout, never broken."""
    console().print(printable(text), soft_wrap=True)
