"""What the SQLite tests share: plain connections, reading into a list, a lane in few lines."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from typing import Any

from etl.batch import Batch, Position, decode_position, encode_position
from etl.connector import Advance, Checkpoint, CheckpointKey, RunInfo, Sink
from etl.databases import sqlite
from etl.databases.database import Database, ReadSpec
from etl.databases.sqlite.target import SqliteSession, SqliteTarget
from etl.databases.url import parse_url
from etl.rows import Shape

INFO = RunInfo(pipeline="p", run_id="run", batch_rows=100, batch_bytes=2000)


def path_of(url: str) -> str:
    return parse_url(url).path


def script(url: str, statements: str) -> None:
    """Run statements on a plain connection."""
    with closing(sqlite3.connect(path_of(url), isolation_level=None)) as connection:
        connection.executescript(statements)


def insert(url: str, table: str, rows: Sequence[Sequence[Any]]) -> None:
    with closing(sqlite3.connect(path_of(url))) as connection, connection:
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def fetch(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path_of(url))) as connection:
        return connection.execute(query).fetchall()


def value(url: str, query: str) -> Any:
    return fetch(url, query)[0][0]


async def holding(path: str, statement: str) -> asyncio.subprocess.Process:
    """Another process that holds a lock until it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        " c.execute(sys.argv[2]); print('held', flush=True); time.sleep(60)",
        path,
        statement,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


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

    @property
    def tuples(self) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.rows]

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

    async with sqlite.open_reader(parse_url(url), spec, info) as reader:
        await reader.pump(after, until, emit)
        assert reader.shape is not None
        return Read(
            shape=reader.shape, resumable=reader.resumable, notes=reader.notes, batches=batches
        )


def stored(position: Position | None) -> Position | None:
    """A position as it comes back from the checkpoint."""
    return decode_position(encode_position(position))


class Lane:
    """One flow's session, driven by hand as the engine's lane does it."""

    def __init__(self, target: SqliteTarget, session: SqliteSession, sinks: Sequence[Sink[Any]]):
        self.target = target
        self.session = session
        self.sinks = sinks
        self.key = CheckpointKey(pipeline="p", flow="f", sink=sinks[0].table, partition="main")
        self.epoch = 0
        self.position: Position | None = None

    async def take_over(self, *, fresh: bool = False) -> Checkpoint:
        found: Mapping[CheckpointKey, Checkpoint] = await self.session.take_over(
            [self.key], fingerprints=["{}"], fresh=fresh
        )
        self.epoch, self.position = found[self.key].epoch, found[self.key].position
        return found[self.key]

    async def write(self, rows: Sequence[Any], position: Position) -> int:
        """One transaction."""
        try:
            await self.session.begin()
            written = 0
            for number in range(len(self.sinks)):
                written += await self.session.write(number, [Batch(rows)])
            await self.session.advance([self.step(position, rows=len(rows))])
            await self.session.commit()
        except BaseException:
            await self.session.rollback()
            raise
        self.position = position
        return written

    async def publish(self) -> None:
        await self.target.build()
        await self.target.publish([self.step(self.position, complete=True)])

    def step(self, position: Position | None, *, rows: int = 0, complete: bool = False) -> Advance:
        return Advance(
            key=self.key,
            epoch=self.epoch,
            old=self.position,
            new=position,
            rows=rows,
            complete=complete,
        )


@asynccontextmanager
async def target(url: str, info: RunInfo = INFO) -> AsyncGenerator[SqliteTarget]:
    async with sqlite.open_target(parse_url(url), info, sessions=2) as opened:
        assert isinstance(opened, SqliteTarget)
        yield opened


@asynccontextmanager
async def lane(
    url: str,
    make: Callable[[Database], Sink[Any]],
    *,
    shape: Shape | None = None,
    resumable: bool = True,
    fresh: bool = False,
    info: RunInfo = INFO,
) -> AsyncGenerator[Lane]:
    """A lane with one sink, prepared and with its checkpoint taken over."""
    sink = make(Database(url))
    async with target(url, replace(info, take_over=True)) as opened:
        session = await opened.session("f", [sink])
        assert isinstance(session, SqliteSession)
        one = Lane(opened, session, [sink])
        await session.prepare([shape], resumable=resumable)
        await one.take_over(fresh=fresh)
        yield one
