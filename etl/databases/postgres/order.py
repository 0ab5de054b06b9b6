"""The order in which tables that refer to each other are emptied and filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from etl.databases.postgres.catalogue import Relation
from etl.databases.postgres.connect import Connection
from etl.errors import SchemaMismatchError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A foreign key between two tables."""

    name: str
    child: int
    parent: int
    child_name: str
    parent_name: str
    deferrable: bool
    changes: bool  # ON DELETE does something to the child's rows


_REFERENCES = """
SELECT k.conname::text AS name, k.conrelid::bigint AS child, k.confrelid::bigint AS parent,
    k.conrelid::regclass::text AS child_name, k.confrelid::regclass::text AS parent_name,
    k.condeferrable AS deferrable, k.confdeltype NOT IN ('a', 'r') AS changes
FROM pg_catalog.pg_constraint AS k
WHERE k.contype = 'f' AND k.confrelid = ANY($1::oid[]) AND k.conrelid <> k.confrelid
ORDER BY k.conrelid, k.conname
"""


async def references_to(connection: Connection, oids: Sequence[int]) -> list[Reference]:
    """The foreign keys that refer to some tables, from other ones."""
    return [Reference(**row) for row in await connection.fetch(_REFERENCES, list(oids))]


def in_order(oids: Sequence[int], references: Sequence[Reference]) -> list[int]:
    """Tables with parents before children; where they form a circle, as they came.

    Deferrable keys hold at the end of the transaction, so they order nothing.
    """
    known = set(oids)
    parents: dict[int, list[int]] = {oid: [] for oid in oids}
    for one in references:
        if one.child in known and one.parent in known and not one.deferrable:
            parents[one.child].append(one.parent)
    try:
        return list(TopologicalSorter(parents).static_order())
    except CycleError:
        return list(oids)


async def parents_first(connection: Connection, tables: Mapping[int, T]) -> list[T]:
    """What goes with each table, by oid, in the order in which tables are filled."""
    references = await references_to(connection, list(tables))
    return [tables[oid] for oid in in_order(list(tables), references)]


async def check_rewrite(
    connection: Connection, relation: Relation, label: str, together: Sequence[int]
) -> None:
    """Refuse to empty a table where that would change or lose rows of others, or cannot succeed.

    Args:
        together: The tables that are emptied and filled in the same transaction.

    Raises:
        SchemaMismatchError: Names the foreign key.
    """
    references = await references_to(connection, [relation.oid])
    for one in references:
        if one.child in together or (one.deferrable and not one.changes):
            continue
        if await connection.fetchval(f"SELECT NOT EXISTS (SELECT FROM {one.child_name})"):  # noqa: S608
            continue
        what = "would change its rows" if one.changes else "forbids that"
        raise SchemaMismatchError(
            f"{label}: to rewrite {relation.label!r} all its rows are deleted first, and the"
            f" foreign key {one.name!r} of {one.child_name} {what}. Nothing was written; replace"
            f" {one.child_name} in the same run, or use upsert"
        )
    every = [one for one in await references_to(connection, together) if not one.deferrable]
    circle = _circle(together, every)
    if relation.oid in circle:
        keys = ", ".join(
            f"{one.name!r} of {one.child_name}"
            for one in every
            if one.child in circle and one.parent in circle
        )
        raise SchemaMismatchError(
            f"{label}: {relation.label!r} belongs to tables that refer to each other in a circle"
            f" ({keys}), so none can be filled first. Nothing was written; make one of the keys"
            " DEFERRABLE"
        )


def _circle(oids: Sequence[int], references: Sequence[Reference]) -> frozenset[int]:
    known = set(oids)
    parents: dict[int, list[int]] = {oid: [] for oid in oids}
    for one in references:
        if one.child in known:
            parents[one.child].append(one.parent)
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        found: list[int] = error.args[1]
        return frozenset(found)
    return frozenset()
