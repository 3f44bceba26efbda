"""Consoles, the progress bar, and what commands print: the product on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from .. import difference_page, explanation_page, report
from ..records import Difference, Explanation, Progress, Report, Sweep
from ..tables import printable

_drawn: list[Bar] = []
"""The progress bar on the terminal, if there is one."""


class _Console(Console):
    """A console that prints text as it is and leaves a broken pipe to the translator."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError being handled


class _OnceKnown(ProgressColumn):
    """A column that stays empty until the bar knows how much there is to do."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._column.render(task)


def console(*, stderr: bool = False) -> Console:
    """Console without markup, emoji or highlighting: layer names and paths are data.

    rich takes care of NO_COLOR, of plain text where nobody looks, and of 80 columns where the width is unknown.
    """
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def progress(verb: str, *, quiet: bool, unit: Literal["bytes", "layers"] = "bytes") -> Iterator[Progress | None]:
    """One bar over all layers, by their `unit`, with the time left; None where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    done = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), _OnceKnown(done), TimeRemainingColumn(compact=True))
    with Bar(*columns, console=console(stderr=True), transient=True, redirect_stdout=False) as bar:
        _drawn.append(bar)
        task = bar.add_task(verb, total=None)
        try:
            yield lambda _layer, done, total: bar.update(task, completed=done, total=total)
        finally:
            _drawn.remove(bar)


def clear_progress() -> None:
    """Erase the progress bar of a command that will not do it itself."""
    for bar in _drawn:
        bar.stop()


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


def show_difference(result: Difference, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """The same for a difference."""
    out = console()
    if as_json:
        print(difference_page.to_json(result))
    elif not quiet:
        ascii_only = out.options.ascii_only
        out.print(*difference_page.render(result, width=out.width, verbose=verbose, ascii_only=ascii_only), sep="\n")


def show_explanation(result: Explanation, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """The same for an explanation."""
    out = console()
    if as_json:
        print(explanation_page.to_json(result))
    elif not quiet:
        ascii_only = out.options.ascii_only
        out.print(*explanation_page.render(result, width=out.width, verbose=verbose, ascii_only=ascii_only), sep="\n")


def say(text: str) -> None:
    """One line on stdout, never broken."""
    console().print(printable(text), soft_wrap=True)
