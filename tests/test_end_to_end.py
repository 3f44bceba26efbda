"""The installed command in processes of its own: what it prints, how it ends, what it leaves. And files of others."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_pipeline import same_structure
from torch import Tensor
from typer.testing import CliRunner

import paramcompress
from paramcompress.cli import app
from paramcompress.records import SCHEMA_VERSION, LayerReport, Report

CONV = Path(__file__).parents[1] / "sample_models" / "conv_digits.pt"
COMMAND = shutil.which("paramcompress", path=str(Path(sys.executable).parent))
OUT = "model.squeezed.safetensors"
SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL = sorted((SHARED / "checkpoints").glob("*"))
AWKWARD = sorted((SHARED / "awkward").glob("*"))

installed = pytest.mark.skipif(COMMAND is None, reason="needs the package to be installed")
shared = pytest.mark.skipif(not REAL, reason="needs the collection of real checkpoints")


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of the error; a hint may follow it, nothing else."""
        first, *rest = self.err.splitlines()
        assert first.startswith("error: "), self.err
        assert len(rest) <= 1, self.err
        assert all(line.startswith("hint: ") for line in rest), self.err
        return first


def run(*args: str | Path, **variables: str) -> Run:
    """The installed command, without a terminal, from the current folder."""
    assert COMMAND is not None
    done = subprocess.run(
        [COMMAND, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "80", **variables},
    )
    return Run(done.returncode, done.stdout, done.stderr)


