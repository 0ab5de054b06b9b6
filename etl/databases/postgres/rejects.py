"""The table ``etl_reject``: bad rows, kept in the transaction that moves the position past them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from etl.batch import Reject
from etl.connector import CheckpointKey, NewReject, StoredReject
from etl.databases.checkpoints import parts
from etl.databases.postgres.checkpoints import Checkpoints
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.load import Load
from etl.databases.postgres.translate import translating
from etl.databases.rejects import READ, TABLE, WRITTEN, refused_again, stored_of, values_of
from etl.databases.sql import qualify

_FIELDS = ", ".join(READ).replace("rejected_at", "rejected_at::text AS rejected_at")
_KEPT = "nothing was changed"


class _Session(Protocol):
    @property
    def connection(self) -> Connection: ...
    def is_staged(self, sink: str) -> bool: ...


class Rejects:
    """See :class:`etl.connector.RejectTable`."""

    def __init__(self, session: _Session, checkpoints: Checkpoints) -> None:
        self._session = session
        self._table = qualify(checkpoints.schema, TABLE)
        self._pipeline = checkpoints.pipeline
        self._run_id = checkpoints.run_id

    async def add(self, rejects: Sequence[NewReject]) -> None:
        """See the protocol."""
        rows = [
            values_of(new, is_staged=self._session.is_staged(new.key.sink), run_id=self._run_id)
            for new in rejects
        ]
        marks = ", ".join(f"${number}" for number in range(1, len(WRITTEN) + 1))
        with translating("target", "keeping rejected rows", "nothing of their group was written"):
            await self._session.connection.executemany(
                f"INSERT INTO {self._table} ({', '.join(WRITTEN)}, rejected_at)"  # noqa: S608
                f" VALUES ({marks}, clock_timestamp())",
                rows,
            )

    async def forget(self, keys: Sequence[CheckpointKey]) -> None:
        """See the protocol."""
        with translating("target", "dropping old rejected rows", _KEPT):
            await forget(self._session.connection, self._table, keys)

    async def forget_staged(self, flow: str, sink: str) -> None:
        """Drop those of a staging table that is made anew."""
        await self._session.connection.execute(
            f"DELETE FROM {self._table} WHERE pipeline = $1 AND flow = $2 AND sink = $3"  # noqa: S608
            " AND staged",
            self._pipeline,
            flow,
            sink,
        )

    async def read(self, flow: str, sink: str, *, after: int, most: int) -> Sequence[StoredReject]:
        """See the protocol."""
        with translating("target", "reading rejected rows", _KEPT):
            rows = await self._session.connection.fetch(
                f"SELECT {_FIELDS} FROM {self._table}"  # noqa: S608
                " WHERE pipeline = $1 AND flow = $2 AND sink = $3 AND NOT staged AND id > $4"
                " ORDER BY id LIMIT $5",
                self._pipeline,
                flow,
                sink,
                after,
                most,
            )
        return [stored_of(row) for row in rows]

    async def drop(self, number: int) -> bool:
        """See the protocol."""
        with translating("target", "dropping a rejected row", _KEPT):
            status: str = await self._session.connection.execute(
                f"DELETE FROM {self._table} WHERE id = $1",  # noqa: S608
                number,
            )
        return status == "DELETE 1"

    async def keep(self, number: int, again: Reject) -> None:
        """See the protocol."""
        with translating("target", "noting a row that was rejected again", _KEPT):
            await self._session.connection.execute(
                f"UPDATE {self._table} SET reason = $2, detail = $3, column_name = $4,"  # noqa: S608
                " sqlstate = $5, run_id = $6, tries = tries + 1, tried_at = clock_timestamp()"
                " WHERE id = $1",
                number,
                *refused_again(again, self._run_id),
            )


async def forget(connection: Connection, table: str, keys: Sequence[CheckpointKey]) -> None:
    """Drop all rejects of some keys."""
    for key in keys:
        await connection.execute(
            f"DELETE FROM {table} WHERE pipeline = $1 AND flow = $2 AND sink = $3"  # noqa: S608
            " AND partition = $4",
            *parts(key),
        )


async def publish_rejects(
    connection: Connection, schema: str, pipeline: str, loads: Sequence[Load]
) -> None:
    """Let the rejects of staged loads be those of their tables, in the publishing transaction."""
    table = qualify(schema, TABLE)
    whose = "pipeline = $1 AND (flow, sink) IN (SELECT * FROM unnest($2::text[], $3::text[]))"
    # The rows that they belong to are thrown away.
    replaced = [load for load in loads if load.sink.mode == "replace"]
    await connection.execute(
        f"DELETE FROM {table} WHERE {whose} AND NOT staged",  # noqa: S608
        pipeline,
        *_owners(replaced),
    )
    await connection.execute(
        f"UPDATE {table} SET staged = false WHERE {whose} AND staged",  # noqa: S608
        pipeline,
        *_owners(loads),
    )


def _owners(loads: Sequence[Load]) -> tuple[list[str], list[str]]:
    return [load.flow for load in loads], [load.sink.table for load in loads]


async def list_rejects(
    connection: Connection, schema: str, pipeline: str | None
) -> list[StoredReject]:
    """All of them, or one pipeline's, in the order in which they were refused."""
    rows = await connection.fetch(
        f"SELECT {_FIELDS} FROM {qualify(schema, TABLE)}"  # noqa: S608
        " WHERE $1::text IS NULL OR pipeline = $1 ORDER BY id",
        pipeline,
    )
    return [stored_of(row) for row in rows]
