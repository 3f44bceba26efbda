"""Which threads work: those that take one item after another, and those that torch may use. Knows no tensors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
AHEAD_BYTES = 1 << 24
"""Of tensors that may be worked on or wait while an earlier one is not ready."""


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int, n_bytes: Callable[[T], int]) -> Iterator[R]:
    """work(item) of every item, in order, by `workers` threads, of which the caller's is one.

    They run ahead of the oldest result that is not there yet by AHEAD_BYTES of items, and by one for each of them in
    any case: else all would wait for one large layer, between which and the next are only a few small tensors.
    """
    if workers == 1:
        yield from map(work, items)
        return
    line = _Line(work, list(items), workers, n_bytes)
    n_torch_threads = torch.get_num_threads()

    def help_out() -> None:
        torch.set_num_threads(n_torch_threads)  # what OpenMP was told in one thread it does not know in another
        line.help()

    helpers = [threading.Thread(target=help_out) for _ in range(min(workers, len(line.items)) - 1)]
    try:
        for helper in helpers:
            helper.start()
        for at in range(len(line.items)):
            yield line.result(at)
    finally:
        line.end()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()


class _Line(Generic[T, R]):
    """Items that several threads work on. Whoever has nothing to wait for takes the next one, the thread that wants the
    results, too: if it only waited, the others would have to wake it for each of many short items."""

    def __init__(self, work: Callable[[T], R], items: Sequence[T], workers: int, n_bytes: Callable[[T], int]) -> None:
        self.work, self.items, self.workers, self.n_bytes = work, items, workers, n_bytes
        self._changed = threading.Condition()
        self._n_taken = self._n_given = 0
        self._ahead = 0
        """Bytes of the items taken whose results have not been given."""
        self._done: dict[int, tuple[R | None, BaseException | None]] = {}
        self._is_over = False

    def result(self, at: int) -> R:
        """Of the item after the last one asked for; what its work raised is raised here."""
        while True:
            with self._changed:
                if at in self._done:
                    break
                other = self._take()
                if other is None:
                    self._changed.wait()
                    continue
            self._do(other)
        with self._changed:
            found, error = self._done.pop(at)
            self._n_given += 1
            self._ahead -= self.n_bytes(self.items[at])
            self._changed.notify_all()
        if error is not None:
            raise error
        return found  # type: ignore[return-value]

    def help(self) -> None:
        """Work until there is nothing more to take."""
        while True:
            with self._changed:
                at = self._take()
                while at is None and self._n_taken < len(self.items) and not self._is_over:
                    self._changed.wait()
                    at = self._take()
            if at is None or self._is_over:
                return
            self._do(at)

    def end(self) -> None:
        """Nobody takes another item."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _take(self) -> int | None:
        """The next item, if there is one and it is not too far ahead."""
        too_far = self._n_taken - self._n_given > self.workers and self._ahead > AHEAD_BYTES
        if self._n_taken == len(self.items) or too_far:
            return None
        at = self._n_taken
        self._n_taken += 1
        self._ahead += self.n_bytes(self.items[at])
        return at

    def _do(self, at: int) -> None:
        found, raised = None, None
        try:
            found = self.work(self.items[at])
        except BaseException as error:
            raised = error
        with self._changed:
            self._done[at] = found, raised
            self._changed.notify_all()
        if raised is not None and not isinstance(raised, Exception):  # an interruption does not wait for its turn
            raise raised


def one_torch_thread() -> contextlib.AbstractContextManager[None]:
    """Decompositions give other bits with other numbers of threads; layers run side by side instead."""
    return torch_threads(1)


@contextlib.contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """That many threads for torch: one where it decomposes matrices, all where it runs a model."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
