"""The table ``etl_checkpoint``: positions that change together with the rows."""

from __future__ import annotations

from collections.abc import Sequence

from etl.batch import encode_position
from etl.connector import Advance, Checkpoint, CheckpointKey, RunInfo
from etl.databases.checkpoints import FIELDS, checkpoint_of, now, parts, refused
from etl.databases.sqlite.connection import Connection

_KEY = "pipeline = ? AND flow = ? AND sink = ? AND partition = ?"
_FIELDS = ", ".join(FIELDS)


async def load(
    connection: Connection, keys: Sequence[CheckpointKey]
) -> dict[CheckpointKey, Checkpoint]:
    """Those that exist."""
    found: dict[CheckpointKey, Checkpoint] = {}
    for key in keys:
        rows = await connection.fetch(
            f"SELECT {_FIELDS} FROM etl_checkpoint WHERE {_KEY}",  # noqa: S608  constants
            parts(key),
        )
        if rows:
            found[key] = checkpoint_of(rows[0])
    return found


async def raise_epoch(
    connection: Connection, key: CheckpointKey, fingerprint: str, info: RunInfo
) -> None:
    """Take a checkpoint over, or make it."""
    await connection.execute(
        "INSERT INTO etl_checkpoint (pipeline, flow, sink, partition, epoch, position, complete,"
        " generation, fingerprint, batches, rows, run_id, holder, updated_at)"
        " VALUES (?, ?, ?, ?, 1, NULL, 0, 0, ?, 0, 0, ?, ?, ?)"
        " ON CONFLICT (pipeline, flow, sink, partition) DO UPDATE SET epoch = epoch + 1,"
        " fingerprint = excluded.fingerprint, run_id = excluded.run_id,"
        " holder = excluded.holder, updated_at = excluded.updated_at",
        (*parts(key), fingerprint, info.run_id, info.holder, now()),
    )


async def drop(connection: Connection, key: CheckpointKey) -> None:
    """Forget a checkpoint."""
    await connection.execute(f"DELETE FROM etl_checkpoint WHERE {_KEY}", parts(key))  # noqa: S608


async def set_epoch(connection: Connection, key: CheckpointKey, epoch: int) -> None:
    """Give a checkpoint a higher epoch."""
    await connection.execute(
        f"UPDATE etl_checkpoint SET epoch = ? WHERE {_KEY}",  # noqa: S608
        (epoch, *parts(key)),
    )


async def start_anew(connection: Connection, key: CheckpointKey) -> None:
    """A new generation: from the beginning, into a new staging table."""
    await connection.execute(
        "UPDATE etl_checkpoint SET position = NULL, complete = 0, generation = generation + 1,"  # noqa: S608
        f" batches = 0, rows = 0, updated_at = ? WHERE {_KEY}",
        (now(), *parts(key)),
    )


async def advance(connection: Connection, step: Advance, run_id: str) -> None:
    """Move one checkpoint from where this run left it.

    Raises:
        FencedError: A newer run took over.
        TargetWentBackError: It is not there any more, and no newer run has moved it.
    """
    at = (*parts(step.key), step.epoch, encode_position(step.old))
    where = f"WHERE {_KEY} AND epoch = ? AND position IS ?"
    if step.removes:
        changed = await connection.execute(f"DELETE FROM etl_checkpoint {where}", at)  # noqa: S608
    else:
        changed = await connection.execute(
            "UPDATE etl_checkpoint SET position = ?, complete = ?, rows = rows + ?,"  # noqa: S608
            f" batches = batches + 1, run_id = ?, updated_at = ? {where}",
            (encode_position(step.new), int(step.complete), step.rows, run_id, now(), *at),
        )
    if changed != 1:
        highest = await connection.value(
            "SELECT max(epoch) FROM etl_checkpoint WHERE pipeline = ? AND flow = ? AND sink = ?",
            parts(step.key)[:3],
        )
        raise refused(step.key, step.epoch, highest)
