"""Finds the rows that a table refuses, in savepoints, and writes all others.

Used only where a table has refused something: a group is then written piece by piece, each in a
savepoint. A piece that fails is cut where the error says, else in halves, down to the rows that
fail alone. Every row is written in the order of the group, so the last row of a key still wins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from etl.batch import Batch
from etl.connector import Session
from etl.errors import DataError

PIECE_ROWS = 5_000
"""Rows of a piece. A savepoint costs as much as some hundred rows, and a bad row makes half a piece
be written again, on average; see ``tests/benchmarks/bad_rows.py``."""

JUDGED_ROWS = 100
"""After so many refused rows it is asked whether to go on: each costs as much as hundreds of good
ones, and of a table that refuses all there can be thousands in a group."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that a table refused: which of which batch, and why."""

    batch: int
    ordinal: int
    row: Any
    error: DataError


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a batch."""

    batch: int
    first: int
    rows: Sequence[Any]


_Piece = list[_Part]


async def write_sifted(
    session: Session,
    sink: int,
    batches: Sequence[Batch[Any]],
    judge: Callable[[list[Refused]], Awaitable[None]],
) -> tuple[int, list[Refused]]:
    """Write a group into one sink but for the rows that it refuses; how many were written.

    Args:
        judge: Told of the rows that were refused so far; raises where they are too many.
    """
    written = 0
    refused: list[Refused] = []
    todo = _pieces(batches)
    todo.reverse()
    while todo:
        piece = todo.pop()
        await session.savepoint()
        try:
            written += await session.write(sink, [Batch(part.rows) for part in piece])
        except DataError as error:
            await session.undo()
            part = piece[0]
            if _count(piece) == 1:
                refused.append(Refused(part.batch, part.first, part.rows[0], error))
                if len(refused) % JUDGED_ROWS == 0:
                    await judge(refused)
            else:
                todo += reversed(_cut(piece, error.row))
    return written, refused


def _pieces(batches: Sequence[Batch[Any]]) -> list[_Piece]:
    pieces: list[_Piece] = []
    room = 0
    for number, batch in enumerate(batches):
        first = 0
        while first < len(batch.rows):
            if not room:
                pieces.append([])
                room = PIECE_ROWS
            rows = batch.rows[first : first + room]
            pieces[-1].append(_Part(number, first, rows))
            first += len(rows)
            room -= len(rows)
    return pieces


def _cut(piece: _Piece, at: int | None) -> list[_Piece]:
    """The row at a place apart, and what stands before and behind it; without a place, halves."""
    count = _count(piece)
    bounds = [0, count // 2, count]
    if at is not None and 0 <= at < count:
        bounds = sorted({0, at, at + 1, count})
    return [_between(piece, start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]


def _between(piece: _Piece, start: int, stop: int) -> _Piece:
    found: _Piece = []
    at = 0
    for part in piece:
        first, last = max(start - at, 0), min(stop - at, len(part.rows))
        if first < last:
            found.append(_Part(part.batch, part.first + first, part.rows[first:last]))
        at += len(part.rows)
    return found


def _count(piece: _Piece) -> int:
    return sum(len(part.rows) for part in piece)
