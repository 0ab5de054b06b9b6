"""What the table ``etl_reject`` holds in every dialect: a rejected row as values, and back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from etl.batch import Reject, encode_position
from etl.connector import CheckpointKey, NewReject, StoredReject
from etl.databases.checkpoints import parts
from etl.databases.stored import (
    CannotStoreError,
    cannot_store,
    restore_row,
    store_key,
    store_row,
)

TABLE = "etl_reject"

WRITTEN = (
    "pipeline", "flow", "sink", "partition", "position", "ordinal", "step", "steps_left", "reason",
    "detail", "column_name", "sqlstate", "row_key", "row_data", "staged", "run_id",
)  # fmt: skip
"""The columns that :func:`values_of` has values for; beside them ``rejected_at``."""

READ = (
    "id", "pipeline", "flow", "sink", "partition", "position", "ordinal", "step", "steps_left",
    "reason", "detail", "column_name", "sqlstate", "row_key", "row_data", "tries", "staged",
    "run_id", "rejected_at",
)  # fmt: skip
"""The columns that :func:`stored_of` takes."""


def values_of(new: NewReject, *, is_staged: bool, run_id: str) -> tuple[Any, ...]:
    """A rejected row, in the order of ``WRITTEN``.

    Raises:
        DataError: The row cannot be stored.
    """
    reject = new.reject
    try:
        data = store_row(reject.row)
    except CannotStoreError as error:
        raise cannot_store(new, error) from error
    return (
        *parts(new.key),
        encode_position(new.position),
        reject.ordinal,
        plain(reject.step),
        reject.steps_left,
        plain(reject.reason),
        plain(reject.detail),
        reject.column,
        reject.sqlstate,
        store_key(new.row_key),
        data,
        is_staged,
        run_id,
    )


def refused_again(again: Reject, run_id: str) -> tuple[Any, ...]:
    """What changes of a row that is refused once more: reason, detail, column, state, run."""
    return (plain(again.reason), plain(again.detail), again.column, again.sqlstate, run_id)


def stored_of(row: Iterable[Any]) -> StoredReject:
    """A row of the table, in the order of ``READ``."""
    number, pipeline, flow, sink, partition, *rest = row
    (
        position, ordinal, step, steps_left, reason, detail, column, sqlstate, row_key, data, tries,
        staged, run_id, rejected_at,
    ) = rest  # fmt: skip
    return StoredReject(
        number=number,
        key=CheckpointKey(pipeline=pipeline, flow=flow, sink=sink, partition=partition),
        position=position,
        ordinal=ordinal,
        step=step,
        steps_left=steps_left,
        reason=reason,
        detail=detail,
        column=column,
        sqlstate=sqlstate,
        row_key=row_key,
        row=data,
        tries=tries,
        staged=bool(staged),
        run_id=run_id,
        rejected_at=str(rejected_at),
        restore=partial(restore_row, data),
    )


def plain(text: str | None) -> str | None:
    """A message as every database takes it: without NUL and lone surrogates."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
