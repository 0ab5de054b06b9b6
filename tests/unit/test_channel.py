"""The channel: order, bounds, fairness, and an end that is never taken for a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.engine.channel import Channel, EndOfChannelError
from etl.errors import ChannelBrokenError

T = TypeVar("T")


def channel_of(*, items: int = 2, nbytes: int = 1000, producers: int = 1) -> Channel[Any]:
    return Channel("test", max_items=items, max_bytes=nbytes, producers=producers)


async def turns(count: int = 5) -> None:
    """Let everything run that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def task_of(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.create_task(work)


async def all_of(channel: Channel[T]) -> list[T]:
    return [item async for item in channel.drain_items()]


async def test_items_come_out_in_the_order_of_put() -> None:
    channel = channel_of(items=3)
    for number in range(3):
        await channel.put(number, 1)
    channel.close()
    assert await all_of(channel) == [0, 1, 2]


async def test_put_waits_while_the_items_are_at_their_bound() -> None:
    channel = channel_of(items=1)
    await channel.put("a", 1)
    waiting = task_of(channel.put("b", 1))
    await turns()
    assert not waiting.done()
    assert len(channel) == 1
    assert await channel.get() == "a"
    await waiting
    assert await channel.get() == "b"


async def test_put_waits_while_the_bytes_are_at_their_bound() -> None:
    channel = channel_of(items=100, nbytes=10)
    await channel.put("a", 6)
    waiting = task_of(channel.put("b", 5))
    await turns()
    assert not waiting.done()
    assert channel.nbytes == 6
    assert await channel.get() == "a"
    await waiting
    assert channel.nbytes == 5


async def test_an_item_heavier_than_the_bound_goes_through_alone() -> None:
    channel = channel_of(items=100, nbytes=10)
    heavy = task_of(channel.put("heavy", 50))
    light = task_of(channel.put("light", 1))
    await turns()
    assert not light.done()  # nothing beside it
    assert await channel.get() == "heavy"
    await turns()
    assert not heavy.done()  # it is still in the consumer's hands
    assert not light.done()
    assert channel.put_blocked_since is not None
    assert await channel.get() == "light"
    await asyncio.gather(heavy, light)
    heavy = task_of(channel.put("heavy again", 11))
    assert await channel.get() == "heavy again"
    assert channel.get_nowait() is None  # back for more
    await heavy


@pytest.mark.parametrize("taken", [False, True])
async def test_a_heavy_item_under_way_hears_of_a_failure(taken: bool) -> None:
    channel = channel_of(items=100, nbytes=10)
    heavy = task_of(channel.put("heavy", 50))
    await turns()
    if taken:
        await channel.get()
    channel.fail(ValueError("the lane failed"))
    with pytest.raises(ChannelBrokenError):
        await heavy


async def test_a_late_put_does_not_overtake_a_waiting_one() -> None:
    channel = channel_of(items=10, nbytes=10)
    await channel.put("first", 8)
    heavy = task_of(channel.put("heavy", 8))
    await turns()
    light = task_of(channel.put("light", 1))  # it would fit beside the first
    await turns()
    assert not light.done()
    assert [await channel.get() for _ in range(3)] == ["first", "heavy", "light"]
    await asyncio.gather(heavy, light)


async def test_producers_are_served_in_the_order_in_which_they_asked() -> None:
    channel = channel_of(items=1, producers=3)
    asked: list[tuple[str, int]] = []

    async def produce(name: str) -> None:
        for number in range(20):
            asked.append((name, number))
            await channel.put((name, number), 1)
        channel.close()

    producers = [task_of(produce(name)) for name in "abc"]
    found = await all_of(channel)
    await asyncio.gather(*producers)
    assert found == asked
    assert len(set(found[:12])) == 12  # and nobody runs far ahead
    assert {name for name, _ in found[:8]} == {"a", "b", "c"}


async def test_a_cancelled_put_leaves_nothing_and_lets_the_next_in() -> None:
    channel = channel_of(items=10, nbytes=10)
    await channel.put("first", 8)
    heavy = task_of(channel.put("heavy", 8))
    light = task_of(channel.put("light", 1))
    await turns()
    heavy.cancel()
    await turns()
    assert light.done()  # it fits now that nobody is before it
    channel.close()
    assert await all_of(channel) == ["first", "light"]


async def test_a_cancelled_get_takes_nothing() -> None:
    channel = channel_of()
    waiting = task_of(channel.get())
    await turns()
    waiting.cancel()
    await channel.put("a", 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert channel.get_nowait() == "a"


async def test_a_get_cancelled_after_it_was_woken_wakes_the_next() -> None:
    channel = channel_of()
    first, second = task_of(channel.get()), task_of(channel.get())
    await turns()
    await channel.put("a", 1)  # wakes the first, which has not run yet
    first.cancel()
    assert await second == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_the_end_comes_after_every_producer_closed_and_all_is_taken() -> None:
    channel = channel_of(producers=2)
    await channel.put("a", 1)
    channel.close()
    assert await channel.get() == "a"
    waiting = task_of(channel.get())
    await turns()
    assert not waiting.done()  # one producer is still open
    channel.close()
    with pytest.raises(EndOfChannelError):
        await waiting
    with pytest.raises(EndOfChannelError):
        await channel.get()


async def test_every_waiting_consumer_hears_of_the_end() -> None:
    channel = channel_of()
    consumers = [task_of(channel.get()) for _ in range(3)]
    await turns()
    channel.close()
    found = await asyncio.gather(*consumers, return_exceptions=True)
    assert [type(one) for one in found] == [EndOfChannelError] * 3


async def test_a_failure_reaches_everybody_and_drops_what_was_held() -> None:
    channel = channel_of(items=1)
    await channel.put("a", 1)
    putting = [task_of(channel.put("b", 1)), task_of(channel.put("c", 1))]
    await turns()
    cause = ValueError("the cause")
    channel.fail(cause)
    channel.fail(ValueError("a later one"))
    found = await asyncio.gather(*putting, return_exceptions=True)
    assert [type(one) for one in found] == [ChannelBrokenError] * 2
    assert len(channel) == 0
    assert channel.nbytes == 0
    with pytest.raises(ChannelBrokenError) as broken:
        await channel.get()
    assert broken.value.__cause__ is cause
    with pytest.raises(ChannelBrokenError):
        await channel.put("d", 1)


async def test_a_failure_wakes_waiting_consumers() -> None:
    channel = channel_of()
    getting = [task_of(channel.get()) for _ in range(2)]
    ready = task_of(channel.wait_ready())
    await turns()
    channel.fail(ValueError())
    found = await asyncio.gather(*getting, return_exceptions=True)
    assert [type(one) for one in found] == [ChannelBrokenError] * 2
    await ready


async def test_a_failure_after_a_clean_close_is_still_a_failure() -> None:
    channel = channel_of()
    await channel.put("a", 1)
    channel.close()
    channel.fail(ValueError())
    with pytest.raises(ChannelBrokenError):
        await channel.get()


async def test_wait_ready_returns_for_an_item_and_takes_nothing() -> None:
    channel = channel_of()
    ready = task_of(channel.wait_ready())
    taking = task_of(channel.get())
    await turns()
    assert not ready.done()
    await channel.put("a", 1)
    await ready
    assert await taking == "a"


async def test_wait_ready_cancelled_after_it_was_woken_passes_the_item_on() -> None:
    channel = channel_of()
    ready = task_of(channel.wait_ready())
    taking = task_of(channel.get())
    await turns()
    await channel.put("a", 1)
    ready.cancel()
    assert await taking == "a"
    await asyncio.wait({ready})


async def test_wait_ready_returns_at_the_end() -> None:
    channel = channel_of()
    ready = task_of(channel.wait_ready())
    await turns()
    channel.close()
    await ready


async def test_what_waits_is_told_with_the_time_since() -> None:
    channel = channel_of(items=1)
    assert channel.put_blocked_since is None
    assert channel.get_blocked_since is None
    getting = task_of(channel.get())
    await turns()
    since = channel.get_blocked_since
    assert since is not None
    assert channel.stats()["get_wait_s"] > 0
    await channel.put("a", 1)
    await getting
    assert channel.get_blocked_since is None
    await channel.put("b", 3)
    putting = task_of(channel.put("c", 1))
    await turns()
    assert channel.put_blocked_since is not None
    stats = channel.stats()
    assert stats["put_wait_s"] > 0
    assert (stats["batches"], stats["nbytes"]) == (1, 3)
    await channel.get()
    await putting
    assert channel.put_blocked_since is None
    assert channel.moved == 2


async def test_a_consumer_that_lost_its_item_to_another_still_counts_as_waiting() -> None:
    channel = channel_of()
    waiting = task_of(channel.get())
    await turns()
    await channel.put("a", 1)
    assert channel.get_nowait() == "a"  # before the woken one could run
    await turns()
    assert channel.get_blocked_since is not None
    waiting.cancel()
    await asyncio.wait({waiting})
    assert channel.get_blocked_since is None


async def test_time_waited_never_runs_backwards() -> None:
    channel = channel_of()
    waiting = task_of(channel.get())
    await turns()
    before = channel.stats()["get_wait_s"]
    channel.close()
    with pytest.raises(EndOfChannelError):
        await waiting
    assert channel.stats()["get_wait_s"] >= before > 0


async def test_put_nowait_takes_what_need_not_wait_and_nothing_else() -> None:
    channel = channel_of(items=2, nbytes=10)
    assert not channel.put_nowait("heavy", 11)  # its put waits for its consumer
    assert channel.put_nowait("a", 1)
    assert channel.put_nowait("b", 1)
    assert not channel.put_nowait("c", 1)
    waiting = task_of(channel.put("c", 1))
    await turns(1)
    assert await channel.get() == "a"
    assert not channel.put_nowait("d", 1)  # "c" was let in
    await waiting
    assert [await channel.get(), await channel.get()] == ["b", "c"]
    channel.fail(RuntimeError("the consumer failed"))
    assert not channel.put_nowait("e", 1)
    with pytest.raises(ChannelBrokenError):
        await channel.put("e", 1)


# -- Against a model ----------------------------------------------------------------------------

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 14)),
        st.tuples(st.just("put now"), st.just(0), st.integers(0, 14)),
        st.tuples(st.just("get"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("nowait"), st.just(0), st.just(0)),
        st.tuples(st.just("ready"), st.just(0), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 10), st.just(0)),
        st.tuples(st.just("turn"), st.integers(1, 3), st.just(0)),
    ),
    max_size=60,
)


