"""Outputs are made whole or not at all, whatever ends the process; what it leaves, the next run removes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import files_in

import paramcompress
from paramcompress import scratch
from paramcompress.scratch import Scratch, sweep

SAMPLE = Path(__file__).parents[1] / "sample_models" / "conv_digits.pt"
COMMAND = shutil.which("paramcompress", path=str(Path(sys.executable).parent))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [name for name in files_in(tmp_path) if name.endswith((".partial", ".old"))]


# ------------------------------------------------------------------------------------------- one scratch


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_takes_its_place(before: str | None, ahead: bool) -> None:
    target = Path("out")
    if before:
        target.write_text(before)
    with Scratch(target) as one:
        one.path.write_text("new")
        if ahead:
            one.start_flushing()
        assert (target.read_text() if target.exists() else None) == before
        one.publish()
        assert target.read_text() == "new"
    assert files_in(Path()) == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("before", [False, True])
def test_a_folder_takes_its_place(before: bool, can_exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(scratch, "_exchange", lambda *_: False)
    if before:
        Path("out").mkdir()
        Path("out", "old").write_text("")
    with Scratch(Path("out"), folder=True) as one:
        (one.path / "new").write_text("")
        one.publish()
    assert (files_in(Path()), files_in(Path("out"))) == (["out"], ["new"])


def test_a_disk_that_fails_while_the_file_is_looked_at_is_told_by_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    Path("out").write_text("old")
    monkeypatch.setattr(scratch, "_flush", fail)
    with Scratch(Path("out")) as one:
        one.path.write_text("new")
        one.start_flushing()
        with pytest.raises(OSError, match="Input/output"):
            one.publish()
    assert Path("out").read_text() == "old"
    assert files_in(Path()) == ["out"]


def test_without_publish_or_after_an_error_nothing_is_left() -> None:
    for folder in (False, True):
        with Scratch(Path("out"), folder=folder):
            pass
        with pytest.raises(KeyboardInterrupt), Scratch(Path("out"), folder=folder):
            raise KeyboardInterrupt
    assert files_in(Path()) == []


def test_threads_and_runs_do_not_share_one() -> None:
    with Scratch(Path("out")) as one, Scratch(Path("out")) as other:
        assert one.path != other.path
        one.path.write_text("one")
        other.path.write_text("other")
        other.publish()
        one.publish()
    assert Path("out").read_text() == "one"


def hold(place: str, folder: bool, ready: multiprocessing.synchronize.Event) -> None:
    with Scratch(Path(place), folder=folder):
        ready.set()
        time.sleep(60)


@pytest.mark.parametrize("folder", [False, True])
def test_what_lives_is_kept_and_what_was_killed_goes(folder: bool) -> None:
    """By the lock and not by a number, which another container may have given to another process."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=("out", folder, ready))
    process.start()
    try:
        assert ready.wait(60)
        sweep(Path("out"))
        assert len(files_in(Path())) == 1
    finally:
        process.kill()
        process.join()
    assert len(files_in(Path())) == 1
    sweep(Path("out"))
    assert files_in(Path()) == []


def test_sweeping_follows_no_link() -> None:
    """A link where a leftover would be: what it leads to stays."""
    Path("precious").write_text("")
    Path(".out.1-1.partial").symlink_to("precious")
    sweep(Path("out"))
    assert Path("precious").exists()
    Path(".out.1-1.partial").unlink()


