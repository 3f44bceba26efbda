"""What a command must not destroy, and names that stand for no file: one line each, and everything stays as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import files_in, gaussian
from reading import sharded_folder
from typer.testing import CliRunner

import paramcompress
from paramcompress.cli import app
from paramcompress.errors import OutputError
from paramcompress.scratch import why_not


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a checkpoint and what it was squeezed to, which is where commands run."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": gaussian(rng, 30, 20), "b": gaussian(rng, 30)}, "m.pt")
    paramcompress.squeeze("m.pt", "m.squeezed.safetensors")
    Path("paramcompress.toml").write_text(
        '[[check]]\npath = "m.squeezed.safetensors"\nmax_size = "9kB"\noriginal = "m.pt"\n'
    )
    paramcompress.check(update_baseline=True)
    sharded_folder(tmp_path / "shards", rng)
    return tmp_path


def asked(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    done = CliRunner().invoke(app, list(args))
    return done.exit_code, done.stdout, done.stderr


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, rng: np.random.Generator) -> None:
    """A checkpoint of shards that stood there is."""
    source = sharded_folder(tmp_path / "shards", rng)
    paramcompress.squeeze(source, tmp_path / "small.safetensors")
    target = tmp_path / "out"
    for _ in range(2):
        paramcompress.expand(tmp_path / "small.safetensors", target, force=True)
    (target / ".DS_Store").write_bytes(b"x")
    paramcompress.expand(tmp_path / "small.safetensors", target, force=True)
    (target / "optimizer.bin").write_bytes(b"x")
    before = files_in(target)
    with pytest.raises(OutputError, match=r"holds other files than a checkpoint's: optimizer\.bin"):
        paramcompress.expand(tmp_path / "small.safetensors", target, force=True)
    assert files_in(target) == before


def test_a_folder_with_what_is_read_is_not_replaced(tmp_path: Path, rng: np.random.Generator) -> None:
    source = sharded_folder(tmp_path / "shards", rng)
    paramcompress.squeeze(source, source / "small.safetensors")
    before = files_in(source)
    with pytest.raises(OutputError, match="holds what is being read"):
        paramcompress.expand(source / "small.safetensors", source, force=True)
    assert files_in(source) == before


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/new.safetensors", "/proc/self/fd/1", "-", "folder/-"])
def test_places_that_are_none(name: str) -> None:
    assert why_not(Path(name)) is not None


def test_places_that_are_some(tmp_path: Path) -> None:
    for path in (tmp_path / "a", Path("/dev/shm/a"), Path("/dev/shm/folder/a"), Path("device/a"), Path("a-")):
        assert why_not(path) is None


@pytest.mark.parametrize(
    "args", [("squeeze", "m.pt", "-o", "-"), ("sweep", "m.pt", "--csv", "-"), ("check", "--format", "text", "-o", "-")]
)
def test_they_are_refused(args: tuple[str, ...], folder: Path) -> None:
    code, _, said = asked(*args)
    assert code == 3
    assert "not the standard output" in said
    assert not Path("-").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("sweep", "m.pt", "--levels", "0.1", "--csv", "m.pt", "--force"),
        ("check", "--format", "text", "-o", "m.squeezed.safetensors", "--force"),
        ("check", "--format", "junit", "-o", "paramcompress.toml", "--force"),
        ("check", "--format", "json", "-o", "paramcompress-baseline.json", "--force"),
        ("check", "--format", "json", "-o", "m.pt", "--force"),
        ("sweep", "shards", "--levels", "0.1", "--csv", "shards/a.safetensors", "--force"),
    ],
)
def test_an_input_is_not_overwritten(args: tuple[str, ...], folder: Path) -> None:
    before = files_in(folder)
    code, _, said = asked(*args)
    assert code == 3
    assert "is what is being read" in said
    assert files_in(folder) == before


LONG = "x" * 300


@pytest.mark.parametrize(
    "args",
    [
        ("squeeze", LONG),
        ("squeeze", "m.pt", "-o", LONG),
        ("squeeze", "m.pt", "-o", "z.safetensors", "--report", f"{LONG}.html"),
        ("expand", "m.squeezed.safetensors", "-o", LONG),
        ("verify", "m.squeezed.safetensors", LONG),
        ("diff", "m.pt", LONG),
        ("check", LONG),
        ("report", "m.squeezed.safetensors", "-o", f"{LONG}.html"),
        ("sweep", "m.pt", "--csv", LONG),
        ("report", "."),
        ("report", "/"),
        ("squeeze", ""),
    ],
)
def test_names_of_no_file_are_one_line(args: tuple[str, ...], folder: Path) -> None:
    code, out, said = asked(*args)
    assert code in (2, 3), said
    assert not out
    assert said.startswith("error: ")
    assert "Traceback" not in said


def test_a_valid_name_of_which_no_other_can_be_made(folder: Path) -> None:
    name = f"{'x' * 250}.pt"
    Path("m.pt").rename(name)
    code, _, said = asked("squeeze", name)
    assert code == 3
    assert "its name is longer than the file system allows" in said


@pytest.mark.parametrize("command", ["expand", "inspect", "verify", "report"])
def test_a_pipe_is_no_squeezed_file(command: str, folder: Path) -> None:
    content = Path("m.squeezed.safetensors").read_bytes()
    line = [sys.executable, "-m", "paramcompress", command, "/dev/stdin"]
    done = subprocess.run(line, input=content, capture_output=True, check=False)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


def test_a_squeezed_file_in_a_folder_is_one(folder: Path) -> None:
    Path("d").mkdir()
    Path("m.squeezed.safetensors").rename("d/m.squeezed.safetensors")
    code, _, said = asked("squeeze", "d")
    assert (code, "is squeezed already" in said) == (3, True)
    code, out, _ = asked("diff", "d", "m.pt", "--json")
    assert code == 0
    assert {one["name"] for one in json.loads(out)["layers"]} <= {"w", "b"}


def test_a_squeezed_file_beside_its_checkpoint_is_passed_over(folder: Path) -> None:
    paramcompress.squeeze("shards", "shards/small.safetensors")
    code, out, _ = asked("diff", "shards", "shards/model.safetensors.index.json", "--json")
    assert code == 0
    assert {one["change"] for one in json.loads(out)["layers"]} == {"same"}
    assert asked("squeeze", "shards", "-o", "again.safetensors", "-q")[0] == 0


def test_a_squeezed_file_is_not_squeezed_again(folder: Path) -> None:
    """Whose output would have its own name."""
    code, _, said = asked("squeeze", "m.squeezed.safetensors")
    assert (code, "is squeezed already" in said) == (3, True)


def test_json_is_what_is_printed(folder: Path) -> None:
    code, out, _ = asked("check", "--json", "-o", "b.json")
    assert code == 0
    assert json.loads(out) == json.loads(Path("b.json").read_text())
    code, out, said = asked("check", "--json", "--format", "junit")
    assert (code, out) == (2, "")
    assert "--json and --format junit are given together" in said


@pytest.mark.parametrize("size", ["1GB", "3.5kB"])
def test_where_there_is_room_nothing_changes(size: str, folder: Path) -> None:
    """3.5 kB is more than all of it exact, and less than the checkpoint."""
    exact = paramcompress.squeeze("m.pt", "exact.safetensors", max_rel_error=0)
    assert exact.bytes_after < 3500
    report = paramcompress.squeeze("m.pt", "roomy.safetensors", target_size=size)
    assert all(one.rel_error == 0 for one in report.layers)
    found, expected = paramcompress.load_file("roomy.safetensors"), torch.load("m.pt")
    assert all(torch.equal(found[name], one) for name, one in expected.items())
