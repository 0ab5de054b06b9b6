"""Whole runs on memory connectors: crashes, cancels, drains, aborts, and exact reruns."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import Batch, ConfigError, Limits, Pipeline, Retry, Row, Source, gather, merge, stage
from etl.batch import Position
from etl.connector import Advance, OpenTarget, RunInfo, Session, Sink
from etl.engine.channel import Channel
from etl.engine.nodes import HeavyRows, Pump
from etl.engine.run import Run
from etl.engine.segments import make_route, taking
from etl.errors import (
    DataError,
    EtlError,
    FencedError,
    PipelineFailedError,
    RunAbortedError,
    StageCancelledError,
    StageError,
    TransientError,
)
from etl.events import Committed, Event, Retrying, RunEnded, StateChanged
from etl.flow import Flow, GeneratorReader, Map, Stream
from etl.testing import CountingSource, MemorySink, MemorySource, MemoryTarget
from etl.testing.memory import MemorySession

ROWS = list(range(14))
AT_ONCE = Retry(attempts=3, base_s=0.0)
NEVER_AGAIN = Retry(attempts=1)
IN_AN_HOUR = Retry(attempts=3, base_s=1e9, cap_s=1e9, total_s=1e12)


class Gate:
    """A place where work stops until the test lets it go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.go.wait()


class GatedTarget(MemoryTarget):
    """A memory target whose sessions stop at gates, by the name of the operation."""

    def __init__(self, **gates: Gate) -> None:
        super().__init__()
        self.gates = gates
        self.rollbacks = 0
        self.published = 0
        self.publish_errors: list[Exception] = []
        self.commit_errors: list[Exception] = []
        self.cuttable = True
        self.interrupts = 0
        self.on_interrupt: Callable[[], None] = lambda: None

    def open(self, info: RunInfo, *, sessions: int) -> AbstractAsyncContextManager[OpenTarget]:
        return self._gated(super().open(info, sessions=sessions))

    @asynccontextmanager
    async def _gated(
        self, plain: AbstractAsyncContextManager[OpenTarget]
    ) -> AsyncGenerator[OpenTarget, None]:
        async with plain as opened:
            await self.at("open")
            yield GatedOpen(self, opened)

    async def at(self, name: str) -> None:
        gate = self.gates.get(name)
        if gate is not None:
            await gate()


class GatedOpen:
    def __init__(self, target: GatedTarget, plain: OpenTarget) -> None:
        self._target = target
        self._plain = plain

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        return GatedSession(self._target, sinks)

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        return self._plain.notes

    async def build(self) -> None:
        await self._plain.build()

    async def publish(self, steps: Sequence[Advance]) -> None:
        await self._target.at("publish")
        if self._target.publish_errors:
            raise self._target.publish_errors.pop(0)
        await self._plain.publish(steps)
        self._target.published += 1


class GatedSession(MemorySession):
    def __init__(self, target: GatedTarget, sinks: Sequence[Sink[Any]]) -> None:
        super().__init__(target, sinks)
        self._gated = target
        self.uncancellable = not target.cuttable

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        await self._gated.at("write")
        return await super().write(sink, batches)

    async def commit(self) -> None:
        await self._gated.at("commit")
        if self._gated.commit_errors:
            raise self._gated.commit_errors.pop(0)
        await super().commit()

    async def rollback(self) -> None:
        self._gated.rollbacks += 1
        await super().rollback()

    def interrupt(self) -> None:
        self._gated.interrupts += 1
        self._gated.on_interrupt()


class BlockingSource(MemorySource[int]):
    """Stops for ever after some batches, as a database that does not answer."""

    def __init__(self, rows: Sequence[int], *, after_batches: int, **options: Any) -> None:
        super().__init__(rows, **options)
        self.blocked = asyncio.Event()
        self.closed = False
        self._after_batches: int | None = after_batches

    def heal(self) -> None:
        super().heal()
        self._after_batches = None

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        count = 0
        try:
            async for batch in super().read(after, until):
                if count == self._after_batches:
                    self.blocked.set()
                    await asyncio.Event().wait()
                yield batch
                count += 1
        finally:
            await asyncio.sleep(0)  # as a connection that is closed
            self.closed = True


class Told(list[Event]):
    """An observer that keeps what it was told, and lets a test wait for it."""

    def __call__(self, event: Event) -> None:
        self.append(event)
        self.news.set()

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()

    async def until(self, kind: type[Event]) -> None:
        while not any(isinstance(event, kind) for event in self):
            self.news.clear()
            await self.news.wait()


async def run_of(pipeline: Pipeline, **options: Any) -> Run:
    return await pipeline.start(**options)


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def double(rows: Sequence[int]) -> Sequence[int]:
    await asyncio.sleep(0)
    return [2 * row for row in rows]


async def same(rows: Sequence[int]) -> Sequence[int]:
    await asyncio.sleep(0)
    return rows


@stage
async def odd_only(batches: Any) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch.derive([row for row in batch.rows if row % 2])


@stage
async def in_halves(batches: Any) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        middle = len(batch.rows) // 2
        for piece in batch.split([batch.rows[:middle], batch.rows[middle:]]):
            yield piece


@stage
async def in_pairs(batches: Any) -> AsyncGenerator[Batch[int], None]:
    held: list[Batch[int]] = []
    async for batch in batches:
        held.append(batch)
        if len(held) == 2:
            yield Batch.merge(held, [row for one in held for row in one.rows])
            held = []
    if held:
        yield Batch.merge(held, [row for one in held for row in one.rows])


# -- The ordinary way ---------------------------------------------------------------------------


async def test_a_run_moves_all_rows_in_order_and_reports() -> None:
    sink = MemorySink[int]()
    told = Told()
    report = await Pipeline("t", MemorySource(ROWS).into(sink)).run(observers=[told])
    assert sink.rows == ROWS
    assert report.status == "completed"
    assert (report.rows_read, report.rows_written) == (14, 14)
    assert report.flows[0].exhausted
    assert isinstance(told[-1], RunEnded)
    assert sum(event.rows for event in told if isinstance(event, Committed)) == 14
    assert sink.memory.open_sessions == 0
    assert not others()


async def test_a_second_run_moves_nothing_and_a_grown_source_only_what_is_new() -> None:
    sink = MemorySink[int]()
    source = MemorySource(ROWS[:5])
    pipeline = Pipeline("t", source.into(sink))
    await pipeline.run()
    commits = sink.memory.commits
    assert (await pipeline.run()).rows_read == 0
    assert sink.memory.commits == commits
    source.rows = ROWS
    await pipeline.run()
    assert sink.rows == ROWS


async def test_an_empty_source_completes() -> None:
    sink = MemorySink[int]()
    report = await Pipeline("t", MemorySource[int]([]).into(sink)).run()
    assert report.status == "completed"
    assert sink.rows == []


async def test_a_batch_filtered_to_nothing_still_moves_the_position() -> None:
    sink = MemorySink[int]()
    pipeline = Pipeline("t", MemorySource(ROWS).filter(lambda row: False).into(sink))
    await pipeline.run()
    (checkpoint,) = sink.memory.checkpoints.values()
    assert checkpoint.position == (14,)
    assert (await pipeline.run()).rows_read == 0


async def test_two_sinks_of_a_flow_share_their_transactions() -> None:
    target = MemoryTarget()
    first = MemorySink[int](target=target, table="first")
    second = MemorySink[int](target=target, table="second", fail_on_write=4)
    source = MemorySource(ROWS)
    pipeline = Pipeline("t", source.into(first, second), limits=Limits(group_rows=1))
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    assert first.rows == second.rows == ROWS[:2]  # the failed write was the second of the second
    second.heal()
    await pipeline.run()
    assert first.rows == second.rows == ROWS


async def test_flows_of_a_pipeline_run_together() -> None:
    gates = {name: Gate() for name in "ab"}

    def waits(name: str) -> Callable[[Sequence[int]], Any]:
        async def wait(rows: Sequence[int]) -> Sequence[int]:
            await gates[name]()
            return rows

        return wait

    sinks = [MemorySink[int](), MemorySink[int]()]
    pipeline = Pipeline(
        "t",
        MemorySource(ROWS, name="a").map_batches(waits("a")).into(sinks[0]),
        MemorySource(ROWS, name="b").map_batches(waits("b")).into(sinks[1]),
    )
    run = await pipeline.start()
    await asyncio.gather(*(gate.reached.wait() for gate in gates.values()))
    for gate in gates.values():
        gate.go.set()
    await run.wait()
    assert [sink.rows for sink in sinks] == [ROWS, ROWS]


