"""The gate: measures every file that a budget names, and judges it. Prints nothing, and needs neither git nor network.

A file that is missing, damaged or not what it promises is a finding like any other, so that one screen says all that
is wrong; only a configuration that makes no sense ends the check at once.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from paramcompress import baseline as baselines
from paramcompress import budget as budgets
from paramcompress import judge, pipeline
from paramcompress.baseline import Baseline, FileSize
from paramcompress.budget import Budget, Check
from paramcompress.errors import ConfigError, FormatError, ParamCompressError, VerificationError
from paramcompress.judge import EXIT_BUDGET
from paramcompress.records import Progress, Report
from paramcompress.report import write_whole
from paramcompress.verdicts import Checked, Finding, Verdict

_SUFFIX = ".squeezed.safetensors"


def check(
    config: str | os.PathLike[str] | None = None,
    *,
    update_baseline: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Verdict:
    """Measure the files that a configuration names against their budget.

    Every file is decoded, so that what is damaged is found; with `original` in the entry, errors are measured again
    and not believed.

    Args:
        config: a TOML file, or a folder that holds one; the current folder where None.
        update_baseline: write the baseline, unless a file could not be measured. Increases are then not judged.
        workers: threads.
        progress: called as progress(layer, bytes done, bytes in all), over all files.

    Raises:
        ConfigError: the configuration or the baseline makes no sense. OutputError: the baseline cannot be written.
    """
    budget = budgets.read(budgets.find(Path(config) if config is not None else None))
    known = _known(budget, update=update_baseline)
    run = _Run(budget, known, workers, progress, judge_increases=not update_baseline)
    files = tuple(one for entry in budget.checks for one in run.entry(entry))
    written = update_baseline and run.complete
    if written:
        write_whole(budget.baseline, (baselines.text(run.sizes) + "\n").encode())
    return Verdict(
        config=str(budget.file),
        files=files,
        baseline=str(budget.baseline) if written or known is not None else None,
        baseline_written=written,
        notes=tuple(_notes(budget, known, run, update=update_baseline)),
    )


def _known(budget: Budget, *, update: bool) -> Baseline | None:
    """The baseline as it stands; None where there is none, or where a new one is on its way."""
    if update:
        baselines.check_replaceable(budget.baseline)
        return None
    if budget.baseline.exists():
        return baselines.read(budget.baseline)
    if budget.compares:
        raise ConfigError(
            f"{budget.file}: max_increase compares with the baseline {budget.baseline}, which is not there",
            hint=f"write it with: paramcompress check {budget.file} --update-baseline, then commit it",
        )
    return None


def _notes(budget: Budget, known: Baseline | None, run: _Run, *, update: bool) -> Iterator[str]:
    if update and not run.complete:
        yield f"the baseline {budget.baseline} was not written, since not every file could be measured"
    for name in sorted((known or {}).keys() - run.sizes.keys()):
        if run.complete:
            yield f"{name} is in the baseline and no check finds it; --update-baseline takes it out"


class _Run:
    """One run of the gate: what does not change from file to file, and what was measured so far."""

    def __init__(
        self,
        budget: Budget,
        known: Baseline | None,
        workers: int,
        progress: Progress | None,
        *,
        judge_increases: bool,
    ) -> None:
        self.budget, self.known, self.workers, self.judge_increases = budget, known, workers, judge_increases
        self.complete = True
        """Whether every file could be measured."""
        self.sizes: dict[str, FileSize] = {}
        self._files = {id(entry): _files(budget.folder, entry.path) for entry in budget.checks}
        self._reports: dict[tuple[str, str | None], Report] = {}
        self._progress = progress
        # a file that several entries name is measured once for each original
        pairs = {(path, entry.original) for entry in budget.checks for path in self._files[id(entry)]}
        self._total = sum((budget.folder / path).stat().st_size for path, _ in pairs)
        self._done = 0

    def entry(self, entry: Check) -> list[Checked]:
        """Every file of one entry, judged."""
        paths = self._files[id(entry)]
        if not paths:
            self.complete = False
            found = Finding("fail", EXIT_BUDGET, "path", *_missing(self.budget.folder, entry.path))
            return [Checked(entry.name or entry.path, entry.path, entry.line, (found,), entry.message)]
        files = []
        names: set[str] = set()
        for path in paths:
            one = Checked(self._name(entry, path), path, entry.line, message=entry.message)
            try:
                report = self._measure(path, entry)
            except ParamCompressError as error:
                self.complete = False
                files.append(replace(one, findings=(_unmeasured(path, entry, error),)))
                continue
            names |= {layer.name for layer in report.layers}
            self.sizes[path] = FileSize(report.bytes_after, judge.layer_sizes(report))
            files.append(judge.judged(one, entry, report, (self.known or {}).get(path), increases=self.judge_increases))
        if names:
            new = sorted({change.name for one in files for change in one.changes if change.before is None})
            idle = judge.idle_patterns(entry, sorted(names), new)
            files[0] = replace(files[0], findings=(*files[0].findings, *idle))
        return files

    def _name(self, entry: Check, path: str) -> str:
        if not entry.name:
            return path
        return entry.name if len(self._files[id(entry)]) == 1 else f"{entry.name}: {path}"

    def _measure(self, path: str, entry: Check) -> Report:
        original = entry.original and entry.original.replace("{name}", _bare(path))
        if (path, original) not in self._reports:
            if original is not None and not (self.budget.folder / original).exists():
                raise _MissingOriginal(original)
            file = self.budget.folder / path
            n_bytes = file.stat().st_size
            source = self.budget.folder / original if original is not None else None
            self._reports[path, original] = pipeline.verify(
                file, source, workers=self.workers, progress=self._share(n_bytes)
            )
            self._done += n_bytes
        return self._reports[path, original]

    def _share(self, n_bytes: int) -> Progress | None:
        """Progress of one file as part of all of them, in bytes of the files."""
        tell = self._progress
        if tell is None:
            return None
        before = self._done
        return lambda layer, done, total: tell(layer, before + n_bytes * done // max(total, 1), self._total)


class _MissingOriginal(ParamCompressError):
    """A checkpoint that is to be compared with is not there; in a check this breaks the budget like a missing file."""

    exit_code = EXIT_BUDGET

    def __init__(self, original: str) -> None:
        super().__init__(f"its original {original} does not exist", hint="mend original, or take it out of the check")


# ------------------------------------------------------------------------------------------- files


def _files(folder: Path, pattern: str) -> list[str]:
    """Files that a path or glob means, relative to `folder`, with forward slashes; a name that exists is no glob."""
    try:
        if (folder / pattern).exists():
            return [] if (folder / pattern).is_dir() else [Path(pattern).as_posix()]
    except OSError:  # no path that this system could hold
        return []
    found = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(Path(path).as_posix() for path in found if (folder / path).is_file())


def _missing(folder: Path, pattern: str) -> tuple[str, str]:
    """What is missing, and the nearest file that is there."""
    if os.path.isdir(folder / pattern):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        inside = (Path(pattern) / f"*{_SUFFIX}").as_posix()
        return f"{pattern} is a folder", f'name the files in it, such as path = "{inside}"'
    if glob.has_magic(pattern):
        return f"no file matches {pattern}", "build the file first, or mend path in the check"
    beside = [path.name for path in (folder / pattern).parent.glob("*") if path.is_file()]
    near = difflib.get_close_matches(Path(pattern).name, beside, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{pattern} does not exist", f"{meant}build the file first, or mend path in the check"


def _bare(path: str) -> str:
    """File name without what squeezing appended."""
    name = Path(path).name
    return name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else Path(path).stem


def _unmeasured(path: str, entry: Check, error: ParamCompressError) -> Finding:
    """A file that cannot be measured, or is not what it says."""
    hint = error.hint or ""
    layers: tuple[str, ...] = ()
    what = str(error)
    if isinstance(error, VerificationError):
        layers = (error.tensor,)
        damaged = isinstance(error.__cause__, FormatError)
        original = entry.original.replace("{name}", _bare(path)) if entry.original else None
        hint = (
            f"if {original} has changed, squeeze it again"
            if original and not damaged
            else "fetch or squeeze the file again"
        )
    elif not hint:
        hint = "fetch or squeeze the file again"
    key = "original" if isinstance(error, _MissingOriginal) else "path"
    return Finding("fail", error.exit_code, key, what if path in what else f"{path}: {what}", hint, layers)