class Model:
    """Runs a script on a channel and keeps what a deque would hold."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.channel: Channel[int] = Channel(
            "model", max_items=max_items, max_bytes=max_bytes, producers=1
        )
        self.asked: list[int] = []  # items in the order of the calls of put
        self.certain: set[int] = set()  # their put returned
        self.taken: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.peak_items = 0
        self.weights: dict[int, int] = {}

    async def put(self, item: int, weight: int) -> None:
        self.asked.append(item)
        self.weights[item] = weight
        await self.channel.put(item, weight)
        self.certain.add(item)

    async def get(self) -> None:
        self.taken.append(await self.channel.get())

    def check_bounds(self) -> None:
        held = len(self.channel)
        assert held <= self.channel.max_items
        assert held <= 1 or self.channel.nbytes <= self.channel.max_bytes

    async def run(self, script: list[tuple[str, int, int]]) -> None:
        number = 0
        for what, which, weight in script:
            if what == "put":
                number += 1
                self.tasks.append(task_of(self.put(number, weight)))
            elif what == "put now":
                number += 1
                if self.channel.put_nowait(number, weight):
                    self.asked.append(number)
                    self.certain.add(number)
                    self.weights[number] = weight
            elif what == "get":
                self.tasks.append(task_of(self.get()))
            elif what == "nowait":
                item = self.channel.get_nowait()
                if item is not None:
                    self.taken.append(item)
            elif what == "ready":
                self.tasks.append(task_of(self.channel.wait_ready()))
            elif what == "cancel" and self.tasks:
                self.tasks[which % len(self.tasks)].cancel()
            elif what == "turn":
                await turns(which)
            self.check_bounds()

    async def end(self) -> None:
        """Take all that is left, then close."""
        while not all(task.done() for task in self.tasks) or len(self.channel):
            item = self.channel.get_nowait()
            if item is not None:
                self.taken.append(item)
            elif self.channel.put_blocked_since is None:
                break  # nobody puts any more
            self.check_bounds()
            await turns(2)
        self.channel.close()
        found = await asyncio.gather(*self.tasks, return_exceptions=True)
        allowed = (asyncio.CancelledError, EndOfChannelError)
        assert [one for one in found if one is not None and not isinstance(one, allowed)] == []


@settings(max_examples=200, deadline=None)
@given(script=_STEPS, max_items=st.integers(1, 4), max_bytes=st.integers(1, 20))
def test_any_interleaving_loses_nothing_and_keeps_order(
    script: list[tuple[str, int, int]], max_items: int, max_bytes: int
) -> None:
    async def check() -> None:
        model = Model(max_items, max_bytes)
        await model.run(script)
        await turns(6)
        await model.end()
        # Each item at most once; every put that returned is there; the order is that of put.
        assert len(set(model.taken)) == len(model.taken)
        assert model.certain <= set(model.taken)
        assert model.taken == [item for item in model.asked if item in set(model.taken)]
        assert model.channel.nbytes == 0
        assert model.channel.moved == len(model.taken)

    asyncio.run(check())


@settings(max_examples=50, deadline=None)
@given(
    producers=st.integers(1, 4),
    consumers=st.integers(1, 4),
    counts=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    weights=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    max_items=st.integers(1, 5),
    kills=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), max_size=12),
)
def test_many_producers_and_cancelled_consumers_lose_and_repeat_nothing(
    producers: int,
    consumers: int,
    counts: list[int],
    weights: list[int],
    max_items: int,
    kills: list[tuple[int, int]],
) -> None:
    async def check() -> None:
        channel = channel_of(items=max_items, nbytes=20, producers=producers)
        taken: list[tuple[int, int]] = []

        async def produce(who: int) -> None:
            for number in range(counts[who]):
                await channel.put((who, number), weights[number % len(weights)])
                if number % 3 == who % 3:
                    await asyncio.sleep(0)
            channel.close()

        async def consume() -> None:
            while True:
                try:
                    taken.append(await channel.get())
                except EndOfChannelError:
                    return

        makers = [task_of(produce(who)) for who in range(producers)]
        takers = [task_of(consume()) for _ in range(consumers)]
        for which, wait in kills:
            await turns(wait % 7)
            takers[which % consumers].cancel()
            takers[which % consumers] = task_of(consume())
        await asyncio.gather(*makers)
        await asyncio.wait(takers)
        expected = {(who, n) for who in range(producers) for n in range(counts[who])}
        assert set(taken) == expected
        assert len(taken) == len(expected)
        for who in range(producers):
            own = [n for maker, n in taken if maker == who]
            assert consumers > 1 or own == sorted(own)

    asyncio.run(check())
