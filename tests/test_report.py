"""Reports at every width, with hostile names, as text, Markdown and JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from paramcompress.errors import ConfigError, OutputError
from paramcompress.records import LayerReport, Report
from paramcompress.report import check_destination, render, to_json, to_markdown, write
from paramcompress.tables import printable, shorten
from paramcompress.units import sizes

CONV = LayerReport(
    name="layer1.0.conv1.weight",
    shape=(16, 16, 3, 3),
    dtype="float32",
    codec="factored",
    dictionary="patch",
    rank=0,
    density=0.248,
    bits_per_weight=2.77,
    bytes_before=9216,
    bytes_after=798,
    rel_error=0.0298,
    max_abs_error=0.01,
)
LOWRANK = replace(CONV, name="linear.weight", shape=(10, 64), dictionary="lowrank+patch", rank=128)
BIAS = replace(
    CONV, name="linear.bias", shape=(10,), codec="exact", dictionary="none", density=1.0, rel_error=0.0, bytes_before=40
)
TIED = replace(BIAS, name="head.weight", shape=(10, 64), codec="tied", tied_to="linear.weight", bytes_after=0)


def report(*layers: LayerReport, **fields: object) -> Report:
    return replace(
        Report("net.pt", "net.squeezed.safetensors", "max_rel_error 0.03", 857_805, 3_431_220, 368_422, layers),
        **fields,  # type: ignore[arg-type]
    )


def text(report: Report, *, width: int = 80, verbose: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False, highlight=False)
    console.print(*render(report, width=width, verbose=verbose), sep="\n")
    return out.getvalue()


def deep(n_blocks: int) -> list[LayerReport]:
    """A transformer's worth of layers, with vectors between the matrices."""
    words = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    return [
        layer
        for block in range(n_blocks)
        for word in words
        for layer in (
            replace(LOWRANK, name=f"model.layers.{block}.{word}.weight", shape=(11008, 4096), bytes_before=180_355_072),
            replace(BIAS, name=f"model.layers.{block}.{word}.bias"),
        )
    ]


def test_a_line_says_everything_about_a_layer() -> None:
    lines = text(report(CONV, LOWRANK, BIAS)).splitlines()
    assert lines[0].split() == ["layer", "shape", "dictionary", "rank", "density", "bits/w", "before", "after", "error"]
    assert lines[2].split()[1:] == ["16x16x3x3", "patch", "-", "0.248", "2.77", "9.22", "kB", "798", "B", "0.0298"]
    assert lines[3].split()[1:5] == ["10x64", "lowrank+patch", "128", "0.248"]
    assert lines[4].split() == ["linear.bias", "10", "exact", "-", "-", "2.77", "40", "B", "798", "B", "0"]


def test_totals_notes_and_file_come_last() -> None:
    layers = (replace(CONV, note="kept exactly: 3 NaN"), TIED)
    lines = text(report(*layers, notes=("optimizer state left out",), verified=True)).splitlines()
    assert lines[-7:] == [
        "3.43 MB -> 0.37 MB, 9.3x smaller, 3.44 bits per weight",
        "3,431,220 -> 368,422 bytes; errors measured on the decoded file",
        "target: max_rel_error 0.03",
        "note: optimizer state left out",
        "note: layer1.0.conv1.weight: kept exactly: 3 NaN",
        "note: head.weight: stored once, as linear.weight",
        "file: net.squeezed.safetensors",
    ]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_no_line_is_wider_than_the_terminal(width: int, verbose: bool) -> None:
    notes = ("a long note " * 20, "n" * 200)
    layers = [*deep(8), TIED, replace(CONV, name="層" * 50), replace(CONV, name="", shape=())]
    lines = text(report(*layers, notes=notes, output="/long" * 40), width=width, verbose=verbose).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert lines[1] == "─" * max(map(cell_len, [lines[0], *lines[2:10]]))


def test_eighty_columns_show_every_column_and_sixty_say_which_are_missing() -> None:
    layers = deep(2)
    assert "shape" in text(report(*layers)).splitlines()[0]
    narrow = text(report(*layers), width=60)
    assert narrow.splitlines()[0].split() == ["layer", "dictionary", "rank", "bits/w", "before", "after", "error"]
    assert "names shortened, no shape, no density: --json" in narrow


def test_numbers_are_aligned() -> None:
    lines = text(report(CONV, LOWRANK, replace(BIAS, rel_error=1e-7))).splitlines()[:5]
    assert len({len(line) for line in lines}) == 1


def test_long_checkpoints_group_their_vectors() -> None:
    layers = deep(8)
    grouped = text(report(*layers))
    assert "+ 24 vectors and small tensors: 960 B -> 19.2 kB, all exact; -v lists them" in grouped
    assert "bias" not in grouped
    assert grouped.count("lowrank+patch") == 24
    assert text(report(*layers), verbose=True).count("exact ") == 24
    assert "vectors" not in text(report(*deep(4)))


