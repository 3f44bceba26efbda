"""A verdict in its forms: one screen, Markdown, workflow commands, JUnit, JSON; hostile names change none of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from paramcompress import notices
from paramcompress.verdicts import Checked, Finding, LayerChange, LayerSize, Verdict

TOO_LARGE = Finding("fail", 1, "max_size", "net.sq: 5 kB is over max_size 4 kB", "squeeze it", ("fc",))
WARNING = Finding("warn", 0, "warn.max_size", "net.sq: 5 kB is over max_size 3 kB", "squeeze it")
DAMAGED = Finding("fail", 3, "path", "old.sq: damaged", "fetch it again")
CHANGE = LayerChange("fc", LayerSize(100, 0.01), LayerSize(300, 0.02))
PASSED = Checked("good", "good.sq", 1, n_bytes=100, rel_error=0.01)
FAILED = Checked(
    "net", "net.sq", 7, (TOO_LARGE, WARNING), "ask first", 5000, 4000, 0.03, "fc", 0.05, True, 4500, (CHANGE,)
)
UNREADABLE = Checked("old", "old.sq", None, (DAMAGED,))
VERDICT = Verdict("ci/paramcompress.toml", (PASSED, FAILED, UNREADABLE), "b.json", notes=("a note",))

HOSTILE = "::error::x\x1b[2J\r\n<script>alert(1)</script>`|`*_[a](b)%0A@all"
NASTY = Verdict(
    "paramcompress.toml",
    (
        replace(FAILED, name=HOSTILE, path=HOSTILE, message=HOSTILE, findings=(replace(TOO_LARGE, what=HOSTILE),)),
        replace(FAILED, name=HOSTILE, changes=(replace(CHANGE, name=HOSTILE),)),
    ),
    notes=(HOSTILE,),
)


def plain(verdict: Verdict, width: int = 80, **options: Any) -> list[str]:
    return [line.plain for line in notices.render(verdict, width=width, **options)]


# ---- terminal


def test_one_screen() -> None:
    assert plain(VERDICT) == [
        "check     size  max size   change   error  max error  result",
        "────────────────────────────────────────────────────────────",
        "good     100 B         -        -  0.0100          -  pass",
        "net    5.00 kB   4.00 kB  +11.1 %  0.0300       0.05  fail",
        "old          -         -        -       -          -  fail",
        "errors are measured where an original is named, others are as the files state them",
        "fail: net.sq: 5 kB is over max_size 4 kB",
        "hint: squeeze it (ci/paramcompress.toml:7)",
        "warn: net.sq: 5 kB is over max_size 3 kB",
        "hint: squeeze it (ci/paramcompress.toml:7)",
        "note: ask first",
        "since the baseline, net:",
        "  fc: 100 B -> 300 B, error 0.0100 -> 0.0200",
        "fail: old.sq: damaged",
        "hint: fetch it again (ci/paramcompress.toml)",
        "note: a note",
        "3 files: 1 pass, 2 fail",
    ]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_table_fits_and_keeps_its_verdicts(width: int) -> None:
    long = replace(FAILED, name="models/vision/backbone/resnet50_imagenet.squeezed.safetensors", findings=())
    lines = plain(Verdict("c", (long, PASSED)), width)
    assert max(map(cell_len, lines[:4])) <= width
    assert [line.split()[-1] for line in lines[2:4]] == ["pass", "pass"]


def test_layers_that_came_or_went_are_named_where_all_is_well_too() -> None:
    """A limit may hold for them no longer, and nobody would know."""
    renamed = (LayerChange("head", None, LayerSize(90, 0.01)), LayerChange("fc", LayerSize(90, 0.01), None))
    assert plain(Verdict("c", (replace(PASSED, changes=(*renamed, CHANGE)),)))[-5:-2] == [
        "since the baseline, good:",
        "  head: new -> 90 B, error - -> 0.0100",
        "  fc: 90 B -> gone, error 0.0100 -> -",
    ]
    assert len(plain(Verdict("c", (replace(PASSED, changes=(CHANGE,)),)))) == 5


def test_many_files_that_pass_share_a_line() -> None:
    many = tuple(replace(PASSED, name=str(n)) for n in range(50))
    lines = plain(Verdict("c", (*many, FAILED)))
    assert "+ 50 more, which pass; -v lists them" in lines
    assert len(lines) < 15
    assert len(plain(Verdict("c", (*many, FAILED)), verbose=True)) > 50


def test_old_terminals() -> None:
    assert all(line.isascii() for line in plain(VERDICT, ascii_only=True))


def test_the_quiet_hear_of_failures_alone() -> None:
    lines = [line.plain for line in notices.render_failures(VERDICT)]
    assert lines == ["fail: net.sq: 5 kB is over max_size 4 kB", "fail: old.sq: damaged"]
    assert notices.render_failures(Verdict("c", (PASSED,))) == []


# ---- documents


def test_markdown() -> None:
    lines = notices.to_markdown(VERDICT).splitlines()
    assert lines[:2] == [notices.MARKER, "### :x: Model budget: 3 files: 1 pass, 2 fail"]
    assert "| `net` | 5.00 kB | 4.00 kB | +11.1 % | 0.0300 | 0.05 | fail |" in lines
    assert r"- **fail** net.sq: 5 kB is over max\_size 4 kB" in lines
    assert "| `fc` | 100 B | 300 B | 0.0100 | 0.0200 |" in lines
    assert ":white_check_mark:" in notices.to_markdown(Verdict("c", (PASSED,)))
    assert ":warning:" in notices.to_markdown(Verdict("c", (replace(PASSED, findings=(WARNING,)),)))


def test_workflow_commands() -> None:
    assert notices.to_github(VERDICT).splitlines() == [
        "::error file=ci/paramcompress.toml,line=7,title=net%3A max_size"
        "::net.sq: 5 kB is over max_size 4 kB%0Asqueeze it%0Aask first",
        "::warning file=ci/paramcompress.toml,line=7,title=net%3A warn.max_size"
        "::net.sq: 5 kB is over max_size 3 kB%0Asqueeze it",
        "::error file=ci/paramcompress.toml,title=old%3A path::old.sq: damaged%0Afetch it again",
    ]


def test_a_workflow_command_is_escaped_as_github_reads_it() -> None:
    """Percent first, or what it escapes would be escaped twice; colons and commas only where they separate."""
    found = notices.annotation("warn", "50%: a,b\nc", file="a,b", line=3, title="x:y%")
    assert found == "::warning file=a%2Cb,line=3,title=x%3Ay%25::50%25: a,b%0Ac"


def test_paths_of_workflow_commands_begin_at_the_root(tmp_path: Path) -> None:
    verdict = replace(VERDICT, config=str(tmp_path / "sub" / "p.toml"))
    assert "file=sub/p.toml," in notices.to_github(verdict, tmp_path)
    assert f"file={tmp_path.as_posix()}/sub/p.toml," in notices.to_github(verdict, tmp_path / "other")


def test_junit() -> None:
    suites = ElementTree.fromstring(notices.to_junit(VERDICT))
    assert suites.attrib == {"name": "paramcompress check", "tests": "3", "failures": "1", "errors": "1"}
    good, net, old = suites[0]
    assert (good.attrib["name"], len(good)) == ("good", 0)
    assert [(child.tag, child.attrib.get("type")) for child in net] == [("failure", "max_size"), ("system-out", None)]
    assert net[0].text == "net.sq: 5 kB is over max_size 4 kB\nsqueeze it\nask first"
    assert [child.tag for child in old] == ["error"]


def test_json() -> None:
    found = json.loads(notices.to_json(VERDICT))
    assert (found["exit_code"], found["passed"], found["schema"]) == (3, False, 1)
    assert [one["status"] for one in found["files"]] == ["pass", "fail", "fail"]
    assert found["files"][1]["changes"][0]["after"] == {"n_bytes": 300, "rel_error": 0.02}


# ---- names from strangers


def test_no_form_lets_a_name_out_of_its_place() -> None:
    for line in notices.to_github(NASTY).splitlines():
        assert re.match(r"::(error|warning) file=paramcompress\.toml,", line)
        properties, _, data = line[2:].partition("::")
        assert "\x1b" not in line
        assert "\n" not in data
        assert properties.count(",") == 2
        assert "title=%3A%3Aerror%3A%3Ax" in properties
    markdown = notices.to_markdown(NASTY)
    assert not [line for line in markdown.splitlines() if "<script" in line and not line.startswith("| ``")]
    assert "\x1b" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:4]} == {8}
    text = "\n".join(plain(NASTY))
    assert "\x1b" not in text
    assert "\r" not in text
    junit = ElementTree.fromstring(notices.to_junit(NASTY))
    assert "<script>" in (junit[0][0].attrib["name"])
    assert json.loads(notices.to_json(NASTY))["files"][0]["name"] == HOSTILE
