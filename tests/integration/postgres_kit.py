"""What the PostgreSQL tests share: reading into a list, and a lane in a few lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from etl.batch import Batch, Position
from etl.connector import Advance, Checkpoint, CheckpointKey, RunInfo, Sink
from etl.databases import postgres
from etl.databases.database import ReadSpec
from etl.databases.postgres.session import PostgresSession
from etl.databases.postgres.target import PostgresTarget
from etl.databases.url import parse_url
from etl.rows import Shape

INFO = RunInfo(pipeline="p", run_id="run", batch_rows=100, batch_bytes=2000)


@asynccontextmanager
async def sql(url: str) -> AsyncGenerator[Any]:
    """A plain connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def run_sql(url: str, statements: str) -> None:
    async with sql(url) as connection:
        await connection.execute(statements)


async def value(url: str, query: str) -> Any:
    async with sql(url) as connection:
        return await connection.fetchval(query)


async def texts(url: str, query: str) -> list[str]:
    """The rows of a query as the server's text of them."""
    async with sql(url) as connection:
        rows = await connection.fetch(f"SELECT q::text AS t FROM ({query}) AS q")
    return [row["t"] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a read gave."""

    shape: Shape
    resumable: bool
    notes: Sequence[str]
    batches: list[Batch[Any]]

    @property
    def rows(self) -> list[Any]:
        return [row for batch in self.batches for row in batch.rows]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


async def read(
    url: str,
    spec: ReadSpec,
    after: Position | None = None,
    until: Position | None = None,
    *,
    info: RunInfo = INFO,
) -> Read:
    batches: list[Batch[Any]] = []

    async def emit(batch: Batch[Any]) -> None:
        batches.append(batch)

    async with postgres.open_reader(parse_url(url), spec, info) as reader:
        await reader.pump(after, until, emit)
        return Read(
            shape=reader.shape, resumable=reader.resumable, notes=reader.notes, batches=batches
        )


class Lane:
    """Does what the engine's lane does, step by step."""

    def __init__(
        self, target: PostgresTarget, session: PostgresSession, sinks: Sequence[Sink[Any]]
    ) -> None:
        self.target = target
        self.session = session
        self.keys = [
            CheckpointKey(pipeline="p", flow="f", sink=sink.table, partition="main")
            for sink in sinks
        ]
        self.checkpoints: dict[CheckpointKey, Checkpoint] = {}

    async def take_over(self, *, fresh: bool = False) -> None:
        self.checkpoints = dict(
            await self.session.take_over(
                self.keys, fingerprints=["{}"] * len(self.keys), fresh=fresh
            )
        )

    @property
    def position(self) -> Position | None:
        return self.checkpoints[self.keys[0]].position

    def steps(self, new: Position | None, *, complete: bool = False) -> list[Advance]:
        return [
            Advance(
                key=key,
                epoch=self.checkpoints[key].epoch,
                old=self.checkpoints[key].position,
                new=new,
                rows=0,
                complete=complete,
            )
            for key in self.keys
        ]

    def moved(self, new: Position | None) -> None:
        for key in self.keys:
            self.checkpoints[key] = replace(self.checkpoints[key], position=new)

    async def write(self, batches: Sequence[Batch[Any]], new: Position) -> int:
        """One transaction, rolled back where it fails."""
        written = 0
        try:
            await self.session.begin()
            for sink in range(len(self.keys)):
                written += await self.session.write(sink, batches)
            await self.session.advance(self.steps(new))
            await self.session.commit()
        except BaseException:
            await self.session.rollback()
            raise
        self.moved(new)
        return written

    async def publish(self) -> None:
        await self.target.build()
        await self.target.publish(self.steps(self.position, complete=True))


@asynccontextmanager
async def lane(
    url: str,
    *sinks: Sink[Any],
    shape: Shape | None = None,
    resumable: bool = True,
    fresh: bool = False,
    info: RunInfo = INFO,
) -> AsyncGenerator[Lane]:
    """A prepared lane that has taken over."""
    async with postgres.open_target(parse_url(url), info, sessions=1) as target:
        session = await target.session("f", sinks)
        await session.prepare([shape] * len(sinks), resumable=resumable)
        one = Lane(target, session, sinks)
        await one.take_over(fresh=fresh)
        yield one


async def move(
    source: str,
    target: str,
    spec: ReadSpec,
    sink: Sink[Any],
    *,
    change: Callable[[Any], Any] | None = None,
) -> Read:
    """Read everything, write it in one transaction for every two batches, publish."""
    found = await read(source, spec)
    shape = found.shape if change is None else None
    async with lane(target, sink, shape=shape, resumable=found.resumable) as one:
        for i in range(0, len(found.batches), 2):
            group = found.batches[i : i + 2]
            position = group[-1].position
            assert position is not None
            if change is not None:
                group = [batch.derive([change(row) for row in batch.rows]) for batch in group]
            await one.write(group, position)
        if sink.mode == "replace" or not found.resumable:
            await one.publish()
    return found
