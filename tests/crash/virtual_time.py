"""An event loop whose time passes at once, and that runs what is ready in an order of its own.

Nothing waits: where no callback is ready, the clock jumps to the next timer. Callbacks that are
ready at the same time run in an order drawn from a seed, so that a schedule that fails can be run
again. After FoundationDB's simulation; it uses two attributes of asyncio's own loop that are
private, so it stays with the tests. Connectors in memory only: it never waits for a socket.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TURNS = 1_000_000
"""So many turns of the loop are no test any more, but something that goes on for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.turns = 0
        self._now = 0.0
        self._random = random.Random(seed)
        self._ready: deque[Any]
        self._scheduled: list[Any]

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        self.turns += 1
        assert self.turns < TURNS, "the schedule does not end"
        if not self._ready:
            assert self._scheduled, "a deadlock: nothing is ready, and no timer is set"
            self._now = max(self._now, self._scheduled[0].when())
        ready = list(self._ready)
        self._random.shuffle(ready)
        self._ready.clear()
        self._ready.extend(ready)
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, T], seed: int) -> tuple[T, float]:
    """Run a coroutine to its end; its result, and the seconds that it thinks went by."""
    loop = VirtualLoop(seed)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main), loop.time()
