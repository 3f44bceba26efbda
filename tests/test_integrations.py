"""What stands in action.yml, .pre-commit-hooks.yaml and docs/ci.md, run: every shell step, every budget, the real
pre-commit program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import gaussian
from test_docs import README, blocks

import paramcompress
from paramcompress import budget

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
GUIDE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
FILE = "model.squeezed.safetensors"
PASSING = f'[[check]]\npath = "{FILE}"\nmax_size = "1MB"\n'
FAILING = f'# two lines\n# above\n[[check]]\npath = "{FILE}"\nmax_size = "10B"\n'

installed = pytest.mark.skipif(not (SCRIPTS / "paramcompress").exists(), reason="needs the package to be installed")
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def marked(marker: str) -> list[str]:
    return [content for found, _, content in blocks(GUIDE) if found == marker]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a squeezed model and a budget that it keeps; the current folder."""
    paramcompress.squeeze({"fc.weight": gaussian(rng, 30, 40), "fc.bias": torch.zeros(30)}, tmp_path / FILE)
    (tmp_path / "paramcompress.toml").write_text(PASSING)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a step with `shell: bash`; the package's command is the first on the path."""
    path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


# ---- GitHub

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def step(name: str, inputs: dict[str, str], **contexts: str) -> tuple[str, dict[str, str]]:
    """Script and environment of a step of the action, with its expressions evaluated."""
    (found,) = (one for one in ACTION["runs"]["steps"] if one["name"] == name)
    values = {f"inputs.{key}": inputs.get(key, one["default"]) for key, one in ACTION["inputs"].items()} | contexts

    def evaluated(text: str) -> str:
        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda match: values[match[1]], text)

    assert found["shell"] == "bash"
    assert "${{" not in found["run"], "an expression in a script is code that somebody else may write"
    return found["run"], {key: evaluated(value) for key, value in found["env"].items()}


@installed
@bash
@pytest.mark.parametrize(
    ("text", "inputs", "code"),
    [
        (PASSING, {}, 0),
        (FAILING, {}, 1),
        (FAILING, {"config": "paramcompress.toml", "arguments": "-v --workers 2"}, 1),
        ("[[check", {}, 2),
        (PASSING, {"config": "$(touch owned); x y.toml"}, 2),
    ],
    ids=["passes", "fails", "with arguments", "no TOML", "a config that would be code"],
)
def test_the_action_checks(folder: Path, text: str, inputs: dict[str, str], code: int) -> None:
    (folder / "paramcompress.toml").write_text(text)
    script, variables = step("Check the budget", inputs)
    github = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(folder),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
    }
    done = shell(script, **variables, **github)
    assert done.returncode == code, done.stderr
    assert (folder / "output").read_text() == f"exit-code={code}\n"
    assert not (folder / "owned").exists()
    annotations = [line for line in (done.stdout + done.stderr).splitlines() if re.match("::(error|warning)[ :]", line)]
    assert len(annotations) == (code > 0)
    if code == 1:
        assert annotations[0].startswith(f"::error file=paramcompress.toml,line=3,title={FILE}%3A max_size::")
    if code < 2:
        assert "Model budget" in (folder / "summary").read_text()


