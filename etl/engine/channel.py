"""The bounded queue between two nodes of a flow.

Why not ``asyncio.Queue``: it has no byte bound, no clean end apart from a failure (3.13 has
``shutdown``, which a consumer cannot tell from an end), a late ``put`` overtakes a waiting one,
and it does not say for how long its ends have waited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from etl.errors import ChannelBrokenError
from etl.events import ChannelStats

T = TypeVar("T")


class EndOfChannelError(Exception):
    """Every producer has closed and the channel is empty: a clean end, not a failure."""


@dataclass(slots=True, eq=False)  # not frozen, which would take thrice as long to make
class _Putter(Generic[T]):
    turn: asyncio.Future[None]
    item: T
    weight: int
    since: float
    accepted: Callable[[], None] | None


class Channel(Generic[T]):
    """First in, first out; bounded by items and by bytes; several producers and consumers.

    Invariants: an item is given out exactly once, in the order in which ``put`` was called; a
    cancelled ``get`` takes nothing; ``get`` raises ``EndOfChannelError`` only after each producer
    closed cleanly.

    A heavy item, of more than ``heavy_bytes``, is alone: its ``put`` returns, and another item is
    let in, only when the consumer comes back for more. So of rows that are large for the memory
    limit, one is in the channel or in the consumer's hands, and none is read behind it.
    """

    def __init__(
        self,
        name: str,
        *,
        max_items: int,
        max_bytes: int,
        producers: int = 1,
        heavy_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.heavy_bytes = max_bytes if heavy_bytes is None else heavy_bytes
        self.nbytes = 0
        self.moved = 0
        self._put_wait_s = 0.0
        self._get_wait_s = 0.0
        self._open = producers
        self._error: BaseException | None = None
        self._items: deque[tuple[T, int]] = deque()  # each with its weight
        self._putters: deque[_Putter[T]] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._get_since: float | None = None
        self._heavy: asyncio.Future[None] | None = None  # its consumer has not come back yet
        self._is_heavy_out = False
        self._heavy_since = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def is_heavy(self, weight: int) -> bool:
        """Whether an item of this weight goes through alone."""
        return weight > self.heavy_bytes

    def _fits(self, weight: int) -> bool:
        # An empty channel takes anything, or an item heavier than the bound would wait for ever.
        if not self._items:
            return not self._is_heavy_out
        return len(self._items) < self.max_items and self.nbytes + weight <= self.max_bytes

    def put_nowait(self, item: T, weight: int) -> bool:
        """Add an item that need not wait, now or behind it; False: it is for ``put``."""
        nbytes = self.nbytes + weight
        # What _fits and _append do, written out: this is most of a hand-over of small batches.
        if (
            weight > self.heavy_bytes
            or nbytes > self.max_bytes
            or len(self._items) >= self.max_items
            or self._putters
            or self._is_heavy_out
            or self._error is not None
        ):
            return False
        self._items.append((item, weight))
        self.nbytes = nbytes
        if self._getters:
            self._wake_getter()
        return True

    async def put(self, item: T, weight: int, accepted: Callable[[], None] | None = None) -> None:
        """Add an item of ``weight`` bytes; wait while the channel is full.

        Args:
            accepted: Called at the moment at which the item is in. A ``put`` that is cancelled
                may have been accepted just before.

        Raises:
            ChannelBrokenError: The channel failed.
        """
        if self._error is not None:
            raise self._broken() from self._error
        if not self._putters and self._fits(weight):
            self._append(item, weight)
            if accepted is not None:
                accepted()
            if weight > self.heavy_bytes:
                await self._consumer_is_back()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The getter moves the item in, so nobody overtakes, and nobody wakes in vain.
        entry = _Putter(turn, item, weight, monotonic(), accepted)
        self._putters.append(entry)
        try:
            await turn
            if self.is_heavy(weight):
                await self._consumer_is_back()
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # a getter may have passed it over already
                    self._putters.remove(entry)
                self._admit()  # a lighter item behind this one may fit now
            raise

    async def get(self) -> T:
        """Take the next item; wait while there is none.

        Raises:
            EndOfChannelError: The end, after a clean close.
            ChannelBrokenError: The channel failed.
        """
        started: float | None = None
        try:
            while (item := self.get_nowait()) is None:
                if self._error is not None:
                    raise self._broken() from self._error
                if self._open == 0:
                    raise EndOfChannelError
                started = started or monotonic()
                await self._wait_for_item(started)
        finally:
            if started is not None:
                self._get_wait_s += monotonic() - started
        return item

    async def _wait_for_item(self, since: float) -> None:
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._getters.append(wake)
        self._get_since = self._get_since or since
        try:
            await wake
        except asyncio.CancelledError:
            if wake.cancelled():
                with suppress(ValueError):
                    self._getters.remove(wake)
            else:
                self._wake_getter()  # the item was meant for whoever runs
            raise
        finally:
            if not self._getters:
                self._get_since = None

    @property
    def is_ready(self) -> bool:
        """Whether ``get`` would not wait: there is an item, the end, or a failure."""
        return bool(self._items) or self._error is not None or self._open == 0

    async def wait_ready(self) -> None:
        """Return when ``get`` would not wait."""
        self._come_back()
        while not self.is_ready:
            wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(wake)
            try:
                await wake
            finally:
                if wake.cancelled():
                    with suppress(ValueError):
                        self._getters.remove(wake)
                elif wake.done():
                    self._wake_getter()  # it takes nothing itself

    def get_nowait(self) -> T | None:
        """The next item if there is one now, else None."""
        if self._is_heavy_out:
            self._come_back()
        if not self._items:
            return None
        item, weight = self._items.popleft()
        self.nbytes -= weight
        self.moved += 1
        if weight > self.heavy_bytes:
            self._is_heavy_out = True
        if self._putters or self._getters:
            self._let_others_on()
        return item

    def close(self) -> None:
        """One producer has ended cleanly. Call it once per producer, never after an error."""
        self._open -= 1
        if self._open == 0:
            while self._getters:
                self._wake_getter()

    def fail(self, error: BaseException) -> None:
        """Everybody at this channel gets ``ChannelBrokenError``; what it held is dropped."""
        if self._error is not None:
            return
        self._error = error
        self._items.clear()
        self.nbytes = 0
        while self._putters:
            turn = self._putters.popleft().turn
            if not turn.done():
                turn.set_exception(self._broken())
                turn.exception()  # its waiter may be cancelled before it looks
        while self._getters:
            self._wake_getter()
        self._is_heavy_out = True
        self._come_back()

    def stats(self) -> ChannelStats:
        """How full it is, and how long its ends have waited so far."""
        now = monotonic()
        put_wait = self._put_wait_s + (now - self._putters[0].since if self._putters else 0.0)
        get_wait = self._get_wait_s + (now - self._get_since if self._get_since else 0.0)
        return ChannelStats(
            name=self.name,
            batches=len(self._items),
            capacity_batches=self.max_items,
            nbytes=self.nbytes,
            capacity_nbytes=self.max_bytes,
            put_wait_s=put_wait,
            get_wait_s=get_wait,
        )

    @property
    def put_blocked_since(self) -> float | None:
        """Monotonic time since which the first producer waits, or None."""
        if self._heavy is not None:
            return self._heavy_since
        return self._putters[0].since if self._putters else None

    @property
    def get_blocked_since(self) -> float | None:
        """Monotonic time since which a consumer waits, or None."""
        return self._get_since

    async def drain_items(self) -> AsyncGenerator[T, None]:
        """The items up to the clean end."""
        while True:
            try:
                item = await self.get()
            except EndOfChannelError:
                return
            yield item
            del item  # not to be held while the next one is waited for

    async def _consumer_is_back(self) -> None:
        """After a heavy item was let in: wait until its consumer comes for the next one.

        Raises:
            ChannelBrokenError: The channel failed meanwhile.
        """
        if self._heavy is not None:
            since = monotonic()
            try:
                await self._heavy
            finally:
                self._put_wait_s += monotonic() - since
        if self._error is not None:
            raise self._broken() from self._error

    def _come_back(self) -> None:
        if self._is_heavy_out:
            self._is_heavy_out = False
            heavy, self._heavy = self._heavy, None
            if heavy is not None and not heavy.done():
                heavy.set_result(None)
            self._admit()

    def _append(self, item: T, weight: int) -> None:
        if weight > self.heavy_bytes:
            self._heavy = asyncio.get_running_loop().create_future()
            self._heavy_since = monotonic()
        self._items.append((item, weight))
        self.nbytes += weight
        if self._getters:
            self._wake_getter()

    def _let_others_on(self) -> None:
        """An item was taken, and somebody waits: for its place, or for an item."""
        if self._getters:
            self._come_back()  # another consumer is there for the next one
        self._admit()
        if self._items:
            self._wake_getter()

    def _admit(self) -> None:
        while self._putters and self._fits(self._putters[0].weight):
            one = self._putters.popleft()
            if one.turn.done():
                continue  # cancelled while it waited
            self._put_wait_s += monotonic() - one.since
            self._append(one.item, one.weight)
            if one.accepted is not None:
                one.accepted()
            one.turn.set_result(None)

    def _wake_getter(self) -> None:
        while self._getters:
            wake = self._getters.popleft()
            if not wake.done():
                wake.set_result(None)
                return

    def _broken(self) -> ChannelBrokenError:
        return ChannelBrokenError(f"channel {self.name!r} failed: the other side has stopped")
