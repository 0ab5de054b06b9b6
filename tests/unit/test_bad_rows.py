"""Bad rows with connectors in memory: what is kept, how many may be, and what must not be lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from etl import (
    Batch,
    ConfigError,
    DataError,
    DeadLetter,
    Limits,
    Pipeline,
    PipelineFailedError,
    Retry,
    TransientError,
    stage,
)
from etl.batch import Reject, Token
from etl.databases.stored import CannotStoreError, readable_row, restore_row, store_row
from etl.databases.types import text_decoder
from etl.errors import ConservationError
from etl.flow import Flow, merge
from etl.policy import OnError
from etl.rows import Column, Layout, Row, Type
from etl.stages import through_stage
from etl.testing import MemorySink, MemorySource

KEEP = DeadLetter()
SMALL = Limits(batch_rows=4, group_rows=8)


def odd(number: int) -> int:
    if number % 5 == 0:
        raise ValueError(f"no {number}")
    return number * 10


async def run(flow: Flow, on_error: OnError = KEEP, **options: Any) -> Any:
    pipeline = Pipeline(
        "t", flow, limits=SMALL, on_error=on_error, retry=Retry(attempts=3, base_s=0.0)
    )
    return await pipeline.run(**options)


def kept_rows(sink: MemorySink[Any]) -> list[Any]:
    return [one.restore("") for one in sink.memory.rejects.values()]


NUMBERS = list(range(1, 21))
GOOD = [n * 10 for n in NUMBERS if n % 5]


async def test_good_rows_go_on_and_bad_ones_are_kept_in_order() -> None:
    sink = MemorySink[int]()
    report = await run(MemorySource(NUMBERS, batch_rows=4).map(odd).into(sink))
    assert sink.rows == GOOD
    assert kept_rows(sink) == [5, 10, 15, 20]
    (flow,) = report.flows
    assert (flow.rows_read, flow.rows_written, flow.rows_rejected) == (20, 16, 4)


@pytest.mark.parametrize("failing_write", range(1, 6))
async def test_a_rerun_after_a_failure_doubles_no_reject(failing_write: int) -> None:
    sink = MemorySink[int](fail_on_write=failing_write, error=RuntimeError)
    flow = MemorySource(NUMBERS, batch_rows=4).map(odd).into(sink)
    if failing_write < 3:
        with pytest.raises(PipelineFailedError):
            await run(flow)
    sink.heal()
    await run(flow)
    assert sink.rows == GOOD
    assert kept_rows(sink) == [5, 10, 15, 20]


@pytest.mark.parametrize("is_in", [True, False])
async def test_a_commit_in_doubt_loses_and_doubles_no_reject(is_in: bool) -> None:
    sink = MemorySink[int]()
    sink.memory.doubt_on_commit = 1
    sink.memory.doubt_is_in = is_in
    report = await run(MemorySource(NUMBERS, batch_rows=4).map(odd).into(sink))
    assert sink.rows == GOOD
    assert kept_rows(sink) == [5, 10, 15, 20]
    assert report.rows_rejected == 4


async def test_a_batch_of_bad_rows_only_still_moves_the_position() -> None:
    sink = MemorySink[int]()
    flow = MemorySource([5, 10, 15], batch_rows=3).map(odd).into(sink)
    await run(flow)
    assert sink.rows == []
    assert kept_rows(sink) == [5, 10, 15]
    (checkpoint,) = sink.memory.checkpoints.values()
    assert checkpoint.position == (3,)


async def test_each_sink_keeps_the_rows_that_it_refused_itself() -> None:
    one = MemorySink[int](table="one")
    two = MemorySink[int](target=one.memory, table="two")
    one.memory.refuses = lambda row, others: row in others
    flow = MemorySource([1, 2, 2, 3, 5, 1], batch_rows=2).map(odd).into(one, two)
    report = await run(flow)
    assert one.rows == two.rows == [10, 20, 30]
    found = [(r.key.sink, r.step, r.restore("")) for r in one.memory.rejects.values()]
    assert sorted(found) == sorted(
        (sink, step, row)
        for sink in ("one", "two")
        for step, row in [("map odd", 5), ("write", 20), ("write", 10)]
    )
    assert report.rows_rejected == 6


@pytest.mark.parametrize("bad", [1, 700, 1999, 2000])
async def test_finding_a_bad_row_writes_a_group_less_than_three_times(bad: int) -> None:
    sink = MemorySink[int]()
    sink.memory.refuses = lambda row, others: row == bad
    numbers = list(range(1, 2001))
    pipeline = Pipeline("t", MemorySource(numbers, batch_rows=500).into(sink), on_error=KEEP)
    await pipeline.run()
    assert sink.rows == [n for n in numbers if n != bad]
    assert sink.memory.rows_sent <= 3 * len(numbers) + 1


# -- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["skip", KEEP])
async def test_a_feed_that_is_wholly_broken_ends_the_run(policy: OnError) -> None:
    def broken(number: int) -> int:
        raise KeyError("price")

    sink = MemorySink[int]()
    flow = MemorySource(list(range(5000)), batch_rows=10).map(broken).into(sink)
    with pytest.raises(PipelineFailedError, match=r"of the last \d+ rows were refused.*max_share"):
        await run(flow, policy)
    assert len(sink.memory.rejects) <= 100


async def test_a_table_that_refuses_all_is_noticed_before_each_row_of_a_group_was_tried() -> None:
    tried: set[int] = set()

    def refuses(row: int, others: Sequence[int]) -> bool:
        tried.add(row)
        return True

    sink = MemorySink[int]()
    sink.memory.refuses = refuses
    flow = MemorySource(list(range(4000)), batch_rows=4000).into(sink)
    with pytest.raises(PipelineFailedError, match="500 of the last 4000 rows were refused"):
        await run(flow, KEEP)
    assert len(tried) <= 600


async def test_max_rows_bounds_a_run_and_not_a_flow_for_ever() -> None:
    sink = MemorySink[int]()
    flow = MemorySource(NUMBERS, batch_rows=1).map(odd).into(sink)
    with pytest.raises(PipelineFailedError, match=r"max_rows=2"):
        await run(flow, DeadLetter(max_rows=2))
    assert len(kept_rows(sink)) <= 2
    await run(flow, DeadLetter(max_rows=4))
    assert sink.rows == GOOD
    assert kept_rows(sink) == [5, 10, 15, 20]


@pytest.mark.parametrize("between", [False, True])
async def test_a_bad_row_costs_its_piece_and_not_its_batch(between: bool) -> None:
    """The rows around it go through the function twice, all others once."""
    calls = dict.fromkeys(range(5_000), 0)

    def picky(number: int) -> int:
        calls[number] += 1
        if number == 3_210:
            raise ValueError(number)
        return number

    async def same(batch: Sequence[int]) -> Sequence[int]:
        return batch

    source = MemorySource(list(calls), batch_rows=len(calls))
    flow = source.map_batches(same).map(picky) if between else source.map(picky)
    sink = MemorySink[int]()
    limits = Limits(batch_rows=5_000)
    report = await Pipeline("t", flow.into(sink), limits=limits, on_error=KEEP).run()
    assert report.rows_rejected == 1
    (reject,) = sink.memory.rejects.values()
    assert reject.ordinal == 3_210
    assert sink.rows == [number for number in calls if number != 3_210]
    assert sum(calls.values()) <= len(calls) + 256


async def test_a_function_that_fails_once_is_no_bad_row() -> None:
    seen: set[int] = set()

    def moody(number: int) -> int:
        if number == 7 and number not in seen:
            seen.add(number)
            raise ValueError
        return number

    flow = MemorySource(NUMBERS).map(moody).into(MemorySink[int]())
    with pytest.raises(PipelineFailedError, match="moody failed .*must be pure"):
        await run(flow)


async def test_bad_rows_that_are_spread_out_do_not_add_up_to_a_share() -> None:
    sink = MemorySink[int]()
    numbers = list(range(1, 4001))
    bounds = DeadLetter(max_share=0.21, window_rows=100, max_share_from=0)
    report = await run(MemorySource(numbers, batch_rows=50).map(odd).into(sink), bounds)
    assert report.rows_rejected == 800


@pytest.mark.parametrize(
    "options", [{"max_rows": -1}, {"max_share": 1.5}, {"window_rows": 0}, {"max_share_from": -1}]
)
def test_bounds_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DeadLetter(**options)


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_error='ignore'"):
        Pipeline("t", MemorySource([1]).into(MemorySink[int]()), on_error="ignore")  # type: ignore[arg-type]


async def test_a_flow_may_have_a_policy_of_its_own() -> None:
    sink = MemorySink[int]()
    flow = MemorySource(NUMBERS, batch_rows=4).map(odd).into(sink, on_error="skip")
    report = await run(flow, "fail")
    assert (report.rows_skipped, len(kept_rows(sink))) == (4, 0)
    with pytest.raises(PipelineFailedError):
        await Pipeline("t", flow).run(on_error="fail", full=True)


# -- what is not about a row --------------------------------------------------------------------


@pytest.mark.parametrize("error", [TransientError("away"), OSError("disk"), ConfigError("set-up")])
async def test_an_error_that_is_not_about_a_row_ends_the_run(error: Exception) -> None:
    def fails(number: int) -> int:
        raise error

    sink = MemorySink[int]()
    with pytest.raises(PipelineFailedError):
        await run(MemorySource(NUMBERS).map(fails).into(sink))
    assert kept_rows(sink) == []


async def test_map_batches_is_called_by_halves_until_the_bad_rows_are_known() -> None:
    calls: list[int] = []

    async def priced(rows: Sequence[int]) -> list[int]:
        calls.append(len(rows))
        return [odd(row) for row in rows]

    sink = MemorySink[int]()
    flow = MemorySource(NUMBERS, batch_rows=20).map_batches(priced).into(sink)
    await run(flow)
    assert sink.rows == GOOD
    assert kept_rows(sink) == [5, 10, 15, 20]
    assert {one.step for one in sink.memory.rejects.values()} == {
        "map_batches " + priced.__qualname__
    }
    assert len(calls) < 2 * 20


async def test_a_service_that_is_down_is_not_the_rows_fault() -> None:
    calls = 0

    async def down(rows: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise RuntimeError("503")

    sink = MemorySink[int]()
    with pytest.raises(PipelineFailedError, match="RuntimeError"):
        await run(MemorySource(list(range(2000)), batch_rows=2000).map_batches(down).into(sink))
    assert calls < 300
    assert kept_rows(sink) == []


# -- stages -------------------------------------------------------------------------------------


@stage
async def summed(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    held: list[Batch[int]] = []
    async for batch in batches:
        held.append(batch)
        if len(held) == 2:
            yield Batch.merge(held, [sum(row for one in held for row in one.rows)])
            held = []
    if held:
        yield Batch.merge(held, [sum(row for one in held for row in one.rows)])


@stage
async def cut(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        for piece in batch.split([[row] for row in batch.rows]):
            yield piece


@pytest.mark.parametrize("between", [summed, cut])
async def test_rejects_pass_stages_that_merge_and_split(between: Any) -> None:
    sink = MemorySink[int]()
    source: Any = MemorySource(NUMBERS, batch_rows=4)
    await run(source.map(odd).through(between).into(sink))
    assert sum(sink.rows) == sum(GOOD)
    assert kept_rows(sink) == [5, 10, 15, 20]


def rejecting(seq: int) -> Batch[int]:
    reject = Reject(row=seq, ordinal=0, step="map f", steps_left=2, reason="no")
    token = Token("main", seq, (seq,) if seq else None, (seq + 1,))
    return Batch([seq], position=(seq + 1,), tokens=(token,), rejects=(reject,))


@stage
async def loses(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield Batch(batch.rows, position=batch.position, tokens=batch.tokens)


@stage
async def doubles(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        head, last = batch.split([[1], [2]])
        head.rejects = batch.rejects
        yield head
        yield last


@pytest.mark.parametrize(("wrong", "said"), [(loses, "lost a rejected"), (doubles, "twice")])
async def test_a_stage_that_loses_or_repeats_a_reject_is_named(wrong: Any, said: str) -> None:
    async def batches() -> AsyncGenerator[Batch[int], None]:
        yield rejecting(0)

    with pytest.raises(ConservationError, match=said):
        async for _ in through_stage(wrong, batches()):
            pass


# -- sent again ---------------------------------------------------------------------------------


async def test_rows_of_a_merge_are_sent_again_through_their_own_branch() -> None:
    broken = True

    def tens(number: int) -> int:
        if broken and number % 2:
            raise ValueError
        return number * 10

    def plus(number: int) -> int:
        if broken and number == 40:
            raise ValueError
        return number + 1

    left: Any = MemorySource([1, 2, 3, 4], name="left")
    right: Any = MemorySource([100, 101], name="right")
    sink = MemorySink[int]()
    flow = merge(left.map(tens), right).map(plus).into(sink)
    pipeline = Pipeline("t", flow, on_error=KEEP)
    await pipeline.run()
    assert sorted(kept_rows(sink)) == [1, 3, 40]
    broken = False
    (done,) = await pipeline.retry_rejects()
    assert (done.settled, done.refused) == (3, 0)
    assert sorted(sink.rows) == [11, 21, 31, 41, 101, 102]
    assert sink.memory.rejects == {}


async def test_a_step_that_is_gone_leaves_the_row_where_it_is() -> None:
    sink = MemorySink[int]()
    await run(MemorySource(NUMBERS, batch_rows=4).map(odd).into(sink))

    def other(number: int) -> int:
        return number

    changed = Pipeline("t", MemorySource(NUMBERS).map(other).into(sink))
    (done,) = await changed.retry_rejects()
    assert (done.settled, done.refused) == (0, 4)
    assert {one.reason for one in sink.memory.rejects.values()} == {
        "DataError: the step 'map odd' is not in the flow any more"
    }


# -- how rows are stored ------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Pair(NamedTuple):
    one: int
    two: Any


@dataclass(frozen=True, slots=True)
class Thing:
    id: int
    held: Any


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, 2**200, "", "\x00 \udc80 ä\n", 0.1, float("inf"), -0.0, b"\x00\xff",
        Decimal("1.10"), Decimal("NaN"), date(2024, 2, 29), time(1, 2, 3, 4, fold=1),
        datetime(2024, 1, 1, 12, tzinfo=UTC),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=UTC).replace(tzinfo=None),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=7))),
        timedelta(days=-1, microseconds=1), UUID(int=5), Colour.RED, Pair(1, Colour.RED),
        (1, [2, {3: frozenset({4})}]), {"$": "row", "a": {1, 2}}, Thing(1, Thing(2, b"x")),
    ],
)  # fmt: skip
def test_a_stored_row_comes_back_as_it_was(value: Any) -> None:
    back = restore_row(store_row(Thing(7, value)), "").held
    assert repr(back) == repr(value)
    assert type(back) is type(value)
    assert store_row(value).isascii()


def test_a_database_row_keeps_what_python_cannot_hold() -> None:
    kind = Type(kind="timestamp", name="timestamp without time zone", dialect="postgresql")
    columns = [Column(name="at", type=kind), Column(name="x", type=kind)]
    decoders = [text_decoder(one.type, nullable=True, column=one.name) for one in columns]
    row = Layout(columns, decoders, is_text=True).row(("infinity", "\\N"), {"x": Decimal("1.5")})
    back = restore_row(store_row(row), "")
    assert isinstance(back, Row)
    assert back.fields == ("infinity", "\\N")
    assert back["x"] == Decimal("1.5")
    assert back.layout.columns == row.layout.columns
    with pytest.raises(DataError, match="infinite"):
        back["at"]
    assert readable_row(store_row(row)) == '{"at": "infinity", "x": "1.5"}'


def test_a_database_row_is_kept_in_the_order_of_its_table() -> None:
    kind = Type(kind="text", name="text", dialect="postgresql")
    a, b, c = (Column(name=name, type=kind) for name in "abc")
    row = Layout([c, a, b], [str] * 3, is_text=True, shown=[a, b, c]).row(("C", "A", "B"))
    assert dict(row) == {"a": "A", "b": "B", "c": "C"}
    back = restore_row(store_row(row), "")
    assert list(back.items()) == list(row.items())
    assert readable_row(store_row(row)) == '{"a": "A", "b": "B", "c": "C"}'


@pytest.mark.parametrize("value", [object(), lambda: None, type("Local", (), {})()])
def test_a_value_without_a_stored_form_is_refused(value: object) -> None:
    with pytest.raises(CannotStoreError):
        store_row((1, value))
