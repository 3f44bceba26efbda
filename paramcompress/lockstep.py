"""Two models run over all batches side by side, from one module to the next, so that what comes first can be changed
before what comes after has run. Knows no weights.

Every run of a model over a batch is a thread of its own that stops at each *station* (a module worth a stop) until it
is sent on. Only one of them works at a time, so the order of everything is fixed; each has what it keeps in modules for
itself, and both models draw the same over a batch, if they draw. When all have stopped, the station of
the first of them is dealt with, and those who wait there are sent on: two forward passes in all, however many stations,
for the memory of what all batches have in hand at one place.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from paramcompress.calibration import run
from paramcompress.calls import Args, mapped, noise, noise_of, set_noise
from paramcompress.modules import for_one_run

Meeting = Callable[[str, list[tuple[Args, Args]]], None]
"""Called with a station's module path and, batch by batch, the calls of it in both models."""


class _AbandonedError(BaseException):
    """Raised in a thread that is no longer wanted."""


class _Runner:
    """One model on its way through one batch."""

    def __init__(self, model: nn.Module, batch: Any, number: int) -> None:
        self.model, self.batch, self.number = for_one_run(model), batch, number
        with noise_of(number):
            self.noise = noise()
        self.station: str | None = None
        self.call: Args | None = None
        self.error: BaseException | None = None
        self.done = self.abandoned = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.n_threads = torch.get_num_threads()

    def send_on(self) -> None:
        """Let it run to its next station, or to the end."""
        self.station = self.call = None
        if not self.thread.ident:
            self.thread.start()
        before = noise()
        try:
            set_noise(self.noise)
            self._go.release()
            self._stopped.acquire()
            self.noise = noise()
        finally:
            set_noise(before)
        if self.error is not None:
            raise self.error

    def stop_at(self, station: str, call: Args) -> None:
        """In its own thread: wait until it is sent on."""
        self.station, self.call = station, call
        self._stopped.release()
        self._go.acquire()
        if self.abandoned:
            raise _AbandonedError

    def abandon(self) -> None:
        """End the thread, wherever it waits."""
        if self.thread.ident and not self.done:
            self.abandoned = True
            self._go.release()
            self.thread.join()

    def _work(self) -> None:
        self._go.acquire()
        try:
            if not self.abandoned:
                torch.set_num_threads(self.n_threads)
                with torch.no_grad():
                    run(self.model, self.batch, self.number)
        except _AbandonedError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._stopped.release()


def called_again(model: nn.Module, batch: Any, number: int, paths: Sequence[str]) -> set[str]:
    """Which of these modules a run of a model over a batch calls more than once."""
    counts: Counter[str] = Counter()
    alone = for_one_run(model)
    for path in paths:
        alone.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: counts.update((path,)))
    _run_alone(alone, batch, number)
    return {path for path, count in counts.items() if count > 1}


def calls_of(model: nn.Module, batch: Any, number: int, path: str) -> list[Args]:
    """Every call of a module in a run of a model, which has no stations, over a batch.

    Raises:
        CalibrationError: the model cannot be called with the batch.
    """
    found: list[Args] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(mapped((args, kwargs), lambda one: one.detach().clone()))

    alone = for_one_run(model)
    alone.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
    _run_alone(alone, batch, number)
    return found


def _run_alone(model: nn.Module, batch: Any, number: int) -> None:
    with noise_of(number), torch.no_grad():
        run(model, batch, number)


def run_in_lockstep(
    models: tuple[nn.Module, nn.Module], batches: Sequence[Any], stations: Sequence[str], meet: Meeting
) -> None:
    """Run both models over all batches; at each station, when all are there, `meet` may change what follows.

    Args:
        models: two of one structure, in eval mode.
        stations: paths of modules at whose first call in each run to stop, before it works.
        meet: whatever it changes in a module holds from that very call on. A station that not all batches pass is met
            by those that do; one that only one of the models passes is not met.

    Raises:
        CalibrationError: a model cannot be called with a batch. Whatever `meet` raises.
    """
    before = noise()
    pairs: list[tuple[_Runner, ...]] = []
    runners: list[_Runner] = []
    current: list[_Runner] = []
    handles = []

    def hook(path: str, seen: set[int]) -> Callable[..., None]:
        def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            runner = current[-1]
            if id(runner) not in seen:
                seen.add(id(runner))
                runner.stop_at(path, (args, kwargs))

        return stop

    def advance(some: Sequence[_Runner]) -> None:
        for runner in some:
            current[:] = [runner]
            runner.send_on()

    try:
        for model in models:
            modules = dict(model.named_modules())
            for path in stations:
                handles.append(modules[path].register_forward_pre_hook(hook(path, set()), with_kwargs=True))
        # not before, for each has hooks of its own
        pairs += [tuple(_Runner(model, batch, i) for model in models) for i, batch in enumerate(batches, 1)]
        runners += [one for pair in pairs for one in pair]
        advance(runners)
        while waiting := [one for one in runners if not one.done]:
            station = waiting[0].station
            assert station is not None
            together = [
                (left.call, right.call)
                for left, right in pairs
                if left.station == right.station == station and left.call is not None and right.call is not None
            ]
            if together:
                meet(station, together)
            advance([one for one in waiting if one.station == station])
    finally:
        for handle in handles:
            handle.remove()
        for runner in runners:
            runner.abandon()
        set_noise(before)  # which one that was interrupted has gone on to draw from
