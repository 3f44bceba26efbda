"""Tables and curves of docs/paper.md from the results that are there; what was not run has a dash.

The page's words are written by hand; each table stands between two markers, which say whose it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .experiment import DENSE, Experiment, Setting
from .store import FOLDER, Mean, Store, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
PICTURE = "paper_{}.png"
DASH = "-"
DENSE_GREY = "#555555"
MARKERS = "osD^v<>PX*"


def write(experiments: Iterable[Experiment], page: Path = PAGE, results: Path = FOLDER) -> None:
    """Put tables into the page and pictures beside it."""
    text = page.read_text(encoding="utf-8")
    for experiment in experiments:
        store = Store(results / f"{experiment.name}.json")
        text = with_table(text, experiment.name, markdown(experiment, store))
        if store.records:
            draw(experiment, store, page.parent / PICTURE.format(experiment.name))
    page.write_text(text, encoding="utf-8")


def with_table(text: str, name: str, table: str) -> str:
    """`text` with what is between the markers of `name` replaced.

    Raises:
        ValueError: the markers are not there, once each.
    """
    start, end = f"<!-- results: {name} -->", "<!-- end -->"
    pattern = re.compile(rf"{re.escape(start)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"found no {start} ... {end}, or more than one")
    return pattern.sub(lambda _: f"{start}\n{table}\n{end}", text)


def markdown(experiment: Experiment, store: Store) -> str:
    """Test errors, a row for each method and a column for each fraction, and how many nets are behind them.

    A mean over seeds has half its 95 % interval behind it; a single net has none. Rows without any net are left out
    and counted below.
    """
    fractions = sorted({one.fraction for one in experiment.settings if one.method != DENSE})
    rows, missing = [], 0
    for label, settings in by_method(experiment.settings).items():
        found = {one.fraction: store.mean(one.name, "test_error") for one in settings}
        missing += sum(one is None for one in found.values())
        if settings[0].method == DENSE:
            cells = [DASH] * len(fractions) + [shown(found[1.0])]
        else:
            cells = [*(shown(found.get(fraction)) for fraction in fractions), DASH]
        if any(found.values()):
            rows.append([label, *cells])
    header = ["test error, %", *(f"{100 * fraction:g} %" for fraction in fractions), "all, dense"]
    lines = [header, ["---"] * len(header), *rows]
    wanted = sum(one.n_seeds for one in experiment.settings)
    counted = (
        f"{len(store.records)} of {wanted} nets were run; {missing} of {len(experiment.settings)} settings have none."
    )
    return "\n".join(
        [*("| " + " | ".join(line) + " |" for line in lines), "", *against_dense(experiment, store), counted]
    )


def against_dense(experiment: Experiment, store: Store) -> list[str]:
    """For every dense net of an experiment a line, with an empty one behind it: how much more error settings have that
    are no less wide, seed by seed, where there are two or more; nets of one seed learn from the same part of the data,
    so this interval is the narrower one."""
    errors = {(one["setting"], one["seed"]): one["test_error"] for one in store.records}
    lines = []
    for dense in (one for one in experiment.settings if one.method == DENSE):
        found = []
        for setting in experiment.settings:
            pairs = [
                error - errors[dense.name, seed]
                for (name, seed), error in errors.items()
                if name == setting.name and (dense.name, seed) in errors
            ]
            if len(pairs) > 1 and setting != dense and setting.width >= dense.width:
                more = mean(pairs)
                found.append(f"{setting.name} {more.value:+.2f} ± {more.margin:.2f} ({more.n})")
        if found:
            net = "net" if dense.name == DENSE else f"one with {dense.width} times the features"
            lines += [f"Against the dense {net} of the same seed, points: {'; '.join(found)}.", ""]
    return lines


def shown(found: Mean | None) -> str:
    """A cell: the mean, its margin and, with more than one, the number of seeds.

    >>> shown(None), shown(Mean(1.5, None, 1)), shown(Mean(1.5, 0.1, 5))
    ('-', '1.50', '1.50 ± 0.10 (5)')
    """
    if found is None:
        return DASH
    return str(found) if found.margin is None else f"{found} ({found.n})"


def by_method(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Settings by method and width, each by rising fraction."""
    found: dict[str, list[Setting]] = {}
    for one in settings:
        label = one.method + (f", {one.width} times the features" if one.width > 1 else "")
        found.setdefault(label, []).append(one)
    return {label: sorted(mine, key=lambda one: one.fraction) for label, mine in found.items()}


def draw(experiment: Experiment, store: Store, path: Path) -> None:
    """Test error against the fraction that is learned, a line for each method, dense nets across."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(9, 5.2), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        _lines(axes, experiment, store)
        axes.set_title(experiment.title, loc="left", fontweight="bold")
        axes.set_xlabel("learned numbers / weights of the predicted layers, %")
        axes.set_ylabel("test error, %")
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _lines(axes: Axes, experiment: Experiment, store: Store) -> None:
    fractions: set[float] = set()
    for at, (label, settings) in enumerate(by_method(experiment.settings).items()):
        found = [(100 * one.fraction, error) for one in settings if (error := store.mean(one.name, "test_error"))]
        if not found:
            continue
        if settings[0].method == DENSE:
            linestyle = "--" if label == DENSE else ":"
            axes.axhline(found[0][1].value, color=DENSE_GREY, linestyle=linestyle, linewidth=1.2, label=label)
            continue
        shares, errors = zip(*found, strict=True)
        fractions.update(shares)
        axes.errorbar(
            shares,
            [error.value for error in errors],
            yerr=[error.margin or 0.0 for error in errors],
            marker=MARKERS[at % len(MARKERS)],
            color=f"C{at % 10}",
            linestyle="-" if at < 10 else ":",
            linewidth=1.5,
            markersize=5,
            capsize=3,
            label=label,
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(fractions), [f"{share:g}" for share in sorted(fractions)])
    axes.set_xticks([], minor=True)