def test_many_notes_are_counted() -> None:
    layers = [replace(layer, note="odd") for layer in deep(2)]
    assert "note: 7 more on single tensors; -v shows them" in text(report(*layers))
    assert text(report(*layers), verbose=True).count(": odd") == 12


def test_names_are_printed_literally() -> None:
    names = ["[red]x[/]", "[/nonsense]", ":smile:", "a\x1b[2Jb", "r\u202ebidi", "line\nbreak", "\udc80"]
    shown = text(report(*(replace(CONV, name=name) for name in names)), width=120)
    for expected in ["[red]x[/]", "[/nonsense]", ":smile:", r"a\x1b[2Jb", r"r\u202ebidi", r"line\nbreak", r"\udc80"]:
        assert f"\n{expected} " in shown


def test_colour_only_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> bool:
        console = Console(file=io.StringIO(), force_terminal=True, width=80)
        with console.capture() as capture:
            console.print(*render(report(CONV, notes=("a",)), width=80), sep="\n")
        return "\x1b[33m" in capture.get()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()
    assert "\x1b" not in text(report(CONV, notes=("a",)))


@given(st.text(max_size=60), st.integers(1, 80))
def test_shortened_names_fit(name: str, width: int) -> None:
    name = printable(name)
    short = shorten(name, width)
    assert cell_len(short) <= width
    assert short == name or cell_len(name) > width


def test_shortened_names_keep_apart_what_numbers_tell_apart() -> None:
    names = [f"layer{stage}.{block}.conv{i}.weight" for stage in (1, 2, 3) for block in range(9) for i in (1, 2)]
    assert len({shorten(name, 13) for name in names}) == len(names)
    deep = [
        f"main_block.layers.{i}.0.layers.{j}.0.{k}.fn.to_q.weight" for i in range(3) for j in range(3) for k in (0, 1)
    ]
    assert len({shorten(name, 19) for name in deep}) == len(deep)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (3_431_220, 368_422, "3.43 MB -> 0.37 MB, 9.3x smaller"),
        (3_431_220, 12_000, "3.43 MB -> 12.0 kB, 285.9x smaller"),
        (5_000, 700, "5.00 kB -> 0.70 kB, 7.1x smaller"),
        (900, 450, "900 B -> 450 B, 2.0x smaller"),
        (900, 1100, "900 B -> 1.10 kB, not smaller"),
        (0, 0, "0 B -> 0 B, not smaller"),
    ],
)
def test_sizes(before: int, after: int, said: str) -> None:
    assert sizes(before, after) == said


def test_markdown_survives_its_names() -> None:
    lines = to_markdown(report(CONV, replace(CONV, name="a|b`c"), notes=("odd",))).splitlines()
    assert lines[0] == "## `net.squeezed.safetensors`"
    assert lines[2].startswith("**3.43 MB -> 0.37 MB, 9.3x smaller, 3.44 bits per weight** (3,431,220 -> 368,422 bytes")
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2] == "| `layer1.0.conv1.weight` | 16x16x3x3 | patch | - | 0.248 | 2.77 | 9.22 kB | 798 B | 0.0298 |"
    assert rows[3].startswith(r"| `` a\|b`c `` | 16x16x3x3 |")
    assert lines[-1] == "- odd"


def test_json_is_the_report() -> None:
    data = json.loads(to_json(report(CONV, TIED)))
    assert data["schema"] == 1
    assert data["layers"][0]["name"] == "layer1.0.conv1.weight"
    assert data["layers"][0]["shape"] == [16, 16, 3, 3]
    assert data["bits_per_weight"] == pytest.approx(8 * 368_422 / 857_805)


@pytest.mark.parametrize("suffix", [".json", ".md"])
def test_report_files_are_written_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"report{suffix}"
    check_destination(path, force=False)
    write(report(CONV), path)
    assert "layer1.0.conv1.weight" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OutputError, match="exists already"):
        check_destination(path, force=False)
    check_destination(path, force=True)


def test_report_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no report format has suffix '\.pdf'") as caught:
        check_destination(tmp_path / "report.pdf", force=True)
    assert caught.value.hint == "end it in .json, .md, .html"
    with pytest.raises(OutputError, match="its folder does not exist"):
        check_destination(tmp_path / "absent" / "report.md", force=False)
    with pytest.raises(OutputError, match="No such file"):
        write(report(CONV), tmp_path / "absent" / "report.md")
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(OutputError, match="directory"):
        write(report(CONV), tmp_path / "folder.md")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.md"]
