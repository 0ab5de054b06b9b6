"""What a checkpoint is in the tables of every dialect: its key, its values, when it is lost."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from etl.batch import decode_position
from etl.connector import Advance, Checkpoint, CheckpointKey
from etl.errors import ConfigError, FencedError

FIELDS = ("epoch", "position", "complete", "fingerprint", "rows")


def parts(key: CheckpointKey) -> tuple[str, str, str, str]:
    """A key in the order of its columns; also the order in which rows are locked."""
    return (key.pipeline, key.flow, key.sink, key.partition)


def now() -> str:
    """The present for a column of texts: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def checkpoint_of(row: Iterable[Any]) -> Checkpoint:
    """A checkpoint from the columns in ``FIELDS``.

    Raises:
        ConfigError: The stored position cannot be read.
    """
    epoch, position, complete, fingerprint, rows = row
    try:
        found = decode_position(position)
    except ValueError as error:
        raise ConfigError(
            "a position in etl_checkpoint is damaged: it is not a JSON array. Nothing was moved;"
            " repair the row, or reset the state of its flow"
        ) from error
    return Checkpoint(
        epoch=int(epoch),
        position=found,
        complete=bool(complete),
        fingerprint=fingerprint,
        rows=int(rows),
    )


def is_done(checkpoint: Checkpoint | None, step: Advance) -> bool:
    """Whether an earlier attempt, whose answer was lost, has completed a checkpoint."""
    if step.removes:
        return checkpoint is None
    return (
        checkpoint is not None
        and checkpoint.complete
        and checkpoint.epoch == step.epoch
        and checkpoint.position == step.new
    )


def fenced(key: CheckpointKey) -> FencedError:
    """A newer run moved the checkpoint."""
    return FencedError(
        f"flow {key.flow!r} into {key.sink!r}: another run of pipeline {key.pipeline!r} has taken"
        " over. This one was rolled back and writes nothing more"
    )
