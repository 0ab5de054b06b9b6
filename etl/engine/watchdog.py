"""Says who blocks the event loop, and who holds a run up.

Two things that a person cannot see from outside: a function that blocks the loop (then no
signal, timeout or other flow of the program gets its turn), and a run that moves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from types import FrameType
from typing import Final

from etl.engine.supervise import finish

_log = logging.getLogger("etl")

_BEAT_S: Final = 0.25
_LATE_S: Final = 1.0


class LoopWatchdog:
    """A heartbeat on the loop, and a thread that looks for it.

    When the beat is late, the thread takes the stack of the loop's thread and logs the
    function that blocks it: once for each block, and again each time the wait has doubled.
    """

    def __init__(self, *, late_s: float = _LATE_S) -> None:
        self._late_s = late_s
        self._beat = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._loop_thread = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._loop_thread = threading.get_ident()
        self._on_beat(asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._watch, name="etl:watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; the thread is gone when this returns."""
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _on_beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = monotonic()
        self._timer = loop.call_later(_BEAT_S, self._on_beat, loop)

    def _watch(self) -> None:
        told_at = self._late_s
        while not self._ended.wait(_BEAT_S):
            late_s = monotonic() - self._beat
            if late_s < self._late_s:
                told_at = self._late_s
            elif late_s >= told_at:
                told_at = late_s * 2
                frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
                if frame is not None:
                    _log.warning(
                        "the event loop has been blocked for %.1f s by %s; use map_batches with"
                        " asyncio.to_thread for work that takes long",
                        late_s,
                        blamed(frame),
                    )


def blamed(frame: FrameType) -> str:
    """The function to name for a stack: the innermost one that is neither etl's nor Python's."""
    innermost = _place(frame)
    current: FrameType | None = frame
    while current is not None:
        module = str(current.f_globals.get("__name__", ""))
        top = module.partition(".")[0]
        if top != "etl" and top not in sys.stdlib_module_names:
            return _place(current)
        current = current.f_back
    return innermost


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"


@asynccontextmanager
async def watched(
    *,
    stall_after_s: float,
    progress: Callable[[], int],
    culprits: Callable[[], Awaitable[str]],
    tell: Callable[[str], None],
) -> AsyncGenerator[None, None]:
    """Both watchdogs, for as long as the tasks of a run go on."""
    loop_watchdog = LoopWatchdog()
    stall_watch = StallWatch(after_s=stall_after_s, progress=progress, culprits=culprits, tell=tell)
    loop_watchdog.start()
    stall_watch.start()
    try:
        yield
    finally:
        loop_watchdog.stop()
        await stall_watch.stop()


class StallWatch:
    """Tells when a run has moved nothing for a while, and who is not waiting for a channel.

    Args:
        progress: A figure that grows whenever anything moves.
        culprits: Names the tasks that wait for no channel, and who holds them up.
        tell: Called once for each stall, and again each time it has doubled.
    """

    def __init__(
        self,
        *,
        after_s: float,
        progress: Callable[[], int],
        culprits: Callable[[], Awaitable[str]],
        tell: Callable[[str], None],
    ) -> None:
        self._after_s = after_s
        self._progress = progress
        self._culprits = culprits
        self._tell = tell
        self._last = -1
        self._since = monotonic()
        self._told_at = after_s
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._look(asyncio.get_running_loop())

    async def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await finish(asyncio.wait({self._asking}))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = monotonic()
        progress = self._progress()
        if progress != self._last:
            self._last, self._since, self._told_at = progress, now, self._after_s
        elif now - self._since >= self._told_at:
            self._told_at = 2 * (now - self._since)
            if self._asking is None or self._asking.done():
                self._asking = loop.create_task(self._ask(), name="etl:stall watch")
        self._timer = loop.call_later(max(0.05, self._after_s / 4), self._look, loop)

    async def _ask(self) -> None:
        culprits = await self._culprits()
        self._tell(f"nothing has moved for {monotonic() - self._since:.0f} s: {culprits}")
