"""The checkpoints in a SQLite file, for ``etl state``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from etl.batch import Position, encode_position
from etl.connector import CheckpointKey, StoredReject
from etl.databases.checkpoints import checkpoint_of, now, parts
from etl.databases.database import State, StateStore
from etl.databases.loading import staging_name
from etl.databases.rejects import TABLE as REJECTS
from etl.databases.sql import quote
from etl.databases.sqlite import rejects
from etl.databases.sqlite.connection import Connection, connect_target, path_of
from etl.databases.sqlite.load import staging_base
from etl.databases.sqlite.schema import find_table
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import ConfigError


@asynccontextmanager
async def open_state(url: Url) -> AsyncGenerator[StateStore, None]:
    """The checkpoints of a file that exists. Makes no file and no table.

    Raises:
        ConfigError: There is no such file.
    """
    path = path_of(url.path, url.name)
    if not path.exists():
        raise ConfigError(f"{url.name}: there is no such file, so no pipeline wrote into it")
    yield SqliteState(path, url.name)


class SqliteState:
    """See :class:`etl.databases.database.StateStore`. Connects for each call."""

    def __init__(self, path: Path, where: str) -> None:
        self._path = path
        self._where = where

    async def states(self, pipeline: str | None = None) -> Sequence[State]:
        """See the protocol."""
        async with self._connected() as connection:
            if await find_table(connection, "etl_checkpoint") is None:
                return []
            rows = await connection.fetch(
                "SELECT pipeline, flow, sink, partition, run_id, updated_at, holder,"
                " epoch, position, complete, fingerprint, rows FROM etl_checkpoint"
                " WHERE ? IS NULL OR pipeline = ? ORDER BY pipeline, flow, sink, partition",
                (pipeline, pipeline),
            )
        return [
            State(
                key=CheckpointKey(pipeline=row[0], flow=row[1], sink=row[2], partition=row[3]),
                checkpoint=checkpoint_of(row[7:]),
                run_id=row[4],
                updated_at=row[5],
                holder=row[6],
            )
            for row in rows
        ]

    async def set_position(self, key: CheckpointKey, position: Position | None) -> None:
        """See the protocol."""
        async with self._changing() as connection:
            changed = 0
            if await find_table(connection, "etl_checkpoint") is not None:
                changed = await connection.execute(
                    "UPDATE etl_checkpoint SET position = ?, epoch = epoch + 1, complete = 0,"
                    " updated_at = ?"
                    " WHERE pipeline = ? AND flow = ? AND sink = ? AND partition = ?",
                    (encode_position(position), now(), *parts(key)),
                )
            if changed != 1:
                raise ConfigError(
                    f"{self._where} has no checkpoint of pipeline {key.pipeline!r}, flow"
                    f" {key.flow!r}, sink {key.sink!r}, partition {key.partition!r}; nothing was"
                    " changed"
                )

    async def reset(self, keys: Sequence[CheckpointKey]) -> None:
        """See the protocol."""
        async with self._changing() as connection:
            if await find_table(connection, "etl_checkpoint") is None:
                return
            for key in keys:
                await connection.execute(
                    "DELETE FROM etl_checkpoint"
                    " WHERE pipeline = ? AND flow = ? AND sink = ? AND partition = ?",
                    parts(key),
                )
                staging = staging_name(staging_base(key.sink), key.pipeline, key.flow)
                await connection.execute(f"DROP TABLE IF EXISTS {quote(staging)}")
            if await find_table(connection, REJECTS) is not None:
                await rejects.forget(connection, keys)

    async def rejects(self, pipeline: str | None = None) -> Sequence[StoredReject]:
        """See the protocol."""
        async with self._connected() as connection:
            if await find_table(connection, REJECTS) is None:
                return []
            return await rejects.list_rejects(connection, pipeline)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Connection, None]:
        connection = await connect_target(self._path, self._where)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def _changing(self) -> AsyncGenerator[Connection, None]:
        """A transaction; closing the connection rolls it back where its body raises."""
        async with self._connected() as connection:
            await connection.begin()
            yield connection
            await finish(connection.commit())
