"""The table ``etl_reject``: bad rows, kept in the transaction that moves the position past them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy as sa

from etl.batch import Reject
from etl.connector import CheckpointKey, NewReject, RunInfo, StoredReject
from etl.databases import rejects as kept
from etl.databases.checkpoints import now
from etl.databases.generic.checkpoints import is_key
from etl.databases.generic.connect import Connection
from etl.databases.rejects import READ, WRITTEN, stored_of

TABLE = sa.table(kept.TABLE, *map(sa.column, (*READ, "tried_at")))
_C = TABLE.c
_FIELDS = [_C[name] for name in READ]


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
        is_staged = self._session.is_staged(new.key.sink)
        values = kept.values_of(new, is_staged=is_staged, run_id=self._info.run_id)
        return {
            **dict(zip(WRITTEN, values, strict=True)),
            "tries": 0,
            "staged": sa.true() if is_staged else sa.false(),  # not each driver takes a bool
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
        return [stored_of(row) for row in rows]

    async def drop(self, number: int) -> bool:
        """See the protocol."""
        return await self._session.working().execute(sa.delete(TABLE).where(_C.id == number)) == 1

    async def keep(self, number: int, again: Reject) -> None:
        """See the protocol."""
        names = ("reason", "detail", "column_name", "sqlstate", "run_id")
        changed = zip(names, kept.refused_again(again, self._info.run_id), strict=True)
        await self._session.working().execute(
            sa.update(TABLE)
            .where(_C.id == number)
            .values(**dict(changed), tries=_C.tries + 1, tried_at=now())
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
    return [stored_of(row) for row in await connection.fetch(wanted)]
