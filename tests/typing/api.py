"""What the public API promises to type checkers; ``test_typing.py`` runs both over this file.

Both must refuse each line with ``type: ignore``, and no other: an ignore that is not needed is an
error for both of them.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false
# pyright: reportUnusedClass=false, reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, assert_type

from etl import (
    Batch,
    Flow,
    Limits,
    Pipeline,
    Position,
    Report,
    Retry,
    Row,
    Run,
    Sink,
    Source,
    Stage,
    Stream,
    gather,
    merge,
    stage,
)
from etl.testing import MemorySink, MemorySource, run_stage


@dataclass(frozen=True, slots=True)
class Order:
    id: int
    customer_id: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Fact:
    id: int
    customer_id: int
    cents: int


@dataclass(frozen=True, slots=True)
class Customer:
    id: int
    segment: str


def to_columns(table: Any) -> Any:
    return table


def to_fact(order: Order) -> Fact:
    return Fact(order.id, order.customer_id, int(order.amount * 100))


orders: Source[Order] = MemorySource([Order(1, 1, Decimal(5))])
customers = MemorySource([Customer(1, "new")])
rows: Source[Row] = MemorySource[Row]([])
facts_sink = MemorySink[Fact]()
orders_sink = MemorySink[Order]()

# -- Row functions ------------------------------------------------------------------------------

facts = orders.map(to_fact)
assert_type(facts, Stream[Fact])
assert_type(facts.filter(lambda fact: fact.cents > 0), Stream[Fact])
assert_type(orders.map(lambda order: order.id), Stream[int])
assert_type(orders.flat_map(lambda order: [order.id, order.customer_id]), Stream[int])
assert_type(rows.map(lambda row: row.replace(price=1)), Stream[Row])
assert_type(rows.map(lambda row: {"id": row["id"]}).named("x").flow_name, str)
assert_type(facts.named("facts"), Stream[Fact])

facts.map(to_fact)  # type: ignore[arg-type]
facts.filter(lambda fact: fact.amount > 0)  # type: ignore[attr-defined]
orders.flat_map(lambda order: order.id)  # type: ignore[arg-type, return-value]

# -- Batches ------------------------------------------------------------------------------------


async def enrich(batch: Sequence[Fact]) -> Sequence[str]:
    return [str(fact.id) for fact in batch]


def not_async(batch: Sequence[Fact]) -> Sequence[str]:
    return [str(fact.id) for fact in batch]


assert_type(facts.map_batches(enrich, concurrency=8, retry=Retry(attempts=3)), Stream[str])

facts.map_batches(not_async)  # type: ignore[arg-type]
orders.map_batches(enrich)  # type: ignore[arg-type]
facts.map_batches(enrich, 8)  # type: ignore[call-arg]
assert_type(orders.map_arrow(to_columns), Stream[Row])
orders.map_arrow("to_columns")  # type: ignore[arg-type]

# -- Stages -------------------------------------------------------------------------------------


@stage
async def dedupe(batches: AsyncIterator[Batch[Fact]]) -> AsyncGenerator[Batch[Fact], None]:
    seen: set[int] = set()
    async for batch in batches:
        assert_type(batch.rows, Sequence[Fact])
        fresh = [fact for fact in batch.rows if fact.id not in seen]
        seen.update(fact.id for fact in fresh)
        yield batch.derive(fresh)


@stage
async def totals(
    batches: AsyncIterator[Batch[Fact]], *, every: int = 100
) -> AsyncGenerator[Batch[tuple[int, int]], None]:
    held: list[Batch[Fact]] = []
    async for batch in batches:
        held.append(batch)
        if len(held) == every:
            merged = Batch.merge(held, [(1, 2)])
            assert_type(merged, Batch[tuple[int, int]])
            yield merged
            held = []
    for piece in Batch.merge(held, [1]).split([[(1, 2)], [(3, 4)]]):
        yield piece


@stage(per_partition=True)
async def same(batches: AsyncIterator[Batch[Fact]]) -> AsyncGenerator[Batch[Fact], None]:
    async for batch in batches:
        yield batch


assert_type(dedupe, Stage[Fact, Fact])
assert_type(totals, Stage[Fact, tuple[int, int]])
assert_type(same, Stage[Fact, Fact])
assert_type(totals.configured(every=5), Stage[Fact, tuple[int, int]])
assert_type(facts.through(dedupe), Stream[Fact])
assert_type(facts | dedupe | totals, Stream[tuple[int, int]])

orders.through(dedupe)  # type: ignore[arg-type]
orders | dedupe  # type: ignore[operator]
facts | totals | dedupe  # type: ignore[operator]

# -- Sinks and flows ----------------------------------------------------------------------------

flow = facts.into(facts_sink)
assert_type(flow, Flow)
assert_type(facts | facts_sink, Flow)
assert_type(facts.into(facts_sink, facts_sink), Flow)
everything = MemorySink[object]()
facts.into(everything)  # a sink of anything takes facts

facts.into(orders_sink)  # type: ignore[arg-type]
facts.into(facts_sink, orders_sink)  # type: ignore[arg-type]
facts | orders_sink  # type: ignore[operator]
dedupe.into(facts_sink)  # type: ignore[attr-defined]

# -- Merge and lookup ---------------------------------------------------------------------------

assert_type(merge(facts, facts.named("more")), Stream[Fact])


def with_segment(fact: Fact, customer: Customer | None) -> str:
    return customer.segment if customer else "?"


def certain(fact: Fact, customer: Customer) -> str:
    return customer.segment


assert_type(
    facts.lookup(
        customers,
        side_key=lambda customer: customer.id,
        key=lambda fact: fact.customer_id,
        combine=with_segment,
    ),
    Stream[str],
)

facts.lookup(customers, side_key=lambda c: c.id, key=lambda f: f.id, combine=to_fact)  # type: ignore[arg-type]
facts.lookup(customers, side_key=lambda c: c.id, key=lambda f: f.id, combine=certain)  # type: ignore[arg-type]

# -- Pipelines ----------------------------------------------------------------------------------

pipeline = Pipeline("facts", flow, limits=Limits(memory="64MiB"), retry=Retry(attempts=2))
Pipeline("no flow", facts)  # type: ignore[arg-type]
Pipeline(flow)  # type: ignore[arg-type]


async def run() -> None:
    assert_type(await pipeline.run(), Report)
    assert_type(await pipeline.run(full=True, limits=Limits()), Report)
    handle = await pipeline.start()
    assert_type(handle.stats()["flows"][0]["rows_read"], int)
    assert_type(await handle.drain(deadline_s=20), Report)
    assert_type(await gather(pipeline, pipeline, on_failure="drain"), list[Report])
    async for fact in dedupe([Fact(1, 1, 5)]):
        assert_type(fact, Fact)
    async with orders.map(to_fact).open(limits=Limits()) as rows:
        async for fact in rows:
            assert_type(fact, Fact)
    assert_type(await run_stage(dedupe, [Fact(1, 1, 5)]), list[Fact])
    assert_type(facts_sink.rows, list[Fact])

    await gather(pipeline, on_failure="ignore")  # type: ignore[arg-type]
    await run_stage(dedupe, [5])  # type: ignore[misc]


# -- A source and a sink of one's own -----------------------------------------------------------


class Pages(Source[Order]):
    name = "pages"

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[Order], None]:
        page = int(after[0]) if after else 0
        yield Batch([Order(page, 1, Decimal(1))], position=(page + 1,))


class WrongPages(Source[Order]):
    async def read(  # type: ignore[override]
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[Fact], None]:
        yield Batch([Fact(1, 1, 5)], position=(1,))


assert_type(Pages().map(to_fact).into(facts_sink), Flow)


def sink_of(rows: Iterable[Fact]) -> Sink[Fact]:
    return facts_sink


# -- Runs ---------------------------------------------------------------------------------------


async def runs(pipeline: Pipeline) -> None:
    assert_type(await pipeline.start(), Run)
