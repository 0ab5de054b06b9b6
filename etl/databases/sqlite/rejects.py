"""The table ``etl_reject``: bad rows, kept in the transaction that moves the position past them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from etl.batch import Reject, encode_position
from etl.connector import CheckpointKey, NewReject, RunInfo, StoredReject
from etl.databases.sqlite.checkpoints import now, parts
from etl.databases.sqlite.connection import Connection
from etl.databases.sqlite.load import Load
from etl.databases.stored import (
    CannotStoreError,
    cannot_store,
    restore_row,
    store_key,
    store_row,
)

TABLE = "etl_reject"

_FIELDS = (
    "id, pipeline, flow, sink, partition, position, ordinal, step, steps_left, reason, detail,"
    " column_name, sqlstate, row_key, row_data, tries, staged, run_id, rejected_at"
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
        rows = [self._values(new) for new in rejects]
        await self._session.working().execute_many(
            "INSERT INTO etl_reject (pipeline, flow, sink, partition, position, ordinal, step,"
            " steps_left, reason, detail, column_name, sqlstate, row_key, row_data, staged,"
            " run_id, rejected_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    def _values(self, new: NewReject) -> tuple[Any, ...]:
        reject = new.reject
        try:
            data = store_row(reject.row)
        except CannotStoreError as error:
            raise cannot_store(new, error) from error
        return (
            *parts(new.key),
            encode_position(new.position),
            reject.ordinal,
            _plain(reject.step),
            reject.steps_left,
            _plain(reject.reason),
            _plain(reject.detail),
            reject.column,
            reject.sqlstate,
            store_key(new.row_key),
            data,
            int(self._session.is_staged(new.key.sink)),
            self._info.run_id,
            now(),
        )

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
        return [_stored_of(row) for row in rows]

    async def drop(self, number: int) -> bool:
        """See the protocol."""
        connection = self._session.working()
        return await connection.execute("DELETE FROM etl_reject WHERE id = ?", (number,)) == 1

    async def keep(self, number: int, again: Reject) -> None:
        """See the protocol."""
        await self._session.working().execute(
            "UPDATE etl_reject SET reason = ?, detail = ?, column_name = ?, sqlstate = ?,"
            " run_id = ?, tries = tries + 1, tried_at = ? WHERE id = ?",
            (
                _plain(again.reason),
                _plain(again.detail),
                again.column,
                again.sqlstate,
                self._info.run_id,
                now(),
                number,
            ),
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
    return [_stored_of(row) for row in rows]


def _stored_of(row: Sequence[Any]) -> StoredReject:
    return StoredReject(
        number=row[0],
        key=CheckpointKey(pipeline=row[1], flow=row[2], sink=row[3], partition=row[4]),
        position=row[5],
        ordinal=row[6],
        step=row[7],
        steps_left=row[8],
        reason=row[9],
        detail=row[10],
        column=row[11],
        sqlstate=row[12],
        row_key=row[13],
        row=row[14],
        tries=row[15],
        staged=bool(row[16]),
        run_id=row[17],
        rejected_at=row[18],
        restore=partial(restore_row, row[14]),
    )


def _plain(text: str | None) -> str | None:
    """A message as SQLite takes it: without lone surrogates."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
