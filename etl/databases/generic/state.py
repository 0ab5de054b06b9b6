"""The checkpoints in a target of a generic dialect, for ``etl state``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import sqlalchemy as sa

from etl.batch import Position, encode_position
from etl.connector import CheckpointKey, StoredReject
from etl.databases.checkpoints import checkpoint_of, now
from etl.databases.database import State, StateStore
from etl.databases.generic import rejects
from etl.databases.generic.checkpoints import TABLE, is_key
from etl.databases.generic.connect import Connection, opened
from etl.databases.generic.load import staging_base
from etl.databases.loading import staging_name
from etl.databases.sql import split_name
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import ConfigError

_C = TABLE.c


@asynccontextmanager
async def open_state(url: Url) -> AsyncGenerator[StateStore, None]:
    """The checkpoints of a database; see :class:`etl.databases.database.Driver`."""
    async with opened(url, "target") as connection:
        yield GenericState(connection)


class GenericState:
    """See :class:`etl.databases.database.StateStore`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def states(self, pipeline: str | None = None) -> Sequence[State]:
        """See the protocol."""
        if not await self._has("etl_checkpoint"):
            return []
        wanted = sa.select(
            _C.pipeline, _C.flow, _C.sink, _C.partition, _C.run_id, _C.updated_at, _C.holder,
            _C.epoch, _C.position, _C.complete, _C.fingerprint, _C.rows,
        ).order_by(_C.pipeline, _C.flow, _C.sink, _C.partition)  # fmt: skip
        if pipeline is not None:
            wanted = wanted.where(_C.pipeline == pipeline)
        rows = await self._connection.fetch(wanted)
        await self._connection.rollback()
        return [
            State(
                key=CheckpointKey(pipeline=row[0], flow=row[1], sink=row[2], partition=row[3]),
                checkpoint=checkpoint_of(row[7:]),
                run_id=row[4],
                updated_at=None if row[5] is None else str(row[5]),
                holder=row[6],
            )
            for row in rows
        ]

    async def set_position(self, key: CheckpointKey, position: Position | None) -> None:
        """See the protocol."""
        changed = 0
        if await self._has("etl_checkpoint"):
            changed = await self._connection.execute(
                sa.update(TABLE)
                .where(is_key(key))
                .values(
                    position=encode_position(position),
                    epoch=_C.epoch + 1,
                    complete=sa.false(),
                    updated_at=now(),
                )
            )
        if changed != 1:
            await self._connection.rollback()
            raise ConfigError(
                f"{self._connection.where} has no checkpoint of pipeline {key.pipeline!r}, flow"
                f" {key.flow!r}, sink {key.sink!r}, partition {key.partition!r}; nothing was"
                " changed"
            )
        await finish(self._connection.commit())

    async def reset(self, keys: Sequence[CheckpointKey]) -> None:
        """See the protocol."""
        connection = self._connection
        if not await self._has("etl_checkpoint"):
            return
        stagings: list[str] = []
        for key in keys:
            await connection.execute(sa.delete(TABLE).where(is_key(key)))
            schema, name = split_name(key.sink)
            staging = staging_name(staging_base(name), key.pipeline, key.flow)
            stagings.append(connection.dialect.qualify(schema, staging))
        if await self._has("etl_reject"):
            await rejects.forget(connection, keys)
        await finish(connection.commit())
        # After it: making and dropping tables ends a transaction in some dialects.
        for where in stagings:
            await connection.execute(f"DROP TABLE IF EXISTS {where}")
            await finish(connection.commit())

    async def rejects(self, pipeline: str | None = None) -> Sequence[StoredReject]:
        """See the protocol."""
        if not await self._has("etl_reject"):
            return []
        found = await rejects.list_rejects(self._connection, pipeline)
        await self._connection.rollback()
        return found

    async def _has(self, table: str) -> bool:
        return await self._connection.dialect.find_table(self._connection, None, table) is not None