def test_a_scratch_that_was_swept_in_the_moment_of_its_making_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and locking another run may take it for a leftover."""
    lock = scratch._locked
    n_calls = 0

    def swept(path: Path) -> int | None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            path.unlink()
        return lock(path)

    monkeypatch.setattr(scratch, "_locked", swept)
    with Scratch(Path("out")) as one:
        one.publish()
    assert (files_in(Path()), n_calls) == (["out"], 2)


# ------------------------------------------------------------------------------------------- runs that end early


def work(kind: str) -> None:
    if kind == "squeeze":
        paramcompress.squeeze(SAMPLE, "small.safetensors", effort="fast", force=True)
    else:
        paramcompress.expand("small.safetensors", kind, force=True)


def content(path: Path) -> dict[str, bytes] | bytes | None:
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in files_in(path)}
    return path.read_bytes() if path.exists() else None


def sharded() -> Path:
    import safetensors.torch

    Path("model").mkdir()
    tensors = {f"{i}.weight": torch.randn(60, 60, generator=torch.Generator().manual_seed(i)) for i in range(6)}
    for i, name in enumerate(tensors):
        safetensors.torch.save_file({name: tensors[name]}, f"model/{i}.safetensors")
    places = {name: f"{i}.safetensors" for i, name in enumerate(tensors)}
    Path("model/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return Path("model")


@pytest.mark.parametrize("kind", ["squeeze", "back.pt", "back.safetensors", "folder"])
def test_killed_at_random_moments(kind: str) -> None:
    """In forked processes, so that every moment counts; benchmarks/guarantees.py kills the installed command."""
    source = sharded() if kind == "folder" else SAMPLE
    paramcompress.squeeze(source, "small.safetensors", effort="fast")
    target = Path("small.safetensors" if kind == "squeeze" else kind)
    started = time.monotonic()
    work(kind)
    seconds = time.monotonic() - started
    new = content(target)
    if isinstance(new, dict):
        (target / ".DS_Store").write_text("")  # the only kind of file that may lie there beside a checkpoint's
    elif kind != "squeeze":
        target.write_text("old")
    old = content(target)
    others = set(files_in(Path()))
    chance = random.Random(kind)
    context = multiprocessing.get_context("fork")
    for _ in range(12):
        process = context.Process(target=work, args=(kind,))
        process.start()
        time.sleep(chance.uniform(0, 1.1 * seconds))
        process.kill()
        process.join()
        assert content(target) in (old, new)
        litter = set(files_in(Path())) - others
        assert all(name.startswith(f".{target.name}.") and name.endswith(".partial") for name in litter)
    work(kind)
    assert content(target) == new
    assert set(files_in(Path())) == others


@pytest.mark.parametrize("kind", ["squeeze", "back.pt"])
def test_runs_at_once_on_one_output(kind: str) -> None:
    paramcompress.squeeze(SAMPLE, "small.safetensors", effort="fast")
    work(kind)
    target = Path("small.safetensors" if kind == "squeeze" else kind)
    expected = content(target)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(kind,)) for _ in range(4)]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        seen.add(content(target) == expected)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert seen <= {True}
    assert content(target) == expected


installed = pytest.mark.skipif(COMMAND is None, reason="needs the package to be installed")


@installed
@pytest.mark.parametrize("n_blocks", [0, 20])
def test_a_full_disk_ends_the_command_in_one_line(n_blocks: int) -> None:
    """Was a bug report at 20: closing the payload tried to write the rest of it. ulimit stands for the disk; the
    signal that comes with it is ignored, as Python does."""
    Path("small.safetensors").write_text("precious")
    line = f"ulimit -f {n_blocks}; exec {COMMAND} squeeze {SAMPLE} -o small.safetensors --force"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: small.safetensors: cannot be written: File too large")
    assert Path("small.safetensors").read_text() == "precious"
    assert files_in(Path()) == ["small.safetensors"]


ROOT = os.geteuid() == 0


@installed
@pytest.mark.skipif(ROOT and shutil.which("setpriv") is None, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written() -> None:
    folder = Path("read only")
    folder.mkdir()
    paramcompress.squeeze(SAMPLE, folder / "small.safetensors", effort="fast")
    before = content(folder)
    folder.chmod(0o555)
    as_others = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if ROOT else []
    for args in (["squeeze", str(SAMPLE), "-o", "small.safetensors", "--force"], ["expand", "small.safetensors"]):
        done = subprocess.run(
            [*as_others, str(COMMAND), *args], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert (done.returncode, done.stdout) == (3, "")
        assert "cannot be written: Permission denied" in done.stderr
    folder.chmod(0o755)
    assert content(folder) == before


@installed
def test_a_reader_that_leaves_does_not_spoil_the_file() -> None:
    """The table goes into a pipe that is closed at once; the file is whole all the same."""
    line = f"{COMMAND} squeeze {SAMPLE} -o small.safetensors -v | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 141), done.stderr
    assert "Traceback" not in done.stderr
    paramcompress.verify("small.safetensors")


def test_sigterm_leaves_nothing_that_stays() -> None:
    """Not handled, so it kills: what it leaves is what a kill leaves. The file is complete, and waits to be renamed."""
    torch.save({"w": torch.randn(40, 40)}, "model.pt")
    waiting = (
        "import sys, time; from paramcompress import scratch; from paramcompress.cli import main; "
        "scratch.Scratch.publish = lambda _: time.sleep(600); main()"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting, "squeeze", "model.pt", "-o", "small.safetensors"])
    deadline = time.monotonic() + 60
    while not any(name.endswith(".partial") for name in files_in(Path())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert not Path("small.safetensors").exists()
    assert any(name.endswith(".partial") for name in files_in(Path()))
    paramcompress.squeeze({"w": torch.ones(2, 2)}, "small.safetensors", force=True)
    assert files_in(Path()) == ["model.pt", "small.safetensors"]


def test_no_thread_is_needed_to_hold_the_lock() -> None:
    """The lock is the descriptor's: what another thread publishes is published."""
    with Scratch(Path("out")) as one:
        thread = threading.Thread(target=one.publish)
        thread.start()
        thread.join()
    assert files_in(Path()) == ["out"]
