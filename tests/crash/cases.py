"""Every way to load that crash tests try. A new way of writing is one more entry of ``CASES``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from etl import Batch, Database, DeadLetter, stage
from etl.flow import Flow, Stream


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    kind: str
    amount: int


@dataclass(frozen=True, slots=True)
class Total:
    kind: str
    items: int
    amount: int


Rows: TypeAlias = list[tuple[Any, ...]]
Effect: TypeAlias = Callable[[Sequence[Item]], Rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to load the items.

    Attributes:
        flow: From the items into the first database, and a second one where it fans out.
        tables: The tables of the first database, each with the rows that some items make of it.
        second: Those of the second database.
        ends: Tables of the first database that are looked at only after a run to the end.
        shows_at_the_end: Nothing shows in the tables before a run has ended well.
        one_position: One checkpoint says how far a database is.
        lanes: How many key ranges go on at once.
        builds: The source builds an ``Item`` of each row.
    """

    flow: Callable[[Stream[Any], Database, Database], Flow]
    tables: Mapping[str, Effect]
    second: Mapping[str, Effect] = field(default_factory=dict[str, Effect])
    ends: Mapping[str, Effect] = field(default_factory=dict[str, Effect])
    shows_at_the_end: bool = False
    one_position: bool = True
    lanes: int = 1
    builds: bool = True


@stage
async def pairs_only(batches: AsyncIterator[Batch[Item]]) -> AsyncGenerator[Batch[Item], None]:
    """Drop the odd ids; some batches become empty and must still be sent on."""
    async for batch in batches:
        yield batch.derive([item for item in batch.rows if is_kept(item)])


in_each_range = replace(pairs_only, per_partition=True)


def is_kept(item: Item) -> bool:
    return item.id % 2 == 0 and item.id > 60


def kept_columns(table: Any) -> Any:
    """As ``pairs_only``, over whole columns; some of its tables are empty."""
    import pyarrow.compute as pc  # not in the runs of all other cases

    ids = table["id"]
    return table.filter(pc.and_(pc.equal(pc.bit_wise_and(ids, 1), 0), pc.greater(ids, 60)))


def fragile_columns(table: Any) -> Any:
    """Fails for some items, which are then looked for."""
    if any(number % 10 == 0 for number in table["id"].to_pylist()):
        raise ValueError("as it was told")
    return table


def to_total(item: Item) -> Total:
    return Total(item.kind, 1, item.amount)


def kept(items: Sequence[Item]) -> Rows:
    return [(item.id, item.kind, item.amount) for item in items if is_kept(item)]


def totals(items: Sequence[Item]) -> Rows:
    sums: dict[str, tuple[int, int]] = {}
    for _, kind, amount in kept(items):
        count, total = sums.get(kind, (0, 0))
        sums[kind] = (count + 1, total + amount)
    return [(kind, count, total) for kind, (count, total) in sums.items()]


def fragile(item: Item) -> Item:
    """Fails for some items."""
    if item.id % 10 == 0:
        raise ValueError("as it was told")
    return item


def unnamed(item: Item) -> Item:
    """Makes of some items rows that the table refuses."""
    none: Any = None
    return replace(item, kind=none) if item.id % 14 == 0 else item


def solid(items: Sequence[Item]) -> Rows:
    return [row for row in kept(items) if row[0] % 10]


def sound(items: Sequence[Item]) -> Rows:
    return [row for row in solid(items) if row[0] % 14]


def failed(items: Sequence[Item]) -> Rows:
    return [("copies", "map fragile", f'{{"id":{n}}}', 0) for n, _, _ in kept(items) if n % 10 == 0]


def failed_columns(items: Sequence[Item]) -> Rows:
    return [
        (flow, f"map_arrow {fragile_columns.__name__}", *rest) for flow, _, *rest in failed(items)
    ]


def rejected(items: Sequence[Item]) -> Rows:
    refused = [row[0] for row in solid(items) if row[0] % 14 == 0]
    return [*failed(items), *(("copies", "write", f'{{"id":{n}}}', 0) for n in refused)]


CASES: Mapping[str, Case] = {
    "append": Case(
        flow=lambda items, first, _: items.through(pairs_only).into(first.append("copies")),
        tables={"copies": kept},
    ),
    "upsert": Case(
        flow=lambda items, first, _: items.through(pairs_only).into(
            first.upsert("copies", key=("id",))
        ),
        tables={"copies": kept},
    ),
    "add": Case(
        flow=lambda items, first, _: (
            items.through(pairs_only)
            .map(to_total)
            .into(first.upsert("totals", key=("kind",), add=("items", "amount")))
        ),
        tables={"totals": totals},
    ),
    "replace": Case(
        flow=lambda items, first, _: items.through(pairs_only).into(first.replace("copies")),
        tables={"copies": kept},
        shows_at_the_end=True,
    ),
    "rewrite": Case(
        flow=lambda items, first, _: items.through(pairs_only).into(
            first.replace("copies", swap="rewrite")
        ),
        tables={"copies": kept},
        shows_at_the_end=True,
    ),
    "two tables": Case(
        flow=lambda items, first, _: items.through(pairs_only).into(
            first.append("copies"), first.upsert("others", key=("id",))
        ),
        tables={"copies": kept, "others": kept},
    ),
    "four lanes": Case(
        flow=lambda items, first, _: items.through(in_each_range).into(first.append("copies")),
        tables={"copies": kept},
        one_position=False,
        lanes=4,
    ),
    "four lanes, replaced": Case(
        flow=lambda items, first, _: items.through(in_each_range).into(first.replace("copies")),
        tables={"copies": kept},
        shows_at_the_end=True,
        lanes=4,
    ),
    "bad rows": Case(
        flow=lambda items, first, _: (
            items.through(pairs_only)
            .map(fragile)
            .map(unnamed)
            .into(first.append("copies"), on_error=DeadLetter())
        ),
        tables={"copies": sound, "etl_reject": rejected},
    ),
    "bad rows, replaced": Case(
        flow=lambda items, first, _: (
            items.through(pairs_only)
            .map(fragile)
            .into(first.replace("copies"), on_error=DeadLetter())
        ),
        tables={"copies": solid},
        ends={"etl_reject": failed},
        shows_at_the_end=True,
    ),
    "arrow": Case(
        flow=lambda items, first, _: items.map_arrow(kept_columns).into(first.append("copies")),
        tables={"copies": kept},
        builds=False,
    ),
    "arrow, four lanes": Case(
        flow=lambda items, first, _: items.map_arrow(kept_columns).into(first.append("copies")),
        tables={"copies": kept},
        one_position=False,
        lanes=4,
        builds=False,
    ),
    "arrow, bad rows, replaced": Case(
        flow=lambda items, first, _: (
            items.map_arrow(kept_columns)
            .map_arrow(fragile_columns)
            .into(first.replace("copies"), on_error=DeadLetter())
        ),
        tables={"copies": solid},
        ends={"etl_reject": failed_columns},
        shows_at_the_end=True,
        builds=False,
    ),
    # Either of the two lanes may be ahead when a crash comes.
    "two databases": Case(
        flow=lambda items, first, second: items.through(pairs_only).into(
            first.append("copies"), second.append("copies")
        ),
        tables={"copies": kept},
        second={"copies": kept},
    ),
    "two databases, replaced": Case(
        flow=lambda items, first, second: items.through(pairs_only).into(
            first.replace("copies"), second.replace("copies")
        ),
        tables={"copies": kept},
        second={"copies": kept},
        shows_at_the_end=True,
    ),
}