async def test_a_group_is_cut_at_its_bound_and_one_row_more_starts_the_next() -> None:
    sink = MemorySink[int]()
    told = Told()
    await Pipeline("t", MemorySource(ROWS).into(sink), limits=Limits(group_rows=4)).run(
        observers=[told]
    )
    assert all(event.rows <= 4 for event in told if isinstance(event, Committed))


async def test_stats_tell_of_flows_and_channels() -> None:
    gate = Gate()
    target = GatedTarget(write=gate)
    run = await Pipeline("t", MemorySource(ROWS).into(MemorySink[int](target=target))).start()
    await gate.reached.wait()
    stats = run.stats()
    assert stats["state"] == "running"
    assert stats["flows"][0]["rows_read"] >= 2
    assert stats["flows"][0]["rows_written"] == 0
    assert [channel["name"] for channel in stats["flows"][0]["channels"]]
    gate.go.set()
    await run.wait()
    assert run.stats()["flows"][0]["rows_written"] == 14
    assert run.stats()["state"] == "ended"


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_an_observer_that_fails_does_not_fail_the_run(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def bad(event: Event) -> None:
        raise error("observer")

    sink = MemorySink[int]()
    await Pipeline("t", MemorySource(ROWS).into(sink)).run(observers=[bad])
    assert sink.rows == ROWS
    assert "an observer failed" in caplog.text


# -- Bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 2, 8])
async def test_slow_sink_bounds_batches_in_flight(capacity: int) -> None:
    sink = MemorySink[int](yields_per_write=5)
    source = CountingSource(batches=50, sink=sink)
    limits = Limits(channel_batches=capacity, group_rows=1)

    await Pipeline("t", source.into(sink), limits=limits).run()

    # full channel + one in the sink + one read and waiting to be queued
    assert source.max_in_flight == capacity + 2


@pytest.mark.parametrize("capacity", [1, 2, 8])
async def test_a_group_takes_what_waits_and_no_more(capacity: int) -> None:
    sink = MemorySink[int](yields_per_write=5)
    source = CountingSource(batches=200, sink=sink)

    await Pipeline("t", source.into(sink), limits=Limits(channel_batches=capacity)).run()

    # The lane takes a full channel and the one that waits to be queued as one group, without a
    # turn of the loop between; while it writes them, as many again are read.
    assert source.max_in_flight <= 2 * (capacity + 2)


async def test_each_map_batches_adds_a_channel_and_its_calls_to_what_is_in_flight() -> None:
    capacity, calls = 2, 3
    sink = MemorySink[int](yields_per_write=9)
    source = CountingSource(batches=100, sink=sink)
    limits = Limits(channel_batches=capacity, group_rows=1)
    flow = source.map_batches(same, concurrency=calls).into(sink)

    await Pipeline("t", flow, limits=limits).run()

    # one read and waiting + channel + calls + channel + one in the sink
    assert source.max_in_flight <= 1 + capacity + calls + capacity + 1


class BusySource(Source[int]):
    """Never waits: it works for a millisecond a batch."""

    name = "busy"

    def __init__(self, batches: int) -> None:
        self._batches = batches

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        for number in range(self._batches):
            until_s = perf_counter() + 0.001
            while perf_counter() < until_s:
                pass
            yield Batch([number], position=(number,))


async def test_a_source_that_never_waits_does_not_starve_the_loop() -> None:
    turns = 0
    ended = asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not ended.is_set():
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    sink = MemorySink[int]()
    limits = Limits(channel_batches=1000)
    await Pipeline("t", BusySource(100).into(sink), limits=limits).run()
    ended.set()
    await counter
    # 100 ms of work in 5 ms slices; without a pause in it there would be a handful of turns.
    assert turns >= 20


# -- Failures and exact reruns ------------------------------------------------------------------


@pytest.mark.parametrize("failing_write", range(1, 8))
async def test_rerun_after_a_failing_write_loses_and_repeats_nothing(failing_write: int) -> None:
    sink = MemorySink[int](fail_on_write=failing_write)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink), limits=Limits(group_rows=1))

    with pytest.raises(PipelineFailedError) as failure:
        await pipeline.run()
    assert isinstance(failure.value.errors[0], DataError)
    assert sink.rows == ROWS[: 2 * (failing_write - 1)]
    sink.heal()
    await pipeline.run()

    assert sink.rows == ROWS
    assert not others()


@pytest.mark.parametrize("failing_write", range(1, 8))
async def test_rerun_after_a_crash_is_exact_through_every_kind_of_step(
    failing_write: int,
) -> None:
    sink = MemorySink[int](fail_on_write=failing_write)
    flow = (
        MemorySource(ROWS)
        .map(lambda row: row + 1)
        .through(in_halves)
        .map_batches(double, concurrency=3)
        .through(in_pairs)
        .flat_map(lambda row: [row, -row])
        .into(sink)
    )
    expected = [value for row in ROWS for value in (2 * row + 2, -2 * row - 2)]
    pipeline = Pipeline("t", flow, limits=Limits(group_rows=1))
    try:
        await pipeline.run()
    except PipelineFailedError:
        assert sink.rows == expected[: len(sink.rows)]
        sink.heal()
        await pipeline.run()
    assert sink.rows == expected


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_passing_failure_of_a_write_is_tried_again_without_loss(attempts: int) -> None:
    sink = MemorySink[int](fail_on_write=3, error=TransientError)
    told = Told()
    pipeline = Pipeline(
        "t",
        MemorySource(ROWS).into(sink),
        limits=Limits(group_rows=1),
        retry=Retry(attempts=attempts, base_s=0.0),
    )
    if attempts == 1:
        with pytest.raises(PipelineFailedError) as failure:
            await pipeline.run(observers=[told])
        assert failure.value.retryable
        assert sink.rows == ROWS[:4]
    else:
        await pipeline.run(observers=[told])
        assert sink.rows == ROWS
        assert [event.what for event in told if isinstance(event, Retrying)] == ["writing"]


class FlakySource(MemorySource[int]):
    """Loses its connection once after each batch."""

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        async for batch in super().read(after, until):
            yield batch
            raise TransientError("connection lost")


async def test_a_read_goes_on_after_the_last_batch_that_was_handed_on() -> None:
    sink = MemorySink[int]()
    # Seven failures in a row, but each after some progress: the count starts again.
    report = await Pipeline("t", FlakySource(ROWS).into(sink), retry=AT_ONCE).run()
    assert sink.rows == ROWS
    assert report.rows_read == 14


@pytest.mark.parametrize("is_in", [True, False])
@pytest.mark.parametrize("commit", [1, 2, 7])
async def test_a_commit_in_doubt_is_settled_both_ways(commit: int, is_in: bool) -> None:
    sink = MemorySink[int]()
    sink.memory.doubt_on_commit, sink.memory.doubt_is_in = commit, is_in
    report = await Pipeline(
        "t", MemorySource(ROWS).into(sink), limits=Limits(group_rows=1), retry=AT_ONCE
    ).run()
    assert sink.rows == ROWS
    assert report.rows_written == 14


@pytest.mark.parametrize("is_in", [True, False])
async def test_a_commit_in_doubt_that_nobody_settles_is_exact_in_the_next_run(
    is_in: bool,
) -> None:
    sink = MemorySink[int]()
    sink.memory.doubt_on_commit, sink.memory.doubt_is_in = 3, is_in
    limits = Limits(group_rows=1)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink), limits=limits, retry=NEVER_AGAIN)
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    await pipeline.run()
    assert sink.rows == ROWS


