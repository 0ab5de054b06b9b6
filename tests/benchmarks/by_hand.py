"""What a good programmer writes with asyncpg and sqlite3: reader, bounded queue, writer.

No checkpoint, no retry, no drain; but bounded memory, one transaction, and nothing silly.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, closing
from typing import Any, TypeAlias

import asyncpg

FETCH_ROWS = 10_000
QUEUE_BATCHES = 4

Records: TypeAlias = Sequence[Any]  # of asyncpg's records or of tuples
Convert: TypeAlias = Callable[[Records], Iterable[Any]]


def unchanged(records: Records) -> Records:
    return records


async def postgres_records(url: str, query: str) -> AsyncGenerator[Records, None]:
    """A query's records through a server-side cursor."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(readonly=True):
            cursor = await connection.cursor(query)
            while records := await cursor.fetch(FETCH_ROWS):
                yield records
    finally:
        await connection.close()


async def sqlite_records(file: str, query: str) -> AsyncGenerator[Records, None]:
    """A query's rows, fetched on a thread."""
    with closing(sqlite3.connect(file, check_same_thread=False)) as connection:
        cursor = connection.execute(query)
        while records := await asyncio.to_thread(cursor.fetchmany, FETCH_ROWS):
            yield records


async def to_postgres(
    batches: AsyncIterator[Records], url: str, table: str, convert: Convert = unchanged
) -> None:
    """COPY batches of records into a table, in one transaction."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            async for records in batches:
                await connection.copy_records_to_table(table, records=convert(records))
    finally:
        await connection.close()


async def to_sqlite(
    batches: AsyncIterator[Records], file: str, insert: str, convert: Convert = unchanged
) -> None:
    """Insert batches of records on a thread, in one transaction."""
    connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)

    def write(records: Records) -> None:
        connection.executemany(insert, convert(records))

    with closing(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        async for records in batches:
            await asyncio.to_thread(write, records)
        connection.execute("COMMIT")


async def queued(batches: AsyncGenerator[Records, None]) -> AsyncGenerator[Records, None]:
    """The batches, read ahead by a task of their own, at most a queue full of them."""
    queue = asyncio.Queue[Records | None](QUEUE_BATCHES)

    async def read() -> None:
        async with aclosing(batches):
            async for records in batches:
                await queue.put(records)
        await queue.put(None)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        while (records := await queue.get()) is not None:
            yield records


async def copy_binary(source: str, query: str, target: str, table: str) -> None:
    """Pass COPY's binary bytes from one server to the other."""
    queue = asyncio.Queue[bytes | None](256)
    reading, writing = await asyncpg.connect(source), await asyncpg.connect(target)

    async def read() -> None:
        await reading.copy_from_query(query, output=queue.put, format="binary")
        await queue.put(None)

    async def pieces() -> AsyncGenerator[bytes, None]:
        while (piece := await queue.get()) is not None:
            yield piece

    try:
        await asyncio.gather(read(), writing.copy_to_table(table, source=pieces(), format="binary"))
    finally:
        await reading.close()
        await writing.close()
