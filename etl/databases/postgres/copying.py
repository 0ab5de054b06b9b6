"""COPY IN, of rows that are complete in memory to one table, and COPY OUT, of a query's rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, TypeAlias

from asyncpg.protocol import NO_TIMEOUT

from etl.databases.postgres.connect import Connection, transport_of
from etl.databases.postgres.frames import pieces_of
from etl.databases.postgres.guard import GROUP_S, STALL_S, Watch, guarded
from etl.databases.postgres.lines import WideText
from etl.engine import failpoints
from etl.engine.supervise import finish
from etl.errors import DataError
from etl.rows import Frames

Chunk: TypeAlias = "bytes | WideText | Frames"

_PIECE = 1 << 20
_FULL_BYTES = 128 << 10
"""From this size on a piece that came in is worth a turn of the event loop."""
_GATHER_S = 0.002


async def copy_in(
    connection: Connection,
    schema: str,
    table: str,
    columns: Sequence[str],
    chunks: Sequence[Chunk],
    form: Literal["text", "binary"] = "text",
) -> int:
    """Copy rows into a table, in the transaction that is open; return how many rows it took.

    Raises:
        ConnectionLostError: The connection ended.
        TimeoutError: The server took nothing for minutes.
    """
    # Outside a transaction a failure would leave rows without their position.
    assert connection.is_in_transaction()
    async with guarded(connection, STALL_S) as watch:
        status = await connection.copy_to_table(
            table,
            schema_name=schema,
            columns=columns,
            source=_paced(chunks, watch),
            format=form,
            timeout=NO_TIMEOUT,  # type: ignore[arg-type]  # the stubs do not know it
        )
    return int(status.rpartition(" ")[2])


async def copy_out(
    connection: Connection,
    query: str,
    output: Callable[[Any], Coroutine[Any, Any, None]],
    form: Literal["text", "binary"] = "text",
) -> str:
    """Copy the rows of a query to a function; return the server's status.

    The server sends 8 KiB at a time. Taken as they come, each costs some turns of the event loop,
    which together take more time than all that is done with the rows. So after a small piece
    nothing is read for a moment, in which the next ones gather in the socket.

    In a task of its own: asyncpg loses a cancellation that comes in the same turn of the event loop
    as data. It then does not cancel the command in the server, and the next data find nobody who
    waits for them, which breaks the connection with an error that the loop reports. So a
    cancellation is passed on in a turn in which no data come.
    """
    loop = asyncio.get_running_loop()

    async def take(piece: bytes) -> None:
        came = loop.time()
        await output(piece)
        if len(piece) < _FULL_BYTES and (rest := came + _GATHER_S - loop.time()) > 0:
            await asyncio.sleep(rest)

    copying: asyncio.Task[str] = asyncio.ensure_future(
        connection.copy_from_query(
            query,
            output=take,
            format=form,
            timeout=NO_TIMEOUT,  # type: ignore[arg-type]  # the stubs do not know it
        )
    )
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError as cancel:
        await finish(_cut(connection, copying))
        # What it ended with may tell why: the loss of the connection is a cancellation here.
        raise cancel from None if copying.cancelled() else copying.exception()


async def _cut(connection: Connection, copying: asyncio.Task[str]) -> None:
    transport = transport_of(connection)
    if transport is not None:
        transport.pause_reading()
    await asyncio.sleep(0)  # what was read in this turn is dealt with
    copying.cancel()
    await asyncio.wait([copying])
    if transport is not None:
        transport.resume_reading()


def check_kept(kept: int, count: int, label: str) -> None:
    """Refuse what a table did with the rows that it was given.

    Raises:
        DataError: It took fewer.
    """
    if kept != count:
        raise DataError(
            f"{label}: the table took {kept} of {count} rows; a trigger or rule of it drops rows."
            " This group was rolled back; remove it, or filter the rows in the pipeline",
            reason="a trigger or rule of the table drops the row",
        )


async def _paced(chunks: Sequence[Chunk], watch: Watch) -> AsyncGenerator[bytes]:
    middle = len(chunks) // 2
    for i, chunk in enumerate(chunks):
        # The driver copies what it is given, and waits until it is sent: so not much at a time.
        for piece in _pieces(chunk):
            watch.expect(STALL_S)
            yield piece
            if i >= middle:
                failpoints.hit("lane.mid_copy")
                middle = len(chunks)
    # What follows is the server's: indexes, triggers, constraints.
    watch.expect(GROUP_S)


def _pieces(chunk: Chunk) -> Iterable[bytes]:
    if isinstance(chunk, Frames):
        return pieces_of(chunk)
    if isinstance(chunk, WideText) or len(chunk) <= _PIECE:
        return chunk if isinstance(chunk, WideText) else (chunk,)
    return (chunk[start : start + _PIECE] for start in range(0, len(chunk), _PIECE))
