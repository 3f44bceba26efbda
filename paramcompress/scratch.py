"""Where an output is made before it is put in its place: beside it, so that putting it there is one rename.

Knows nothing of what is written. A scratch file or folder is locked as long as its process lives, whatever the number
of that process in whichever container: so a later run tells what a killed one has left from what another still makes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

_EXCHANGE, _AT_CWD = 2, -100
"""Of Linux' renameat2: two paths change places at once."""
_standing: set[Path] = set()
"""What contexts of this process remove when they end."""


class Scratch:
    """Context with a new file or folder at `path`, a neighbour of `target`; what is not published goes at the end.

    Entering removes what killed runs have left for the same target. OSError as the file system raises it.
    """

    def __init__(self, target: Path, *, folder: bool = False) -> None:
        self.target, self.folder = target, folder
        self.path: Path
        self._lock: int
        self._flushed: Future[None] | None = None

    def __enter__(self) -> Self:
        sweep(self.target)
        for number in itertools.count(threading.get_ident()):
            self.path = self.target.with_name(f".{self.target.name}.{os.getpid()}-{number}.partial")
            with contextlib.suppress(FileExistsError):
                if self.folder:
                    self.path.mkdir()
                else:
                    os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                lock = _locked(self.path)
                if lock is not None:
                    self._lock = lock
                    _standing.add(self.path)
                    return self
        raise AssertionError("numbers do not end")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.path)
        _standing.discard(self.path)
        os.close(self._lock)

    def start_flushing(self) -> None:
        """Begin to flush a file that is complete, while it is looked at; `publish` waits until that is done."""
        self._flushed = Future()
        threading.Thread(target=self._flush_into, args=(self._flushed,)).start()

    def _flush_into(self, done: Future[None]) -> None:
        try:
            _flush(self.path)
        except OSError as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def publish(self) -> None:
        """Flush all of it to the disk and put it in its place at once; what was there is gone."""
        if self._flushed is not None:
            self._flushed.result()
        else:
            for file in sorted(self.path.iterdir()) if self.folder else [self.path]:
                _flush(file)
        if self.folder:
            _flush(self.path)
            _exchange_or_rename(self.path, self.target)
        else:
            self.path.replace(self.target)
        with contextlib.suppress(OSError):  # not every file system lets a folder be flushed
            _flush(self.target.parent)


def why_not(target: Path) -> str | None:
    """Why nothing can be put in a place whatever stands there; None where nothing speaks against it.

    A rename would replace a link to a device or a pipe, /dev/stdout say, by a file.
    """
    if target.name == "-":
        return "is a file of that name, and not the standard output, to which no file is written"
    folder = f"{os.path.realpath(target.parent)}/"
    if folder.startswith(("/dev/", "/proc/", "/sys/")) and not folder.startswith("/dev/shm/"):
        return "is no place for files"
    return None


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder where the system has its temporary ones; all of it goes at the end."""
    with tempfile.TemporaryDirectory() as name:
        _standing.add(Path(name))
        try:
            yield Path(name)
        finally:
            _standing.discard(Path(name))


def forsake() -> None:
    """Remove what the contexts of this process would remove at their ends, which it does not wait for."""
    for path in tuple(_standing):
        _remove(path)


def sweep(target: Path) -> None:
    """Remove what killed runs have left beside `target`: scratch files and folders that nobody holds a lock on."""
    begins = f".{target.name}."
    for leftover in target.parent.iterdir():
        name = leftover.name
        if not (name.startswith(begins) and re.fullmatch(r"\d+-\d+\.partial", name[len(begins) :])):
            continue
        with contextlib.suppress(OSError):  # of another user, perhaps: it may stay
            lock = _locked(leftover)
            if lock is not None:
                _remove(leftover)
                os.close(lock)


def _locked(path: Path) -> int | None:
    """Descriptor that holds the lock on what is at `path`; None where another process has it, or has removed that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks: nobody sweeps there, so nothing is lost
        return descriptor
    os.close(descriptor)
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange_or_rename(folder: Path, target: Path) -> None:
    """Put a folder in its place; one that is there takes the place of the scratch, from where it is removed.

    Where the system cannot exchange two paths, a moment passes in which the old one is set aside and the new one not
    there yet; then both are left by a process that is killed in it.
    """
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        aside = folder.with_suffix(".old")
        target.rename(aside)
        folder.rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the system has exchanged two paths."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and not rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE)