async def test_a_doubtful_commit_is_not_taken_for_done_where_the_position_does_not_tell() -> None:
    """A second read of everything, in one group, ends at the position that it began with."""
    target = MemoryTarget()
    sink = MemorySink[dict[str, int]](target=target, mode="upsert", key=("id",))
    source = MemorySource([{"id": n, "v": 1} for n in range(4)], batch_rows=10)
    pipeline = Pipeline("t", source.into(sink), retry=AT_ONCE)
    await pipeline.run()
    source.rows = [{"id": n, "v": 2} for n in range(4)]
    target.doubt_on_commit, target.doubt_is_in = target.commit_calls + 1, False
    await pipeline.run(full=True)
    assert [row["v"] for row in sink.rows] == [2, 2, 2, 2]


async def test_a_run_that_was_taken_over_writes_nothing_more() -> None:
    gate = Gate()
    target = GatedTarget(write=gate)
    sink = MemorySink[int](target=target)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink), limits=Limits(group_rows=1))
    zombie = await pipeline.start()
    await gate.reached.wait()
    target.gates.clear()
    await pipeline.run()
    assert sink.rows == ROWS
    gate.go.set()
    with pytest.raises(PipelineFailedError) as failure:
        await zombie.wait()
    assert isinstance(failure.value.errors[0], FencedError)
    assert sink.rows == ROWS


async def test_a_doubtful_commit_of_a_run_that_was_taken_over_is_fenced() -> None:
    gate = Gate()
    target = GatedTarget(commit=gate)
    target.doubt_on_commit, target.doubt_is_in = 1, False
    sink = MemorySink[int](target=target)
    pipeline = Pipeline(
        "t", MemorySource(ROWS).into(sink), limits=Limits(group_rows=1), retry=IN_AN_HOUR
    )
    told = Told()
    zombie = asyncio.create_task(
        Pipeline(
            "t",
            MemorySource(ROWS).into(sink),
            limits=Limits(group_rows=1),
            retry=Retry(attempts=3, base_s=0.0),
        ).run(observers=[told])
    )
    await gate.reached.wait()
    gate.go.set()
    await told.until(Retrying)  # it now waits to ask for the outcome
    target.gates.clear()
    await pipeline.run()
    with pytest.raises(PipelineFailedError) as failure:
        await zombie
    assert isinstance(failure.value.errors[0], FencedError)
    assert sink.rows == ROWS


async def test_the_message_of_a_failure_names_the_function_and_says_how_things_are() -> None:
    def to_price(row: int) -> int:
        raise ValueError("no price")

    sink = MemorySink[int]()
    with pytest.raises(PipelineFailedError, match="to_price failed on row 1.*ValueError") as failed:
        await Pipeline("t", MemorySource(ROWS).map(to_price).into(sink)).run()
    assert isinstance(failed.value.errors[0], StageError)
    # What a function says may quote the row, so only who asks for it sees it.
    assert "no price" not in str(failed.value)
    assert failed.value.detail == failed.value.errors[0].detail == "no price"
    assert failed.value.report.status == "failed"
    assert isinstance(failed.value.errors[0].__cause__, ValueError)


@stage
async def bad_stage(batches: Any) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch
        raise ValueError("inside the stage")


async def test_the_error_of_a_stage_names_the_stage() -> None:
    with pytest.raises(PipelineFailedError, match="bad_stage.*ValueError") as failed:
        await Pipeline("t", MemorySource(ROWS).through(bad_stage).into(MemorySink[int]())).run()
    assert failed.value.detail == "inside the stage"
    gc.collect()
    assert not others()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_function_cannot_end_the_program(
    kind: type[BaseException], concurrency: int
) -> None:
    async def rude(rows: Sequence[int]) -> Sequence[int]:
        raise kind

    sink = MemorySink[int]()
    flow = MemorySource(ROWS).map_batches(rude, concurrency=concurrency).into(sink)
    with pytest.raises(PipelineFailedError, match="rude") as failure:
        await Pipeline("t", flow).run()
    assert isinstance(failure.value.errors[0], StageError)
    assert not others()


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
async def test_a_source_that_raises_while_it_is_opened_fails_the_run_and_not_its_caller(
    kind: type[BaseException],
) -> None:
    class Rude(MemorySource[int]):
        def connect(self, info: RunInfo) -> Any:
            raise kind

    with pytest.raises(StageError):
        await Pipeline("t", Rude(ROWS).into(MemorySink[int]())).run()


async def test_a_source_without_read_is_a_set_up_that_is_wrong() -> None:
    class Nothing(Source[int]):
        pass

    with pytest.raises(PipelineFailedError, match=r"Nothing has no read\(\)") as failure:
        await Pipeline("p", Nothing().into(MemorySink())).run()
    assert isinstance(failure.value.errors[0], ConfigError)


async def test_a_source_without_batches_is_told_what_to_yield() -> None:
    class Rows(Source[int]):
        async def read(self, after: Any, until: Any) -> AsyncGenerator[Any, None]:
            yield [1, 2]

    class Late(Source[int]):
        async def read(self, after: Any, until: Any) -> Any:  # type: ignore[override]
            return [Batch([1])]

    for wrong, said in (
        (Rows(), r"yielded list, not a Batch; yield Batch\(rows, position=...\)"),
        (Late(), "returned coroutine, not an async generator"),
    ):
        with pytest.raises((PipelineFailedError, ConfigError), match=said):
            await Pipeline("t", wrong.into(MemorySink[int]())).run()


async def test_two_failing_flows_are_both_reported() -> None:
    gate = Gate()
    target = GatedTarget(write=gate)

    class Failing(MemorySource[int]):
        async def read(
            self, after: Position | None, until: Position | None
        ) -> AsyncGenerator[Batch[int], None]:
            try:
                await asyncio.Event().wait()
            finally:
                raise DataError("second")
            yield Batch([])

    sink = MemorySink[int](target=target, fail_on_write=1)
    pipeline = Pipeline(
        "t",
        MemorySource(ROWS, name="a").into(sink),
        Failing(ROWS, name="b").into(MemorySink[int]()),
    )
    run = await pipeline.start()
    await gate.reached.wait()
    gate.go.set()
    with pytest.raises(PipelineFailedError, match="told to fail.*and 1 more") as failure:
        await run.wait()
    assert [str(error) for error in failure.value.errors] == [
        "the memory target was told to fail",
        "second",
    ]


# -- What a stop leaves in a table that is replaced ---------------------------------------------


def replaced(source: Stream[int], target: MemoryTarget | None = None) -> tuple[Flow, Any]:
    sink = MemorySink[int](mode="replace", target=target)
    sink.memory.tables["rows"] = [-1]
    return source.into(sink), sink


async def test_a_replace_is_published_when_all_has_ended_well() -> None:
    flow, sink = replaced(MemorySource(ROWS))
    await Pipeline("t", flow).run()
    assert sink.rows == ROWS


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize("error", [DataError, TransientError, ValueError])
async def test_a_failing_source_leaves_the_old_table(
    error: type[Exception], incremental: bool
) -> None:
    source = MemorySource(ROWS, fail_after=3, error=error, incremental=incremental)
    flow, sink = replaced(source)
    pipeline = Pipeline("t", flow, retry=NEVER_AGAIN)
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    assert sink.rows == [-1]
    source.heal()
    await pipeline.run()
    assert sink.rows == ROWS


@stage
async def fails_at_the_end(batches: Any) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch
    raise ValueError("too late")


@stage
async def returns_early(batches: Any) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch
        return


@stage
async def closes_and_returns_early(batches: Any) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch
        break
    await batches.aclose()


@pytest.mark.parametrize("bad", [fails_at_the_end, returns_early, closes_and_returns_early])
async def test_a_failing_stage_leaves_the_old_table(bad: Any) -> None:
    flow, sink = replaced(MemorySource(ROWS).through(bad))
    with pytest.raises(PipelineFailedError):
        await Pipeline("t", flow).run()
    assert sink.rows == [-1]


async def test_one_failing_flow_keeps_every_table_from_being_replaced() -> None:
    target = MemoryTarget()
    good = MemorySink[int](mode="replace", target=target, table="good")
    bad = MemorySink[int](mode="replace", target=target, table="bad")
    pipeline = Pipeline(
        "t",
        MemorySource(ROWS, name="a").into(good),
        MemorySource(ROWS, name="b", fail_after=5, error=DataError).into(bad),
    )
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    assert good.rows == bad.rows == []


