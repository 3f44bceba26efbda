"""A verdict in every form that somebody reads: terminal, Markdown, GitHub's annotations, JUnit, JSON.

Knows no budget and measures nothing. Names, paths and messages are data: each form escapes them in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rich.text import Text

from .errors import ParamCompressError
from .tables import Column, code_span, format_error, laid_out, printable
from .units import format_size
from .verdicts import Checked, Finding, LayerChange, Verdict

SCREENFUL = 24
"""Files up to which each has its own line; beyond, those that pass share one."""
MARKER = "<!-- paramcompress check -->"
"""First line of the Markdown, so that who posts it as a comment finds the one to update."""
_CHANGES_SHOWN = 5
_RESULT_STYLE = {"pass": "green", "warn": "yellow", "fail": "red"}


def render(verdict: Verdict, *, width: int, verbose: bool = False, ascii_only: bool = False) -> list[Text]:
    """One screen: a line for each file, then what is wrong with which layer and what to do, then the sum.

    Args:
        width: terminal cells; no line of the table is wider, other lines may be wrapped.
        verbose: a line for every file, however many, and all layers that differ from the baseline.
        ascii_only: draw with nothing that an old terminal lacks.
    """
    shown, grouped = _split(verdict.files, all_of_them=verbose)
    lines = _table(shown, width, ascii_only=ascii_only) if shown else []
    if grouped:
        lines.append(Text(f"+ {grouped} more, which pass; -v lists them", style="dim"))
    if source := _source(verdict.files):
        lines.append(Text(source, style="dim"))
    for one in verdict.files:
        for finding in one.findings:
            lines.append(_labelled(finding.level, finding.what))
            place = f"{verdict.config}:{one.line}" if one.line else verdict.config
            lines.append(_labelled("hint", f"{finding.hint} ({place})"))
        if one.status == "fail" and one.message:
            lines.append(_labelled("note", one.message))
        if one.changes and (verbose or one.status != "pass" or _came_or_went(one)):
            lines += _changes(one, all_of_them=verbose)
    lines += [_labelled("note", note) for note in verdict.notes]
    if verdict.baseline_written:
        lines.append(Text(f"wrote {printable(verdict.baseline or '')}; commit it"))
    style = _RESULT_STYLE["fail" if verdict.exit_code else "pass"]
    return [*lines, Text(_sum(verdict), style=f"bold {style}")]


def render_failures(verdict: Verdict) -> list[Text]:
    """For the quiet: what fails, and nothing where nothing does."""
    failures = [finding for one in verdict.files for finding in one.findings if finding.level == "fail"]
    return [_labelled(finding.level, finding.what) for finding in failures]


def to_json(verdict: Verdict) -> str:
    """The verdict as JSON text; layout described in docs/json.md."""
    return json.dumps(verdict.to_json(), indent=2, allow_nan=False)


def to_markdown(verdict: Verdict) -> str:
    """For step summaries and comments: GitHub-flavoured, with a marker to find it by."""
    icon = "x" if verdict.exit_code else "warning" if verdict.count("warn") else "white_check_mark"
    rows = [
        ("check", *(column.header for column in _columns(verdict.files))),
        (":--", *("--:" if column.align == ">" else ":--" for column in _columns(verdict.files))),
        *zip(
            [code_span(one.name) for one in verdict.files],
            *(column.cells for column in _columns(verdict.files)),
            strict=True,
        ),
    ]
    lines = [MARKER, f"### :{icon}: Model budget: {_sum(verdict)}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [f"{source.capitalize()}.", ""] if (source := _source(verdict.files)) else []
    for one in verdict.files:
        for finding in one.findings:
            lines.append(f"- **{finding.level}** {_escaped(finding.what)}")
            lines.append(f"  - {_escaped(finding.hint)}")
        if one.status == "fail" and one.message:
            lines.append(f"- {_escaped(one.message)}")
    changed = [one for one in verdict.files if one.changes]
    for one in changed:
        lines += ["", f"<details><summary>Layers of {_html(one.name)} since the baseline</summary>", ""]
        lines += ["| layer | bytes before | bytes now | error before | error now |", "| :-- | --: | --: | --: | --: |"]
        lines += [f"| {' | '.join([code_span(name), *cells])} |" for name, *cells in map(_change_cells, one.changes)]
        lines += ["", "</details>"]
    lines += [f"- {_escaped(note)}" for note in verdict.notes]
    return "\n".join(lines)


def to_github(verdict: Verdict, root: Path | None = None) -> str:
    """Workflow commands, one for each finding; GitHub shows them beside the configuration's lines in a pull request.

    Args:
        root: folder of the repository, which GitHub's paths are relative to.
    """
    config = _relative(Path(verdict.config), root)
    lines = []
    for one in verdict.files:
        for finding in one.findings:
            text = f"{finding.what}\n{finding.hint}"
            text += f"\n{one.message}" if one.message and finding.level == "fail" else ""
            lines.append(
                annotation(finding.level, text, file=config, line=one.line, title=f"{one.name}: {finding.key}")
            )
    return "\n".join(lines)


def error_to_github(error: ParamCompressError, config: Path | None, root: Path | None = None) -> str:
    """The workflow command of an error that ended the check, at the configuration where there is one."""
    text = str(error) + (f"\n{error.hint}" if error.hint else "")
    return annotation("fail", text, file=_relative(config, root) if config is not None else None)


def annotation(level: str, text: str, *, file: str | None = None, line: int | None = None, title: str = "") -> str:
    """One workflow command; everything that could end it early, or begin another, is escaped.

    >>> annotation("fail", "100% of it\\n::error::fake", file="a,b:c", line=3)
    '::error file=a%2Cb%3Ac,line=3::100%25 of it%0A::error::fake'
    """
    given = {"file": file, "line": line, "title": title or None}
    properties = ",".join(f"{key}={_property(str(value))}" for key, value in given.items() if value is not None)
    return f"::{'error' if level == 'fail' else 'warning'} {properties}".rstrip() + f"::{_data(text)}"


def to_junit(verdict: Verdict) -> str:
    """JUnit XML, a test case for each file: a broken budget is a failure, a file that cannot be measured an error."""
    failures = [one for one in verdict.files if one.status == "fail"]
    errors = [one for one in failures if max(finding.exit_code for finding in one.findings) > 1]
    counts = {
        "tests": str(len(verdict.files)),
        "failures": str(len(failures) - len(errors)),
        "errors": str(len(errors)),
    }
    suites = ElementTree.Element("testsuites", {"name": "paramcompress check", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _xml(verdict.config), **counts})
    for one in verdict.files:
        case = ElementTree.SubElement(suite, "testcase", classname="paramcompress.check", name=_xml(one.name))
        failed = [finding for finding in one.findings if finding.level == "fail"]
        warned = [finding for finding in one.findings if finding.level == "warn"]
        if failed:
            kind = "error" if one in errors else "failure"
            first = {"message": _xml(failed[0].what), "type": _xml(failed[0].key)}
            element = ElementTree.SubElement(case, kind, first)
            element.text = "\n".join([*map(_sentences, failed), *([_xml(one.message)] if one.message else [])])
        if warned:
            ElementTree.SubElement(case, "system-out").text = "\n".join(map(_sentences, warned))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


# ------------------------------------------------------------------------------------------- pieces


def _split(files: Sequence[Checked], *, all_of_them: bool) -> tuple[Sequence[Checked], int]:
    """Files that get a line each, and how many share one."""
    if all_of_them or len(files) <= SCREENFUL:
        return files, 0
    shown = [one for one in files if one.status != "pass"]
    return shown, len(files) - len(shown)


def _table(files: Sequence[Checked], width: int, *, ascii_only: bool) -> list[Text]:
    head, rule, *rest = laid_out(
        [one.name for one in files], _columns(files), width, ascii_only=ascii_only, header="check"
    )
    for one, line in zip(files, rest, strict=False):
        line.highlight_regex(r"\w+$", _RESULT_STYLE[one.status])
    return [head, rule, *rest]


def _columns(files: Sequence[Checked]) -> list[Column]:
    """What a table says of each file, the name apart; columns that say nothing of any file are left out."""
    columns = [
        Column("size", [_size(one.n_bytes) for one in files]),
        Column("max size", [_size(one.max_size) for one in files], gives_way=3),
        Column("change", [_change(one) for one in files], gives_way=4),
        Column("error", ["-" if one.rel_error is None else format_error(one.rel_error) for one in files]),
        Column(
            "max error", ["-" if one.max_rel_error is None else f"{one.max_rel_error:g}" for one in files], gives_way=2
        ),
        Column("result", [one.status for one in files], "<"),
    ]
    return [column for column in columns if set(column.cells) != {"-"} or column.header == "size"]


def _size(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else format_size(n_bytes)


def _source(files: Sequence[Checked]) -> str:
    """Where errors come from; empty where no file has one."""
    found = {one.measured for one in files if one.rel_error is not None}
    if not found:
        return ""
    if found == {True}:
        return "errors are measured against the originals"
    stated = "are as the files state them"
    if found == {False}:
        return f"errors {stated}"
    return f"errors are measured where an original is named, others {stated}"


def _change(one: Checked) -> str:
    """Change of the size since the baseline."""
    if one.n_bytes is None or not one.baseline_bytes:
        return "-"
    percent = 100 * (one.n_bytes - one.baseline_bytes) / one.baseline_bytes
    return "0 %" if one.n_bytes == one.baseline_bytes else f"{percent:+.1f} %"


def _changes(one: Checked, *, all_of_them: bool) -> list[Text]:
    shown = one.changes if all_of_them else one.changes[:_CHANGES_SHOWN]
    lines = [Text(f"since the baseline, {printable(one.name)}:", style="dim")]
    for change in shown:
        name, before, after, error_before, error_after = _change_cells(change)
        lines.append(Text(f"  {name}: {before} -> {after}, error {error_before} -> {error_after}", style="dim"))
    left = len(one.changes) - len(shown)
    return [*lines, *([Text(f"  and {left} more layers; -v lists them", style="dim")] if left else [])]


def _came_or_went(one: Checked) -> bool:
    """Whether it has other layers than the baseline: a renamed one may have slipped out of its limits."""
    return any(change.before is None or change.after is None for change in one.changes)


def _change_cells(change: LayerChange) -> tuple[str, str, str, str, str]:
    """Name, bytes before and after, error before and after."""
    before, after = change.before, change.after
    return (
        printable(change.name),
        format_size(before.n_bytes) if before else "new",
        format_size(after.n_bytes) if after else "gone",
        format_error(before.rel_error) if before else "-",
        format_error(after.rel_error) if after else "-",
    )


def _labelled(label: str, text: str) -> Text:
    style = {"fail": "bold red", "warn": "bold yellow", "hint": "bold cyan", "note": "bold"}[label]
    return Text.assemble((f"{label}: ", style), printable(text))


def _sum(verdict: Verdict) -> str:
    counted = [f"{verdict.count(status)} {status}" for status in ("pass", "warn", "fail") if verdict.count(status)]
    n = len(verdict.files)
    return f"{n} {'file' if n == 1 else 'files'}: {', '.join(counted)}"


def _sentences(finding: Finding) -> str:
    """A finding with its remedy, as XML can hold it."""
    return _xml(f"{finding.what}\n{finding.hint}")


# ------------------------------------------------------------------------------------------- escapes


def _relative(path: Path, root: Path | None) -> str:
    """`path` as seen from `root`; as it is where it lies elsewhere."""
    if root is not None and path.resolve().is_relative_to(root.resolve()):
        return path.resolve().relative_to(root.resolve()).as_posix()
    return path.as_posix()


def _data(text: str) -> str:
    """Text of a workflow command, as GitHub's own toolkit escapes it."""
    shown = "\n".join(map(printable, text.split("\n")))
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _html(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str) -> str:
    """Text in Markdown: nothing in it is markup, a mention or HTML."""
    special = "\\`*_{}[]|#~@"
    return "".join(f"\\{char}" if char in special else char for char in _html(text))


def _xml(text: str) -> str:
    """Text that XML 1.0 can hold."""
    return "\n".join(map(printable, text.split("\n")))
