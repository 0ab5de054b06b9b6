"""SIGINT and SIGTERM in levels, while a pipeline runs.

First signal: drain, what was read is committed. Second, or the drain's deadline: abort, open
transactions roll back. Third, or an abort that takes too long: the process ends, and the
databases roll back by themselves. Every level leaves a state that the next run continues.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Protocol, TypeAlias

CLOSE_S = 2.0
"""Seconds for closing, after the run has given up what does not stop, before the process ends."""
_SIGN_OF_LIFE_S = 1.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | None"


# A frame outside of these belongs to the user's own functions.
_NOT_USERS = (
    str(Path(__file__).parents[1]),
    sysconfig.get_paths()["stdlib"],
    sysconfig.get_paths()["purelib"],
    "<frozen ",
)


class Stoppable(Protocol):
    """What a signal stops: an ``etl.engine.run.Run``."""

    def request_drain(self, reason: str) -> None: ...
    def request_abort(self, reason: str) -> None: ...


class StopSignals:
    """Handles the signals between ``__enter__`` and ``__exit__``, inside a running event loop.

    The loop's own handlers ask the run to stop. They only get their turn when the loop is free, so
    two things work without it: a Python-level handler counts, and ends the process at the third
    signal even inside a function that blocks; a thread watches the time that is left.

    Args:
        say: Tells a person what happens now.
        drain_s: Seconds that a drain may take; the run itself aborts then.
        abort_grace_s: Seconds after which the run itself leaves behind what does not stop.
        restore: Bytes for the terminal before the process ends at once.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        drain_s: float,
        abort_grace_s: float = 5.0,
        restore: bytes = b"",
    ) -> None:
        self._say = say
        self._drain_s = drain_s
        self._abort_s = abort_grace_s + CLOSE_S
        self._restore = restore
        self.received: signal.Signals | None = None
        """The first signal; None while there was none."""
        self._count = 0  # at the Python level
        self._level = 0  # at the loop
        self._run: Stoppable | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._aborting = False
        self._deadline = 0.0
        self._ended = False
        self._previous: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> StopSignals:
        self._loop = asyncio.get_running_loop()
        self._main_thread = threading.get_ident()
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self._told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._watcher = threading.Thread(target=self._watch, name="etl stop", daemon=True)
        self._watcher.start()
        for number in _SIGNALS:
            # Also where it was ignored (a background job of a script): whoever sends it means it.
            self._loop.add_signal_handler(number, self._on_loop, number)
            # The loop wakes up by a file descriptor; its Python-level handler does nothing.
            signal.signal(number, self._at_once)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            self._loop.remove_signal_handler(number)  # sets Python's default, not the previous one
            # Stopped already: one signal more ends the process, without a KeyboardInterrupt that
            # would come out of whatever is still printed.
            stopped = self.received is not None or previous is None
            signal.signal(number, signal.SIG_DFL if stopped else previous)
        os.close(self._tell)
        self._watcher.join()
        os.close(self._told)

    def starts(self, starting: asyncio.Task[Any]) -> None:
        """A first signal cancels this task while there is no run yet."""
        self._starting = starting

    def runs(self, run: Stoppable) -> None:
        """From now on signals go to the run."""
        self._run, self._starting = run, None
        if self.received is not None:  # it came in the same turn as the start's end
            run.request_drain(self.received.name)

    def aborts(self, why: str) -> None:
        """The run aborts, by a signal or by itself: say so, once, and limit the time it takes."""
        if not self._aborting:
            self._aborting = True
            self._say(f"stopping: {why}; rolling back what is not committed")
            self._note(b"2")

    @property
    def exit_code(self) -> int:
        """128 and the number of the first signal."""
        return 128 + (self.received or signal.SIGINT)

    def _at_once(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self.received = signal.Signals(number)
            self._note(b"1")
        elif self._count == 2:
            self._note(b"2")
        else:
            self._end("stopped at once; the databases roll back")

    def _on_loop(self, number: signal.Signals) -> None:
        self._level += 1
        if self._run is None:
            if self._level == 1 and self._starting is not None:
                self._say("stopping: nothing was read yet")
                self._starting.cancel()
                self._note(b"2")
        elif self._level == 1:
            again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
            self._say(f"stopping: finishing what was read; {again} rolls back")
            self._run.request_drain(number.name)
        elif self._level == 2:
            self.aborts("second signal")
            self._run.request_abort(f"second signal, {number.name}")

    def _note(self, level: bytes) -> None:
        try:
            os.write(self._tell, level)
        except OSError:  # the run has just ended
            pass

    def _watch(self) -> None:
        """In a thread: end the process when stopping takes longer than it may."""
        if not self._hears(None):
            return
        # Without a sign of life, whoever pressed Ctrl-C would press it again, and again.
        if not self._hears(_SIGN_OF_LIFE_S) and self._level == 0:
            self._write(f"stopping: waiting for {self._left_over()}\n")
        while self._hears(max(0.0, self._deadline - monotonic())):
            pass
        if not self._ended:
            self._end(f"stopped at once, without waiting longer for {self._left_over()}")

    def _hears(self, seconds: float | None) -> bool:
        """Wait that long for a level, and set the deadline; False: nothing came, or all ended."""
        if self._ended or not select.select([self._told], [], [], seconds)[0]:
            return False
        told = os.read(self._told, 16)
        self._ended = not told  # __exit__ closed it: everything has stopped
        if b"2" in told:
            self._deadline = monotonic() + self._abort_s
        elif told:
            self._deadline = monotonic() + self._drain_s + self._abort_s
        return not self._ended

    def _left_over(self) -> str:
        """What did not stop: the function that holds up the event loop, else tasks."""
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  it has no public name
        frame = frames.get(self._main_thread)
        while frame is not None and frame.f_code.co_filename.startswith(_NOT_USERS):
            frame = frame.f_back
        if frame is not None:
            code = frame.f_code
            return (
                f"{code.co_name}() in {code.co_filename}:{frame.f_lineno},"
                " which holds up the event loop"
            )
        try:
            names = sorted({task.get_name() for task in asyncio.all_tasks(self._loop)})
        except RuntimeError:  # they changed meanwhile
            names = []
        busy = [name.removeprefix("etl:") for name in names if name.startswith("etl:")]
        return ", ".join(busy) or "the start of the run"

    def _end(self, why: str) -> None:
        self._write(f"{why}; the next run goes on from what is committed\n", self._restore)
        os._exit(self.exit_code)

    def _write(self, text: str, before: bytes = b"") -> None:
        """Straight to stderr: the thread that owns Python's stream may be the one that hangs."""
        try:
            os.write(2, before + text.encode(errors="backslashreplace"))
        except OSError:
            pass