def run_here(*args: str) -> Run:
    """The same without a process."""
    done = CliRunner().invoke(app, args)
    return Run(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test works in a folder of its own, in which a pickle that runs would leave its mark."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.glob("CANARY*"))


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the main job


@installed
def test_squeeze_inspect_verify_expand() -> None:
    shutil.copy(CONV, "model.pt")
    before = sha256(Path("model.pt"))

    squeezed = run("squeeze", "model.pt")
    assert (squeezed.code, squeezed.err) == (0, "")
    assert files() == ["model.pt", OUT]
    assert "conv4.weight" in squeezed.out
    assert f"{Path(OUT).stat().st_size:,} bytes; errors measured on the decoded file" in squeezed.out
    assert squeezed.out.splitlines()[-1] == f"file: {OUT}"

    inspected = run("inspect", OUT, "--json")
    assert (inspected.code, inspected.err) == (0, "")
    report = json.loads(inspected.out)
    assert set(report) == {field.name for field in fields(Report)} | {"schema", "bits_per_weight"}
    assert report["schema"] == SCHEMA_VERSION
    assert all(set(one) == {field.name for field in fields(LayerReport)} for one in report["layers"])
    assert report["bytes_after"] == Path(OUT).stat().st_size

    verified = run("verify", OUT, "model.pt", "--json", "--workers", "2")
    assert (verified.code, verified.err) == (0, "")
    again = json.loads(verified.out)
    assert again["verified"]
    for one, other in zip(again["layers"], report["layers"], strict=True):
        assert one["rel_error"] <= other["rel_error"] <= (0.0301 if len(one["shape"]) > 1 else 0)

    expanded = run("expand", OUT, "--json")
    assert (expanded.code, expanded.err) == (0, "")
    assert json.loads(expanded.out) == {"schema": 1, "source": OUT, "output": "model.expanded.pt"}
    same_structure(torch.load("model.expanded.pt", weights_only=True), torch.load("model.pt", weights_only=True))

    assert sha256(Path("model.pt")) == before
    assert files() == ["model.expanded.pt", "model.pt", OUT]
    existing = run("squeeze", "model.pt")
    assert (existing.code, existing.out) == (3, "")
    assert "exists already" in existing.error


@installed
def test_options_reach_the_file() -> None:
    done = run(
        *("squeeze", CONV, "-o", OUT, "--target-size", "30kB", "--set", "conv4*:dictionary=patch", "--exclude", "fc.*"),
        *("--report", "report.md", "--json", "-q", "--effort", "fast", "--workers", "2"),
    )
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    layers = {one["name"]: one for one in report["layers"]}
    assert 29_400 <= report["bytes_after"] == Path(OUT).stat().st_size <= 30_000
    assert layers["conv4.weight"]["dictionary"] == "patch"
    assert layers["fc.weight"]["rel_error"] == 0
    assert "| `conv4.weight` |" in Path("report.md").read_text()
    planned = run("squeeze", CONV, "--dry-run", "--max-rel-error", "0.1")
    assert planned.code == 0
    assert "dry run: nothing was written" in planned.out
    assert files() == [OUT, "report.md"]


@installed
def test_help_is_quick_and_needs_no_torch() -> None:
    """Processor time, the least of five runs, since other work may be going on; twice what a quiet machine takes."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (done.code, done.err) == (0, "")
    assert "paramcompress squeeze model.pt" in done.out
    assert min(seconds) < 0.6
    times = run("squeeze", "--help", PYTHONPROFILEIMPORTTIME="1").err
    assert "paramcompress.cli" in times
    loaded = {line.split("|")[-1].strip() for line in times.splitlines()}
    assert not loaded & {"torch", "numba", "numpy", "safetensors", "rich", "paramcompress.pipeline"}


# ---- bad input: one line, the right code, nothing left


class Foreign:
    def __reduce__(self) -> Any:
        return os.mkdir, ("CANARY_pickle_was_executed",)


def not_a_checkpoint() -> list[str]:
    Path("in.pt").write_text("epoch,loss\n1,0.5\n")
    return ["squeeze", "in.pt"]


def cut_short() -> list[str]:
    Path("in.pt").write_bytes(CONV.read_bytes()[:100_000])
    return ["squeeze", "in.pt"]


def foreign_pickle() -> list[str]:
    torch.save({"weight": torch.ones(3), "more": Foreign()}, "in.pt")
    return ["squeeze", "in.pt"]


def raw_pickle() -> list[str]:
    Path("in.pkl").write_bytes(pickle.dumps(Foreign()))
    return ["squeeze", "in.pkl"]


def missing() -> list[str]:
    return ["squeeze", "in.pt"]


def no_folder() -> list[str]:
    return ["squeeze", str(CONV), "-o", "in/x.safetensors"]


def reserved_name() -> list[str]:
    torch.save({"paramcompress.index": torch.ones(3)}, "in.pt")
    return ["squeeze", "in.pt"]


def damaged() -> list[str]:
    paramcompress.squeeze(CONV, "in.safetensors")
    content = bytearray(Path("in.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    Path("in.safetensors").write_bytes(content)
    return ["expand", "in.safetensors"]


def damaged_to_verify() -> list[str]:
    return ["verify", damaged()[1]]


def not_squeezed() -> list[str]:
    safetensors.torch.save_file({"a": torch.ones(3)}, "in.safetensors")
    return ["inspect", "in.safetensors"]


def impossible_target() -> list[str]:
    shutil.copy(CONV, "in.pt")
    return ["squeeze", "in.pt", "--target-size", "100"]


def no_such_layer() -> list[str]:
    shutil.copy(CONV, "in.pt")
    return ["squeeze", "in.pt", "--set", "conv9*:rank=2"]


def no_such_dictionary() -> list[str]:
    shutil.copy(CONV, "in.pt")
    return ["squeeze", "in.pt", "--set", "conv1*:dictionary=fourier"]


def another_original() -> list[str]:
    torch.save({"w": torch.eye(30)}, "other.pt")
    paramcompress.squeeze({"w": torch.ones(30, 30)}, "in.safetensors")
    return ["verify", "in.safetensors", "other.pt"]


ALONE = [
    (not_a_checkpoint, 3, "in.pt: "),
    (cut_short, 3, "in.pt: "),
    (foreign_pickle, 3, "in.pt: "),
    (damaged, 3, "in.safetensors: "),
    (impossible_target, 1, "the smallest possible has "),
]
"""Tried in processes of their own."""
BAD = [
    *ALONE,
    (raw_pickle, 3, "in.pkl: "),
    (missing, 3, "in.pt: "),
    (no_folder, 3, "in/x.safetensors: there is no folder in"),
    (reserved_name, 3, "in.pt: tensor 'paramcompress.index': "),
    (damaged_to_verify, 4, "in.safetensors: tensor '"),
    (not_squeezed, 3, "in.safetensors: a safetensors file, but not a squeezed one"),
    (no_such_layer, 2, "conv9*"),
    (no_such_dictionary, 2, "fourier"),
    (another_original, 4, "in.safetensors: tensor 'w': "),
]


@pytest.mark.parametrize(("make", "code", "said"), BAD, ids=[make.__name__ for make, *_ in BAD])
def test_bad_input_ends_in_one_line(make: Any, code: int, said: str) -> None:
    assert_refused(run_here, make(), code, said)


@installed
@pytest.mark.parametrize(("make", "code", "said"), ALONE, ids=[make.__name__ for make, *_ in ALONE])
def test_the_installed_command_ends_so_too(make: Any, code: int, said: str) -> None:
    assert_refused(run, make(), code, said)


def assert_refused(runner: Any, args: list[str], code: int, said: str) -> None:
    before = {name: sha256(Path(name)) for name in files()}
    done = runner(*args)
    assert (done.code, done.out) == (code, "")
    assert said in done.error
    assert {name: sha256(Path(name)) for name in files()} == before


@installed
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_leaves_nothing(empty_folder: Path, workers: str) -> None:
    assert COMMAND is not None
    torch.save({f"{i}.weight": torch.randn(1000, 1000) for i in range(20)}, "model.pt")
    Path(OUT).write_text("precious")
    # a shell may have told us, and what we start, to ignore the signal
    listening = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    args = [COMMAND, "squeeze", "model.pt", "-o", OUT, "--force", "--workers", workers]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", listening, *args], text=True, **pipes) as process:
        try:
            wait_for_open_file(process.pid, empty_folder)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")
    assert files() == ["model.pt", OUT]
    assert Path(OUT).read_text() == "precious"


def wait_for_open_file(pid: int, folder: Path) -> None:
    """Until the process has a file without a name open in that folder: the payload it is writing."""
    descriptors = Path(f"/proc/{pid}/fd")
    if not descriptors.exists():
        time.sleep(5)
        return
    for _ in range(600):
        time.sleep(0.1)
        for one in descriptors.iterdir():
            try:
                target = str(one.readlink())
            except FileNotFoundError:
                continue
            if target.startswith(str(folder)) and target.endswith(" (deleted)"):
                return
    raise AssertionError("the command never began to write")


# ---- places that cannot be written: numba's cache. One loop stands for all: every one comes from jit.compiled

LOOP = """
from paramcompress.jit import compiled

@compiled
def add(a, b):
    return a + b
"""
USE_IT = """
import sys
from paramcompress import loop
assert loop.__file__.startswith(sys.argv[1]), loop.__file__
print(loop.add(2, 3))
"""


def use_a_loop(folder: Path, first: str = "", **variables: str) -> str:
    """Call a loop from a copy of the package; returns what it prints.

    The copy takes no cache: what stands where that would go is a file. (The mode of a folder does not bind root.)
    """
    copy = folder / "site" / "paramcompress"
    if not copy.exists():
        copy.mkdir(parents=True)
        for name in ("__init__.py", "errors.py", "records.py", "verdicts.py", "jit.py"):
            shutil.copy(Path(paramcompress.__file__).parent / name, copy)
        (copy / "loop.py").write_text(LOOP)
        (copy / "__pycache__").write_text("")
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    env = {**kept, "PYTHONPATH": str(copy.parent), "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", **variables}
    args = [sys.executable, "-c", first + USE_IT, str(folder)]
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cache", [{}, {"NUMBA_CACHE_DIR": "in the way/cache"}], ids=["no home", "no cache folder"])
def test_loops_run_where_nothing_can_be_cached(empty_folder: Path, cache: dict[str, str]) -> None:
    Path("in the way").write_text("")
    assert use_a_loop(empty_folder, **cache) == "5\n"
    assert files() == ["in the way", "site"]


def test_loops_are_cached_where_they_can_be(empty_folder: Path) -> None:
    """The control: with a folder that can be written, machine code is found there."""
    use_a_loop(empty_folder, NUMBA_CACHE_DIR=str(empty_folder / "cache"))
    assert list(Path("cache").rglob("*.nbc"))


def test_loops_run_where_the_cache_has_no_space(empty_folder: Path) -> None:
    """The folder can be written when the loop is declared, and the disk is full when machine code is to be saved."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    assert use_a_loop(empty_folder, full, NUMBA_CACHE_DIR=str(empty_folder / "cache")) == "5\n"


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_loops_run_where_the_cache_is_damaged(empty_folder: Path, suffix: str) -> None:
    cache = empty_folder / "cache"
    use_a_loop(empty_folder, NUMBA_CACHE_DIR=str(cache))
    (written,) = cache.rglob(f"*{suffix}")
    written.write_bytes(written.read_bytes()[:20])
    assert use_a_loop(empty_folder, NUMBA_CACHE_DIR=str(cache)) == "5\n"


def test_the_same_without_compiled_loops(empty_folder: Path) -> None:
    """NUMBA_DISABLE_JIT=1, as debuggers and coverage want it: slow, and every bit as it was."""
    code = (
        "import sys, torch, paramcompress\n"
        "for path in sys.argv[1:]: paramcompress.verify(path)\n"
        "torch.manual_seed(0)\n"
        "paramcompress.squeeze({'w': torch.randn(12, 9)}, 'new.safetensors', max_rel_error=0.1)\n"
    )
    golden = sorted(map(str, (Path(__file__).parent / "golden").glob("*.safetensors")))
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(Path(paramcompress.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *golden], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert paramcompress.verify("new.safetensors").verified


# ---- real files: a collection beside the checkout, where there is one


def contents(path: Path) -> Any:
    """Everything in a file, as torch or safetensors read it; optimizer states left out."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, dict):
        value.pop("optimizer", None)
    return value


def ties(value: Any) -> list[int]:
    """For each tensor, in order, the first tensor that lies in the same place."""
    places: list[Any] = []

    def walk(one: Any) -> None:
        if isinstance(one, Tensor):
            places.append((one.data_ptr(), one.shape) if one.numel() else object())
        elif isinstance(one, dict):
            for item in one.values():
                walk(item)
        elif isinstance(one, list | tuple):
            for item in one:
                walk(item)

    walk(value)
    return [places.index(place) for place in places]


@shared
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize", "ignore:ComplexHalf")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_a_real_checkpoint_comes_back(path: Path) -> None:
    report = paramcompress.squeeze(path, OUT)
    assert report.bytes_after < report.bytes_before / 3
    assert paramcompress.verify(OUT, path).verified
    target = paramcompress.expand(OUT)
    assert target.suffix == path.suffix
    expected, found = contents(path), contents(target)
    same_structure(found, expected)
    assert ties(found) == ties(expected)


@shared
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize", "ignore:ComplexHalf")
@pytest.mark.parametrize("path", AWKWARD, ids=lambda path: path.name)
def test_an_awkward_file_is_squeezed_or_refused_in_one_line(path: Path) -> None:
    before = sha256(path)
    ended = run_here("squeeze", str(path), "-o", OUT)
    if ended.code:
        assert ended.code in (2, 3)
        assert path.name in ended.error
        assert (ended.out, files()) == ("", [])
    else:
        assert ended.err == ""
        back = f"back{path.suffix}"
        for args in (["verify", OUT, str(path)], ["expand", OUT, "-o", back], ["verify", OUT, back]):
            done = run_here(*args)
            assert (done.code, done.err) == (0, "")
    assert sha256(path) == before
