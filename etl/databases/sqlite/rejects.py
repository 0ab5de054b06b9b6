"""The table ``etl_reject``: bad rows, kept in the transaction that moves the position past them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from etl.batch import Reject
from etl.connector import CheckpointKey, NewReject, RunInfo, StoredReject
from etl.databases.checkpoints import now, parts
from etl.databases.rejects import READ, TABLE, WRITTEN, refused_again, stored_of, values_of
from etl.databases.sqlite.connection import Connection
from etl.databases.sqlite.load import Load

_FIELDS = ", ".join(READ)
_INSERT = (
    f"INSERT INTO {TABLE} ({', '.join(WRITTEN)}, rejected_at)"  # noqa: S608  constants
    f" VALUES ({', '.join('?' * len(WRITTEN))}, ?)"
)
_OWNER = "pipeline = ? AND flow = ? AND sink = ?"


class _Session(Protocol):
    def working(self) -> Connection: ...
    def is_staged(self, sink: str) -> bool: ...


class Rejects:
    """See :class:`etl.connector.RejectTable`."""

    def __init__(self, session: _Session, info: RunInfo) -> None:
        self._session = session
        self._info = info

    async def add(self, rejects: Sequence[NewReject]) -> None:
        """See the protocol."""
        rows = [
            (
                *values_of(
                    new,
                    is_staged=self._session.is_staged(new.key.sink),
                    run_id=self._info.run_id,
                ),
                now(),
            )
            for new in rejects
        ]
        await self._session.working().execute_many(_INSERT, rows)

    async def forget(self, keys: Sequence[CheckpointKey]) -> None:
        """See the protocol."""
        await forget(self._session.working(), keys)

    async def forget_staged(self, connection: Connection, flow: str, sink: str) -> None:
        """Drop those of a staging table that is made anew."""
        await connection.execute(
            f"DELETE FROM etl_reject WHERE {_OWNER} AND staged",  # noqa: S608  constants
            (self._info.pipeline, flow, sink),
        )

    async def read(self, flow: str, sink: str, *, after: int, most: int) -> Sequence[StoredReject]:
        """See the protocol."""
        rows = await self._session.working().fetch(
            f"SELECT {_FIELDS} FROM etl_reject WHERE {_OWNER} AND NOT staged AND id > ?"  # noqa: S608
            " ORDER BY id LIMIT ?",
            (self._info.pipeline, flow, sink, after, most),
        )
        return [stored_of(row) for row in rows]

    async def drop(self, number: int) -> bool:
        """See the protocol."""
        connection = self._session.working()
        return await connection.execute("DELETE FROM etl_reject WHERE id = ?", (number,)) == 1

    async def keep(self, number: int, again: Reject) -> None:
        """See the protocol."""
        await self._session.working().execute(
            "UPDATE etl_reject SET reason = ?, detail = ?, column_name = ?, sqlstate = ?,"
            " run_id = ?, tries = tries + 1, tried_at = ? WHERE id = ?",
            (*refused_again(again, self._info.run_id), now(), number),
        )


async def forget(connection: Connection, keys: Sequence[CheckpointKey]) -> None:
    """Drop all rejects of some keys."""
    for key in keys:
        await connection.execute(
            f"DELETE FROM etl_reject WHERE {_OWNER} AND partition = ?",  # noqa: S608  constants
            parts(key),
        )


async def publish_rejects(connection: Connection, pipeline: str, load: Load) -> None:
    """Let the rejects of a staged load be those of its table, in the publishing transaction."""
    owner = (pipeline, load.flow, load.sink.table)
    if load.sink.mode == "replace":  # the rows that they belong to are thrown away
        await connection.execute(
            f"DELETE FROM etl_reject WHERE {_OWNER} AND NOT staged",  # noqa: S608  constants
            owner,
        )
    await connection.execute(
        f"UPDATE etl_reject SET staged = 0 WHERE {_OWNER} AND staged",  # noqa: S608  constants
        owner,
    )


async def list_rejects(connection: Connection, pipeline: str | None) -> list[StoredReject]:
    """All of them, or one pipeline's, in the order in which they were refused."""
    rows = await connection.fetch(
        f"SELECT {_FIELDS} FROM etl_reject WHERE ? IS NULL OR pipeline = ? ORDER BY id",  # noqa: S608
        (pipeline, pipeline),
    )
    return [stored_of(row) for row in rows]
