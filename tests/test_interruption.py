"""Ctrl-C, at moments at which an exception in the main thread would be lost, or would leave a lock taken."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("empty_folder")

LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A shell may have told us, and what we start, to ignore the signal."""
IGNORING = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
COMMAND = """
import asyncio, contextlib, ctypes, hashlib, sys, threading, time
import paramcompress.pipeline as pipeline
from paramcompress.cli import main
from paramcompress.cli.terminal import progress
from paramcompress.scratch import Scratch, temporary_folder
from pathlib import Path

def swallow():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)

def wait_for_a_thread():
    lock = threading.Lock()
    lock.acquire()
    helper = threading.Thread(target=lock.acquire)
    helper.start()
    helper.join()

def stay_in_compiled_code():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def sleep_until_interrupted():
    ctypes.CDLL(None).sleep(100)

def swallow_after_an_event_loop():
    asyncio.run(asyncio.sleep(0))
    swallow()

def write():
    with Scratch(Path("file")) as file, Scratch(Path("folder"), folder=True) as folder, temporary_folder() as temporary:
        file.path.write_text("unfinished")
        (folder.path / "shard").write_text("unfinished")
        (temporary / "dry").write_text("unfinished")
        print(temporary, flush=True)
        swallow()

def draw():
    with progress("drawing", quiet=False) as tell:
        tell("", 1, 2)
        swallow()

def inspect(path):
    print("working", flush=True)
    WHAT()
    raise SystemExit(0)

pipeline.inspect = inspect
sys.argv = ["paramcompress", "inspect", "model.pt"]
main()
"""


def interrupted(what: str, begin: str = LISTENING) -> tuple[int, str, str]:
    """Exit code and output of a command that gets SIGINT when it works."""
    script = begin + COMMAND.replace("WHAT()", what)
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            if what == "write()":
                lines.append(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, "".join([*lines, out]), error


@pytest.mark.parametrize(
    "what",
    [
        "swallow()",
        "wait_for_a_thread()",
        "stay_in_compiled_code()",
        "sleep_until_interrupted()",
        "swallow_after_an_event_loop()",
    ],
)
def test_regression_an_interruption_is_heard_whatever_the_command_is_in(what: str) -> None:
    """Ctrl-C while numba loaded a kernel left LLVM's lock taken, and the other worker waited for it for ever; in a
    destructor of compiled code it was dropped, and the command went on."""
    assert interrupted(what) == (130, "working\n", "error: interrupted\n")


def test_what_is_unfinished_is_removed() -> None:
    code, out, _ = interrupted("write()")
    assert code == 130
    assert not list(Path().iterdir())
    assert not Path(out.splitlines()[1]).exists()


def test_what_is_unfinished_is_removed_when_nobody_can_be_told() -> None:
    """Ctrl-C ends the reader of a pipe, too, perhaps before us."""
    script = LISTENING + COMMAND.replace("WHAT()", "write()")
    ours, theirs = os.pipe()
    os.close(ours)
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=theirs, text=True) as process:
        os.close(theirs)
        try:
            assert process.stdout is not None
            temporary = [process.stdout.readline() for _ in range(2)][1].strip()
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert not list(Path().iterdir())
    assert not Path(temporary).exists()


def test_an_ignored_interruption_stays_ignored() -> None:
    assert interrupted("time.sleep(1)", IGNORING) == (0, "working\n", "")


def test_the_terminal_gets_its_cursor_back() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", LISTENING + COMMAND.replace("WHAT()", "draw()")]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    shown = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        try:
            while b"drawing" not in shown:
                shown += os.read(ours, 1 << 16)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                while more := os.read(ours, 1 << 16):
                    shown += more
        finally:
            process.kill()
            os.close(ours)
    assert process.returncode == 130
    hidden, last = shown.rindex(b"\x1b[?25l"), shown.rindex(b"\x1b[?25h")
    assert hidden < last
    assert b"interrupted" in shown[last:]
