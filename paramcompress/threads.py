"""Which threads work: those that take one item after another, and those that torch may use. Knows no tensors."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
AHEAD_BYTES = 1 << 24
"""Of tensors that may be worked on or wait while an earlier one is not ready."""


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int, n_bytes: Callable[[T], int]) -> Iterator[R]:
    """work(item) of every item, in order, by `workers` threads.

    They run ahead of the oldest result that is not there yet by AHEAD_BYTES of items, and by one for each of them in
    any case: else all would wait for one large layer, between which and the next are only a few small tensors.
    """
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Future[R], int]] = deque()
        ahead = 0
        try:
            for item in items:
                waiting.append((pool.submit(work, item), n_bytes(item)))
                ahead += waiting[-1][1]
                while len(waiting) > workers and ahead > AHEAD_BYTES:
                    future, size = waiting.popleft()
                    ahead -= size
                    yield future.result()
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


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
