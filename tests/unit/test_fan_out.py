"""One flow into several databases: a position for each sink, and reads in segments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import Batch, ConfigError, Limits, Pipeline, Position, Retry, Source, merge, stage
from etl.engine.segments import Segment, make_route
from etl.errors import PipelineFailedError
from etl.flow import Flow, Stream
from etl.testing import MemorySink, MemorySource, MemoryTarget

ROWS = list(range(14))
ONE_TRY = Retry(attempts=1)
SMALL = Limits(group_rows=1, channel_batches=1)


class Backwards(MemorySource[int]):
    """Its positions count down, so who compares them in Python is wrong."""

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        size = len(self.rows)
        start = size - int(after[0]) if after else 0
        stop = size - int(until[0]) if until else size
        for at in range(start, stop, self.batch_rows):
            end = min(stop, at + self.batch_rows)
            yield Batch(self.rows[at:end], position=(size - end,))

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        return sorted(positions, reverse=True)


@stage
async def in_threes(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    """Joins three batches, whatever partition they are of."""
    held: list[Batch[int]] = []
    async for batch in batches:
        held.append(batch)
        if len(held) == 3:
            yield Batch.merge(held, [row for one in held for row in one.rows])
            held = []
    if held:
        yield Batch.merge(held, [row for one in held for row in one.rows])


@stage
async def in_halves(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        half = len(batch.rows) // 2
        for piece in batch.split([batch.rows[:half], batch.rows[half:]]):
            yield piece


async def test_each_database_gets_every_row_and_keeps_a_position_of_its_own() -> None:
    left, right = MemorySink[int](), MemorySink[int]()
    report = await Pipeline("t", MemorySource(ROWS).into(left, right)).run()
    assert left.rows == right.rows == ROWS
    assert report.rows_read == 14
    assert report.rows_written == 28
    for sink in (left, right):
        assert [found.position for found in sink.memory.checkpoints.values()] == [(14,)]


@pytest.mark.parametrize("failing_write", range(1, 8))
async def test_after_a_crash_of_one_database_each_goes_on_where_it_stands(
    failing_write: int,
) -> None:
    left, right = MemorySink[int](), MemorySink[int](fail_on_write=failing_write)
    pipeline = Pipeline("t", Backwards(ROWS).into(left, right), limits=SMALL, retry=ONE_TRY)
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    right.heal()
    await pipeline.run()
    assert left.rows == right.rows == ROWS


@pytest.mark.parametrize("shares_target", [True, False])
async def test_a_sink_added_later_gets_what_the_first_has_already(shares_target: bool) -> None:
    first = MemorySink[int](table="first")
    await Pipeline("t", MemorySource(ROWS[:6]).into(first)).run()
    target = first.memory if shares_target else MemoryTarget()
    second = MemorySink[int](target=target, table="second")
    await Pipeline("t", MemorySource(ROWS).into(first, second)).run()
    assert first.rows == second.rows == ROWS


async def test_a_full_read_that_one_sink_has_completely_goes_to_the_other_only() -> None:
    done, late = MemorySink[int](table="done"), MemorySink[int](table="late")
    source = MemorySource(ROWS, incremental=False)
    await Pipeline("t", source.into(done)).run()
    report = await Pipeline("t", source.into(done, late)).run()
    assert done.rows == late.rows == ROWS
    assert "'done' is left out" in report.flows[0].notes[0]
    report = await Pipeline("t", source.into(done, late)).run()
    assert report.flows[0].already_complete
    assert done.rows == late.rows == ROWS


async def test_a_complete_upsert_beside_an_unfinished_one_is_read_anew_and_exact() -> None:
    rows = [{"id": n} for n in ROWS]
    one = MemorySink[dict[str, int]](mode="upsert", key=("id",), table="one")
    two = MemorySink[dict[str, int]](mode="upsert", key=("id",), table="two", fail_on_write=3)
    source = MemorySource(rows, incremental=False)
    await Pipeline("t", source.into(one)).run()
    pipeline = Pipeline("t", source.into(one, two), limits=SMALL)
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    two.heal()
    await pipeline.run()
    assert one.rows == two.rows == rows


class FailsToPublish(MemoryTarget):
    """Refuses to publish, until ``heal``."""

    def __init__(self) -> None:
        super().__init__("stubborn")
        self.is_stubborn = True

    def before_publish(self) -> None:
        if self.is_stubborn:
            raise ConfigError("no")


async def test_replaced_tables_are_put_in_place_in_each_database_by_itself() -> None:
    easy, stubborn = MemoryTarget("easy"), FailsToPublish()
    one = MemorySink[int](target=easy, mode="replace")
    two = MemorySink[int](target=stubborn, mode="replace")
    pipeline = Pipeline("t", MemorySource(ROWS, incremental=False).into(one, two))
    assert "one after the other" in pipeline.plan().explain()[-1]
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    assert (one.rows, two.rows) == (ROWS, [])
    stubborn.is_stubborn = False
    await pipeline.run()
    assert one.rows == two.rows == ROWS


async def test_the_slowest_database_sets_the_pace() -> None:
    """What is read ahead of the slow one is what its channels, its lane and the tasks hold."""
    most = 0

    class Watched(MemorySource[int]):
        async def read(
            self, after: Position | None, until: Position | None
        ) -> AsyncGenerator[Batch[int], None]:
            nonlocal most
            for number, row in enumerate(self.rows):
                most = max(most, number + 1 - len(slow.rows))
                yield Batch([row], position=(number + 1,))

    slow, fast = MemorySink[int](yields_per_write=20), MemorySink[int]()
    source = Watched(list(range(100)))
    await Pipeline("t", source.into(slow, fast), limits=SMALL).run()
    assert len(slow.rows) == 100
    # reading, its channel, the fan-out, the lane's channel, the lane
    assert most <= 6


async def test_a_position_whose_row_is_gone_is_still_where_a_segment_ends() -> None:
    class Shrunk(MemorySource[int]):
        """Its rows are keys; one that is a position was deleted."""

        async def read(
            self, after: Position | None, until: Position | None
        ) -> AsyncGenerator[Batch[int], None]:
            for row in self.rows:
                if (not after or row > after[0]) and (not until or row <= until[0]):
                    yield Batch([row], position=(row,))

    ahead, behind = MemorySink[int](table="ahead"), MemorySink[int](table="behind")
    await Pipeline("t", Shrunk([1, 2, 3]).named("s").into(ahead)).run()
    await Pipeline("t", Shrunk([1, 2, 4]).named("s").into(ahead, behind), limits=SMALL).run()
    assert ahead.rows == [1, 2, 3, 4]
    assert behind.rows == [1, 2, 4]


class Unordered(Source[int]):
    name = "unordered"

    def __init__(self, size: int = 1) -> None:
        self._size = size

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        for at in range(int(after[0]) if after else 0, 12, self._size):
            yield Batch([*range(at, at + self._size)], position=(at + self._size,))


def test_a_source_that_cannot_order_positions_goes_into_one_database() -> None:
    with pytest.raises(ConfigError, match=r"2 databases.*order\(\)"):
        Pipeline("t", Unordered().into(MemorySink[int](), MemorySink[int]()))


async def test_a_source_that_cannot_order_positions_takes_no_sink_later() -> None:
    target = MemoryTarget()
    first = MemorySink[int](target=target, table="first")
    await Pipeline("t", Unordered().into(first)).run()
    second = MemorySink[int](target=target, table="second")
    with pytest.raises(ConfigError, match=r"different positions.*order\(\)"):
        await Pipeline("t", Unordered().into(first, second)).run()


class Overshoots(Unordered):
    """Can order, but does not end where it is asked to."""

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        return sorted(positions)


@pytest.mark.parametrize("size", [1, 2, 4])
async def test_a_source_that_reads_past_the_end_of_a_segment_is_refused(size: int) -> None:
    target = MemoryTarget()
    first = MemorySink[int](target=target, table="first", fail_on_write=4)
    with pytest.raises(PipelineFailedError):
        await Pipeline("t", Overshoots().into(first), limits=SMALL).run()
    first.heal()
    second = MemorySink[int](target=target, table="second")
    with pytest.raises(PipelineFailedError, match="until"):
        await Pipeline("t", Overshoots(size).into(first, second), limits=SMALL).run()
    assert first.rows == [0, 1, 2]


def test_segments_end_at_each_position_and_gather_sinks() -> None:
    route = make_route("main", {0: (5,), 1: None, 2: (9,), 3: (5,)}, [(5,), (9,)])
    assert route.after is None
    assert route.segments == (
        Segment(until=(5,), sinks=frozenset({1})),
        Segment(until=(9,), sinks=frozenset({0, 1, 3})),
        Segment(until=None, sinks=frozenset({0, 1, 2, 3})),
    )
    assert make_route("main", {}, []).segments == ()
    assert make_route("main", {0: (3,)}, [(3,)]).after == (3,)


# -- Any history --------------------------------------------------------------------------------

RUN = st.fixed_dictionaries(
    {
        "sinks": st.sets(st.sampled_from([0, 1, 2]), min_size=1),
        "batch_rows": st.integers(1, 5),
        "group_rows": st.sampled_from([1, 3, 100]),
        "failing": st.sampled_from([0, 1]),
        "failing_write": st.integers(1, 9),
    }
)


def flow_of(
    sinks: Sequence[MemorySink[int]], batch_rows: int, *, merged: bool, kind: str, full: bool
) -> Flow:
    stream: Stream[int] = Backwards(ROWS, batch_rows=batch_rows, name="one", incremental=not full)
    if merged:
        other = [100 + row for row in ROWS]
        both = Backwards(other, batch_rows=batch_rows + 1, name="two", incremental=not full)
        stream = merge(stream, both)
    if kind == "threes":
        stream = stream.through(in_threes)
    elif kind == "halves":
        stream = stream.through(in_halves).through(in_threes)
    return stream.named("flow").into(*sinks)


@given(
    history=st.lists(RUN, max_size=5),
    merged=st.booleans(),
    kind=st.sampled_from(["rows", "threes", "halves"]),
    full=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_after_any_crashes_with_any_sinks_and_batch_sizes_each_sink_is_exact(
    history: list[dict[str, Any]], merged: bool, kind: str, full: bool
) -> None:
    asyncio.run(_any_history(history, merged=merged, kind=kind, full=full))


async def _any_history(
    history: list[dict[str, Any]], *, merged: bool, kind: str, full: bool
) -> None:
    targets = [MemoryTarget("left"), MemoryTarget("right")]
    sinks = [
        MemorySink[int](target=targets[0], table="a"),
        MemorySink[int](target=targets[1], table="b"),
        MemorySink[int](target=targets[1], table="c"),
    ]
    for run in history:
        for target in targets:
            target.writes, target.fail_on_write = 0, None
        targets[run["failing"]].fail_on_write = run["failing_write"]
        wanted = [sinks[number] for number in sorted(run["sinks"])]
        flow = flow_of(wanted, run["batch_rows"], merged=merged, kind=kind, full=full)
        limits = Limits(group_rows=run["group_rows"], channel_batches=1)
        try:
            await Pipeline("t", flow, limits=limits, retry=ONE_TRY).run()
        except PipelineFailedError:
            pass
    for target in targets:
        target.fail_on_write = None
    await Pipeline("t", flow_of(sinks, 3, merged=merged, kind=kind, full=full)).run()
    for sink in sinks:
        assert [row for row in sink.rows if row < 100] == ROWS
        assert [row for row in sink.rows if row >= 100] == [100 + row for row in ROWS if merged]


def test_steps_of_one_session_never_reach_across_databases() -> None:
    """Two databases may hold a table of one name; each keeps its own checkpoint of it."""
    left, right = MemorySink[int](table="same"), MemorySink[int](table="same")
    asyncio.run(Pipeline("t", MemorySource(ROWS).into(left, right)).run())
    assert left.rows == right.rows == ROWS
    assert [len(sink.memory.checkpoints) for sink in (left, right)] == [1, 1]