@bash
@pytest.mark.parametrize(
    ("install", "expected"),
    [("", ["/action folder"]), ("--no-index paramcompress==0.1.0", ["--no-index", "paramcompress==0.1.0"])],
)
def test_the_action_installs(folder: Path, install: str, expected: list[str]) -> None:
    """With a python that only notes what it is asked to do."""
    (folder / "python").write_text('#!/bin/sh\nfor word; do echo "$word"; done > asked\n')
    (folder / "python").chmod(0o755)
    script, variables = step("Install paramcompress", {"install": install}, **{"github.action_path": "/action folder"})
    done = shell(script, **{**variables, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    asked = (folder / "asked").read_text().splitlines()
    assert asked == ["-m", "pip", "install", "--disable-pip-version-check", *expected]


def test_the_workflow_of_the_guide_uses_the_action_as_it_is() -> None:
    (workflow,) = map(yaml.safe_load, marked("workflow"))
    steps = workflow["jobs"]["budget"]["steps"]
    (ours,) = (one for one in steps if one["uses"].startswith("OWNER/paramcompress@"))
    assert ours["with"].keys() <= ACTION["inputs"].keys()
    assert ACTION["outputs"]["exit-code"]["value"] == "${{ steps.check.outputs.exit-code }}"
    assert "check" in [one.get("id") for one in ACTION["runs"]["steps"]]


# ---- GitLab


@installed
@bash
@pytest.mark.parametrize(("text", "code"), [(PASSING, 0), (FAILING, 1)], ids=["passes", "fails"])
def test_the_gitlab_job(folder: Path, text: str, code: int) -> None:
    (folder / "paramcompress.toml").write_text(text)
    (job,) = (yaml.safe_load(one)["model-budget"] for one in marked("gitlab"))
    install, *script = job["script"]
    assert install.startswith("pip install ")
    done = shell("\n".join(script))
    assert done.returncode == code, done.stderr
    suites = ElementTree.parse(folder / job["artifacts"]["reports"]["junit"]).getroot()
    assert (suites.attrib["tests"], suites.attrib["failures"]) == ("1", str(code))


# ---- the guide


BUDGETS = [*marked("budget"), *(text for found, _, text in blocks(README) if found == "budget")]


@pytest.mark.parametrize("number", range(3))
def test_budgets_of_the_documents_can_be_read(tmp_path: Path, number: int) -> None:
    (tmp_path / "paramcompress.toml").write_text(BUDGETS[number])
    (check,) = budget.read(tmp_path / "paramcompress.toml").checks
    assert check.fail.max_size == 400_000
    inside = BUDGETS[number].replace("[[check]]", "[[tool.paramcompress.check]]")
    inside = inside.replace("[check.layers]", "[tool.paramcompress.check.layers]")
    (tmp_path / "pyproject.toml").write_text("[tool.paramcompress]\n" + inside)
    assert budget.read(tmp_path / "pyproject.toml").checks[0].fail == check.fail


# ---- pre-commit

HOOKS = {one["id"]: one for one in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
GIT = shutil.which("git")
PRE_COMMIT = shutil.which("pre-commit", path=os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", "")]))


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com", "-c", "commit.gpgsign=false"]
    assert GIT is not None
    done = subprocess.run([GIT, *identity, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_both_hooks_run_alike() -> None:
    ours, system = HOOKS["paramcompress-check"], HOOKS["paramcompress-check-system"]
    assert {key for key in ours if system[key] != ours[key]} == {"id", "description", "language"}
    for name in (
        "a/model.squeezed.safetensors",
        "paramcompress.toml",
        "x/paramcompress-baseline.json",
        "pyproject.toml",
    ):
        assert re.search(ours["files"], name)
    assert not re.search(ours["files"], "model.safetensors")
    (example,) = map(yaml.safe_load, marked("hook"))
    assert example["repos"][0]["hooks"] == [{"id": "paramcompress-check"}]


@installed
@pytest.mark.skipif(GIT is None or PRE_COMMIT is None, reason="needs git and pre-commit")
@pytest.mark.parametrize(
    "hook_id",
    [
        "paramcompress-check-system",
        pytest.param(
            "paramcompress-check",
            marks=pytest.mark.skipif(
                os.environ.get("PARAMCOMPRESS_TEST_INSTALL") != "1",
                reason="fetches torch into an environment of the hook's own",
            ),
        ),
    ],
)
def test_the_hook_in_the_real_pre_commit(hook_id: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a repository of its own, with the hook from another: a commit that breaks the budget does not come about."""
    hooks = tmp_path_factory.mktemp("hooks")
    shutil.copytree(ROOT / "paramcompress", hooks / "paramcompress", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".pre-commit-hooks.yaml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, hooks)
    git(hooks, "init", "-q")
    git(hooks, "add", ".")
    git(hooks, "commit", "-qm", "hooks")
    config = {
        "repos": [
            {
                "repo": str(hooks),
                "rev": git(hooks, "rev-parse", "HEAD"),
                "hooks": [{"id": hook_id}],
            }
        ]
    }
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    git(folder, "init", "-q")
    git(folder, "add", ".")

    def hook() -> tuple[int, str]:
        path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
        home = str(folder.parent / "pre-commit")
        env = {**os.environ, "PATH": path, "PRE_COMMIT_HOME": home, "PRE_COMMIT_COLOR": "never"}
        env["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
        done = subprocess.run([PRE_COMMIT, "run"], cwd=folder, env=env, capture_output=True, text=True, timeout=900)
        return done.returncode, done.stdout + done.stderr

    code, said = hook()
    assert code == 0, said
    assert "Passed" in said
    git(folder, "commit", "-qm", "model")
    (folder / "paramcompress.toml").write_text(FAILING)
    git(folder, "add", ".")
    code, said = hook()
    assert code == 1
    assert "exit code: 1" in said
    assert f"fail: {FILE}: " in said
    git(folder, "checkout", "-q", "HEAD", "--", "paramcompress.toml")
    (folder / "README").write_text("unrelated")
    git(folder, "add", ".")
    code, said = hook()
    assert code == 0
    assert "(no files to check)Skipped" in said
