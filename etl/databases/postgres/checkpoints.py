"""The table ``etl_checkpoint``: positions that change together with the rows."""

from __future__ import annotations

from collections.abc import Sequence

from etl.batch import encode_position
from etl.connector import Advance, Checkpoint, CheckpointKey, RunInfo
from etl.databases.checkpoints import checkpoint_of, parts, refused
from etl.databases.postgres.connect import Connection
from etl.databases.sql import qualify

TABLE = "etl_checkpoint"
_KEY = "pipeline = $1 AND flow = $2 AND sink = $3 AND partition = $4"


class Checkpoints:
    """Reads and moves checkpoints in one schema. The caller owns the transaction.

    Attributes:
        schema: Where etl's tables are.
        pipeline: Whose checkpoints they are, and ``run_id``: in which run.
    """

    def __init__(self, schema: str, info: RunInfo) -> None:
        self.schema = schema
        self._table = qualify(schema, TABLE)
        self.pipeline = info.pipeline
        self.run_id = info.run_id
        self._holder = info.holder

    async def load(
        self, connection: Connection, keys: Sequence[CheckpointKey], *, lock: bool = False
    ) -> dict[CheckpointKey, Checkpoint]:
        """Those that exist. ``lock`` waits for a transaction that is still moving one."""
        found: dict[CheckpointKey, Checkpoint] = {}
        for key in sorted(keys, key=parts):
            row = await connection.fetchrow(
                "SELECT epoch, position, complete, fingerprint, rows"  # noqa: S608
                f" FROM {self._table} WHERE {_KEY}{' FOR UPDATE' if lock else ''}",
                *parts(key),
            )
            if row is not None:
                found[key] = checkpoint_of(row)
        return found

    async def load_all(self, connection: Connection) -> dict[CheckpointKey, Checkpoint]:
        """All of the pipeline's."""
        rows = await connection.fetch(
            "SELECT flow, sink, partition, epoch, position, complete, fingerprint, rows"  # noqa: S608
            f" FROM {self._table} WHERE pipeline = $1",
            self.pipeline,
        )
        return {
            CheckpointKey(
                pipeline=self.pipeline, flow=row[0], sink=row[1], partition=row[2]
            ): checkpoint_of(tuple(row)[3:])
            for row in rows
        }

    async def raise_epoch(
        self, connection: Connection, key: CheckpointKey, fingerprint: str
    ) -> Checkpoint:
        """Take a checkpoint over, or make it; waits for whoever is committing one."""
        row = await connection.fetchrow(
            f"""
            INSERT INTO {self._table} AS c (pipeline, flow, sink, partition, epoch, position,
                complete, generation, fingerprint, batches, rows, run_id, holder, updated_at)
            VALUES ($1, $2, $3, $4, 1, NULL, false, 0, $5, 0, 0, $6, $7, now())
            ON CONFLICT (pipeline, flow, sink, partition) DO UPDATE
            SET epoch = c.epoch + 1, fingerprint = excluded.fingerprint, run_id = excluded.run_id,
                holder = excluded.holder, updated_at = now()
            RETURNING epoch, position, complete, fingerprint, rows
            """,  # noqa: S608
            *parts(key),
            fingerprint,
            self.run_id,
            self._holder,
        )
        assert row is not None
        return checkpoint_of(row)

    async def lift_epoch(
        self, connection: Connection, key: CheckpointKey, epoch: int
    ) -> Checkpoint:
        """Give a checkpoint a higher epoch; see ``Session.take_over``."""
        row = await connection.fetchrow(
            f"UPDATE {self._table} SET epoch = $5 WHERE {_KEY}"  # noqa: S608
            " RETURNING epoch, position, complete, fingerprint, rows",
            *parts(key),
            epoch,
        )
        assert row is not None
        return checkpoint_of(row)

    async def drop(self, connection: Connection, key: CheckpointKey) -> None:
        """Forget a checkpoint; waits for whoever is committing it."""
        await connection.execute(f"DELETE FROM {self._table} WHERE {_KEY}", *parts(key))  # noqa: S608

    async def start_anew(self, connection: Connection, key: CheckpointKey) -> Checkpoint:
        """A new generation: from the beginning, into a new staging table."""
        row = await connection.fetchrow(
            f"UPDATE {self._table} SET position = NULL, complete = false,"  # noqa: S608
            f" generation = generation + 1, rows = 0, updated_at = now() WHERE {_KEY}"
            " RETURNING epoch, position, complete, fingerprint, rows",
            *parts(key),
        )
        assert row is not None
        return checkpoint_of(row)

    async def advance(self, connection: Connection, step: Advance) -> None:
        """Move one checkpoint from where this run left it.

        Raises:
            FencedError: A newer run took over.
            TargetWentBackError: It is not there any more, and no newer run has moved it.
        """
        if not await self._advance(connection, step):
            highest = await connection.fetchval(
                f"SELECT max(epoch) FROM {self._table}"  # noqa: S608
                " WHERE pipeline = $1 AND flow = $2 AND sink = $3",
                *parts(step.key)[:3],
            )
            raise refused(step.key, step.epoch, highest)

    async def _advance(self, connection: Connection, step: Advance) -> bool:
        if step.removes:
            status = await connection.execute(
                f"DELETE FROM {self._table} WHERE {_KEY} AND epoch = $5"  # noqa: S608
                " AND position IS NOT DISTINCT FROM $6",
                *parts(step.key),
                step.epoch,
                encode_position(step.old),
            )
            return status == "DELETE 1"
        status = await connection.execute(
            f"""
            UPDATE {self._table}
            SET position = $7, complete = $8, rows = rows + $9, batches = batches + 1,
                run_id = $10, updated_at = now()
            WHERE {_KEY} AND epoch = $5 AND position IS NOT DISTINCT FROM $6
            """,  # noqa: S608
            *parts(step.key),
            step.epoch,
            encode_position(step.old),
            encode_position(step.new),
            step.complete,
            step.rows,
            self.run_id,
        )
        return status == "UPDATE 1"
