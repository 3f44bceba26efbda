"""Ctrl-C ends a command at once, whatever it is in the middle of.

Left to itself Python raises KeyboardInterrupt wherever its main thread happens to be: between a library's taking a lock
and its noting so, and then other threads wait for that lock for ever; or in a callback or destructor of compiled code,
where it is dropped and the command goes on. Of a hundred in the first two seconds of a command with two workers, while
kernels are loaded, four ended the first way. So nothing is raised here: a thread waits for the signal, removes what is
unfinished, and leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from .translator import EXIT_INTERRUPTED, LAST_WORD, say


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Context of the main thread in which SIGINT ends the process."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in a shell's background
        yield
        return
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    leaver = threading.Thread(target=_wait_and_leave, args=(heard,), daemon=True)
    told = False

    def pass_on(number: int, _frame: object) -> None:
        nonlocal told
        told = True
        os.write(tell, bytes([number]))

    # told twice: by the descriptor, while the main thread is in compiled code and runs no handler; and by the handler,
    # where a user's event loop has taken the descriptor away
    signal.signal(signal.SIGINT, pass_on)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    leaver.start()
    try:
        yield
    finally:
        if told:  # the end of the command, or an error that comes of leaving, is not how the process ends any more
            leaver.join()


def _wait_and_leave(heard: int) -> NoReturn:
    """Leave at SIGINT without the interpreter's own end, which would wait for threads that are at work."""
    while os.read(heard, 1) != bytes([signal.SIGINT]):  # a user's handler of another signal
        pass
    try:
        LAST_WORD.acquire()  # what the main thread says of files that vanish under it is nobody's concern
        from paramcompress.scratch import forsake

        from .terminal import clear_progress

        forsake()  # first, for there may be nobody left to be told
        clear_progress()
        say("error", "interrupted", "bold red")
    finally:
        os._exit(EXIT_INTERRUPTED)
