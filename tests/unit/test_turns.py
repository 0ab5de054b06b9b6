"""Many flows: so many run at once, in their order, and each after those that it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from etl import Limits, Pipeline
from etl.connector import Sink
from etl.engine.turns import Turns
from etl.errors import ConfigError, DataError, PipelineFailedError, RunAbortedError
from etl.events import FlowEnded
from etl.flow import Flow
from etl.testing.memory import MemorySource, MemoryTarget

ROWS = list(range(7))


class Watched:
    """Makes flows whose functions note how many flows are at work."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.most = 0
        self.began: list[str] = []
        self.hold: asyncio.Event | None = None  # what the flows wait for
        self.target = MemoryTarget()

    def flow(self, name: str, mode: str = "append") -> Flow:
        async def work(rows: Sequence[int]) -> Sequence[int]:
            if name not in self.now:
                self.began.append(name)
            self.now.add(name)
            self.most = max(self.most, len(self.now))
            await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
            return rows

        given: Any = mode
        sink: Sink[Any] = Sink(target=self.target, table=name, mode=given)
        source = MemorySource(ROWS, name=name, incremental=mode == "append")
        return source.map_batches(work).into(sink)

    def ended(self, event: object) -> None:
        if isinstance(event, FlowEnded):
            self.now.discard(event.flow)


def names(count: int) -> list[str]:
    return [f"f{number:02}" for number in range(count)]


@pytest.mark.parametrize("most", [1, 3, 20])
async def test_at_most_so_many_flows_run_at_once_and_all_end(most: int) -> None:
    watched = Watched()
    pipeline = Pipeline("t", *map(watched.flow, names(20)), limits=Limits(flows=most))
    report = await pipeline.run(observers=[watched.ended])
    assert watched.most == most
    assert watched.began == names(20)
    assert report.status == "completed"
    assert watched.target.tables == dict.fromkeys(names(20), ROWS)
    assert (await pipeline.run()).rows_read == 0


def test_the_memory_is_divided_over_the_flows_that_run_at_once() -> None:
    flows = [Watched().flow(name) for name in names(300)]
    few, many = Pipeline("t", *flows[:6]).plan(), Pipeline("t", *flows).plan()
    assert few.share == many.share
    assert list(many.targets.values())[0] == 1  # each has a database of its own here
    assert ": 300 flows, 6 at once in this order, 6 connections for" in many.explain()[0]
    assert ": 6 flows together, 6 connections for" in few.explain()[0]


async def test_a_drain_ends_flows_that_wait_without_reading() -> None:
    watched = Watched()
    watched.hold = asyncio.Event()
    pipeline = Pipeline("t", *map(watched.flow, names(9)), limits=Limits(flows=2))
    run = await pipeline.start()
    while len(watched.began) < 2:
        await asyncio.sleep(0)
    states = [flow["state"] for flow in run.stats()["flows"]]
    assert states == ["running"] * 2 + ["waiting"] * 7
    run.request_drain()
    watched.hold.set()
    report = await run.wait()
    assert report.status == "drained"
    assert watched.began == names(2)
    assert all(not flow.exhausted for flow in report.flows[2:])
    await pipeline.run()
    assert watched.target.tables == dict.fromkeys(names(9), ROWS)


async def test_an_abort_ends_flows_that_wait() -> None:
    watched = Watched()
    watched.hold = asyncio.Event()
    pipeline = Pipeline("t", *map(watched.flow, names(9)), limits=Limits(flows=2))
    run = await pipeline.start()
    while len(watched.began) < 2:
        await asyncio.sleep(0)
    run.request_abort()
    with pytest.raises(RunAbortedError):
        await run.wait()
    watched.hold = None
    await pipeline.run()
    assert watched.target.tables == dict.fromkeys(names(9), ROWS)


@pytest.mark.parametrize("failing", [1, 4, 30])
async def test_a_failure_in_any_turn_ends_the_run_and_a_rerun_is_exact(failing: int) -> None:
    watched = Watched()
    pipeline = Pipeline("t", *map(watched.flow, names(9)), limits=Limits(flows=2))
    watched.target.fail_on_write = failing
    watched.target.error = DataError
    failed = False
    try:
        await pipeline.run()
    except PipelineFailedError:
        failed = True
    assert failed == (watched.target.writes >= failing)
    watched.target.fail_on_write = None
    await pipeline.run()
    assert watched.target.tables == dict.fromkeys(names(9), ROWS)


async def test_a_flow_runs_after_those_that_it_waits_for() -> None:
    watched = Watched()
    first, second, third = map(watched.flow, ("child", "other", "parent"))
    pipeline = Pipeline("t", replace(first, after=("parent",)), second, third)
    assert "flow child, after parent" in pipeline.plan().explain()
    order: list[str] = []

    def ended(event: object) -> None:
        if isinstance(event, FlowEnded):
            order.append(event.flow)

    await pipeline.run(observers=[ended])
    assert order.index("parent") < order.index("child")
    assert watched.began.index("parent") < watched.began.index("child")
    # Also where the parent has nothing to do.
    await pipeline.run()


def test_flows_that_wait_for_each_other_or_for_nobody_are_refused() -> None:
    watched = Watched()
    one, other = map(watched.flow, "ab")
    with pytest.raises(ConfigError, match="in a circle"):
        Pipeline("t", replace(one, after=("b",)), replace(other, after=("a",)))
    with pytest.raises(ConfigError, match="no flow 'c', after which 'a'"):
        Pipeline("t", replace(one, after=("c",)))


async def test_a_flow_that_has_nothing_to_do_keeps_nobody_waiting() -> None:
    turns = Turns({"a": (), "b": ("a",), "c": ()}, most=1)
    turns.ended("a")
    turns.begin()
    await turns.wait("b")
    other = asyncio.create_task(turns.wait("c"))
    await asyncio.sleep(0)
    assert not other.done()
    turns.ended("b")
    turns.begin()
    await other


async def test_each_flow_may_be_published_when_it_has_ended() -> None:
    watched = Watched()
    flows = [watched.flow(name, "replace") for name in names(4)]
    there: list[set[str]] = []

    def ended(event: object) -> None:
        if isinstance(event, FlowEnded):
            there.append({name for name, rows in watched.target.tables.items() if rows})

    pipeline = Pipeline("t", *flows, limits=Limits(flows=1), publish="flow")
    assert "replace when its flow has ended well" in "\n".join(pipeline.plan().explain())
    await pipeline.run(observers=[ended])
    assert there == [set(names(4)[: number + 1]) for number in range(4)]
    assert watched.target.tables == dict.fromkeys(names(4), ROWS)
    await pipeline.run()  # loads all of them anew
    assert watched.target.tables == dict.fromkeys(names(4), ROWS)
