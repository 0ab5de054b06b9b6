"""Asks the server whether it keeps a text, for types of which only the server can tell.

A type's own reading of a text may change it without a word: ``money`` rounds, ``"char"`` and
``name`` cut, a ``numeric(5,2)[]`` rounds within, and what a type of the user's does nobody knows.
So the server gives back what it would store, and the text must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import asyncpg

from etl.databases.postgres.connect import Connection
from etl.databases.postgres.guard import GROUP_S
from etl.databases.types import NULL, unescape
from etl.errors import DataError
from etl.rows import Column

_REFUSALS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


def fields_of(lines: Sequence[str], place: int) -> list[str | None]:
    """The texts of one field of lines of COPY text."""
    fields = [line.split("\t", place + 1)[place] for line in lines]
    return [None if field == NULL else unescape(field) for field in fields]


async def ask(
    connection: Connection,
    texts_at: Callable[[int], Sequence[str | None]],
    columns: Mapping[int, Column],
    label: str,
) -> None:
    """Refuse the first text that a column would not give back as it is.

    Args:
        texts_at: The texts of a column, by its place.
        columns: The columns to ask about, by their place.

    Raises:
        DataError: Names the column, and the row where the server tells it.
    """
    for place, column in columns.items():
        texts = texts_at(place)
        if all(text is None for text in texts):
            continue
        type = column.type.name
        try:
            row: int | None = await connection.fetchval(
                "SELECT n - 1 FROM unnest($1::text[]) WITH ORDINALITY AS etl_asked(v, n)"  # noqa: S608
                # What COPY would write of it; a cast to text may say it otherwise.
                f" WHERE v IS NOT NULL AND format('%s', v::{type}) <> v ORDER BY n LIMIT 1",
                texts,
                timeout=GROUP_S,
            )
        except _REFUSALS as error:
            raise _refusal(label, column, None, "it is no value of that type") from error
        if row is not None:
            why = (
                "PostgreSQL would store another value than this text spells, or spell it otherwise;"
                " write it as PostgreSQL does, or allow it by name (lossy=, --allow-lossy)"
            )
            raise _refusal(label, column, row, why)


def _refusal(label: str, column: Column, row: int | None, why: str) -> DataError:
    where = "" if row is None else f" in row {row + 1} of the batch"
    return DataError(
        f"{label}: column {column.name!r} ({column.type.name}) cannot take the value{where}: {why}",
        column=column.name,
        row=row,
        reason=f"it cannot go into {column.type.name}: {why}",
    )
