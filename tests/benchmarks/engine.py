"""The engine alone: a million integers through four stages that do nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from etl import Batch, Pipeline, Position, Source, Stream
from etl.testing import MemorySink
from tests.benchmarks.work import Contender, Goal, Place, Work, nothing

INTEGERS = 1_000_000
BATCH = 1_000
STAGES = 4
CHANNEL = 16


async def noop(rows: Sequence[int]) -> Sequence[int]:
    return rows


class Integers(Source[int]):
    name = "integers"

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        for start in range(int(after[0]) if after else 0, INTEGERS, BATCH):
            yield Batch(list(range(start, start + BATCH)), position=(start + BATCH,))


def with_etl(place: Place) -> Sequence[int]:
    stream: Stream[int] = Integers()
    for _ in range(STAGES):
        stream = stream.map_batches(noop)
    sink: MemorySink[int] = MemorySink()
    Pipeline("integers", stream.into(sink)).run_sync()
    return sink.rows


def with_queues(place: Place) -> Sequence[int]:
    return asyncio.run(_queues())


async def _queues() -> Sequence[int]:
    queues = [asyncio.Queue[Sequence[int] | None](CHANNEL) for _ in range(STAGES + 1)]
    found: list[int] = []

    async def read() -> None:
        for start in range(0, INTEGERS, BATCH):
            await queues[0].put(list(range(start, start + BATCH)))
        await queues[0].put(None)

    async def through(number: int) -> None:
        while (rows := await queues[number].get()) is not None:
            await queues[number + 1].put(await noop(rows))
        await queues[number + 1].put(None)

    async def write() -> None:
        while (rows := await queues[STAGES].get()) is not None:
            found.extend(rows)

    await asyncio.gather(read(), *map(through, range(STAGES)), write())
    return found


def check(rows: object) -> None:
    if rows != list(range(INTEGERS)):
        raise AssertionError("the integers did not all arrive in order")


WORK = Work(
    title="1,000,000 integers through four no-op async map_batches, in batches of 1,000",
    contenders=(
        Contender(name="etl", run=with_etl),
        Contender(name="asyncio.Queue(16) chain", run=with_queues),
    ),
    reference="asyncio.Queue(16) chain",
    rows=lambda place: INTEGERS,
    prepare=nothing,
    reset=nothing,
    found=nothing,
    expected=nothing,
    check=check,
    goals=(Goal(contender="etl", reference="asyncio.Queue(16) chain", at_most=1.5),),
    rounds=25,
    is_short=True,
)
