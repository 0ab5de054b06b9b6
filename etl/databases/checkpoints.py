"""What a checkpoint is in the tables of every dialect: its key, its values, when it is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from etl.batch import decode_position
from etl.connector import Advance, Checkpoint, CheckpointKey
from etl.errors import ConfigError, EtlError, FencedError, TargetWentBackError

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


def refused(key: CheckpointKey, epoch: int, highest: int | None) -> EtlError:
    """Why a checkpoint is not where this run left it.

    Args:
        epoch: The run's.
        highest: Of all partitions of the flow and sink that there are now.
    """
    if highest is not None and highest > epoch:
        return _fenced(key)
    return TargetWentBackError(f"flow {key.flow!r} into {key.sink!r}")


def check_unmoved(
    ours: Mapping[CheckpointKey, Checkpoint], found: Mapping[CheckpointKey, Checkpoint]
) -> None:
    """Refuse checkpoints that are behind what this run has committed.

    Args:
        found: All of the pipeline's.

    Raises:
        TargetWentBackError: Some are. What a newer run did since is no matter.
    """
    highest: dict[tuple[str, str], int] = {}
    for key, one in found.items():
        owner = (key.flow, key.sink)
        highest[owner] = max(one.epoch, highest.get(owner, 0))
    for key, one in ours.items():
        now = found.get(key)
        if highest.get((key.flow, key.sink), 0) <= one.epoch and (
            now is None
            or (now.epoch, now.position, now.complete) != (one.epoch, one.position, one.complete)
        ):
            raise refused(key, one.epoch, None)


def _fenced(key: CheckpointKey) -> FencedError:
    """A newer run moved the checkpoint."""
    return FencedError(
        f"flow {key.flow!r} into {key.sink!r}: another run of pipeline {key.pipeline!r} has taken"
        " over. This one was rolled back and writes nothing more"
    )
