"""The task of functions of Arrow: tables instead of rows, made and worked on in a thread.

Arrow's own work holds no lock of Python's, so the source is read and the target written meanwhile.
A batch is a call. Where bad rows are set aside, a batch on which a call fails is cut in halves
until the rows to blame are alone, as with ``map_batches``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any

from etl.arrow.rows import ArrowRows, table_of
from etl.arrow.types import load
from etl.batch import Batch, Reject
from etl.engine import failpoints
from etl.engine.calls import MOST_FAILURES
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.nodes import Breather
from etl.engine.plan import step_label
from etl.engine.threads import in_thread
from etl.errors import DataError, EtlError, StageError, is_about_a_row
from etl.flow import MapArrow
from etl.foreign import because_of, named
from etl.stages import reject_of


async def run_arrow(
    steps: Sequence[MapArrow],
    source: Channel[Batch[Any]],
    out: Channel[Batch[Any]],
    pack: Callable[[Batch[Any]], Batch[Any]],
    *,
    sets_aside: bool = False,
    steps_left: int = 0,
) -> None:
    """The task of a leg of functions of Arrow; one batch at a time, in order.

    Args:
        pack: Brings what the functions made into the form that it waits in.
    """

    def work(batch: Batch[Any]) -> Batch[Any]:
        done = _worked(steps, batch, sets_aside, steps_left)
        try:
            return pack(done)
        except DataError:
            return done  # what only the table refuses is the lane's to judge

    breather = Breather()
    while True:
        try:
            batch = await source.get()
        except EndOfChannelError:
            break
        done = await in_thread(work, batch)
        failpoints.hit("stage.before_emit")
        await out.put(done, done.nbytes)
        failpoints.hit("stage.after_emit")
        del batch, done
        if monotonic() > breather.due:
            await breather.breathe()
    out.close()


async def over_tables(
    steps: Sequence[MapArrow], batches: AsyncGenerator[Batch[Any], None]
) -> AsyncGenerator[Batch[Any], None]:
    """Functions of Arrow as a generator."""
    async with aclosing(batches):
        async for batch in batches:
            yield await in_thread(_worked, steps, batch, False, 0)


def _worked(
    steps: Sequence[MapArrow], batch: Batch[Any], sets_aside: bool, steps_left: int
) -> Batch[Any]:
    """A batch after the functions. One without rows is handed on as it is."""
    for step in steps:
        rows = batch.rows
        if not len(rows):
            break
        try:
            batch = batch.derive(_called(step, rows))
        except (StageError, DataError) as error:
            cause = _cause(error)
            if not sets_aside or cause is None:
                raise
            batch = _called_apart(step, batch, steps_left)
        steps_left -= 1
    return batch


def _cause(error: StageError | DataError) -> Exception | None:
    """What a call failed for, where it may be a row's fault."""
    cause = error if isinstance(error, DataError) else error.__cause__
    return cause if isinstance(cause, Exception) and is_about_a_row(cause) else None


def _called(step: MapArrow, rows: Sequence[Any]) -> ArrowRows:
    """One call of a function.

    Raises:
        StageError: It failed, or returned no table that rows can be; what it raised is the cause.
        DataError: Arrow does not hold a value of the rows.
    """
    label = step_label(step)
    try:
        table = table_of(rows)
    except DataError as error:
        raise DataError(
            f"{label}: {error}. The batch was not written and the checkpoint did not move",
            column=error.column,
            row=error.row,
            reason=error.reason,
        ) from error
    try:
        result = step.function(table)
    except EtlError as error:
        raise StageError(f"{label} failed: {error}") from error
    except Exception as error:
        raise because_of(
            error,
            StageError(
                f"{label} failed: {named(error)}. The batch was not written and the checkpoint did"
                " not move"
            ),
        ) from error
    return _checked(result, label)


def _checked(result: Any, label: str) -> ArrowRows:
    if not isinstance(result, load().Table):
        raise StageError(
            f"{label} returned {type(result).__name__}; it must return a pyarrow.Table. Nothing of"
            " the batch was written"
        )
    names: list[str] = result.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names or "" in names:
        what = "without columns" if not names else f"with two columns called {twice!r}"
        if twice is None and names:
            what = "with a column that has no name"
        raise StageError(f"{label} returned a table {what}. Nothing of the batch was written")
    return ArrowRows(result, label)


def _called_apart(step: MapArrow, batch: Batch[Any], steps_left: int) -> Batch[Any]:
    """Find the rows on which a call fails, by halves; the rest goes on in its order."""
    rows = batch.rows
    kept: list[Any] = []
    rejects: list[Reject] = []
    todo = [(0, len(rows))]
    while todo:
        start, stop = todo.pop()
        try:
            kept.append(_called(step, rows[start:stop]).table)
        except (StageError, DataError) as error:
            cause = _cause(error)
            if cause is None:
                raise
            if stop - start > 1:
                middle = (start + stop) // 2
                todo += [(middle, stop), (start, middle)]
                continue
            rejects.append(reject_of(cause, rows[start], start, step_label(step), steps_left))
            if not kept and len(rejects) >= MOST_FAILURES:
                raise
    return batch.derive(_joined(kept, step), rejects=rejects)


def _joined(tables: Sequence[Any], step: MapArrow) -> Sequence[Any]:
    if not tables:
        return []
    if any(table.column_names != tables[0].column_names for table in tables):
        raise StageError(
            f"{step_label(step)} returned tables with different columns for parts of one batch."
            " Nothing of it was written; let it return the same columns for all rows"
        )
    pa = load()
    try:
        return ArrowRows(pa.concat_tables(tables, promote_options="default"), step_label(step))
    except pa.ArrowInvalid as error:
        raise StageError(
            f"{step_label(step)} returned columns of different types for parts of one batch."
            " Nothing of it was written; let it cast them"
        ) from error
