"""COPY IN: lines that are complete in memory go to one table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from asyncpg.protocol import NO_TIMEOUT

from etl.databases.postgres.connect import Connection
from etl.databases.postgres.guard import GROUP_S, STALL_S, Watch, guarded
from etl.engine import failpoints


async def copy_in(
    connection: Connection,
    schema: str,
    table: str,
    columns: Sequence[str],
    chunks: Sequence[bytes],
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


async def _paced(chunks: Sequence[bytes], watch: Watch) -> AsyncGenerator[bytes]:
    for i, chunk in enumerate(chunks):
        if i == len(chunks) // 2:
            failpoints.hit("lane.mid_copy")
        watch.expect(STALL_S)
        yield chunk
    # What follows is the server's: indexes, triggers, constraints.
    watch.expect(GROUP_S)
