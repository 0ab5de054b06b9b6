"""The side tables of look-ups: loaded once for each run, before the first row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from etl.batch import Batch
from etl.connector import RunInfo
from etl.engine.plan import is_own
from etl.engine.supervise import supervise
from etl.errors import DataError
from etl.flow import Lookup, Map, Source, Step
from etl.policy import Limits
from etl.stages import RowStep, fuse


async def load_lookups(steps: Sequence[Step], info: RunInfo, limits: Limits) -> list[Step]:
    """The steps with each lookup's side table loaded."""
    return [
        await _loaded(step, info, limits) if isinstance(step, Lookup) else step for step in steps
    ]


async def _loaded(step: Lookup, info: RunInfo, limits: Limits) -> Map:
    table: dict[Any, Any] = {}

    async def load() -> None:
        table.update(await load_side(step, info))

    # In a task of its own: a side of the user's may not stop when it is cancelled.
    name = f"the look-up in {step.side.flow_name!r}"
    await supervise(
        {name: load()},
        list,
        grace_s=limits.abort_grace_s,
        patient=() if is_own(step.side.origin) else {name},
    )
    key, combine = step.key, step.combine

    def joined(row: Any) -> Any:
        return combine(row, table.get(key(row)))

    joined.__qualname__ = getattr(combine, "__qualname__", "lookup")
    return Map(joined)


async def load_side(step: Lookup, info: RunInfo) -> dict[Any, Any]:
    """The side of a lookup, by its key.

    Raises:
        DataError: Two side rows have the same key.
    """
    side = step.side
    source = side.origin
    assert isinstance(source, Source)
    run = fuse(cast("Sequence[RowStep]", side.steps))
    table: dict[Any, Any] = {}

    async def emit(batch: Batch[Any]) -> None:
        for row in run(batch.rows):
            key = step.side_key(row)
            if key is None:
                continue  # as in SQL, NULL matches nothing
            if key in table:
                raise DataError(
                    f"lookup in {side.flow_name!r}: two side rows have the same key. Nothing was"
                    " written; make side_key unique, or filter the side"
                )
            table[key] = row

    async with source.connect(info) as reader:
        await reader.pump(None, None, emit)
    return table
