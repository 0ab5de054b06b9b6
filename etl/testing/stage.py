"""Runs one stage in a test, over several ways to cut its input into batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from etl.batch import Batch, Token
from etl.flow import Stage
from etl.stages import through_stage
from etl.testing.memory import MemorySource

T = TypeVar("T")
U = TypeVar("U")


async def run_stage(
    stage: Stage[T, U], rows: Sequence[T], *, batch: int = 100, same_for_any_batch: bool = True
) -> list[U]:
    """Run a stage over rows; return the rows that it gives.

    It runs again with other batch sizes and with empty batches between, always under the
    conservation check.

    Args:
        batch: Rows of a batch for the result that is returned.
        same_for_any_batch: The output must not depend on where batches end. Set it False for
            a stage whose output does (sums per batch).

    Raises:
        ConservationError: The stage lost, repeated or reordered a token.
        AssertionError: The output depends on where batches end.
        ConfigError: It is no stage, or lacks an option that has no default.
    """
    MemorySource(rows).through(stage)  # refuses what a stream would
    result = await _run(stage, rows, batch, empty_between=False)
    for size, empty in ((1, False), (batch, True), (max(1, len(rows)), False)):
        other = await _run(stage, rows, size, empty_between=empty)
        if same_for_any_batch and other != result:
            raise AssertionError(
                f"stage {stage.name!r} gives other rows with batches of {size}"
                f"{' and empty batches' if empty else ''} than with batches of {batch}; after a"
                " restart batches end elsewhere"
            )
    return result


async def _run(
    stage: Stage[Any, U], rows: Sequence[Any], size: int, *, empty_between: bool
) -> list[U]:
    pieces: list[Sequence[Any]] = []
    for at in range(0, len(rows), size):
        if empty_between:
            pieces.append([])
        pieces.append(rows[at : at + size])
    pieces.append([])

    async def batches() -> AsyncGenerator[Batch[Any], None]:
        old = None
        for seq, piece in enumerate(pieces):
            new = (seq + 1,)
            yield Batch(piece, position=new, tokens=(Token("main", seq, old, new),))
            old = new

    found: list[U] = []
    async with aclosing(through_stage(stage, batches())) as results:
        async for one in results:
            found += one.rows
    return found