@pytest.mark.parametrize("incremental", [True, False])
async def test_a_drained_replace_is_not_published_and_the_next_run_goes_on(
    incremental: bool,
) -> None:
    source = BlockingSource(ROWS, after_batches=3, incremental=incremental)
    flow, sink = replaced(source)
    pipeline = Pipeline("t", flow)
    run = await pipeline.start()
    await source.blocked.wait()
    report = await run.drain()
    assert report.status == "drained"
    assert sink.rows == [-1]
    source.heal()
    report = await pipeline.run()
    assert sink.rows == ROWS
    assert report.rows_read == 8  # the first six were in the staging table


async def test_a_source_that_swallows_the_interruption_has_not_seen_its_end() -> None:
    class Swallows(BlockingSource):
        async def read(
            self, after: Position | None, until: Position | None
        ) -> AsyncGenerator[Batch[int], None]:
            try:
                async for batch in super().read(after, until):
                    yield batch
            except asyncio.CancelledError:
                return  # what an author may well write

    source = Swallows(ROWS, after_batches=3)
    flow, sink = replaced(source)
    run = await Pipeline("t", flow).start()
    await source.blocked.wait()
    report = await run.drain()
    assert report.status == "drained"
    assert sink.rows == [-1]


async def test_a_publish_that_fails_for_a_moment_is_repeated() -> None:
    target = GatedTarget()
    target.publish_errors = [TransientError("lost"), TransientError("lost")]
    flow, sink = replaced(MemorySource(ROWS), target)
    told = Told()
    await Pipeline("t", flow, retry=AT_ONCE).run(observers=[told])
    assert sink.rows == ROWS
    assert [event.what for event in told if isinstance(event, Retrying)] == ["publishing"] * 2


async def test_an_abort_while_publishing_is_not_lost_when_the_publish_fails() -> None:
    gate = Gate()
    target = GatedTarget(publish=gate)
    target.publish_errors = [TransientError("lost")] * 2
    flow, sink = replaced(MemorySource(ROWS), target)
    run = await Pipeline("t", flow, retry=AT_ONCE).start()
    await gate.reached.wait()
    run.request_abort()
    await asyncio.sleep(0)
    gate.go.set()
    with pytest.raises(RunAbortedError):
        await run.wait()
    assert target.published == 0
    assert sink.rows == [-1]


# -- Full reads ---------------------------------------------------------------------------------


async def test_append_of_a_complete_full_read_is_not_doubled() -> None:
    sink = MemorySink[int]()
    pipeline = Pipeline("t", MemorySource(ROWS, incremental=False).into(sink))
    await pipeline.run()
    report = await pipeline.run()
    assert sink.rows == ROWS
    assert report.status == "completed"
    assert any("nothing to do" in note for note in report.flows[0].notes)


async def test_append_of_an_empty_full_read_is_complete_too() -> None:
    sink = MemorySink[int]()
    source = MemorySource[int]([], incremental=False)
    pipeline = Pipeline("t", source.into(sink))
    await pipeline.run()
    (checkpoint,) = sink.memory.checkpoints.values()
    assert checkpoint.complete


async def test_append_of_an_unfinished_full_read_goes_on() -> None:
    source = MemorySource(ROWS, incremental=False, fail_after=3, error=DataError)
    sink = MemorySink[int]()
    pipeline = Pipeline("t", source.into(sink), limits=Limits(group_rows=1))
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    source.heal()
    await pipeline.run()
    assert sink.rows == ROWS


async def test_a_drained_full_read_is_not_complete() -> None:
    source = BlockingSource(ROWS, after_batches=3, incremental=False)
    sink = MemorySink[int]()
    pipeline = Pipeline("t", source.into(sink))
    run = await pipeline.start()
    await source.blocked.wait()
    assert (await run.drain()).status == "drained"
    (checkpoint,) = sink.memory.checkpoints.values()
    assert not checkpoint.complete
    source.heal()
    await pipeline.run()
    assert sink.rows == ROWS


async def test_full_appends_all_again_and_moves_the_position_from_where_it_stood() -> None:
    sink = MemorySink[int]()
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink))
    await pipeline.run()
    await pipeline.run(full=True)
    assert sink.rows == ROWS + ROWS
    assert (await pipeline.run()).rows_read == 0


async def test_full_makes_a_replaced_table_anew() -> None:
    source = BlockingSource(ROWS, after_batches=3)
    flow, sink = replaced(source)
    pipeline = Pipeline("t", flow)
    run = await pipeline.start()
    await source.blocked.wait()
    await run.drain()
    source.heal()
    report = await pipeline.run(full=True)
    assert report.rows_read == 14
    assert sink.rows == ROWS


class Renamed(MemorySource[int]):
    table = "orders"

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"table": self.table}


async def test_a_changed_source_is_refused_until_the_change_is_accepted() -> None:
    source = Renamed(ROWS[:4])
    sink = MemorySink[int]()
    pipeline = Pipeline("t", source.into(sink))
    await pipeline.run()
    source.table, source.rows = "orders_2", ROWS
    with pytest.raises(ConfigError, match="table of the source changed"):
        await pipeline.run()
    assert sink.rows == ROWS[:4]
    await pipeline.run(accept_change=True)
    assert sink.rows == ROWS
    await pipeline.run()  # the new fingerprint was kept


async def test_a_changed_sink_is_refused() -> None:
    target = MemoryTarget()
    rows = [{"id": 1}, {"id": 2}]
    await Pipeline("t", MemorySource(rows).into(MemorySink(target=target))).run()
    upsert = MemorySink[dict[str, int]](target=target, mode="upsert", key=("id",))
    with pytest.raises(ConfigError, match="mode of the sink"):
        await Pipeline("t", MemorySource(rows).into(upsert)).run()


# -- Merge and lookup ---------------------------------------------------------------------------


@pytest.mark.parametrize("failing_write", range(1, 9))
async def test_merged_sources_keep_their_own_positions(failing_write: int) -> None:
    target = MemoryTarget()
    sink = MemorySink[int](target=target, fail_on_write=failing_write)
    left = MemorySource(ROWS, name="left")
    right = MemorySource([100 + row for row in ROWS], name="right", batch_rows=3)
    pipeline = Pipeline("t", merge(left, right).into(sink), limits=Limits(group_rows=1))
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    sink.heal()
    await pipeline.run()
    assert sorted(sink.rows) == sorted([*left.rows, *right.rows])
    assert [row for row in sink.rows if row < 100] == left.rows
    assert [row for row in sink.rows if row >= 100] == right.rows
    positions = {key.partition: found.position for key, found in target.checkpoints.items()}
    assert positions == {"left": (14,), "right": (14,)}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("failing_write", range(1, 12))
async def test_pieces_of_merged_sources_stay_with_their_token(
    failing_write: int, shared: bool
) -> None:
    """Pieces of one source come between batches of the other; a crash may fall there too."""
    sink = MemorySink[int](fail_on_write=failing_write)
    left: Stream[int] = MemorySource(ROWS, name="left", batch_rows=4)
    right: Stream[int] = MemorySource([100 + row for row in ROWS], name="right", batch_rows=3)
    if shared:
        both = merge(left, right).through(in_halves)
    else:
        both = merge(left.through(in_halves).map_batches(same, concurrency=2), right)
    limits = Limits(group_rows=1, channel_batches=1)
    pipeline = Pipeline("t", both.into(sink), limits=limits)
    try:
        await pipeline.run()
    except PipelineFailedError:
        sink.heal()
        await pipeline.run()
    assert [row for row in sink.rows if row < 100] == ROWS
    assert [row for row in sink.rows if row >= 100] == [100 + row for row in ROWS]


async def test_a_merge_that_is_drained_goes_on_where_each_source_was() -> None:
    left = BlockingSource(ROWS, after_batches=2, name="left")
    right = MemorySource([100 + row for row in ROWS], name="right")
    sink = MemorySink[int]()
    pipeline = Pipeline("t", merge(left, right).into(sink))
    run = await pipeline.start()
    await left.blocked.wait()
    assert (await run.drain()).status == "drained"
    left.heal()
    await pipeline.run()
    assert sorted(sink.rows) == [*ROWS, *(100 + row for row in ROWS)]


