"""Full reads in key ranges: several lanes, the same rows, whatever the number and the crashes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import (
    Batch,
    ConfigError,
    DeadLetter,
    Limits,
    Pipeline,
    Position,
    Retry,
    Stream,
    merge,
    stage,
)
from etl.connector import CheckpointKey, Reader, RunInfo
from etl.errors import FencedError, PipelineFailedError, TransientError
from etl.flow import Flow, GeneratorReader
from etl.rows import shape_of
from etl.testing import MemorySink, MemorySource, MemoryTarget
from tests.unit.test_fan_out import Backwards

ROWS = list(range(40))
ONE_TRY = Retry(attempts=1)


def small(lanes: int, **more: Any) -> Limits:
    """Key ranges of four rows, groups of one batch."""
    return Limits(batch_rows=1, group_rows=1, channel_batches=1, lanes=lanes, **more)


class Table(Backwards):
    """Full reads; remembers from which lanes it was read, and how it was cut."""

    def __init__(self, rows: Sequence[int] = ROWS, **options: Any) -> None:
        super().__init__(rows, incremental=False, **{"batch_rows": 1, **options})
        self.reads: list[tuple[Position | None, Position | None]] = []
        self.cuts: list[int] = []
        self.at_once = self.most_at_once = 0

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        self.reads.append((after, until))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async for batch in super().read(after, until):
                yield batch
        finally:
            self.at_once -= 1

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        size = len(self.rows)
        found = await super().chunks(most=most, least_rows=least_rows)
        self.cuts.append(len(found))
        return [(size - at[0],) for at in found]


def pipeline(flow: Flow, lanes: int, **more: Any) -> Pipeline:
    return Pipeline("t", flow, limits=small(lanes, **more), retry=ONE_TRY)


def partitions(sink: MemorySink[Any]) -> list[str]:
    return sorted(key.partition for key in sink.memory.checkpoints)


async def test_key_ranges_are_read_at_once_and_become_one_checkpoint_at_the_end() -> None:
    sink, source = MemorySink[int](yields_per_write=3), Table()
    report = await pipeline(source.into(sink), 3).run()
    assert sorted(sink.rows) == ROWS
    assert source.cuts == [10]
    assert source.most_at_once == 3
    assert report.rows_written == 40
    ((key, found),) = sink.memory.checkpoints.items()
    assert key.partition == "main"
    assert (found.position, found.complete, found.rows) == ((0,), True, 40)


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("lanes", [1, 2, 4])
async def test_a_rerun_reads_the_saved_key_ranges_with_any_number_of_lanes(
    lanes: int, mode: str
) -> None:
    sink, source = MemorySink[int](mode=mode, fail_on_write=15), Table()
    with pytest.raises(PipelineFailedError):
        await pipeline(source.into(sink), 3).run()
    assert partitions(sink) == ["main", *(f"main/{n:02}" for n in range(1, 11))]
    sink.heal()
    again = Table()
    report = await pipeline(again.into(sink), lanes).run()
    assert again.cuts == []
    assert report.rows_read < 40
    assert sorted(sink.rows) == ROWS
    assert partitions(sink) == ["main"]


async def test_a_few_batches_are_not_cut() -> None:
    sink, source = MemorySink[int](), Table(ROWS[:7])
    await pipeline(source.into(sink), 4).run()
    assert source.reads == [(None, None)]
    assert sink.rows == ROWS[:7]


async def test_a_read_that_was_left_off_in_one_piece_goes_on_in_one_piece() -> None:
    sink = MemorySink[int](fail_on_write=5)
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(sink), 1).run()
    sink.heal()
    source = Table()
    report = await pipeline(source.into(sink), 4).run()
    assert source.reads == [((36,), None)]
    assert sink.rows == ROWS
    assert "in one piece" in report.flows[0].notes[0]


async def test_reading_everything_anew_cuts_anew_and_forgets_the_old_ranges() -> None:
    """A range of an abandoned cut must not be taken for progress of the new one."""
    sink = MemorySink[int](mode="replace", fail_on_write=15)
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(sink), 4).run()
    sink.memory.writes, sink.memory.fail_on_write = 0, 3
    longer = list(range(60))
    with pytest.raises(PipelineFailedError):
        await pipeline(Table(longer).into(sink), 2).run(full=True)
    sink.heal()
    await pipeline(Table(longer).into(sink), 2).run()
    assert sorted(sink.rows) == longer


async def test_progress_of_an_abandoned_cut_is_none_of_the_new_one() -> None:
    sink = MemorySink[int](fail_on_write=15)
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(sink), 4).run()
    before = list(sink.rows)
    sink.memory.writes, sink.memory.fail_on_write = 0, 1
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(sink), 4).run(full=True)
    sink.heal()
    await pipeline(Table().into(sink), 2).run()
    assert sorted(sink.rows) == sorted([*before, *ROWS])


async def test_every_range_is_fenced_by_a_take_over() -> None:
    """Also the ranges of a cut that was made anew: their rows begin with the epoch of the whole."""
    sink = MemorySink[int](yields_per_write=2)
    first = await pipeline(Table().into(sink), 2).start()
    while len(sink.rows) < 10:
        await asyncio.sleep(0)
    other = pipeline(Table().into(sink), 4)
    second = await other.start()
    with pytest.raises(PipelineFailedError) as failed:
        await first.wait()
    assert any(isinstance(error, FencedError) for error in failed.value.errors)
    await second.wait()
    assert sorted(sink.rows) == ROWS


async def test_a_drain_stops_all_lanes_and_the_next_run_is_exact() -> None:
    sink, source = MemorySink[int](yields_per_write=2), Table()
    run = await pipeline(source.into(sink), 3).start()
    while len(sink.rows) < 10:
        await asyncio.sleep(0)
    report = await run.drain()
    assert report.status == "drained"
    assert 10 <= len(sink.rows) < 40
    assert not any(found.complete for found in sink.memory.checkpoints.values())
    await pipeline(Table().into(sink), 2).run()
    assert sorted(sink.rows) == ROWS


async def test_a_failure_of_one_lane_ends_the_others() -> None:
    sink, source = MemorySink[int](fail_on_write=7), Table()
    with pytest.raises(PipelineFailedError) as failed:
        await pipeline(source.into(sink), 4).run()
    assert len(failed.value.errors) == 1
    assert source.at_once == 0
    assert 6 <= len(sink.rows) < 40


async def test_nothing_is_complete_before_the_last_range_is() -> None:
    """Killed after the last range and before their rows become one: nothing is read again."""

    target = MemoryTarget()
    sink = MemorySink[int](target=target)
    target.doubt_on_commit, target.doubt_is_in = 41, False
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(sink), 4).run()
    assert sorted(sink.rows) == ROWS
    assert len(target.checkpoints) == 11
    target.doubt_on_commit = None
    source = Table()
    await pipeline(source.into(sink), 2).run()
    assert source.reads == []
    assert sorted(sink.rows) == ROWS
    assert [found.complete for found in target.checkpoints.values()] == [True]


async def test_a_lost_answer_to_the_last_commit_is_settled() -> None:
    sink = MemorySink[int]()
    sink.memory.doubt_on_commit = 41  # where the ranges become one
    retry = Retry(attempts=3, base_s=0.0)
    await Pipeline("t", Table().into(sink), limits=small(4), retry=retry).run()
    assert sorted(sink.rows) == ROWS
    assert partitions(sink) == ["main"]


@dataclass(frozen=True, slots=True)
class Item:
    id: int


class KeyedReader(GeneratorReader[Item]):
    """Has a key, as a table has."""

    shape = shape_of(Item, key=("id",))


class Keyed(MemorySource[Item]):
    def connect(self, info: RunInfo) -> AbstractAsyncContextManager[Reader[Item]]:
        return nullcontext(KeyedReader(self))


@pytest.mark.parametrize("key", ["id", "other"])
async def test_an_upsert_is_parallel_only_by_the_key_of_the_source(key: str) -> None:
    rows = [Item(n) for n in ROWS]
    target = MemoryTarget()
    sink = MemorySink[Any](target=target, mode="upsert", key=(key,))
    source = Keyed(rows, incremental=False)
    if key == "id":
        report = await pipeline(source.into(sink), 4).run()
        assert sorted(item.id for item in sink.rows) == ROWS
        assert "10 key ranges" in report.flows[0].notes[-1]
        return
    run = pipeline(source.into(sink), 4)
    with pytest.raises(PipelineFailedError):  # the rows lack that column
        await run.run()
    assert partitions(sink) == ["main"]


def no_sevens(row: int) -> int:
    if row % 10 == 7:
        raise ValueError("a seven")
    return row


async def test_bad_rows_of_all_lanes_are_kept_once_under_the_whole_flow() -> None:
    sink = MemorySink[int](fail_on_write=9, error=TransientError)
    flow = Table().map(no_sevens).into(sink)

    def with_rejects(lanes: int) -> Pipeline:
        return Pipeline("t", flow, limits=small(lanes), retry=ONE_TRY, on_error=DeadLetter())

    with pytest.raises(PipelineFailedError):
        await with_rejects(4).run()
    sink.heal()
    await with_rejects(2).run()
    assert sorted(sink.rows) == [row for row in ROWS if row % 10 != 7]
    kept = sink.memory.rejects.values()
    assert len(kept) == 4
    assert {one.key.partition for one in kept} == {"main"}


# -- What stays in one lane -----------------------------------------------------------------------


@stage
async def across(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch


@stage(per_partition=True)
async def numbered(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[Any], None]:
    """Numbers the rows of each key range from 0."""
    count = 0
    async for batch in batches:
        yield batch.derive([(row, count + at) for at, row in enumerate(batch.rows)])
        count += len(batch.rows)


def plus_one(row: int) -> int:
    return row + 1


@pytest.mark.parametrize(
    ("stream", "sink", "why"),
    [
        (MemorySource(ROWS), MemorySink[int](), "cursor"),
        (merge(Table(name="a"), Table(name="b")), MemorySink[int](), "merge"),
        (Table().through(across), MemorySink[int](), r"stage across.*per_partition=True"),
        (Table().map(plus_one), MemorySink[int](mode="upsert", key=("id",)), "change the key"),
    ],
)
def test_the_plan_says_why_a_flow_has_one_lane(
    stream: Stream[int], sink: MemorySink[int], why: str
) -> None:
    plan = pipeline(stream.into(sink), 4).plan()
    (flow,) = plan.flows
    assert flow.jobs == 1
    (line,) = [line for line in plan.explain() if line.startswith("  lanes")]
    assert re.search(why, line)


def test_the_plan_counts_the_connections_of_all_lanes_and_divides_the_memory() -> None:
    flow = Table().map(plus_one).into(MemorySink[int](), MemorySink[int]())
    one, four = pipeline(flow, 1).plan(), pipeline(flow, 4).plan()
    assert four.explain()[0].endswith("4 connections for reading, 8 for writing")
    assert four.flows[0].parts == 4 * one.flows[0].parts
    assert any("share its one processor core" in line for line in four.explain())


@pytest.mark.parametrize("lanes", [2, 4])
async def test_a_stage_by_partition_begins_anew_in_each_range(lanes: int) -> None:
    sink, source = MemorySink[Any](), Table()
    await pipeline(source.through(numbered).into(sink), lanes).run()
    size = 40 // source.cuts[0]
    assert sorted(sink.rows) == [(row, row % size) for row in ROWS]


async def test_sinks_in_the_middle_of_different_cuts_are_refused() -> None:
    left, right = MemorySink[int](table="l", fail_on_write=9), MemorySink[int](table="r")
    right.memory.fail_on_write = 9
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(left), 2).run()
    with pytest.raises(PipelineFailedError):
        await pipeline(Table().into(right), 1).run()
    left.heal()
    right.heal()
    with pytest.raises(ConfigError, match="different key ranges"):
        await pipeline(Table().into(left, right), 2).run()


def test_lanes_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="lanes"):
        Limits(lanes=0)


# -- Any history ----------------------------------------------------------------------------------

RUN = st.fixed_dictionaries(
    {
        "sinks": st.sets(st.sampled_from([0, 1, 2]), min_size=1),
        "batch_rows": st.integers(1, 5),
        "lanes": st.integers(1, 4),
        "failing": st.sampled_from([0, 1]),
        "failing_write": st.integers(1, 30),
        "error": st.sampled_from(["write", "doubt, in", "doubt, out"]),
    }
)


@given(
    first=st.integers(2, 4),
    history=st.lists(RUN, max_size=5),
    modes=st.tuples(*[st.sampled_from(["append", "replace"])] * 3),
    staged=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_after_any_crashes_with_any_lanes_sinks_and_batches_each_sink_is_exact(
    first: int, history: list[dict[str, Any]], modes: tuple[str, ...], staged: bool
) -> None:
    asyncio.run(_any_history(first, history, modes, staged))


async def _any_history(
    first: int, history: list[dict[str, Any]], modes: tuple[str, ...], staged: bool
) -> None:
    targets = [MemoryTarget("left"), MemoryTarget("right")]
    sinks = [
        MemorySink[int](target=targets[min(number, 1)], table=table, mode=mode)
        for number, (table, mode) in enumerate(zip("abc", modes, strict=True))
    ]
    runs = [{**run, "lanes": run["lanes"] if at else first} for at, run in enumerate(history)]
    for run in runs:
        for target in targets:
            target.writes = target.commit_calls = 0
            target.fail_on_write = target.doubt_on_commit = None
        target = targets[run["failing"]]
        if run["error"] == "write":
            target.fail_on_write = run["failing_write"]
        else:
            target.doubt_on_commit = run["failing_write"]
            target.doubt_is_in = run["error"] == "doubt, in"
        wanted = [sinks[number] for number in sorted(run["sinks"])]
        stream: Stream[int] = Table(batch_rows=run["batch_rows"]).named("flow")
        if staged:
            stream = stream.map_batches(_same, concurrency=2)
        try:
            await pipeline(stream.into(*wanted), run["lanes"]).run()
        except PipelineFailedError:
            pass
        except ConfigError as error:
            if "different key ranges" not in str(error):
                raise
    for target in targets:
        target.fail_on_write = target.doubt_on_commit = None
    # Each by itself first: where some are in the middle of different cuts, that is the way out.
    for sink in sinks:
        await pipeline(Table(batch_rows=3).named("flow").into(sink), 3).run()
    await pipeline(Table(batch_rows=3).named("flow").into(*sinks), 3).run()
    for sink in sinks:
        assert sorted(sink.rows) == ROWS
    left = [key for target in targets for key in target.checkpoints]
    assert {_partition(key) for key in left} == {"main"}


def _partition(key: CheckpointKey) -> str:
    return key.partition


async def _same(rows: Sequence[int]) -> Sequence[int]:
    return rows
