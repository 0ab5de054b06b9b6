"""Row functions, ``@stage`` under the conservation check, and ordered concurrent calls."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from json import loads
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import (
    Batch,
    ConfigError,
    Database,
    DataError,
    Pipeline,
    PipelineFailedError,
    Retry,
    StageError,
    Token,
    TransientError,
    stage,
)
from etl.engine.calls import run_parallel
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.nodes import inline_chain
from etl.errors import ConservationError
from etl.flow import Filter, FlatMap, Map, MapBatches
from etl.rows import Column, Layout, Type
from etl.stages import RowStep, fuse, texts_in, through_stage
from etl.testing import MemorySink, MemorySource, run_stage

Batches = AsyncIterator[Batch[int]]
Out = AsyncGenerator[Batch[int], None]

# -- Row functions ------------------------------------------------------------------------------


def plus_one(row: int) -> int:
    return row + 1


def is_even(row: int) -> bool:
    return row % 2 == 0


def twice(row: int) -> list[int]:
    return [row, row]


def test_no_functions_leave_the_rows_as_they_are() -> None:
    rows = [1, 2]
    assert fuse([])(rows) is rows


def test_functions_are_applied_in_order() -> None:
    run = fuse([Map(plus_one), Filter(is_even), FlatMap(twice), Map(plus_one)])
    assert run([1, 2, 3]) == [3, 3, 5, 5]
    assert run([]) == []


PRICE = "price"


def discount_of(row: dict[str, int]) -> int:
    return row["discount"]


def net(row: dict[str, int], *, column: str) -> int:
    return row[PRICE] - discount_of(row) - max(row[column] for _ in "x")


def test_the_texts_in_a_function_name_the_columns_that_it_looks_at() -> None:
    def renamed(row: Any) -> Any:
        return row.replace(city=row[column])

    column = "town"
    assert {"price", "discount"} <= texts_in(net)
    assert {"price", "tax"} <= texts_in(partial(net, column="tax"))
    assert {"city", "town"} <= texts_in(renamed)
    assert {"name"} <= texts_in(lambda row: [one["name"] for one in row])
    assert texts_in(str.lower) == texts_in(itemgetter("name")) == set()


def test_the_texts_of_other_modules_functions_are_not_taken() -> None:
    assert "surrogatepass" in texts_in(json.loads)
    assert "surrogatepass" not in texts_in(lambda row: loads(row["payload"]))


_FUNCTIONS: list[tuple[RowStep, Callable[[list[int]], list[int]]]] = [
    (Map(plus_one), lambda rows: [row + 1 for row in rows]),
    (Filter(is_even), lambda rows: [row for row in rows if row % 2 == 0]),
    (FlatMap(twice), lambda rows: [row for row in rows for _ in "xx"]),
    (FlatMap(lambda row: range(row % 3)), lambda rows: [n for row in rows for n in range(row % 3)]),
]


@given(st.lists(st.integers(0, 20)), st.lists(st.sampled_from(range(len(_FUNCTIONS))), max_size=5))
def test_the_fused_loop_does_what_each_step_alone_does(rows: list[int], which: list[int]) -> None:
    expected = rows
    for number in which:
        expected = _FUNCTIONS[number][1](expected)
    assert list(fuse([_FUNCTIONS[number][0] for number in which])(rows)) == expected


def test_any_true_value_keeps_a_row() -> None:
    assert fuse([Filter(lambda row: row)])([0, 1, "", "a", None, [0]]) == [1, "a", [0]]


@pytest.mark.parametrize("at", [0, 3, 6])
@pytest.mark.parametrize("kind", [Map, Filter, FlatMap])
def test_a_stop_iteration_of_a_function_is_an_error_and_not_the_end(kind: Any, at: int) -> None:
    """To ``map()`` it would be the end of the rows: the rest would be lost without a word."""

    def first_of(row: int) -> Any:
        return [next(iter([] if row == at else [row]))]

    with pytest.raises(
        StageError, match=f"first_of failed on row {at + 1} of a batch: StopIteration"
    ):
        fuse([kind(first_of)])(range(7))


@pytest.mark.parametrize("kind", [Map, Filter, FlatMap])
def test_an_error_names_the_function_and_the_row(kind: Any) -> None:
    def to_price(row: int) -> Any:
        return [10 // (row - 12)]

    with pytest.raises(StageError, match=r"to_price failed on row 3 .*ZeroDivisionError") as failed:
        fuse([Map(plus_one), kind(to_price)])([9, 10, 11, 12])
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


def test_an_error_inside_a_generator_of_flat_map_is_located() -> None:
    def words(row: str) -> Any:
        yield row.upper()

    rows: list[Any] = ["a", None]
    with pytest.raises(StageError, match="words failed on row 2 .*AttributeError"):
        fuse([FlatMap(words)])(rows)


def test_a_key_error_names_the_columns_that_there_are() -> None:
    text = Type(kind="text", name="text", dialect="postgresql")
    layout = Layout(
        [Column(name="id", type=text), Column(name="naem", type=text)], [str, str], is_text=True
    )
    rows = [layout.row(["1", "secret"])]
    with pytest.raises(StageError, match="KeyError: 'name'.*the row has id, naem") as failed:
        fuse([Map(lambda row: row["name"])])(rows)
    assert "secret" not in str(failed.value)


def test_a_data_error_stays_one_and_keeps_its_column() -> None:
    def infinite(row: int) -> int:
        raise DataError("an infinite date", column="born")

    with pytest.raises(DataError, match="infinite failed on row 1 .*infinite date") as failed:
        fuse([Map(infinite)])([1])
    assert (failed.value.column, failed.value.row) == ("born", 0)


def test_an_error_that_does_not_come_again_says_that_functions_must_be_pure() -> None:
    calls: list[int] = []

    def moody(row: int) -> int:
        calls.append(row)
        if len(calls) == 2:
            raise ValueError("once")
        return row

    with pytest.raises(StageError, match=r"moody failed \(ValueError .*must be pure") as told:
        fuse([Map(moody)])([1, 2, 3])
    assert told.value.detail == "once"


def test_a_cancellation_in_a_row_function_is_not_swallowed() -> None:
    def cancel(row: int) -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        fuse([Map(cancel)])([1])


# -- Conservation -------------------------------------------------------------------------------


def token(number: int, partition: str = "main") -> Token:
    return Token(partition, number, (number - 1,) if number else None, (number,))


def tokens_of(batches: Sequence[Batch[Any]]) -> list[int]:
    return [one.seq for batch in batches for one in batch.tokens]


class Input:
    """Batches with tokens, and whether they were closed."""

    def __init__(self, *rows: Sequence[int], partitions: Sequence[str] = ("main",)) -> None:
        self.rows = rows
        self.partitions = partitions
        self.closed = False

    async def __call__(self) -> Out:
        try:
            for number, rows in enumerate(self.rows):
                partition = self.partitions[number % len(self.partitions)]
                yield Batch(rows, tokens=(token(number, partition),))
        finally:
            self.closed = True


async def through(function: Any, *rows: Sequence[int], **options: Any) -> list[Batch[int]]:
    source = Input(*rows, **options)
    try:
        async with aclosing(through_stage(stage(function), source())) as results:
            return [batch async for batch in results]
    finally:
        assert source.closed


async def as_it_is(batches: Batches) -> Out:
    async for batch in batches:
        yield batch


async def empties(batches: Batches) -> Out:
    async for batch in batches:
        yield batch.derive([])


async def merges_all(batches: Batches) -> Out:
    held = [batch async for batch in batches]
    yield Batch.merge(held, [row for batch in held for row in batch.rows])


async def splits(batches: Batches) -> Out:
    async for batch in batches:
        for piece in batch.split([[row] for row in batch.rows]):
            yield piece


async def late(batches: Batches) -> Out:
    held: list[Batch[int]] = []
    async for batch in batches:
        held.append(batch)
        if len(held) == 2:
            yield held.pop(0)
    for batch in held:
        yield batch


@pytest.mark.parametrize("good", [as_it_is, empties, merges_all, splits, late])
async def test_a_stage_that_keeps_each_token_passes(good: Any) -> None:
    found = await through(good, [1, 2], [], [3], partitions=("a", "b"))
    assert tokens_of(found) == [0, 1, 2]


async def drops_empty(batches: Batches) -> Out:
    async for batch in batches:
        rows = [row for row in batch.rows if row > 1]
        if rows:
            yield batch.derive(rows)


async def drops_last(batches: Batches) -> Out:
    last = None
    async for batch in batches:
        if last is not None:
            yield last
        last = batch


async def repeats(batches: Batches) -> Out:
    async for batch in batches:
        yield batch
        yield batch


async def reverses(batches: Batches) -> Out:
    for batch in reversed([batch async for batch in batches]):
        yield batch


async def makes_up(batches: Batches) -> Out:
    async for batch in batches:
        yield Batch(batch.rows, tokens=(Token("main", 99, None, (99,)),))


async def own_batch(batches: Batches) -> Out:
    async for batch in batches:
        yield Batch(batch.rows)
        yield batch.derive([])


async def piece_after_token(batches: Batches) -> Out:
    async for batch in batches:
        for piece in reversed(batch.split([[1], [2]])):
            yield piece


async def derives_twice(batches: Batches) -> Out:
    async for batch in batches:
        yield batch.derive([1])
        yield batch.derive([2])


async def merges_the_wrong_way_round(batches: Batches) -> Out:
    held = [batch async for batch in batches]
    yield Batch.merge(reversed(held), [])


async def never_starts(batches: Batches) -> Out:
    return
    yield Batch([])


async def returns_early(batches: Batches) -> Out:
    async for batch in batches:
        yield batch
        return


async def breaks_and_closes(batches: Any) -> Out:
    async with aclosing(batches):
        async for batch in batches:
            yield batch
            break


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (drops_empty, "or dropped one"),
        (drops_last, "dropped 1 batch"),
        (repeats, "does not hold"),
        (reverses, "another order"),
        (makes_up, "does not hold"),
        (own_batch, "without a token"),
        (piece_after_token, "after the batch's last piece"),
        (derives_twice, "does not hold"),
        (merges_the_wrong_way_round, "another order"),
        (never_starts, "before its input had ended"),
        (returns_early, "before its input had ended"),
        (breaks_and_closes, "before its input had ended"),
    ],
)
async def test_a_stage_that_breaks_the_rule_of_tokens_is_named(bad: Any, message: str) -> None:
    with pytest.raises(ConservationError, match=message) as failure:
        await through(bad, [1, 2], [1], [3])
    assert bad.__name__ in str(failure.value)


@pytest.mark.parametrize("what", [[1, 2], None, 5])
async def test_a_stage_that_yields_something_else_is_told_so(what: Any) -> None:
    async def wrong(batches: Batches) -> Any:
        async for _ in batches:
            yield what

    with pytest.raises(StageError, match=f"yielded {type(what).__name__}, not a Batch"):
        await through(wrong, [1])


async def test_the_order_holds_within_a_partition_and_not_between_them() -> None:
    async def right_first(batches: Batches) -> Out:
        held = [batch async for batch in batches]
        for batch in sorted(held, key=lambda batch: batch.tokens[0].partition, reverse=True):
            yield batch

    found = await through(right_first, [1], [2], [3], [4], partitions=("left", "right"))
    assert tokens_of(found) == [1, 3, 0, 2]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    actions=st.lists(st.sampled_from(["pass", "split", "hold"]), min_size=1, max_size=8),
    fault=st.sampled_from(["none", "drop", "repeat", "swap"]),
    where=st.integers(0, 7),
)
def test_any_mix_of_split_and_merge_passes_and_any_fault_in_it_is_caught(
    sizes: list[int], actions: list[str], fault: str, where: int
) -> None:
    async def mixed(batches: Batches) -> Out:
        held: list[Batch[int]] = []
        made: list[Batch[int]] = []
        number = 0
        async for batch in batches:
            action = actions[number % len(actions)]
            number += 1
            held.append(batch)
            if action == "hold":
                continue
            one = Batch.merge(held, [row for each in held for row in each.rows])
            held = []
            made += one.split([[row] for row in one.rows]) if action == "split" else [one]
        if held:
            made.append(Batch.merge(held, [row for each in held for row in each.rows]))
        carrying = [at for at, batch in enumerate(made) if batch.tokens]
        at = carrying[where % len(carrying)]
        if fault == "drop":
            del made[at]
        elif fault == "repeat":
            made.insert(at, made[at])
        elif fault == "swap":
            made[at], made[carrying[0]] = made[carrying[0]], made[at]
        for batch in made:
            yield batch

    rows = [list(range(size)) for size in sizes]

    async def check() -> None:
        found = await through(mixed, *rows)
        assert tokens_of(found) == list(range(len(sizes)))
        assert [row for batch in found for row in batch.rows] == [n for one in rows for n in one]

    if fault == "none":
        asyncio.run(check())
    else:
        try:
            asyncio.run(check())
        except ConservationError:
            pass
        else:
            assert fault == "swap"  # a swap with itself


async def test_what_a_stage_raises_passes_and_its_input_is_closed() -> None:
    async def fails(batches: Batches) -> Out:
        async for batch in batches:
            yield batch
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        await through(fails, [1], [2])


async def test_a_chain_closes_every_part_when_it_is_left_early() -> None:
    closed: list[str] = []

    def noting(name: str) -> Any:
        async def function(batches: Batches) -> Out:
            try:
                async for batch in batches:
                    yield batch
            finally:
                closed.append(name)

        return stage(function)

    source = Input([1], [2])
    chain = inline_chain([Map(plus_one), noting("a"), Filter(bool), noting("b")], source())
    async with aclosing(chain) as results:
        async for batch in results:
            assert batch.rows == [2]
            break
    assert closed == ["b", "a"]
    assert source.closed


async def test_a_chain_fuses_neighbours_around_stages() -> None:
    source = Input([1, 2], [3])
    chain = inline_chain([Map(plus_one), Filter(is_even), stage(splits), FlatMap(twice)], source())
    found = [batch async for batch in chain]
    assert [list(batch.rows) for batch in found] == [[2, 2], [4, 4]]
    assert tokens_of(found) == [0, 1]


async def test_a_stage_alone_runs_over_rows_and_starts_no_task() -> None:
    before = asyncio.all_tasks()
    found = [row async for row in stage(splits)([1, 2, 3])]
    assert found == [1, 2, 3]
    assert asyncio.all_tasks() == before


async def test_a_stage_alone_left_early_is_closed() -> None:
    closed: list[bool] = []

    async def noting(batches: Batches) -> Out:
        try:
            async for batch in batches:
                yield batch
        finally:
            closed.append(True)

    async with aclosing(stage(noting)([1, 2, 3])) as rows:
        async for _ in rows:
            break
    assert closed == [True]


def test_stage_takes_an_async_generator_function_only() -> None:
    async def no_yield(batches: Batches) -> None: ...

    def not_async(batches: Batches) -> Any:
        yield 1

    for wrong in (no_yield, not_async, plus_one):
        with pytest.raises(ConfigError, match="async def"):
            stage(wrong)  # type: ignore[arg-type]


async def test_stage_with_options() -> None:
    @stage(per_partition=True)
    async def larger(batches: Batches, *, than: int = 0) -> Out:
        async for batch in batches:
            yield batch.derive([row for row in batch.rows if row > than])

    assert larger.per_partition
    assert await run_stage(larger.configured(than=2), [1, 2, 3, 4]) == [3, 4]
    with pytest.raises(ConfigError, match=r"larger\.configured\(than=\.\.\.\)"):
        larger(than=2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="called with rows alone, to try it; in a stream write l"):
        larger()


async def test_run_stage_tries_other_cuts() -> None:
    assert await run_stage(stage(merges_all), list(range(7)), batch=2) == list(range(7))

    async def first_of_each(batches: Batches) -> Out:
        async for batch in batches:
            yield batch.derive(batch.rows[:1])

    with pytest.raises(AssertionError, match="depends|other rows"):
        await run_stage(stage(first_of_each), list(range(7)), batch=2)
    found = await run_stage(stage(first_of_each), list(range(4)), batch=2, same_for_any_batch=False)
    assert found == [0, 2]


async def test_run_stage_refuses_what_a_stream_would() -> None:
    @stage
    async def options(batches: Batches, first: int, *, second: int) -> Out:
        async for batch in batches:
            yield batch.derive([row + first + second for row in batch.rows])

    with pytest.raises(ConfigError, match=r"options\.configured\(first=\.\.\., second=\.\.\.\)"):
        await run_stage(options, [1])
    with pytest.raises(ConfigError, match="no option 'batches'"):
        options.configured(batches=1)
    with pytest.raises(ConfigError, match=r"@etl\.stage"):
        await run_stage(options.function, [1])  # type: ignore[arg-type]
    assert await run_stage(options.configured(first=1, second=2), [1]) == [4]


async def test_run_stage_finds_a_dropped_batch() -> None:
    with pytest.raises(ConservationError):
        await run_stage(stage(drops_empty), [0, 0, 5], batch=1)


# -- map_batches --------------------------------------------------------------------------------


class Calls:
    """An async function that counts its calls at once, and waits for a random while."""

    def __init__(self, seed: int = 0) -> None:
        self.at_once = 0
        self.most = 0
        self.count = 0
        self._random = random.Random(seed)

    async def __call__(self, rows: Sequence[int]) -> Sequence[int]:
        self.count += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            for _ in range(self._random.randrange(12)):
                await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        return [row * 2 for row in rows]


class Retries(list[tuple[str, int, float, BaseException]]):
    def __call__(self, what: str, attempt: int, wait_s: float, error: BaseException) -> None:
        self.append((what, attempt, wait_s, error))


def channel_of(name: str, items: int = 100) -> Channel[Batch[Any]]:
    return Channel(name, max_items=items, max_bytes=10**9)


class Mapping:
    """A ``map_batches`` between two channels."""

    def __init__(
        self,
        function: Any,
        concurrency: int = 1,
        retry: Retry | None = None,
        *,
        capacity: int = 100,
    ) -> None:
        self.source = channel_of("source", capacity)
        self.out = channel_of("out", capacity)
        self.retries = Retries()
        self._step = MapBatches(function, concurrency, retry)

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(run_parallel(self._step, self.source, self.out, self.retries))

    async def give(self, *rows: Sequence[Any]) -> None:
        for number, one in enumerate(rows):
            await self.source.put(Batch(one, tokens=(token(number),)), 1)
        self.source.close()

    async def results(self) -> list[Batch[Any]]:
        return [batch async for batch in self.out.drain_items()]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(), max_size=3), max_size=20),
    concurrency=st.integers(1, 6),
    capacity=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_map_batches_keeps_the_order_and_its_bound(
    batches: list[list[int]], concurrency: int, capacity: int, seed: int
) -> None:
    async def check() -> None:
        calls = Calls(seed)
        mapping = Mapping(calls, concurrency, capacity=capacity)
        task = mapping.start()
        giving = asyncio.create_task(mapping.give(*batches))
        found = await mapping.results()
        await asyncio.gather(task, giving)
        assert [list(batch.rows) for batch in found] == [[2 * n for n in one] for one in batches]
        assert tokens_of(found) == list(range(len(batches)))
        assert calls.most <= concurrency
        assert calls.count == sum(1 for one in batches if one)  # never called without rows
        assert calls.at_once == 0

    asyncio.run(check())


async def test_map_batches_uses_the_concurrency_that_it_has() -> None:
    gate = asyncio.Event()
    at_once = 0

    async def wait(rows: Sequence[int]) -> Sequence[int]:
        nonlocal at_once
        at_once += 1
        await gate.wait()
        return rows

    mapping = Mapping(wait, 4)
    task = mapping.start()
    await mapping.give(*([n] for n in range(10)))
    await turns(30)
    assert at_once == 4
    gate.set()
    await task
    assert tokens_of(await mapping.results()) == list(range(10))


async def test_map_batches_hands_on_a_result_while_no_more_input_has_come() -> None:
    mapping = Mapping(Calls(), 4)
    task = mapping.start()
    await mapping.source.put(Batch([1], tokens=(token(0),)), 1)
    assert (await mapping.out.get()).rows == [2]  # and does not wait for a second batch
    mapping.source.close()
    await task


async def test_map_batches_does_not_spin_while_the_last_calls_run() -> None:
    """The input has ended, calls are still out: there is nothing to do but wait."""
    gate = asyncio.Event()

    async def wait(rows: Sequence[int]) -> Sequence[int]:
        await gate.wait()
        return rows

    mapping = Mapping(wait, 4)
    task = mapping.start()
    await mapping.give([1], [2])
    await turns(20)
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        made.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **more)

    asyncio.get_running_loop().set_task_factory(factory)
    await turns(50)
    asyncio.get_running_loop().set_task_factory(None)
    assert made == []
    gate.set()
    await task


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_error_of_a_call_names_the_function_and_cancels_the_rest(
    concurrency: int,
) -> None:
    cancelled: list[int] = []
    started = asyncio.Event()

    async def enrich(rows: Sequence[int]) -> Sequence[int]:
        if rows[0] == 0:
            if concurrency > 1:
                await started.wait()
            raise ValueError("no service")
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(rows[0])
            raise
        return rows

    before = asyncio.all_tasks()
    mapping = Mapping(enrich, concurrency)
    await mapping.give([0], [1], [2])
    with pytest.raises(StageError, match=r"enrich failed: ValueError \(") as failed:
        await mapping.start()
    assert failed.value.detail == "no service"
    assert isinstance(failed.value.__cause__, ValueError)
    assert sorted(cancelled) == ([1, 2] if concurrency > 1 else [])
    assert asyncio.all_tasks() == before
    assert not mapping.out.is_ready  # not closed: nobody may take this for the end


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_call_that_is_tried_again_leaves_nothing_of_its_first_failure(
    succeeds: bool,
) -> None:
    class Row:
        pass

    calls = 0

    async def send(rows: Sequence[Row]) -> Sequence[Row]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("first")
        if not succeeds:
            raise ValueError("second")
        return []

    row = Row()
    alive = weakref.ref(row)
    mapping = Mapping(send, retry=Retry(attempts=3, base_s=0, cap_s=0))
    gc.collect()
    gc.disable()  # no cycle is to keep rows until it comes
    try:
        await mapping.give([row])
        del row
        if succeeds:
            await mapping.start()
        else:
            with pytest.raises(StageError) as failed:
                await mapping.start()
            cause = failed.value.__cause__
            assert isinstance(cause, ValueError)
            assert cause.__context__ is None
            failed.value.__traceback__ = cause.__traceback__ = None
            del failed, cause
        mapping.retries.clear()
        assert calls == 2
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("when", range(12))
async def test_a_cancel_at_any_turn_leaves_no_call(concurrency: int, when: int) -> None:
    calls = Calls(seed=when)
    before = asyncio.all_tasks()
    mapping = Mapping(calls, concurrency)
    task = mapping.start()
    await mapping.give(*([n] for n in range(6)))
    await turns(when)
    task.cancel()
    await asyncio.wait({task})
    assert asyncio.all_tasks() == before
    assert calls.at_once == 0
    del task
    gc.collect()  # a coroutine that was never awaited would warn here


async def test_calls_that_take_their_time_to_end_are_waited_for_through_more_cancels() -> None:
    ending = asyncio.Event()
    ended: list[int] = []

    async def slow_end(rows: Sequence[int]) -> Sequence[int]:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await turns(8)
            ended.append(rows[0])
        return rows

    mapping = Mapping(slow_end, 2)
    task = mapping.start()
    await mapping.give([1], [2])
    await turns()
    task.cancel()
    await ending.wait()
    task.cancel()
    await asyncio.wait({task})
    assert sorted(ended) == [1, 2]


class Flaky:
    """Fails a few times, then works."""

    def __init__(self, failures: int, error: BaseException) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error

    async def __call__(self, rows: Sequence[int]) -> Sequence[int]:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return rows


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("error", [TransientError("x"), ConnectionError("x"), TimeoutError("x")])
async def test_a_passing_failure_is_tried_again_by_the_policy(
    error: BaseException, concurrency: int
) -> None:
    flaky = Flaky(2, error)
    mapping = Mapping(flaky, concurrency, Retry(attempts=3, base_s=0.0))
    await mapping.give([1])
    await mapping.start()
    assert [batch.rows for batch in await mapping.results()] == [[1]]
    assert [attempt for _, attempt, _, _ in mapping.retries] == [1, 2]


@pytest.mark.parametrize("retry", [None, Retry(attempts=2, base_s=0)])
async def test_a_call_that_says_it_fails_for_now_may_be_run_again(retry: Retry | None) -> None:
    async def down(rows: Sequence[int]) -> Sequence[int]:
        raise TransientError("503")

    flow = MemorySource([1]).map_batches(down, retry=retry).into(MemorySink())
    with pytest.raises(PipelineFailedError, match="down failed: TransientError: 503") as failure:
        await Pipeline("p", flow).run()
    assert failure.value.retryable


async def test_retries_end_with_the_last_error() -> None:
    flaky = Flaky(5, TransientError("still down"))
    mapping = Mapping(flaky, 1, Retry(attempts=3, base_s=0.0))
    await mapping.give([1])
    with pytest.raises(TransientError, match="still down"):
        await mapping.start()
    assert flaky.calls == 3


@pytest.mark.parametrize(
    ("error", "retry"),
    [(ValueError("x"), Retry(attempts=3, base_s=0.0)), (TransientError("x"), None)],
)
async def test_other_errors_and_calls_without_a_policy_are_not_tried_again(
    error: BaseException, retry: Retry | None
) -> None:
    flaky = Flaky(1, error)
    mapping = Mapping(flaky, 1, retry)
    await mapping.give([1])
    with pytest.raises((StageError, TransientError)):
        await mapping.start()
    assert flaky.calls == 1


@pytest.mark.parametrize("result", ["text", None, 5, {"a": 1}, iter([1])])
async def test_a_result_that_is_no_list_is_refused(result: Any) -> None:
    async def wrong(rows: Sequence[int]) -> Any:
        return result

    mapping = Mapping(wrong)
    await mapping.give([1])
    with pytest.raises(StageError, match=f"wrong returned {type(result).__name__}"):
        await mapping.start()


async def test_a_broken_input_is_not_the_end_of_it() -> None:
    mapping = Mapping(Calls(), 3)
    task = mapping.start()
    await mapping.source.put(Batch([1], tokens=(token(0),)), 1)
    await turns(2)
    mapping.source.fail(ValueError("upstream"))
    await turns(40)
    assert isinstance(task.exception(), Exception)
    assert not isinstance(task.exception(), EndOfChannelError)


def test_a_step_of_the_database_after_a_function_is_told_its_place() -> None:
    stream = Database("sqlite:///s.db").table("t").map(dict)
    for name in ("where", "select", "rename", "cast"):
        with pytest.raises(AttributeError, match=f"'{name}' is a step of its DatabaseSource: put"):
            getattr(stream, name)
    own = MemorySource([1]).map(str)  # its source has no such step either
    for other, name in ((stream, "wheer"), (own, "where")):
        with pytest.raises(AttributeError, match=f"'Derived' object has no attribute '{name}'"):
            getattr(other, name)