def named(number: int, name: str | None) -> tuple[int, str]:
    return number, name or "?"


async def test_lookup_joins_and_gives_none_for_a_missing_match() -> None:
    side = MemorySource([(1, "one"), (2, "two")], name="side")
    sink = MemorySink[tuple[int, str]]()
    flow = MemorySource([1, 2, 3]).lookup(
        side.filter(lambda row: row[0] < 5),
        side_key=lambda row: row[0],
        key=lambda row: row,
        combine=lambda row, match: (row, match[1] if match else "?"),
    )
    await Pipeline("t", flow.into(sink)).run()
    assert sink.rows == [(1, "one"), (2, "two"), (3, "?")]


async def test_lookup_with_a_key_twice_in_the_side_is_refused_and_nothing_is_written() -> None:
    side = MemorySource([(1, "one"), (1, "uno")], name="side")
    sink = MemorySink[Any]()
    flow = MemorySource([1]).lookup(
        side, side_key=lambda row: row[0], key=lambda row: row, combine=lambda row, match: row
    )
    with pytest.raises(DataError, match="same key"):
        await Pipeline("t", flow.into(sink)).run()
    assert sink.rows == []


async def test_lookup_none_matches_nothing_even_where_the_side_has_none() -> None:
    side = MemorySource([(None, "a"), (None, "b"), (1, "one")], name="side")
    sink = MemorySink[Any]()
    flow = MemorySource[int | None]([None, 1]).lookup(
        side,
        side_key=lambda row: row[0],
        key=lambda row: row,
        combine=lambda row, match: (row, match and match[1]),
    )
    await Pipeline("t", flow.into(sink)).run()
    assert sink.rows == [(None, None), (1, "one")]


async def test_lookup_after_a_stage_and_in_the_middle_of_row_functions() -> None:
    side = MemorySource([(row, str(row)) for row in ROWS], name="side")
    sink = MemorySink[str]()
    flow = (
        MemorySource(ROWS)
        .through(odd_only)
        .map(lambda row: row - 1)
        .lookup(
            side,
            side_key=lambda row: row[0],
            key=lambda row: row,
            combine=lambda row, match: match[1] if match else "?",
        )
        .filter(lambda text: text != "0")
    )
    await Pipeline("t", flow.into(sink)).run()
    assert sink.rows == ["2", "4", "6", "8", "10", "12"]


# -- Drain --------------------------------------------------------------------------------------


async def test_drain_while_the_source_is_blocked_commits_what_was_read() -> None:
    source = BlockingSource(ROWS, after_batches=3)
    sink = MemorySink[int]()
    pipeline = Pipeline("t", source.into(sink))
    told = Told()
    run = await pipeline.start(observers=[told])
    await source.blocked.wait()
    report = await run.drain()
    assert report.status == "drained"
    assert not report.flows[0].exhausted
    assert source.closed
    assert sink.rows == ROWS[:6]
    assert [event.state for event in told if isinstance(event, StateChanged)] == ["draining"]
    source.heal()
    assert (await pipeline.run()).status == "completed"
    assert sink.rows == ROWS


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_drain_while_mapping_waits_for_the_calls(concurrency: int) -> None:
    gate = Gate()

    async def slow(rows: Sequence[int]) -> Sequence[int]:
        await gate()
        return rows

    sink = MemorySink[int]()
    source = BlockingSource(ROWS, after_batches=4)
    run = await Pipeline("t", source.map_batches(slow, concurrency=concurrency).into(sink)).start()
    await gate.reached.wait()
    await source.blocked.wait()
    run.request_drain()
    gate.go.set()
    assert (await run.wait()).status == "drained"
    assert sink.rows == ROWS[:8]


@pytest.mark.parametrize("where", ["write", "commit"])
async def test_drain_while_writing_or_committing_commits_it(where: str) -> None:
    gate = Gate()
    target = GatedTarget(**{where: gate})
    sink = MemorySink[int](target=target)
    source = BlockingSource(ROWS, after_batches=4)
    run = await Pipeline("t", source.into(sink)).start()
    await gate.reached.wait()
    run.request_drain()
    gate.go.set()
    assert (await run.wait()).status == "drained"
    assert sink.rows == ROWS[: len(sink.rows)]
    assert len(sink.rows) >= 2


async def test_drain_before_the_first_turn_of_the_tasks_reads_nothing() -> None:
    sink = MemorySink[int]()
    run = await Pipeline("t", BlockingSource(ROWS, after_batches=0).into(sink)).start()
    assert (await run.drain()).status == "drained"
    assert sink.rows == []


async def test_drain_in_the_retry_sleep_of_a_read_ends_it() -> None:
    told = Told()
    source = MemorySource(ROWS, fail_after=3)
    sink = MemorySink[int]()
    pipeline = Pipeline("t", source.into(sink), retry=IN_AN_HOUR)
    run = await pipeline.start(observers=[told])
    await told.until(Retrying)
    assert (await run.drain()).status == "drained"
    assert sink.rows == ROWS[:6]
    source.heal()
    await pipeline.run()
    assert sink.rows == ROWS


async def test_an_interrupted_read_that_fails_as_a_lost_connection_is_drained() -> None:
    """A driver may well say "connection lost" for a read that was cancelled."""

    class Translates(BlockingSource):
        async def read(
            self, after: Position | None, until: Position | None
        ) -> AsyncGenerator[Batch[int], None]:
            try:
                async for batch in super().read(after, until):
                    yield batch
            except asyncio.CancelledError:
                raise TransientError("connection lost") from None

    source, sink = Translates(ROWS, after_batches=3), MemorySink[int]()
    run = await Pipeline("t", source.into(sink), retry=NEVER_AGAIN).start()
    await source.blocked.wait()
    assert (await run.drain()).status == "drained"
    assert sink.rows == ROWS[:6]


async def test_a_real_cancellation_of_a_draining_source_is_not_taken_for_its_end() -> None:
    channel: Channel[Batch[Any]] = Channel("full", max_items=1, max_bytes=10**6)
    pump = pump_of(MemorySource(ROWS), [], lambda batch: batch, channel)
    task = asyncio.create_task(pump.run())
    while channel.put_blocked_since is None:
        await asyncio.sleep(0)
    pump.request_drain()  # it waits to hand a batch on, so there is no read to interrupt
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    channel.get_nowait()
    assert not channel.is_ready  # not closed


async def test_drain_in_the_retry_sleep_of_a_write_lasts_until_the_deadline() -> None:
    told = Told()
    sink = MemorySink[int](fail_on_write=1, error=TransientError)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink), retry=IN_AN_HOUR)
    run = await pipeline.start(observers=[told])
    await told.until(Retrying)
    with pytest.raises(RunAbortedError, match="the drain took longer than 0 s") as aborted:
        await run.drain(deadline_s=0)
    assert aborted.value.report.status == "aborted"
    assert sink.rows == []
    await pipeline.run()
    assert sink.rows == ROWS


@pytest.mark.parametrize("where", ["write", "publish"])
async def test_a_drain_past_its_deadline_rolls_back(where: str) -> None:
    gate = Gate()
    target = GatedTarget(**{where: gate})
    flow, sink = replaced(MemorySource(ROWS), target)
    run = await Pipeline("t", flow).start()
    await gate.reached.wait()
    run.request_drain(deadline_s=0)
    while run.state != "aborting":
        await asyncio.sleep(0)
    gate.go.set()
    with pytest.raises(RunAbortedError):
        await run.wait()
    assert target.rollbacks == (1 if where == "write" else 0)
    assert not others()


async def test_a_drain_that_finds_the_source_exhausted_completes() -> None:
    gate = Gate()
    target = GatedTarget(write=gate)
    flow, sink = replaced(MemorySource(ROWS), target)
    run = await Pipeline("t", flow, limits=Limits(channel_batches=100)).start()
    await gate.reached.wait()
    while not run.stats()["flows"][0]["rows_read"] == 14:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.request_drain()
    gate.go.set()
    assert (await run.wait()).status == "completed"
    assert sink.rows == ROWS


