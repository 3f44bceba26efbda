"""Where a verdict goes: the terminal, a file, and what a continuous integration reads by itself."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from .. import budget, notices, report
from ..errors import ConfigError, OutputError, ParamCompressError
from ..verdicts import Verdict
from .terminal import console


class Forms:
    """Forms that one check is shown in, from its options and from what GitHub Actions says in the environment."""

    def __init__(self, format_: str | None, out: Path | None, *, as_json: bool, quiet: bool, verbose: bool) -> None:
        if as_json and format_ not in (None, "json"):
            raise ConfigError(f"--json and --format {format_} are given together", hint="give one of them")
        format_ = "json" if as_json else format_
        self._on_github = os.environ.get("GITHUB_ACTIONS") == "true"
        self._format = format_ or ("github" if self._on_github else "text")
        self._out, self._as_json, self._quiet, self._verbose = out, as_json, quiet, verbose

    def check_destination(self, config: Path | None, *, force: bool) -> None:
        """Refuse a file that could not be written in the end, or that is read, before the work begins."""
        if self._out is not None:
            report.check_writable(self._out, force=force, inputs=_inputs(config))

    @contextmanager
    def annotated_errors(self, config: Path | None) -> Iterator[None]:
        """A budget that makes no sense shall be seen in the pull request, too; the error goes on to the translator."""
        try:
            yield
        except ParamCompressError as error:
            if self._on_github or self._format == "github":
                print(notices.error_to_github(error, _found(config), _root()), file=sys.stderr)
            raise

    def show(self, verdict: Verdict) -> None:
        """Print, write and annotate."""
        annotations = notices.to_github(verdict, _root())
        if self._out is not None:
            report.write_whole(self._out, (self._text(verdict, annotations) + "\n").encode())
        if self._as_json:
            print(notices.to_json(verdict))
        elif self._out is not None or self._format in ("text", "github"):
            with _no_commands() if self._on_github else nullcontext():
                self._print_text(verdict)
        else:
            print(self._text(verdict, annotations))
        if annotations and (self._on_github or (self._format == "github" and self._out is None)):
            # stdout may be a document; the runner reads workflow commands on either stream
            in_text = not self._as_json and (self._out is not None or self._format in ("text", "github"))
            print(annotations, file=sys.stdout if in_text else sys.stderr)
        if self._on_github:
            _append_summary(notices.to_markdown(verdict))

    def _text(self, verdict: Verdict, annotations: str) -> str:
        if self._format == "json":
            return notices.to_json(verdict)
        if self._format == "markdown":
            return notices.to_markdown(verdict)
        if self._format == "junit":
            return notices.to_junit(verdict)
        if self._format == "github":
            return annotations
        return "\n".join(line.plain for line in notices.render(verdict, width=100, verbose=self._verbose))

    def _print_text(self, verdict: Verdict) -> None:
        out = console()
        if self._quiet:
            lines = notices.render_failures(verdict)
        else:
            lines = notices.render(verdict, width=out.width, verbose=self._verbose, ascii_only=out.options.ascii_only)
        if lines:  # in a log each finding is one line, for whoever searches it
            out.print(*lines, sep="\n", soft_wrap=not out.is_terminal)


def _root() -> Path:
    """Folder of the repository."""
    return Path(os.environ.get("GITHUB_WORKSPACE") or ".")


def _inputs(config: Path | None) -> list[Path]:
    """What a check reads, as far as its configuration makes sense."""
    try:
        found = budget.read(budget.find(config))
    except ParamCompressError:
        return []
    patterns = [one.path for one in found.checks]
    patterns += [one.original.replace("{name}", "*") for one in found.checks if one.original is not None]
    wanted = [found.folder / pattern for pattern in patterns]
    files = [one for path in wanted for one in Path(path.anchor).glob(str(path.relative_to(path.anchor)))]
    return [found.file, found.baseline, *files]


def _found(config: Path | None) -> Path | None:
    """The configuration that was read, as far as there is one."""
    try:
        return budget.find(config)
    except ConfigError:
        return None


@contextmanager
def _no_commands() -> Iterator[None]:
    """What is printed here is text to GitHub's runner, even where a layer or a file is called `::error::…`."""
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}")
    yield
    print(f"::{token}::")


def _append_summary(markdown: str) -> None:
    """Add to the summary of the job, where the runner says where that is."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as summary:
                summary.write(markdown + "\n\n")
        except OSError as error:
            raise OutputError(path, f"the step summary cannot be written: {error.strerror}") from error
