"""Proves that two tables hold the same rows, or finds those that differ.

Both databases hash their rows by ranges of the key, each in one snapshot of its own; only hashes,
keys and counts travel. A range whose hashes differ is cut into parts, as often as it takes, until
the rows themselves can be compared one by one, by their hashes. So memory is bounded by one part,
and a single row that differs in a table of a hundred million costs a handful of index scans.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from etl.databases.canonical import Compared, Described, form_of
from etl.databases.database import Database, DatabaseSource, driver_of
from etl.databases.digest import Agreement, Digest, Key, Order, Range, Snapshot, TableDigests
from etl.databases.sql import fold
from etl.errors import ConfigError, SchemaMismatchError
from etl.flow import Source
from etl.rows import Kind

T = TypeVar("T")

CHUNK_ROWS = 50_000
"""Rows of a range that is hashed as a whole."""
LEAF_ROWS = 2_000
"""Rows of a range that are compared one by one."""
PARTS = 16
"""Into how many parts a range that differs is cut."""
REPORTED = 100
"""Differences that are told in full."""

Change: TypeAlias = Literal["changed", "missing", "surplus"]

_ORDERED: frozenset[Kind] = frozenset(
    {
        *("bool", "int16", "int32", "int64", "float32", "float64", "numeric", "bytes", "date"),
        *("time", "timestamp", "timestamptz", "interval", "uuid"),
    }
)
"""Kinds whose order is the same in every PostgreSQL database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row that differs.

    Attributes:
        change: ``changed``: both have it; ``missing``: the target has not; ``surplus``: only the
            target has it, or has it more often.
        key: Its key, by the source's names.
        columns: Those that differ, by the source's names; empty where the row is missing or
            surplus.
        values: By column, the texts in source and target, where they were asked for.
    """

    change: Change
    key: Mapping[str, Any]
    columns: tuple[str, ...] = ()
    values: Mapping[str, tuple[str | None, str | None]] = field(
        default_factory=dict[str, tuple[str | None, str | None]]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the comparison of two tables found.

    Attributes:
        structure: Columns that only one of them has, or that cannot be compared.
        differences: The first rows that differ, in key order.
        changed: How many rows both have, but not alike.
        missing: How many rows the target lacks.
        surplus: How many rows only the target has.
        located: False where the tables differ, but not in rows that could be named: without a
            key, or where the key is NULL.
    """

    source: str
    target: str
    source_rows: int
    target_rows: int
    structure: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    changed: int = 0
    missing: int = 0
    surplus: int = 0
    located: bool = True

    @property
    def equal(self) -> bool:
        """Whether both tables hold the same columns and the same rows."""
        return self.located and not (self.structure or self.changed or self.missing or self.surplus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a comparison is."""

    table: str
    source_rows: int
    differing: int


Observe: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two tables to compare, by their names.

    Attributes:
        key: What identifies a row, by the source's names; empty: the primary key.
        where: A condition in SQL that both sides apply; trusted.
        values: Tell the values that differ.
        most: How many differences are told in full.
    """

    source: str
    target: str
    key: tuple[str, ...] = ()
    where: str | None = None
    values: bool = False
    most: int = REPORTED


async def verify(
    source: Source[Any],
    target: Source[Any],
    *,
    where: str | None = None,
    values: bool = False,
    most: int = REPORTED,
) -> Verdict:
    """Compare two tables: ``await etl.verify(shop.table("orders"), copy.table("orders"))``.

    Equal means that the target holds what ``etl copy`` would have put there. Each side is read
    in one snapshot; what is written meanwhile is not seen.

    Args:
        source: A table, by ``Database.table``; its ``key=`` says what identifies a row where
            that is not the primary key.
        target: The other table.
        where: Compare only rows for which this SQL condition is true; both databases apply it.
            It is trusted: never build it from input.
        values: Tell the values that differ, not only where they are.
        most: How many differences are told in full; all are counted.

    Raises:
        ConfigError: Not two tables, or a key that does not identify rows.
        TransientError: A database cannot be reached; run again.
    """
    (database, table), (other, copy) = _table_of(source), _table_of(target)
    key = source.spec.key if isinstance(source, DatabaseSource) else ()
    pair = Pair(source=table, target=copy, key=key, where=where, values=values, most=most)
    (verdict,) = await verify_all(database, other, [pair])
    return verdict


def _table_of(source: Source[Any]) -> tuple[Database, str]:
    if (
        not isinstance(source, DatabaseSource)
        or source.spec.table is None
        or source.spec.steps
        or source.spec.limit is not None
    ):
        raise ConfigError("verify() compares two tables, made by Database.table(), without steps")
    return source.database, source.spec.table


async def verify_all(
    source: Database, target: Database, pairs: Sequence[Pair], observe: Observe | None = None
) -> list[Verdict]:
    """Compare some tables of two databases, all in the same two snapshots."""
    async with AsyncExitStack() as stack:
        urls = source.url, target.url
        one = await stack.enter_async_context(
            driver_of(urls[0]).open_snapshot(urls[0], side="source")
        )
        other = await stack.enter_async_context(
            driver_of(urls[1]).open_snapshot(urls[1], side="target")
        )
        return [await Comparison(pair, observe).run(one, other) for pair in pairs]


class Comparison:
    """One pair of tables.

    Attributes:
        sides: Its tables, once it runs.
        key: The columns of the key, by the source's names.
        keys: The keys of the rows that differ, as many as are to be kept.
        surplus: Those among them that only the target has.
    """

    def __init__(self, pair: Pair, observe: Observe | None = None, *, most_kept: int = 0) -> None:
        self.pair = pair
        self.sides: Sequence[TableDigests] = ()
        self.key: tuple[str, ...] = ()
        self.keys: list[Key] = []
        self.surplus: list[Key] = []
        self._observe = observe
        self._most_kept = most_kept
        self._structure: list[str] = []
        self._names: tuple[str, ...] = ()
        self._found: list[Difference] = []
        self._counts: Counter[Change] = Counter()
        self._located = True
        self._rows = [0, 0]
        self._together = 1

    @property
    def differing(self) -> int:
        """How many rows were found to differ."""
        return self._counts.total()

    async def run(self, source: Snapshot, target: Snapshot) -> Verdict:
        """Compare them."""
        table = await source.describe(self.pair.source)
        try:
            tables = table, await target.describe(self.pair.target)
        except SchemaMismatchError:
            # One table that was not copied does not hide what became of the others.
            (whole,) = await (
                await source.open(table, Agreement(columns=(), where=self.pair.where), side=0)
            ).digests([Range()])
            return Verdict(
                source=table.label,
                target=self.pair.target,
                source_rows=whole.rows,
                target_rows=0,
                structure=("the target has no such table",),
            )
        agreement = await self._agree(tables, source, target)
        self._names = tuple(c.names[0] for c in agreement.columns)
        self.key = tuple(self._names[place] for place in agreement.key)
        sides = (
            await source.open(tables[0], agreement, side=0),
            await target.open(tables[1], agreement, side=1),
        )
        self.sides = sides
        self._together = max(side.together for side in sides)
        if agreement.key:
            await self._compare_by_key(sides, _nullable(tables, agreement))
        else:
            await self._compare_whole(sides, Range())
        return Verdict(
            source=tables[0].label,
            target=tables[1].label,
            source_rows=self._rows[0],
            target_rows=self._rows[1],
            structure=tuple(self._structure),
            differences=tuple(self._found),
            changed=self._counts["changed"],
            missing=self._counts["missing"],
            surplus=self._counts["surplus"],
            located=self._located,
        )

    # -- what is compared ------------------------------------------------------------------------

    async def _agree(
        self, tables: tuple[Described, Described], source: Snapshot, target: Snapshot
    ) -> Agreement:
        columns: list[Compared] = []
        partners = _partners(*tables)
        for column in tables[0].columns:
            other = partners.get(column.name)
            if other is None:
                self._structure.append(f"the target has no column {column.name!r}")
                continue
            form = form_of(*tables, (column.name, other))
            if form is None:
                types = [
                    next(c.type.name for c in table.columns if c.name == name)
                    for table, name in zip(tables, (column.name, other), strict=True)
                ]
                self._structure.append(
                    f"column {column.name!r} cannot be compared: {types[0]} in the source,"
                    f" {types[1]} in the target"
                )
                continue
            columns.append(Compared(names=(column.name, other), form=form))
        paired = set(partners.values())
        self._structure += [
            f"the source has no column {column.name!r}"
            for column in tables[1].columns
            if column.name not in paired
        ]
        places = self._places(tables[0], columns)
        orders: list[Order] = [
            await self._order(tables, columns[place], source, target) for place in places
        ]
        return Agreement(
            columns=tuple(columns), key=tuple(places), orders=tuple(orders), where=self.pair.where
        )

    def _places(self, table: Described, columns: Sequence[Compared]) -> list[int]:
        names = [compared.names[0] for compared in columns]
        for name in self.pair.key:
            if name not in names:
                raise ConfigError(
                    f"table {table.label!r} has no column {name!r} that both sides have, so it"
                    " cannot identify rows; nothing was compared"
                )
        key = self.pair.key or table.key
        # A key that the target lacks is told as a difference of structure.
        return [names.index(name) for name in key] if set(key) <= set(names) else []

    async def _order(
        self,
        tables: tuple[Described, Described],
        compared: Compared,
        source: Snapshot,
        target: Snapshot,
    ) -> Order:
        types = [
            next(c.type for c in table.columns if c.name == name)
            for table, name in zip(tables, compared.names, strict=True)
        ]
        dialects = {type.dialect for type in types}
        if dialects == {"sqlite"}:
            return "native" if compared.form == "value" else "bytes"
        if len(dialects) == 1 and dialects != {"mysql"}:
            same = types[0].kind == types[1].kind and types[0].kind in _ORDERED
            return "native" if same else "bytes"
        both = await source.is_integer(tables[0], compared.names[0]) and await target.is_integer(
            tables[1], compared.names[1]
        )
        return "native" if both else "bytes"

    # -- the whole table -------------------------------------------------------------------------

    async def _compare_whole(self, sides: _Sides, whole: Range) -> None:
        """Rows that no key tells apart: one hash for all of them."""
        (one,), (other,) = await _digests(sides, [whole])
        self._count(one, other)
        if one != other:
            self._located = False

    async def _compare_by_key(self, sides: _Sides, nullable: bool) -> None:
        if nullable:
            await self._compare_whole(sides, Range(unkeyed=True))
        every = CHUNK_ROWS
        if self._together > 1:
            # Each scan goes through the whole table, so there are to be few of them.
            (whole,) = await sides[0].digests([Range()])
            every = max(every, -(-whole.rows // self._together))
        ranges = _cut(Range(), await sides[0].bounds(Range(), every))
        for at in range(0, len(ranges), self._together):
            group = ranges[at : at + self._together]
            for within, one, other in zip(group, *await _digests(sides, group), strict=True):
                self._count(one, other)
                if one != other:
                    await self._descend(sides, within, one, other)
                self._tell()

    def _count(self, one: Digest, other: Digest) -> None:
        self._rows[0] += one.rows
        self._rows[1] += other.rows

    def _tell(self) -> None:
        if self._observe is not None:
            self._observe(
                Progress(
                    table=self.pair.source,
                    source_rows=self._rows[0],
                    differing=self.differing,
                )
            )

    # -- down to the rows ------------------------------------------------------------------------

    async def _descend(self, sides: _Sides, within: Range, one: Digest, other: Digest) -> None:
        """Cut a range that differs into parts, until rows can be compared."""
        rows = max(one.rows, other.rows)
        if rows <= LEAF_ROWS:
            await self._compare_rows(sides, within)
            return
        # The side that has more says where to cut: the other may have nothing there.
        fuller = sides[0] if one.rows >= other.rows else sides[1]
        parts = _cut(within, await fuller.bounds(within, -(-rows // PARTS)))
        if len(parts) < 2:
            raise ConfigError(
                f"table {self.pair.source!r}: the key ({', '.join(self.key)}) does not identify"
                f" rows: {rows} rows have the same one. Name the columns that do with --key"
                " (key=)"
            )
        for part, left, right in zip(parts, *await _digests(sides, parts), strict=True):
            if left != right:
                await self._descend(sides, part, left, right)
                self._tell()

    async def _compare_rows(self, sides: _Sides, within: Range) -> None:
        found = await _both(*(side.rows(within) for side in sides))
        left, right = map(_by_key, found)
        differing = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
        changed: list[Key] = []
        for key in sorted(differing, key=_sortable):
            one, other = left.get(key, Counter()), right.get(key, Counter())
            more = one.total() - other.total()
            change: Change = "missing" if more > 0 else "surplus" if more < 0 else "changed"
            self._counts[change] += abs(more) or (one - other).total()
            if len(self.keys) < self._most_kept:
                self.keys.append(key)
                if not one:
                    self.surplus.append(key)
            if len(self._found) < self.pair.most:
                self._found.append(Difference(change=change, key=self._shown(key)))
                if change == "changed":
                    changed.append(key)
        if changed:
            await self._look_closer(sides, within, changed)

    async def _look_closer(self, sides: _Sides, within: Range, keys: Sequence[Key]) -> None:
        """Name the columns of rows that were found to differ."""
        values = self.pair.values
        left, right = await _both(*(side.cells(within, keys, values=values) for side in sides))
        for at, difference in enumerate(self._found):
            key = tuple(difference.key.values())
            if difference.change != "changed" or difference.columns or key not in left:
                continue
            pairs = zip(self._names, left[key], right.get(key, left[key]), strict=True)
            cells = {name: (one, other) for name, one, other in pairs if one != other}
            self._found[at] = Difference(
                change="changed",
                key=difference.key,
                columns=tuple(cells),
                values=cells if values else {},
            )

    def _shown(self, key: Key) -> Mapping[str, Any]:
        return dict(zip(self.key, key, strict=True))


_Sides: TypeAlias = tuple[TableDigests, TableDigests]


async def _digests(
    sides: _Sides, ranges: Sequence[Range]
) -> tuple[Sequence[Digest], Sequence[Digest]]:
    """The digests of both sides, computed at the same time."""
    return await _both(*(side.digests(ranges) for side in sides))


async def _both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, T]) -> tuple[T, T]:
    """Two results at the same time; where one fails, the other does not go on."""
    tasks = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _cut(whole: Range, bounds: Sequence[Key]) -> list[Range]:
    """A range as several that follow each other."""
    inner = [bound for at, bound in enumerate(bounds) if at == 0 or bound != bounds[at - 1]]
    if inner and inner[-1] == whole.upto:
        inner.pop()
    ends = [whole.after, *inner, whole.upto]
    return [Range(after=a, upto=b) for a, b in zip(ends, ends[1:], strict=False)]


def _partners(source: Described, target: Described) -> dict[str, str]:
    """The target's column of each of the source's; SQLite takes a name in any case."""
    names = {column.name for column in target.columns}
    folds = bool(source.affinities or target.affinities)
    by_fold = {fold(name): name for name in names} if folds else {}
    partners: dict[str, str] = {}
    for column in source.columns:
        other = column.name if column.name in names else by_fold.get(fold(column.name))
        if other is not None:
            partners[column.name] = other
    return partners


def _nullable(tables: tuple[Described, Described], agreement: Agreement) -> bool:
    """Whether a column of the key may be NULL somewhere."""
    return any(
        column.nullable
        for side, table in enumerate(tables)
        for column in table.columns
        if column.name in {agreement.columns[place].names[side] for place in agreement.key}
    )


def _by_key(rows: Sequence[tuple[Key, str]]) -> dict[Key, Counter[str]]:
    by_key: dict[Key, Counter[str]] = {}
    for key, digest in rows:
        by_key.setdefault(key, Counter())[digest] += 1
    return by_key


def _sortable(key: Key) -> tuple[tuple[str, Any], ...]:
    return tuple((type(part).__name__, part) for part in key)