async def test_another_thread_is_told_how_to_drain_and_changes_nothing() -> None:
    async def never(rows: Sequence[int]) -> Sequence[int]:
        await asyncio.Event().wait()
        return rows

    run = await Pipeline("p", MemorySource(ROWS).map_batches(never).into(MemorySink())).start()

    def elsewhere() -> None:
        for ask in (run.request_drain, run.request_abort):
            with pytest.raises(ConfigError, match="call_soon_threadsafe"):
                ask()
        for end in (run.wait, run.drain, run.abort):
            with pytest.raises(ConfigError, match="call_soon_threadsafe"):
                asyncio.run(end())

    await asyncio.to_thread(elsewhere)
    assert run.state == "running"
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: loop.call_soon_threadsafe(run.request_abort))
    with pytest.raises(RunAbortedError):
        await run.wait()
    await asyncio.to_thread(lambda: asyncio.run(run.abort()))


async def test_asking_twice_for_a_drain_is_the_same_as_once() -> None:
    source = BlockingSource(ROWS, after_batches=2)
    sink = MemorySink[int]()
    run = await Pipeline("t", source.into(sink)).start()
    await source.blocked.wait()
    run.request_drain()
    run.request_drain()
    reports = await asyncio.gather(run.wait(), run.drain())
    assert reports[0] is reports[1]
    assert reports[0].status == "drained"
    assert await run.drain() is reports[0]  # also after the end


class PiecewiseSource(Source[int]):
    """Gives two pieces without a position, then one with."""

    name = "piecewise"

    def __init__(self, rows: Sequence[int], *, stop_at: int | None = None) -> None:
        self.rows = rows
        self.stop_at = stop_at
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        for at in range(after[0] if after else 0, len(self.rows), 3):
            yield Batch([self.rows[at]])
            if at == self.stop_at:
                self.reached.set()
                await self.go.wait()
            yield Batch([])
            yield Batch(self.rows[at + 1 : at + 2])
            yield Batch(self.rows[at + 2 : at + 3], position=(at + 3,))


async def test_rows_without_a_position_are_written_with_the_position_that_comes() -> None:
    sink = MemorySink[int]()
    report = await Pipeline("t", PiecewiseSource(ROWS[:12]).into(sink)).run()
    assert sink.rows == ROWS[:12]
    (checkpoint,) = sink.memory.checkpoints.values()
    assert checkpoint.rows == 12
    assert report.rows_written == 12


async def test_a_drain_between_pieces_reads_on_to_the_position() -> None:
    source = PiecewiseSource(ROWS[:12], stop_at=3)
    sink = MemorySink[int]()
    pipeline = Pipeline("t", source.into(sink))
    run = await pipeline.start()
    await source.reached.wait()
    run.request_drain()
    source.go.set()
    assert (await run.wait()).status == "drained"
    assert sink.rows == ROWS[:6]
    source.stop_at = None
    await pipeline.run()
    assert sink.rows == ROWS[:12]


@pytest.mark.parametrize("failing_write", range(1, 5))
async def test_pieces_and_their_token_are_one_transaction(failing_write: int) -> None:
    sink = MemorySink[int](fail_on_write=failing_write)
    limits = Limits(group_rows=1)
    pipeline = Pipeline("t", PiecewiseSource(ROWS[:12]).into(sink), limits=limits)
    with pytest.raises(PipelineFailedError):
        await pipeline.run()
    assert sink.rows == ROWS[: 3 * (failing_write - 1)]
    sink.heal()
    await pipeline.run()
    assert sink.rows == ROWS[:12]


class OddSource(Source[int]):
    """Gives the batches that a test wants."""

    name = "odd"

    def __init__(self, *batches: Any) -> None:
        self._batches = batches

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        for batch in self._batches:
            yield batch


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([Batch([1])], "without a position"),
        ([Batch([1], position=(1,)), Batch([2])], "without a position"),
        ([Batch([1], position=(1,)), Batch([2], position=(1,))], "without moving its position"),
        ([Batch([1], position=[1])], "position that cannot be kept"),  # type: ignore[arg-type]
        ([Batch([1], position=5)], "position that cannot be kept"),  # type: ignore[arg-type]
        ([Batch([1], position=(object(),))], "position that cannot be kept"),
    ],
)
async def test_a_source_that_breaks_the_rules_of_positions_is_told_so(
    batches: list[Any], message: str
) -> None:
    sink = MemorySink[int]()
    with pytest.raises(PipelineFailedError, match=message):
        await Pipeline("t", OddSource(*batches).into(sink)).run()


async def test_empty_batches_without_a_position_are_harmless() -> None:
    sink = MemorySink[int]()
    source = OddSource(Batch([]), Batch([1], position=(1,)), Batch([]), Batch([]))
    assert (await Pipeline("t", source.into(sink)).run()).status == "completed"
    assert sink.rows == [1]


# -- Abort and cancel ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["open", "write"])
async def test_abort_rolls_back_and_the_next_run_goes_on(where: str) -> None:
    gate = Gate()
    target = GatedTarget(**{where: gate})
    sink = MemorySink[int](target=target)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink))
    task = asyncio.create_task(pipeline.run())
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.rows == []
    assert target.rollbacks == (1 if where == "write" else 0)
    assert target.open_sessions == 0
    target.gates.clear()
    await pipeline.run()
    assert sink.rows == ROWS


async def test_cancelled_while_committing_the_commit_is_not_cut() -> None:
    gate = Gate()
    target = GatedTarget(commit=gate)
    sink = MemorySink[int](target=target)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink), limits=Limits(group_rows=1))
    task = asyncio.create_task(pipeline.run())
    await gate.reached.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.rows == ROWS[:2]
    await pipeline.run()
    assert sink.rows == ROWS


async def test_cancelled_while_a_commit_fails_nothing_is_tried_again() -> None:
    """The error of the commit wins in ``finish``; the cancellation must not be lost for it."""
    gate = Gate()
    target = GatedTarget(commit=gate)
    target.commit_errors = [TransientError("lost")]
    sink = MemorySink[int](target=target)
    pipeline = Pipeline("t", MemorySource(ROWS).into(sink), retry=AT_ONCE)
    task = asyncio.create_task(pipeline.run())
    await gate.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.rows == []
    assert target.rollbacks == 1


async def test_an_uncancellable_transaction_is_interrupted_and_not_tried_again() -> None:
    gate = Gate()
    target = GatedTarget(write=gate)
    target.cuttable = False

    def interrupt() -> None:
        target.fail_on_write, target.error = target.writes + 1, TransientError
        gate.go.set()

    target.on_interrupt = interrupt
    sink = MemorySink[int](target=target)
    run = await Pipeline("t", MemorySource(ROWS).into(sink), retry=AT_ONCE).start()
    await gate.reached.wait()
    run.request_abort("enough")
    with pytest.raises(RunAbortedError, match="enough"):
        await run.wait()
    assert target.interrupts == 1
    assert target.rollbacks == 1
    assert sink.rows == []


async def test_abort_waits_and_raises_nothing_also_twice_and_after_the_end() -> None:
    source = BlockingSource(ROWS, after_batches=2)
    run = await Pipeline("t", source.into(MemorySink[int]())).start()
    await source.blocked.wait()
    await asyncio.gather(run.abort(), run.abort())
    await run.abort()
    assert source.closed
    assert not others()
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
    del run
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0)
    assert reported == []


async def test_a_waiter_that_is_cancelled_does_not_cancel_the_others_tasks() -> None:
    """It aborts the run; the other waiter hears of an abort, not of a cancellation."""
    source = BlockingSource(ROWS, after_batches=2)
    run = await Pipeline("t", source.into(MemorySink[int]())).start()
    await source.blocked.wait()
    first = asyncio.create_task(run.wait())
    second = asyncio.create_task(run.wait())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first, second})
    assert first.cancelled()
    assert isinstance(second.exception(), RunAbortedError)


async def test_cancelled_while_it_aborts_the_caller_stays_cancelled() -> None:
    source = BlockingSource(ROWS, after_batches=2)
    run = await Pipeline("t", source.into(MemorySink[int]())).start()
    await source.blocked.wait()
    waiter = asyncio.create_task(run.wait())
    await asyncio.sleep(0)
    run.request_abort()
    waiter.cancel()
    await asyncio.wait({waiter})
    assert waiter.cancelled()


