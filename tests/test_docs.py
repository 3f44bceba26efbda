"""What the documents say is so: commands, fields, dependencies, and every session and code block of the README."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from paramcompress import verdicts
from paramcompress.cli import COMMANDS, app
from paramcompress.records import SCHEMA_VERSION, Difference, LayerDifference, LayerReport, Report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
NAMES = [command.__name__ for command in COMMANDS]
EXIT_CODES = [0, 1, 2, 3, 4, 70, 130]


def make_cli() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables(page: Path) -> dict[str, list[list[str]]]:
    """Rows of each table by the heading above it, cell by cell, header and rule left out."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {heading: rows[2:] for heading, rows in found.items()}


# ---- command line


@pytest.mark.skipif(metadata.version("typer") != PINNED["typer"], reason="another version of typer writes it otherwise")
def test_the_reference_is_up_to_date() -> None:
    """If not: python docs/make_cli.py."""
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == make_cli().render()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_an_example_and_its_place(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"]).stdout
    summary = shown.splitlines()[2].strip()
    assert summary.endswith((".", ";"))
    assert f"  Example:\n    paramcompress {name} " in shown
    reference = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert f"## paramcompress {name}\n" in reference
    assert summary in reference


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_words(name: str) -> None:
    lines = CliRunner(env={"COLUMNS": "200"}).invoke(app, [name, "--help"], terminal_width=200).stdout.splitlines()
    options = [line for line in lines[lines.index("Options:") + 1 :] if line.strip().startswith("-")]
    assert len(options) > 3
    for line in options:
        assert re.search(r"\S  +\S", line.strip()), f"{name}: {line.strip()} says nothing"


def test_exit_codes_are_those_of_the_errors() -> None:
    from paramcompress import errors
    from paramcompress.cli import translator

    rows = tables(DOCS / "cli.md")["Command line"]
    assert [int(code) for code, _ in rows] == EXIT_CODES
    classes = [one for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")]
    used = {one.exit_code for one in classes} | {translator.EXIT_BUG, translator.EXIT_INTERRUPTED}
    assert used <= set(EXIT_CODES)


# ---- JSON


def test_json_fields_are_all_described() -> None:
    described = {heading: [row[0].strip("`") for row in rows] for heading, rows in tables(DOCS / "json.md").items()}
    assert described["Report"] == ["schema", *(field.name for field in fields(Report)), "bits_per_weight"]
    assert described["Layer"] == [field.name for field in fields(LayerReport)]
    assert described["What expand prints"] == ["schema", "source", "output"]
    assert described["Difference"] == ["schema", *(field.name for field in fields(Difference))]
    assert described["Layer difference"] == [field.name for field in fields(LayerDifference)]
    assert described["Check"] == list(verdicts.Verdict("", ()).to_json())
    assert described["File of a check"] == [*(field.name for field in fields(verdicts.Checked)), "status"]
    assert described["Finding"] == [field.name for field in fields(verdicts.Finding)]
    assert f"of its own, here **{verdicts.SCHEMA_VERSION}**" in (DOCS / "json.md").read_text(encoding="utf-8")
    assert f"here **{SCHEMA_VERSION}**" in (DOCS / "json.md").read_text(encoding="utf-8")


def test_json_types_are_as_described(tmp_path: Path) -> None:
    import torch

    import paramcompress

    source = {"w": torch.randn(20, 20), "b": torch.ones(3)}
    paramcompress.squeeze(source, tmp_path / "x.safetensors")
    kinds: dict[str, Any] = {
        "integer": int,
        "number": (int, float),
        "string": str,
        "boolean": bool,
        "null": type(None),
        "object": dict,
    }
    for report in (paramcompress.inspect(tmp_path / "x.safetensors"), paramcompress.verify(tmp_path / "x.safetensors")):
        values = report.to_json()
        for heading, found in [("Report", values), *(("Layer", one) for one in values["layers"])]:
            for key, kind, _ in tables(DOCS / "json.md")[heading]:
                value = found[key.strip("`")]
                names = [name.split()[0] for name in kind.split(" or ")]
                if names == ["array"]:
                    assert isinstance(value, list | tuple), key
                else:
                    assert isinstance(value, tuple(kinds[name] for name in names if name in kinds)), key


# ---- dependencies


def declared(requirements: list[str]) -> dict[str, str]:
    """Bounds by package."""
    return {re.split(r"[<>=]", one)[0]: one[len(re.split(r"[<>=]", one)[0]) :] for one in requirements}


def test_every_dependency_is_explained_and_pinned() -> None:
    rows = tables(DOCS / "dependencies.md")
    assert {name: bounds.strip("`") for name, bounds, *_ in rows["Dependencies"]} == declared(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    for extra, requirements in extras.items():
        explained = {name: bounds.strip("`") for which, name, bounds, _ in rows["Extras"] if which == f"`{extra}`"}
        assert explained == declared(requirements)
    direct = [*declared(PROJECT["dependencies"]), *(name for one in extras.values() for name in declared(one))]
    assert sorted(PINNED) == sorted(direct)


# ---- README


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Marker comment above, language, and content of every fenced block."""
    pattern = r"(?:^<!-- ([\w ]+) -->\n)?^```(\w*)\n(.*?)^```$"
    return re.findall(pattern, page, re.MULTILINE | re.DOTALL)


def plain(text: str) -> list[str]:
    """Lines that matter, with # for every number and one blank for many: another machine finds other last digits."""
    lines = [re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*(e-?\d+)?", "#", line)).strip() for line in text.splitlines()]
    return [line for line in lines if line.strip("─- ")]


def run_session(session: str, folder: Path) -> None:
    """Run each line that begins with $ in `folder`; it ends well, and prints what stands below it, if anything does."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "paramcompress", command
        done = subprocess.run(
            [sys.executable, "-m", "paramcompress", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert not expected.strip() or plain(done.stdout) == plain(expected), f"{command} prints\n{done.stdout}"


def test_sessions_and_code_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder that holds the sample models. Blocks after <!-- not run --> are left out."""
    shutil.copytree(ROOT / "sample_models", tmp_path / "sample_models", ignore=shutil.ignore_patterns("*.squeezed.*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    monkeypatch.setenv("COLUMNS", "80")
    n_run = 0
    for marker, language, content in blocks(README):
        if marker == "session":
            run_session(content, tmp_path)
        elif language == "python" and marker != "not run":
            exec(compile(content, "README.md", "exec"), {})
        else:
            continue
        n_run += 1
    assert n_run >= 2


def test_a_session_that_lies_is_found(tmp_path: Path) -> None:
    """The control of the test above."""
    run_session("$ paramcompress --version\nparamcompress 9.9\n", tmp_path)
    with pytest.raises(AssertionError, match="prints"):
        run_session("$ paramcompress --version\nparamcompress of today\n", tmp_path)
    with pytest.raises(AssertionError, match="No such command"):
        run_session("$ paramcompress squish\n", tmp_path)


def test_the_set_up_commands_are_those_that_ci_runs() -> None:
    """CI reads them from the README, so there is one block for it to find, with two commands that it can tell apart."""
    (setup,) = (content.splitlines() for marker, _, content in blocks(README) if marker == "setup")
    first, second = (line.split(" && ") for line in setup)
    assert first[0] == "pip install -c constraints.txt ."
    assert first[1].startswith("paramcompress squeeze sample_models/")
    assert second == ["pip install -c constraints.txt '.[test]'", "python -m pytest"]
    assert "<!-- setup -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *DOCS.glob("*.md")]), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
