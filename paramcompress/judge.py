"""One measured file against the limits of one entry: what breaks them, in words. Opens no file.

Limits that fail and limits that only warn are judged alike; what fails is not warned of as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from paramcompress import baseline as baselines
from paramcompress.baseline import FileSize
from paramcompress.budget import Check, Limits
from paramcompress.patterns import matching
from paramcompress.records import LayerReport, Report
from paramcompress.units import format_size
from paramcompress.verdicts import Checked, Finding, LayerSize, Level

EXIT_BUDGET = 1
_LEVELS: tuple[Level, Level] = ("fail", "warn")
_NAMED = 3
"""Layers that a finding names at most."""


def judged(one: Checked, entry: Check, report: Report, before: FileSize | None, *, increases: bool) -> Checked:
    """`one` with the figures of `report`, and a finding for every limit of `entry` that they break.

    Args:
        before: the file in the baseline, where it is there.
        increases: whether limits that are relative to the baseline are judged.
    """
    worst = max(report.layers, key=lambda layer: layer.rel_error, default=None)
    one = replace(
        one,
        n_bytes=report.bytes_after,
        max_size=entry.fail.max_size,
        rel_error=worst.rel_error if worst else 0.0,
        worst_layer=worst.name if worst and worst.rel_error else None,
        max_rel_error=entry.fail.max_rel_error,
        measured=entry.original is not None,
        baseline_bytes=before.n_bytes if before else None,
        changes=baselines.changes(before.layers, layer_sizes(report)) if before else (),
    )
    findings: list[Finding] = []
    for level in _LEVELS:
        limits = entry.fail if level == "fail" else entry.warn
        broken = [
            *_too_large(one, limits, report),
            *_too_wrong(one, limits, report),
            *_layers_large(one, limits, report),
        ]
        if increases:
            broken += [*_grown(one, limits), *_layers_grown(one, limits, report, before)]
        failed = {finding.key for finding in findings}
        findings += [_at(level, finding) for finding in broken if finding.key not in failed]
    if increases and before is None and entry.compares:
        what = f"{one.path} is not in the baseline, so its increase is not judged"
        findings.append(Finding("warn", 0, "max_increase", what, "add it with --update-baseline, and commit that"))
    return replace(one, findings=tuple(findings))


def idle_patterns(entry: Check, names: Sequence[str], new: Sequence[str]) -> Iterator[Finding]:
    """Limits that hold for no layer: one was renamed, or the pattern is wrong. Either way nobody guards it.

    Args:
        names: layers of all files of the entry.
        new: those of them that the baseline does not know; what was renamed is among them.
    """
    for level, limits in (("fail", entry.fail), ("warn", entry.warn)):
        for pattern in limits.layers:
            if not matching(pattern, names):
                near = difflib.get_close_matches(pattern, new or names, n=1, cutoff=0.5)
                meant = f"did you mean {near[0]}? " if near else ""
                yield _found(
                    f'{"warn." * (level == "warn")}layers."{pattern}"',
                    f"{entry.path}: no layer matches {pattern!r}, so its limit guards nothing",
                    f"{meant}inspect -v lists the names",
                )


def layer_sizes(report: Report) -> dict[str, LayerSize]:
    """What the baseline keeps of a report."""
    return {layer.name: LayerSize(layer.bytes_after, baselines.rounded(layer.rel_error)) for layer in report.layers}


# ------------------------------------------------------------------------------------------- limits


def _found(key: str, what: str, hint: str, layers: Sequence[str] = ()) -> Finding:
    """A broken limit that fails."""
    return Finding("fail", EXIT_BUDGET, key, what, hint, tuple(layers))


def _at(level: Level, finding: Finding) -> Finding:
    """The same, or only a warning."""
    return finding if level == "fail" else replace(finding, level=level, exit_code=0, key=f"warn.{finding.key}")


def _too_large(one: Checked, limits: Limits, report: Report) -> Iterator[Finding]:
    limit = limits.max_size
    if limit is not None and report.bytes_after > limit:
        layers, blamed = _blame(one, report)
        what = f"{one.path}: {_exactly(report.bytes_after)} is over max_size {_exactly(limit)}{blamed}"
        yield _found("max_size", what, f"squeeze it with --target-size {limit}, or raise max_size", layers)


def _too_wrong(one: Checked, limits: Limits, report: Report) -> Iterator[Finding]:
    """Layers over their limit on the error; a finding for each key that set one."""
    own = _by_layer(limits, report, "max_rel_error")
    broken: dict[str, list[tuple[LayerReport, float]]] = {}
    for layer in report.layers:
        pattern, limit = own.get(layer.name, (None, limits.max_rel_error))
        if limit is not None and layer.rel_error > limit:
            key = "max_rel_error" if pattern is None else f'layers."{pattern}".max_rel_error'
            broken.setdefault(key, []).append((layer, limit))
    for key, found in broken.items():
        found.sort(key=lambda pair: -pair[0].rel_error)
        worst, limit = found[0]
        pattern = own.get(worst.name, (None, limit))[0]
        option = f"--max-rel-error {limit:g}" if pattern is None else f"--set '{pattern}:max_rel_error={limit:g}'"
        stated = not one.measured and worst.rel_error < 1.01 * limit
        rounded = (
            "; the file states errors rounded up to three digits, with an original they are measured" if stated else ""
        )
        what = f"{one.path}: layer {worst.name} has a relative error of {worst.rel_error:.4g}, over {key} {limit:g}"
        yield _found(
            key,
            what + _and_more([layer.name for layer, _ in found]),
            f"squeeze with {option}, or raise {key}{rounded}",
            [layer.name for layer, _ in found],
        )


def _layers_large(one: Checked, limits: Limits, report: Report) -> Iterator[Finding]:
    own = _by_layer(limits, report, "max_size")
    for layer in report.layers:
        pattern, limit = own.get(layer.name, (None, None))
        if limit is not None and layer.bytes_after > limit:
            key = f'layers."{pattern}".max_size'
            yield _found(
                key,
                f"{one.path}: layer {layer.name} has {_exactly(layer.bytes_after)}, over {key} {_exactly(limit)}",
                f"relax its error with --set '{layer.name}:max_rel_error=...', or raise {key}",
                [layer.name],
            )


def _grown(one: Checked, limits: Limits) -> Iterator[Finding]:
    limit, before, after = limits.max_increase, one.baseline_bytes, one.n_bytes
    if limit is not None and before is not None and after is not None and not limit.allows(before, after):
        grown = max(one.changes, key=lambda change: change.more_bytes, default=None)
        blamed = f"; layer {grown.name} grew most, by {grown.more_bytes:,} B" if grown and grown.more_bytes > 0 else ""
        what = f"{one.path}: {_growth(before, after)} since the baseline, over max_increase {limit}{blamed}"
        yield _found(
            "max_increase",
            what,
            "accept it with --update-baseline, or squeeze it smaller",
            [grown.name] if blamed and grown else [],
        )


def _layers_grown(one: Checked, limits: Limits, report: Report, before: FileSize | None) -> Iterator[Finding]:
    if before is None:
        return
    own = _by_layer(limits, report, "max_increase")
    for layer in report.layers:
        pattern, limit = own.get(layer.name, (None, None))
        was = before.layers.get(layer.name)
        if limit is not None and was is not None and not limit.allows(was.n_bytes, layer.bytes_after):
            key = f'layers."{pattern}".max_increase'
            what = f"{one.path}: layer {layer.name}: {_growth(was.n_bytes, layer.bytes_after)}, over {key} {limit}"
            yield _found(key, what, "accept it with --update-baseline, or squeeze it smaller", [layer.name])


def _by_layer(limits: Limits, report: Report, key: str) -> Mapping[str, tuple[str, Any]]:
    """Pattern and limit of every layer that has one of its own."""
    names = [layer.name for layer in report.layers]
    found: dict[str, tuple[str, Any]] = {}
    for pattern in sorted(limits.layers, key=lambda pattern: pattern in names):
        limit = getattr(limits.layers[pattern], key)
        if limit is not None:
            found |= {name: (pattern, limit) for name in matching(pattern, names)}
    return found


# ------------------------------------------------------------------------------------------- words


def _blame(one: Checked, report: Report) -> tuple[list[str], str]:
    """The layer that a size is to be blamed on: the one that grew most since the baseline, or else the largest."""
    grown = max(one.changes, key=lambda change: change.more_bytes, default=None)
    if grown is not None and grown.more_bytes > 0:
        return [grown.name], f"; layer {grown.name} grew most, by {grown.more_bytes:,} B"
    largest = max(report.layers, key=lambda layer: layer.bytes_after, default=None)
    if largest is None:
        return [], ""
    return [largest.name], f"; its largest layer is {largest.name} with {_exactly(largest.bytes_after)}"


def _exactly(n_bytes: int) -> str:
    """Two sizes that differ have to look different, so bytes stand beside the rounded size.

    >>> _exactly(400_001), _exactly(12)
    ('400 kB (400,001 B)', '12 B')
    """
    return format_size(n_bytes) + (f" ({n_bytes:,} B)" if n_bytes >= 1000 else "")


def _growth(before: int, after: int) -> str:
    percent = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
    return f"{before:,} B -> {after:,} B{percent}"


def _and_more(names: Sequence[str]) -> str:
    """
    >>> _and_more(["a"]), _and_more(["a", "b"]), _and_more(list("abcdef"))
    ('', '; also b', '; also b, c and 3 more')
    """
    others = list(names[1:])
    if not others:
        return ""
    shown = others[: _NAMED - 1]
    more = f" and {len(others) - len(shown)} more" if len(others) > len(shown) else ""
    return f"; also {', '.join(shown)}{more}"
