"""``etl state``: the checkpoints in a target, to look at and to set."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from etl.batch import Position, encode_position
from etl.connector import CheckpointKey, StoredReject
from etl.databases.checkpoints import FIELDS, checkpoint_of, parts
from etl.databases.database import State
from etl.databases.migrate import needs_upgrade
from etl.databases.postgres import rejects
from etl.databases.postgres.catalogue import find_relation
from etl.databases.postgres.checkpoints import TABLE
from etl.databases.postgres.connect import Connection, connected
from etl.databases.postgres.staging import staging_name
from etl.databases.postgres.target import home_schema, versions
from etl.databases.postgres.translate import translating
from etl.databases.rejects import TABLE as REJECTS
from etl.databases.sql import qualify, split_name
from etl.databases.url import Url
from etl.errors import ConfigError


@asynccontextmanager
async def open_state(url: Url) -> AsyncGenerator[PostgresState]:
    """The checkpoints of a database; changes nothing by itself."""
    async with connected(url, "target", "etl/state") as connection:
        schema = await home_schema(connection, url)
        found = await versions(connection, schema)
        if found is not None:
            needs_upgrade(found)  # refuses a version that is unknown here
        table = qualify(schema, REJECTS)
        has_rejects = await find_relation(connection, table) is not None
        yield PostgresState(
            connection, schema, has_table=found is not None, has_rejects=has_rejects
        )


class PostgresState:
    """See :class:`etl.databases.database.StateStore`."""

    def __init__(
        self, connection: Connection, schema: str, *, has_table: bool, has_rejects: bool
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._table = qualify(schema, TABLE)
        self._has_table = has_table
        self._has_rejects = has_rejects  # an older etl made none

    async def states(self, pipeline: str | None = None) -> Sequence[State]:
        """All of them, or one pipeline's, in order of their keys."""
        if not self._has_table:
            return []
        with translating("target", "reading the checkpoints", "nothing was changed"):
            rows = await self._connection.fetch(
                "SELECT pipeline, flow, sink, partition, epoch, position, complete,"  # noqa: S608
                " fingerprint, rows, run_id, holder, updated_at::text AS updated_at"
                f" FROM {self._table}"
                " WHERE $1::text IS NULL OR pipeline = $1"
                " ORDER BY pipeline, flow, sink, partition",
                pipeline,
            )
        return [
            State(
                key=CheckpointKey(
                    pipeline=row["pipeline"],
                    flow=row["flow"],
                    sink=row["sink"],
                    partition=row["partition"],
                ),
                checkpoint=checkpoint_of(row[name] for name in FIELDS),
                run_id=row["run_id"],
                updated_at=row["updated_at"],
                holder=row["holder"],
            )
            for row in rows
        ]

    async def set_position(self, key: CheckpointKey, position: Position | None) -> None:
        """Set one position and raise the epoch; waits for a run that is committing it."""
        status = "UPDATE 0"
        if self._has_table:
            with translating("target", "setting a position", "nothing was changed"):
                status = await self._connection.execute(
                    f"UPDATE {self._table} SET position = $5, complete = false,"  # noqa: S608
                    " epoch = epoch + 1, updated_at = now()"
                    " WHERE pipeline = $1 AND flow = $2 AND sink = $3 AND partition = $4",
                    *parts(key),
                    encode_position(position),
                )
        if status != "UPDATE 1":
            raise ConfigError(
                f"there is no checkpoint of pipeline {key.pipeline!r}, flow {key.flow!r}, sink"
                f" {key.sink!r}, partition {key.partition!r}; nothing was changed. See etl state"
                " show"
            )

    async def reset(self, keys: Sequence[CheckpointKey]) -> None:
        """Forget checkpoints, and drop their staging tables, in one transaction."""
        if not self._has_table:
            return
        with translating("target", "resetting the state", "nothing was changed"):
            async with self._connection.transaction():
                for key in sorted(keys, key=parts):
                    await self._connection.execute(
                        f"DELETE FROM {self._table} WHERE pipeline = $1 AND flow = $2"  # noqa: S608
                        " AND sink = $3 AND partition = $4",
                        *parts(key),
                    )
                    await self._drop_staging(key)
                if self._has_rejects:
                    table = qualify(self._schema, REJECTS)
                    await rejects.forget(self._connection, table, keys)

    async def rejects(self, pipeline: str | None = None) -> Sequence[StoredReject]:
        """See :meth:`etl.databases.database.StateStore.rejects`."""
        if not self._has_rejects:
            return []
        with translating("target", "reading the rejected rows", "nothing was changed"):
            return await rejects.list_rejects(self._connection, self._schema, pipeline)

    async def _drop_staging(self, key: CheckpointKey) -> None:
        final = await find_relation(self._connection, key.sink)
        schema, name = split_name(key.sink)
        schema = final.schema if final is not None else schema or self._schema
        staging = staging_name(name, f"{key.pipeline}\n{key.flow}")
        await self._connection.execute(f"DROP TABLE IF EXISTS {qualify(schema, staging)}")
