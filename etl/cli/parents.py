"""Which tables of a target must be filled first, because others refer to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from etl.databases.database import Database, TableInfo, driver_of
from etl.databases.sql import fold, split_name

_DEFAULT_SCHEMAS = frozenset({None, "public", "main"})
_MOST_NAMES = 8


async def parents_of(
    target: Database, sinks: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The flows that each flow must wait for, by the foreign keys that the target has now.

    Keys of tables that are still to be made are added when all rows are in, so they order nothing.
    Each flow has transactions of its own: also a deferrable key needs its parent's row before.

    Args:
        sinks: By flow, the table that it is written into.

    Returns:
        And what a person should know: tables that refer to each other in a circle.
    """
    url = target.url
    if url.dialect == "sqlite" and not await asyncio.to_thread(Path(url.path).exists):
        return {}, []
    driver = driver_of(url)
    flows = {_place(*split_name(table)): flow for flow, table in sinks.items()}
    there = [t for t in await driver.list_tables(url) if t.kind == "table"]
    tables = {flows[place]: t for t in there if (place := _place(t.schema, t.name)) in flows}
    parents: dict[str, set[str]] = {flow: set() for flow in sinks}
    definitions = await driver.describe(url, list(tables.values()))
    for (flow, table), definition in zip(tables.items(), definitions, strict=True):
        for key in definition.foreign_keys:
            parent = flows.get(_place(key.schema or table.schema, key.table))
            if parent is not None and parent != flow:
                parents[flow].add(parent)
    circles = _cut_circles(parents)
    said = [
        f"{_shown(circle, tables)} refer to each other in a circle in {target.name}, so none of"
        " them can be filled first: a row that comes before the one it refers to ends the run."
        " Fill one of them without that key, or drop the key and add it afterwards"
        for circle in circles
    ]
    return {flow: tuple(sorted(others)) for flow, others in parents.items() if others}, said


def _place(schema: str | None, name: str) -> tuple[str | None, str]:
    """A table, however it is spelt. Names that differ in case only are taken for one: then a flow
    waits for one more, which does no harm."""
    return (None if schema in _DEFAULT_SCHEMAS else schema, fold(name))


def _cut_circles(parents: Mapping[str, set[str]]) -> list[Set[str]]:
    """Let nobody wait within a circle; the circles that there were."""
    circles: list[Set[str]] = []
    while True:
        try:
            TopologicalSorter(parents).prepare()
        except CycleError as error:
            circle = frozenset[str](error.args[1])
            for flow in circle:
                parents[flow].difference_update(circle)
            circles.append(circle)
        else:
            return circles


def _shown(circle: Set[str], tables: Mapping[str, TableInfo]) -> str:
    names = sorted(repr(tables[flow].name) for flow in circle)
    more = len(names) - _MOST_NAMES
    return f"tables {', '.join(names[:_MOST_NAMES])}" + (f" and {more} more" if more > 0 else "")