async def test_a_stage_that_cancels_itself_fails_the_run() -> None:
    @stage
    async def leaks(batches: Any) -> AsyncGenerator[Batch[int], None]:
        async for batch in batches:
            yield batch
            raise asyncio.CancelledError

    with pytest.raises(PipelineFailedError, match="leaks") as failure:
        await Pipeline("t", MemorySource(ROWS).through(leaks).into(MemorySink[int]())).run()
    assert isinstance(failure.value.errors[0], StageCancelledError)


def everything(sink: Sink[int], rows: Sequence[int] = ROWS) -> Flow:
    """A flow with each kind of node."""
    return (
        MemorySource(rows)
        .map(lambda row: row + 0)
        .through(in_halves)
        .map_batches(double, concurrency=2)
        .through(in_pairs)
        .into(sink)
    )


async def test_cancel_at_each_turn_of_the_loop_then_a_rerun_is_exact() -> None:
    expected = [2 * row for row in ROWS]
    limits = Limits(group_rows=1, channel_batches=2)
    for turns in range(400):
        sink = MemorySink[int](yields_per_write=1)
        pipeline = Pipeline("t", everything(sink), limits=limits)
        task = asyncio.create_task(pipeline.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = task.done()
        task.cancel()
        await asyncio.wait({task})
        assert not others(), f"left after a cancel at turn {turns}"
        assert sink.memory.open_sessions == 0
        assert sink.rows == expected[: len(sink.rows)]
        if not was_done:
            assert task.cancelled() or turns > 0
            await pipeline.run()
        assert sink.rows == expected, f"after a cancel at turn {turns}"
        if was_done:
            assert turns > 20
            break
    else:
        pytest.fail("the run never ended by itself")


async def test_two_cancels_at_each_turn_then_a_rerun_is_exact() -> None:
    expected = [2 * row for row in ROWS[:6]]
    for turns in range(400):
        sink = MemorySink[int](yields_per_write=1)
        pipeline = Pipeline("t", everything(sink, ROWS[:6]), limits=Limits(group_rows=1))
        task = asyncio.create_task(pipeline.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = task.done()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
        assert not others()
        if was_done:
            break
        await pipeline.run()
        assert sink.rows == expected


async def test_drain_at_each_turn_of_the_loop_then_a_rerun_is_exact() -> None:
    expected = [2 * row for row in ROWS]
    for turns in range(400):
        sink = MemorySink[int](yields_per_write=1)
        limits = Limits(group_rows=1, channel_batches=2)
        pipeline = Pipeline("t", everything(sink), limits=limits)
        run = await pipeline.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        report = await run.drain()
        assert sink.rows == expected[: len(sink.rows)]
        assert not others()
        if report.status == "completed":
            assert sink.rows == expected
            break
        assert report.rows_read * 1 == len(sink.rows)  # all that was read is committed
        await pipeline.run()
        assert sink.rows == expected, f"after a drain at turn {turns}"


@pytest.mark.parametrize("name", ["source", "stage", "lane"])
async def test_a_task_of_the_run_that_someone_else_cancels_is_not_taken_for_the_end(
    name: str,
) -> None:
    source = BlockingSource(ROWS, after_batches=3)
    flow, sink = replaced(source.map_batches(same))
    run = await Pipeline("t", flow).start()
    await source.blocked.wait()
    victims = [task for task in others() if task.get_name().startswith(f"etl:{name}")]
    assert len(victims) == 1
    victims[0].cancel()
    with pytest.raises((EtlError, asyncio.CancelledError)):
        await run.wait()
    assert sink.rows == [-1]
    assert not others()


# -- gather, start, run_sync --------------------------------------------------------------------


async def test_gather_gives_the_reports_in_order() -> None:
    sinks = [MemorySink[int]() for _ in range(3)]
    pipelines = [
        Pipeline(f"p{n}", MemorySource(ROWS[: 2 * n]).into(sink)) for n, sink in enumerate(sinks)
    ]
    reports = await gather(*pipelines)
    assert [report.pipeline for report in reports] == ["p0", "p1", "p2"]
    assert [report.rows_read for report in reports] == [0, 2, 4]


def failing(name: str = "bad") -> Pipeline:
    sink = MemorySink[int](fail_on_write=1)
    return Pipeline(name, MemorySource(ROWS).into(sink))


@pytest.mark.parametrize("on_failure", ["abort", "drain"])
async def test_gather_stops_the_others_when_one_fails(on_failure: Any) -> None:
    source = BlockingSource(ROWS, after_batches=2)
    sink = MemorySink[int]()
    other = Pipeline("other", source.into(sink))
    with pytest.raises(PipelineFailedError, match="'bad'"):
        await gather(other, failing(), on_failure=on_failure)
    assert not others()
    source.heal()
    await other.run()
    assert sink.rows == ROWS


async def test_gather_drains_also_a_pipeline_that_was_still_starting() -> None:
    gate = Gate()
    target = GatedTarget(open=gate)
    source = BlockingSource(ROWS, after_batches=0)
    slow = Pipeline("slow", source.into(MemorySink[int](target=target)))
    bad = failing()
    task = asyncio.create_task(gather(slow, bad, on_failure="drain"))
    await gate.reached.wait()
    (target_of_bad,) = {sink.target for flow in bad.flows for sink in flow.sinks}
    assert isinstance(target_of_bad, MemoryTarget)
    while not target_of_bad.writes or target_of_bad.open_sessions:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    gate.go.set()
    with pytest.raises(PipelineFailedError, match="'bad'"):
        await task  # and does not hang


async def test_gather_lets_the_others_go_on() -> None:
    sink = MemorySink[int]()
    with pytest.raises(PipelineFailedError, match="'bad'"):
        await gather(
            failing(), Pipeline("good", MemorySource(ROWS).into(sink)), on_failure="continue"
        )
    assert sink.rows == ROWS


async def test_gather_reports_every_failure() -> None:
    with pytest.raises(BaseExceptionGroup) as failure:
        await gather(failing("a"), failing("b"), on_failure="continue")
    assert len(failure.value.exceptions) == 2


async def test_gather_cancelled_aborts_all() -> None:
    sources = [BlockingSource(ROWS, after_batches=1) for _ in range(2)]
    pipelines = [Pipeline(f"p{n}", one.into(MemorySink[int]())) for n, one in enumerate(sources)]
    task = asyncio.create_task(gather(*pipelines))
    await asyncio.gather(*(one.blocked.wait() for one in sources))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(one.closed for one in sources)
    assert not others()


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        (print, r"observers=\[show\]"),
        (["show"], "takes functions, not str"),
        ([asyncio.sleep], "observer sleep is async"),
    ],
)
async def test_observers_that_would_be_called_in_vain_are_refused(
    observers: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await Pipeline("p", MemorySource(ROWS).into(MemorySink())).run(observers=observers)


@pytest.mark.parametrize(
    "wrong", [{"limits": "64MiB"}, {"limits": {"lanes": 2}}, {"retry": 3}, {"retry": False}]
)
async def test_policies_of_another_type_are_refused(wrong: Any) -> None:
    flow = MemorySource(ROWS).into(MemorySink())
    with pytest.raises(ConfigError, match=r"takes (Limits|Retry)\(\.\.\.\)"):
        Pipeline("p", flow, **wrong)
    with pytest.raises(ConfigError, match=r"takes (Limits|Retry)\(\.\.\.\)"):
        MemorySource(ROWS).open(**wrong)
    if "limits" in wrong:
        with pytest.raises(ConfigError, match=r"takes Limits\(\.\.\.\)"):
            await Pipeline("p", flow).run(**wrong)


async def test_gather_refuses_what_is_no_pipeline_and_what_is_no_policy() -> None:
    pipeline = Pipeline("p", MemorySource(ROWS).into(MemorySink()))
    with pytest.raises(ConfigError, match=r"gather\(a, b\), not list"):
        await gather([pipeline])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_failure='stop'"):
        await gather(pipeline, on_failure="stop")  # type: ignore[arg-type]


async def test_gather_refuses_two_of_the_same_name() -> None:
    with pytest.raises(ConfigError, match="same name"):
        await gather(failing(), failing())


async def test_start_raises_what_the_set_up_raises_and_leaves_nothing() -> None:
    class Unreachable(MemorySource[int]):
        def connect(self, info: RunInfo) -> Any:
            raise TransientError("unreachable")

    with pytest.raises(TransientError, match="unreachable"):
        await Pipeline("t", Unreachable(ROWS).into(MemorySink[int]())).start()
    assert not others()


async def test_start_cancelled_closes_what_it_opened() -> None:
    gate = Gate()
    target = GatedTarget(open=gate)
    task = asyncio.create_task(
        Pipeline("t", MemorySource(ROWS).into(MemorySink[int](target=target))).start()
    )
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert target.open_sessions == 0
    assert not others()


def test_run_sync_runs_in_a_script() -> None:
    sink = MemorySink[int]()
    report = Pipeline("t", MemorySource(ROWS).into(sink)).run_sync()
    assert report.status == "completed"
    assert sink.rows == ROWS


async def test_run_sync_in_a_running_loop_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="await pipeline.run"):
        Pipeline("t", MemorySource(ROWS).into(MemorySink[int]())).run_sync()


