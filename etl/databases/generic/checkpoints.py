"""The table ``etl_checkpoint``: positions that change together with the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from etl.batch import encode_position
from etl.connector import Advance, Checkpoint, CheckpointKey, RunInfo
from etl.databases.checkpoints import FIELDS, checkpoint_of, now, parts, refused
from etl.databases.generic.connect import Connection
from etl.errors import DataError, chain

TABLE = sa.table(
    "etl_checkpoint",
    *map(sa.column, (
        "pipeline", "flow", "sink", "partition", "epoch", "position", "complete", "generation",
        "fingerprint", "batches", "rows", "run_id", "holder", "updated_at",
    )),
)  # fmt: skip
_C = TABLE.c
_FIELDS = [_C[name] for name in FIELDS]


def is_key(key: CheckpointKey, table: sa.TableClause = TABLE) -> sa.ColumnElement[bool]:
    """The condition for a key's row."""
    c = table.c
    return sa.and_(
        c.pipeline == key.pipeline,
        c.flow == key.flow,
        c.sink == key.sink,
        c.partition == key.partition,
    )


async def load(
    connection: Connection, keys: Sequence[CheckpointKey], *, locks: bool = False
) -> dict[CheckpointKey, Checkpoint]:
    """Those that exist; with ``locks``, after a transaction that is changing them."""
    found: dict[CheckpointKey, Checkpoint] = {}
    for key in sorted(keys, key=parts):
        wanted = sa.select(*_FIELDS).where(is_key(key))
        rows = await connection.fetch(wanted.with_for_update() if locks else wanted)
        if rows:
            found[key] = checkpoint_of(rows[0])
    return found


async def raise_epoch(
    connection: Connection, key: CheckpointKey, fingerprint: str, info: RunInfo
) -> None:
    """Take a checkpoint over, or make it."""
    taken: Mapping[str, Any] = {
        "fingerprint": fingerprint,
        "run_id": info.run_id,
        "holder": info.holder,
        "updated_at": now(),
    }
    over = sa.update(TABLE).where(is_key(key)).values(epoch=_C.epoch + 1, **taken)
    if await connection.execute(over):
        return
    new = sa.insert(TABLE).values(
        pipeline=key.pipeline, flow=key.flow, sink=key.sink, partition=key.partition, epoch=1,
        position=None, complete=sa.false(), generation=0, batches=0, rows=0, **taken,
    )  # fmt: skip
    await connection.savepoint("etl_new", "set")
    try:
        await connection.execute(new)
    except DataError as error:
        if not any(isinstance(one, IntegrityError) for one in chain(error)):
            raise
        await connection.savepoint("etl_new", "undo")  # another run was faster
        await connection.execute(over)


async def drop(connection: Connection, key: CheckpointKey) -> None:
    """Forget a checkpoint."""
    await connection.execute(sa.delete(TABLE).where(is_key(key)))


async def set_epoch(connection: Connection, key: CheckpointKey, epoch: int) -> None:
    """Give a checkpoint a higher epoch."""
    await connection.execute(sa.update(TABLE).where(is_key(key)).values(epoch=epoch))


async def start_anew(connection: Connection, key: CheckpointKey) -> None:
    """A new generation: from the beginning, into a new staging table."""
    await connection.execute(
        sa.update(TABLE)
        .where(is_key(key))
        .values(
            position=None,
            complete=sa.false(),
            generation=_C.generation + 1,
            batches=0,
            rows=0,
            updated_at=now(),
        )  # fmt: skip
    )


async def advance(connection: Connection, step: Advance, run_id: str) -> None:
    """Move one checkpoint from where this run left it.

    Raises:
        FencedError: A newer run took over.
        TargetWentBackError: It is not there any more, and no newer run has moved it.
    """
    here = sa.and_(
        is_key(step.key),
        _C.epoch == step.epoch,
        _C.position.is_not_distinct_from(encode_position(step.old)),
    )
    if step.removes:
        changed = await connection.execute(sa.delete(TABLE).where(here))
    else:
        changed = await connection.execute(
            sa.update(TABLE)
            .where(here)
            .values(
                position=encode_position(step.new),
                complete=sa.true() if step.complete else sa.false(),
                rows=_C.rows + step.rows,
                batches=_C.batches + 1,
                run_id=run_id,
                updated_at=now(),
            )
        )
    if changed != 1:
        key = step.key
        of_sink = sa.and_(_C.pipeline == key.pipeline, _C.flow == key.flow, _C.sink == key.sink)
        highest = await connection.value(sa.select(sa.func.max(_C.epoch)).where(of_sink))
        raise refused(key, step.epoch, highest)
