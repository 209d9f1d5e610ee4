"""Where the time of training goes: the loop names what it does, and a `Clock` counts the seconds.

Without a clock, a phase is only a name. With one, a phase ends when the device has computed what
the phase started; and the profiler of JAX shows its name. Phases may be nested: each second belongs
to the innermost one. Seconds in which JAX traces or compiles belong to the compilation, wherever
they are spent.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import jax

# In the order in which they are shown.
SETUP, COMPILATION, USUAL, TRACED = "set-up", "compilation", "steps as usual", "traced steps"
INPUT, STEP, EVALUATION, SAMPLING = "input", "train step", "evaluation", "sampling"
SAVING, OTHER = "saving", "other"
PHASES = SETUP, COMPILATION, USUAL, TRACED, INPUT, STEP, EVALUATION, SAMPLING, SAVING, OTHER
_OF_STEPS = INPUT, STEP, OTHER
_COMPILES = "/jax/core/compile/"  # events of JAX: tracing, lowering and compiling

T = TypeVar("T")
Finished = Callable[[T], T]


class Clock:
    """Seconds of each phase. Together they are all seconds since the clock was made.

    What belongs to no phase is set-up until the first batch is asked for, and "other" from then on.

    Attributes:
      seconds: phase -> its seconds, without those of phases inside it.
      times: phase -> how often it was entered.
      together: phase that has all seconds of steps: of their input, of the device and of the host.
        The host then runs ahead of the device, as it does without a clock. None: each phase has its
        own seconds, and ends when the device is done.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.times = dict.fromkeys(PHASES, 0)
        self.together: str | None = None
        self._inside = [SETUP]
        self._since = time.perf_counter()
        self._compiled: list[tuple[float, float]] = []  # (start, end) after `since`, disjoint

    @contextmanager
    def phase(self, name: str) -> Iterator[Finished[Any]]:
        """See the function `phase`."""
        self._add_up()
        if name == INPUT and self._inside == [SETUP]:
            self._inside = [OTHER]
        self._inside.append(name)
        self.times[name] += 1
        runs_ahead = self.together and name in _OF_STEPS
        try:
            with jax.profiler.TraceAnnotation(name):
                yield _as_it_is if runs_ahead else jax.block_until_ready
        finally:
            self._add_up()
            self._inside.pop()

    def keep_together(self, phase: str | None) -> None:
        """Changes `together`, from now on."""
        self._add_up()
        self.together = phase

    def stop(self) -> None:
        """Counts the seconds up to now."""
        self._add_up()

    def add_compilation(self, seconds: float) -> None:
        """Moves seconds up to now to the compilation; a program may compile others in between."""
        now = time.perf_counter()
        start = max(now - seconds, self._since)
        while self._compiled and self._compiled[-1][0] >= start:
            self._compiled.pop()
        self._compiled.append((start, now))

    def _add_up(self) -> None:
        now, phase = time.perf_counter(), self._inside[-1]
        if self.together and phase in _OF_STEPS:
            phase = self.together
        compiled = sum(end - start for start, end in self._compiled)
        self.seconds[COMPILATION] += compiled
        self.seconds[phase] += now - self._since - compiled
        self._since = now
        self._compiled.clear()


_CLOCK: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextmanager
def timed() -> Iterator[Clock]:
    """Yields a clock that counts the phases of this thread inside the block."""
    _listen()
    clock = Clock()
    token = _CLOCK.set(clock)
    try:
        yield clock
    finally:
        _CLOCK.reset(token)
        clock.stop()


@contextmanager
def phase(name: str) -> Iterator[Finished[Any]]:
    """Names what the block does.

    Args:
      name: one of `PHASES`.

    Yields:
      A function of a tree that returns it, and waits for its arrays if their time is counted here.
    """
    clock = _CLOCK.get()
    if clock is None:
        yield _as_it_is
        return
    with clock.phase(name) as finished:
        yield finished


def in_phase(name: str, items: Iterable[T]) -> Iterator[T]:
    """Yields the items, each of which is made in a phase."""
    iterator, end = iter(items), object()
    while True:
        with phase(name) as finished:
            item: Any = finished(next(iterator, end))
        if item is end:
            return
        yield item


def is_timed() -> bool:
    """Returns whether a clock counts the phases of this thread."""
    return _CLOCK.get() is not None


def _as_it_is(tree: T) -> T:
    return tree


@cache  # once for the process: not all versions of JAX can forget a listener
def _listen() -> None:
    def add(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(_COMPILES) and (clock := _CLOCK.get()):
            clock.add_compilation(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(add)