def test_run_sync_raises_a_failure() -> None:
    with pytest.raises(PipelineFailedError):
        failing().run_sync()


def test_a_set_up_error_leaves_no_task_behind_in_asyncio_run() -> None:
    class Wrong(MemorySource[int]):
        def connect(self, info: RunInfo) -> Any:
            raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        Pipeline("t", Wrong(ROWS).into(MemorySink[int]())).run_sync()


# -- Any shape of a pipeline gives the same target ----------------------------------------------

_STEPS: dict[str, Callable[[Stream[int]], Stream[int]]] = {
    "map": lambda rows: rows.map(lambda row: row + 1),
    "filter": lambda rows: rows.filter(lambda row: row % 3),
    "flat_map": lambda rows: rows.flat_map(lambda row: [row] * (row % 3)),
    "map_batches": lambda rows: rows.map_batches(double),
    "map_batches_3": lambda rows: rows.map_batches(double, concurrency=3),
    "odd_only": lambda rows: rows.through(odd_only),
    "in_halves": lambda rows: rows.through(in_halves),
    "in_pairs": lambda rows: rows.through(in_pairs),
}
_PLAIN: dict[str, Callable[[list[int]], list[int]]] = {
    "map": lambda rows: [row + 1 for row in rows],
    "filter": lambda rows: [row for row in rows if row % 3],
    "flat_map": lambda rows: [row for row in rows for _ in range(row % 3)],
    "map_batches": lambda rows: [2 * row for row in rows],
    "map_batches_3": lambda rows: [2 * row for row in rows],
    "odd_only": lambda rows: [row for row in rows if row % 2],
    "in_halves": lambda rows: rows,
    "in_pairs": lambda rows: rows,
}


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.integers(0, 99), max_size=40),
    steps=st.lists(st.sampled_from(sorted(_STEPS)), max_size=5),
    batch_rows=st.integers(1, 12),
    channel_batches=st.integers(1, 4),
    group_rows=st.integers(1, 50),
    stops=st.lists(
        st.tuples(st.sampled_from(["cancel", "drain", "write"]), st.integers(1, 60)), max_size=3
    ),
)
def test_any_cut_and_any_stops_give_the_same_target(
    rows: list[int],
    steps: list[str],
    batch_rows: int,
    channel_batches: int,
    group_rows: int,
    stops: list[tuple[str, int]],
) -> None:
    expected = rows
    for step in steps:
        expected = _PLAIN[step](expected)

    async def check() -> None:
        target = MemoryTarget()
        target.yields_per_write = 2
        sink = MemorySink[int](target=target)

        def pipeline(cut: int) -> Pipeline:
            stream: Stream[int] = MemorySource(rows, batch_rows=cut)
            for step in steps:
                stream = _STEPS[step](stream)
            limits = Limits(channel_batches=channel_batches, group_rows=group_rows)
            return Pipeline("t", stream.into(sink), limits=limits)

        for number, (how, when) in enumerate(stops):
            target.fail_on_write = target.writes + when if how == "write" else None
            run = await pipeline(batch_rows + number).start()
            for _ in range(when):
                await asyncio.sleep(0)
            if how == "cancel":
                await run.abort()
            elif how == "drain":
                await run.drain()
            else:
                try:
                    await run.wait()
                except PipelineFailedError:
                    pass
            assert sink.rows == expected[: len(sink.rows)]
            assert not others()
        target.fail_on_write = None
        await pipeline(batch_rows).run()
        assert sink.rows == expected
        assert (await pipeline(batch_rows).run()).rows_read == 0

    asyncio.run(check())


def test_the_row_class_is_exported() -> None:
    assert Row.__module__ == "etl.rows"


async def test_a_full_read_that_is_added_up_is_not_counted_twice() -> None:
    memory = MemoryTarget()
    sink = MemorySink[Counted](
        target=memory, table="sums", mode="upsert", key=("kind",), add=("count",)
    )
    source = MemorySource([Counted("a", 1), Counted("b", 2), Counted("a", 2)], incremental=False)
    pipeline = Pipeline("adds", source.into(sink))

    await pipeline.run()
    commits = memory.commits
    again = await pipeline.run()

    assert sink.rows == [Counted("a", 3), Counted("b", 2)]
    assert again.flows[0].already_complete
    assert again.rows_written == 0
    assert memory.commits == commits
    with pytest.raises(ConfigError, match="count every row twice"):
        await pipeline.run(full=True)


@dataclass(frozen=True, slots=True)
class Counted:
    kind: str
    count: int


def pump_of(source: Source[Any], steps: Sequence[Any], pack: Any, out: Channel[Any]) -> Pump:
    return Pump(
        flow="t",
        reader=GeneratorReader(source),
        take=taking(deque([make_route("main", {0: None}, ())])),
        steps=steps,
        steps_left=len(steps),
        sets_aside=False,
        pack=pack,
        out=out,
        heavy=HeavyRows(Limits()),
        retry=NEVER_AGAIN,
        on_retry=lambda *told: None,
    )


def in_tuples(batch: Batch[Any]) -> Batch[Any]:
    return batch.derive(tuple(batch.rows))


async def test_rows_are_packed_before_they_wait_and_keep_their_order() -> None:
    packed: list[int] = []

    def pack(batch: Batch[Any]) -> Batch[Any]:
        packed.append(len(batch.rows))
        return in_tuples(batch)

    channel: Channel[Batch[Any]] = Channel("out", max_items=2, max_bytes=10**6)
    source = MemorySource(list(range(1000)), batch_rows=1000)
    await pump_of(source, [Map(lambda row: -row)], pack, channel).run()
    assert list((await channel.get()).rows) == [-row for row in range(1000)]
    assert sum(packed) == 1000
    assert len(packed) > 1  # never all of them as objects at once


async def test_a_row_that_a_function_fails_on_is_numbered_in_its_batch() -> None:
    def invert(row: int) -> float:
        return 1 / (row - 700)

    source = MemorySource(list(range(1000)), batch_rows=1000)
    with pytest.raises(PipelineFailedError, match="invert failed on row 701 of a batch"):
        await Pipeline("t", source.map(invert).into(MemorySink[float]())).run()


async def test_a_function_that_fails_once_and_not_again_is_not_passed_over() -> None:
    failed: list[int] = []

    def moody(row: int) -> int:
        if row == 700 and not failed:
            failed.append(row)
            raise ValueError("once")
        return row

    source = MemorySource(list(range(1000)), batch_rows=1000)
    with pytest.raises(PipelineFailedError, match="moody failed .*must be pure"):
        await Pipeline("t", source.map(moody).into(MemorySink[int]())).run()


async def test_what_only_the_table_refuses_goes_on_to_the_lane_as_it_is() -> None:
    def pack(batch: Batch[Any]) -> Batch[Any]:
        if 700 in batch.rows:
            raise DataError("too long", column="name")
        return in_tuples(batch)

    channel: Channel[Batch[Any]] = Channel("out", max_items=2, max_bytes=10**6)
    source = MemorySource(list(range(1000)), batch_rows=1000)
    await pump_of(source, [Map(lambda row: row)], pack, channel).run()
    assert (await channel.get()).rows == list(range(1000))
