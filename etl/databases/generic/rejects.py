"""The table ``etl_reject``: bad rows, kept in the transaction that moves the position past them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa

from etl.batch import Reject, encode_position
from etl.connector import CheckpointKey, NewReject, RunInfo, StoredReject
from etl.databases.generic.checkpoints import is_key, now, parts
from etl.databases.generic.connect import Connection
from etl.databases.stored import (
    CannotStoreError,
    cannot_store,
    restore_row,
    store_key,
    store_row,
)

TABLE = sa.table(
    "etl_reject",
    *map(sa.column, (
        "id", "pipeline", "flow", "sink", "partition", "position", "ordinal", "step", "steps_left",
        "reason", "detail", "column_name", "sqlstate", "row_key", "row_data", "tries", "staged",
        "run_id", "rejected_at", "tried_at",
    )),
)  # fmt: skip
_C = TABLE.c
_FIELDS = [column for column in _C if column.name != "tried_at"]


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
        for new in rejects:
            await self._session.working().execute(sa.insert(TABLE).values(self._values(new)))

    def _values(self, new: NewReject) -> dict[str, Any]:
        reject = new.reject
        try:
            data = store_row(reject.row)
        except CannotStoreError as error:
            raise cannot_store(new, error) from error
        pipeline, flow, sink, partition = parts(new.key)
        return {
            "pipeline": pipeline,
            "flow": flow,
            "sink": sink,
            "partition": partition,
            "position": encode_position(new.position),
            "ordinal": reject.ordinal,
            "step": _plain(reject.step),
            "steps_left": reject.steps_left,
            "reason": _plain(reject.reason),
            "detail": _plain(reject.detail),
            "column_name": reject.column,
            "sqlstate": reject.sqlstate,
            "row_key": store_key(new.row_key),
            "row_data": data,
            "tries": 0,
            "staged": sa.true() if self._session.is_staged(sink) else sa.false(),
            "run_id": self._info.run_id,
            "rejected_at": now(),
        }

    async def forget(self, keys: Sequence[CheckpointKey]) -> None:
        """See the protocol."""
        await forget(self._session.working(), keys)

    async def forget_staged(self, connection: Connection, flow: str, sink: str) -> None:
        """Drop those of a staging table that is made anew."""
        owner = _is_owner(self._info.pipeline, flow, sink)
        await connection.execute(sa.delete(TABLE).where(owner, _C.staged == sa.true()))

    async def read(self, flow: str, sink: str, *, after: int, most: int) -> Sequence[StoredReject]:
        """See the protocol."""
        rows = await self._session.working().fetch(
            sa.select(*_FIELDS)
            .where(_is_owner(self._info.pipeline, flow, sink), _C.staged == sa.false())
            .where(_C.id > after)
            .order_by(_C.id)
            .limit(most)
        )
        return [_stored_of(row) for row in rows]

    async def drop(self, number: int) -> bool:
        """See the protocol."""
        return await self._session.working().execute(sa.delete(TABLE).where(_C.id == number)) == 1

    async def keep(self, number: int, again: Reject) -> None:
        """See the protocol."""
        await self._session.working().execute(
            sa.update(TABLE)
            .where(_C.id == number)
            .values(
                reason=_plain(again.reason),
                detail=_plain(again.detail),
                column_name=again.column,
                sqlstate=again.sqlstate,
                run_id=self._info.run_id,
                tries=_C.tries + 1,
                tried_at=now(),
            )
        )


def _is_owner(pipeline: str, flow: str, sink: str) -> sa.ColumnElement[bool]:
    return sa.and_(_C.pipeline == pipeline, _C.flow == flow, _C.sink == sink)


async def forget(connection: Connection, keys: Sequence[CheckpointKey]) -> None:
    """Drop all rejects of some keys."""
    for key in keys:
        await connection.execute(sa.delete(TABLE).where(is_key(key, TABLE)))


async def publish_rejects(
    connection: Connection, pipeline: str, flow: str, sink: str, *, replaces: bool
) -> None:
    """Let the rejects of a staged load be those of its table, in the publishing transaction."""
    owner = _is_owner(pipeline, flow, sink)
    if replaces:  # the rows that they belong to are thrown away
        await connection.execute(sa.delete(TABLE).where(owner, _C.staged == sa.false()))
    await connection.execute(
        sa.update(TABLE).where(owner, _C.staged == sa.true()).values(staged=sa.false())
    )


async def list_rejects(connection: Connection, pipeline: str | None) -> list[StoredReject]:
    """All of them, or one pipeline's, in the order in which they were refused."""
    wanted = sa.select(*_FIELDS).order_by(_C.id)
    if pipeline is not None:
        wanted = wanted.where(_C.pipeline == pipeline)
    return [_stored_of(row) for row in await connection.fetch(wanted)]


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
        rejected_at=str(row[18]),
        restore=partial(restore_row, row[14]),
    )


def _plain(text: str | None) -> str | None:
    """A message as a database takes it: without lone surrogates and NUL."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
