"""What a database offers to be compared with another: hashes over ranges of keys, in one snapshot.

Only hashes, keys and counts leave the database. A row's hash is the MD5 of its line: the text of
each column in the form that both sides agreed on (``canonical``), tabs and backslashes escaped,
``\\N`` for NULL, joined by tabs. So no two different rows have the same line. A range's hash is
the number of its rows and two sums, of the halves of their hashes: the order of rows does not
matter, doubled rows do, and a value that changes place with another does too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from etl.databases.canonical import Compared, Described

Key: TypeAlias = tuple[int | float | str | bytes, ...]
"""A row's key, as both sides order it: integers as such, what is ordered as text as text."""

Order: TypeAlias = Literal["native", "bytes"]
"""How a key column is ordered: by both databases in the same way, or by the bytes of its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Rows whose key comes after one key, up to and with another; None: no end.

    ``unkeyed`` stands for the rows that have NULL in their key, which no other range holds.
    """

    after: Key | None = None
    upto: Key | None = None
    unkeyed: bool = False


def hull(ranges: Sequence[Range]) -> Range:
    """What some ranges that follow each other make together."""
    return Range(
        after=ranges[0].after, upto=ranges[-1].upto, unkeyed=any(r.unkeyed for r in ranges)
    )


def place_in(ranges: Sequence[Range], is_upto: Callable[[Key], str]) -> str:
    """SQL that tells in which of some ranges a row of them is.

    Args:
        is_upto: The condition for rows up to and with a key.
    """
    if len(ranges) == 1:
        return "0"
    cases = [
        f"WHEN {is_upto(one.upto)} THEN {number}"
        for number, one in enumerate(ranges[:-1])
        if one.upto is not None
    ]
    return f"CASE {' '.join(cases)} ELSE {len(ranges) - 1} END"


@dataclass(frozen=True, slots=True)
class Digest:
    """What is in a range: how many rows, and the two sums over their hashes."""

    rows: int = 0
    first: int = 0
    second: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How both sides look at a pair of tables.

    Attributes:
        columns: Those that are compared; for each side its own name.
        key: Places of the key in ``columns``; empty where rows have no key.
        orders: How each column of the key is ordered.
        where: A condition in SQL for the rows that are compared; trusted.
    """

    columns: tuple[Compared, ...]
    key: tuple[int, ...] = ()
    orders: tuple[Order, ...] = ()
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A foreign key that refers to a table.

    Attributes:
        table: Whose it is, as a user reads it.
        on_delete: What becomes of its rows when the row is deleted that they refer to, such as
            ``CASCADE``; None: the row cannot be deleted.
    """

    table: str
    on_delete: str | None


class TableDigests(Protocol):
    """One table of a snapshot, by an agreement.

    Attributes:
        together: How many ranges one scan had better answer: 1 where an index finds a range.
    """

    @property
    def together(self) -> int: ...

    async def digests(self, ranges: Sequence[Range]) -> Sequence[Digest]:
        """The digest of each of some ranges, which follow each other without a gap."""
        ...

    async def bounds(self, within: Range, every: int) -> Sequence[Key]:
        """The key of every so many-th row of a range, in key order."""
        ...

    async def rows(self, within: Range) -> Sequence[tuple[Key, str]]:
        """The key and the hash of each row of a small range."""
        ...

    async def cells(
        self, within: Range, keys: Sequence[Key], *, values: bool
    ) -> Mapping[Key, Sequence[str | None]]:
        """The hash of each value of some rows of a range; with ``values`` its text instead."""
        ...

    def condition(self, keys: Sequence[Key]) -> str:
        """A condition in SQL for the rows that have one of some keys, for any session.

        Raises:
            ConfigError: This key can be compared, but not looked for.
        """
        ...


class Eraser(Protocol):
    """A session of a target that can delete rows in its transaction."""

    async def delete(self, sink: int, condition: str) -> int:
        """Delete the rows of a sink's table for which a condition is true; how many were."""
        ...


class Snapshot(Protocol):
    """A database as it is at one instant, for reading."""

    async def describe(self, table: str) -> Described:
        """The columns of a table, and its key.

        Raises:
            SchemaMismatchError: There is no such table.
        """
        ...

    async def is_integer(self, table: Described, column: str) -> bool:
        """Whether a column of the key holds nothing but integers."""
        ...

    async def referrers(self, table: Described) -> Sequence[Referrer]:
        """The foreign keys, also of the table itself, that refer to a table."""
        ...

    async def open(self, table: Described, agreement: Agreement, *, side: int) -> TableDigests:
        """Look at a table. ``side`` says whose names of the columns are meant: 0 or 1."""
        ...
