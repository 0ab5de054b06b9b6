"""Hashes of a table's rows by ranges of its key, computed in MySQL; see ``databases.digest``.

One connection and one consistent snapshot serve a whole comparison.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

from etl.databases.canonical import ESCAPED, Described, Form
from etl.databases.digest import Agreement, Digest, Key, Order, Range, Referrer, hull, place_in
from etl.databases.generic.connect import LONG_S, Connection, opened
from etl.databases.generic.keys import beyond
from etl.databases.generic.mysql.base import Base
from etl.databases.generic.mysql.types import LARGE, read_as
from etl.databases.generic.table import Table, TableColumn
from etl.databases.sql import split_name
from etl.databases.url import Url
from etl.errors import ConfigError, SchemaMismatchError
from etl.figures import size

TOGETHER = 16
"""Ranges of one scan where no index finds them; a row is compared with each bound in turn."""

_INTS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_MOMENTS = frozenset({"date", "time", "datetime", "timestamp"})

# A hash that is computed in a derived table would be computed anew wherever it is named.
_SETTINGS = "SET SESSION optimizer_switch = 'derived_merge=off'"

_REFERRERS = """
SELECT DISTINCT table_name, delete_rule FROM information_schema.referential_constraints
WHERE unique_constraint_schema = COALESCE(:etl_0, DATABASE()) AND referenced_table_name = :etl_1
ORDER BY table_name, delete_rule
"""


@asynccontextmanager
async def open_snapshot(url: Url, *, side: Literal["source", "target"]) -> AsyncGenerator[Any]:
    """See :class:`etl.databases.database.Driver`."""
    async with opened(url, side, reads=True) as connection:
        await connection.execute(_SETTINGS)
        await connection.rollback()
        await connection.dialect.open_snapshot(connection)
        yield MySQLSnapshot(connection)


class MySQLSnapshot:
    """See :class:`etl.databases.digest.Snapshot`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tables: dict[str, Table] = {}

    async def describe(self, table: str) -> Described:
        """See the protocol."""
        schema, name = split_name(table)
        found = await self._connection.dialect.find_table(self._connection, schema, name)
        if found is None:
            raise SchemaMismatchError(
                f"{self._connection.where} has no table {table!r}. Nothing was changed"
            )
        self._tables[table] = found
        return Described(
            name=table, label=found.name, columns=found.shape.columns, key=found.key, affinities={}
        )

    async def is_integer(self, table: Described, column: str) -> bool:
        """See the protocol."""
        found = self._tables[table.name].column(column)
        return found is not None and found.base in _INTS

    async def referrers(self, table: Described) -> Sequence[Referrer]:
        """See the protocol."""
        found = self._tables[table.name]
        rows = await self._connection.fetch(
            _REFERRERS, {"etl_0": found.schema, "etl_1": found.name}
        )
        actions = {"CASCADE", "SET NULL", "SET DEFAULT"}
        return [
            Referrer(table=name, on_delete=rule if rule in actions else None) for name, rule in rows
        ]

    async def open(self, table: Described, agreement: Agreement, *, side: int) -> MySQLDigests:
        """See the protocol."""
        return MySQLDigests(self._connection, self._tables[table.name], agreement, side)


class MySQLDigests:
    """See :class:`etl.databases.digest.TableDigests`."""

    def __init__(
        self, connection: Connection, table: Table, agreement: Agreement, side: int
    ) -> None:
        self._connection = connection
        self._agreement = agreement
        self._label = table.name
        quote = connection.dialect.quote
        is_mariadb = cast("Base", connection.dialect).is_mariadb
        columns = [_column(table, compared.names[side]) for compared in agreement.columns]
        self._texts = [
            canonical(compared.form, column, quote(column.name))
            for compared, column in zip(agreement.columns, columns, strict=True)
        ]
        fields = [
            _field(text, compared.form, column, quote(column.name), is_mariadb=is_mariadb)
            for text, compared, column in zip(self._texts, agreement.columns, columns, strict=True)
        ]
        self._hash = f"MD5(CONCAT({_TAB.join(fields)}))" if fields else "MD5('')"
        key = [columns[place] for place in agreement.key]
        self._terms = [
            _Term(column, quote(column.name), self._texts[place], order)
            for column, place, order in zip(key, agreement.key, agreement.orders, strict=True)
        ]
        self._nullable = [quote(column.name) for column in key if column.nullable]
        self._from = connection.dialect.qualify(table.schema, table.name)
        names = tuple(column.name for column in key)
        is_found = any(index.columns[: len(names)] == names for index in table.indexes)
        self._together = 1 if is_found and all(t.is_indexed for t in self._terms) else TOGETHER

    @property
    def together(self) -> int:
        """See the protocol."""
        return self._together

    async def digests(self, ranges: Sequence[Range]) -> Sequence[Digest]:
        """See the protocol.

        Raises:
            ConfigError: A row is too long for the server to be hashed.
        """
        values: dict[str, Any] = {}
        place = place_in(ranges, lambda key: self._upto(key, values))
        rows = await self._fetch(
            f"SELECT n, COUNT(*), SUM(CAST(CONV(SUBSTR(h, 1, 16), 16, -10) AS SIGNED)),"  # noqa: S608
            " SUM(CAST(CONV(SUBSTR(h, 17), 16, -10) AS SIGNED)), SUM(h IS NULL)"
            f" FROM (SELECT {place} AS n, {self._hash} AS h FROM {self._from}"
            f" WHERE {self._within(hull(ranges), values)}) AS etl_hashed GROUP BY n",
            values,
        )
        if any(lost for *_, lost in rows):
            raise self._too_long()
        found = {int(n): Digest(int(c), int(one), int(other)) for n, c, one, other, _ in rows}
        return [found.get(number, Digest()) for number in range(len(ranges))]

    def _too_long(self) -> ConfigError:
        """The server makes NULL of a text that is larger than its packets."""
        packet = self._connection.limits["packet"]
        return ConfigError(
            f"table {self._label!r} in {self._connection.where}: a row is longer than the server's"
            f" max_allowed_packet ({size(packet)}), so it has no hash. Nothing was changed;"
            " raise it on the server, and compare again"
        )

    async def bounds(self, within: Range, every: int) -> Sequence[Key]:
        """See the protocol."""
        values: dict[str, Any] = {}
        shown = ", ".join(f"{term.shown} AS k{n}" for n, term in enumerate(self._terms))
        order = ", ".join(term.order for term in self._terms)
        names = ", ".join(f"k{n}" for n in range(len(self._terms)))
        rows = await self._fetch(
            f"SELECT {names} FROM (SELECT {shown}, ROW_NUMBER() OVER (ORDER BY {order}) AS etl_n"  # noqa: S608
            f" FROM {self._from} WHERE {self._within(within, values)}) AS etl_numbered"
            f" WHERE MOD(etl_n, {every:d}) = 0 ORDER BY etl_n",
            values,
        )
        return [self._key(row) for row in rows]

    async def rows(self, within: Range) -> Sequence[tuple[Key, str]]:
        """See the protocol."""
        values: dict[str, Any] = {}
        shown = ", ".join(term.shown for term in self._terms)
        rows = await self._fetch(
            f"SELECT {shown}, {self._hash} FROM {self._from}"  # noqa: S608
            f" WHERE {self._within(within, values)}",
            values,
        )
        if any(row[-1] is None for row in rows):
            raise self._too_long()
        return [(self._key(row), str(row[-1])) for row in rows]

    async def cells(
        self, within: Range, keys: Sequence[Key], *, values: bool
    ) -> Mapping[Key, Sequence[str | None]]:
        """See the protocol."""
        parameters: dict[str, Any] = {}
        where = self._within(within, parameters)
        named = " OR ".join(self._equals(key, parameters) for key in keys)
        shown = ", ".join(term.shown for term in self._terms)
        texts = ", ".join(text if values else f"MD5({text})" for text in self._texts)
        rows = await self._fetch(
            f"SELECT {shown}, {texts} FROM {self._from} WHERE {where} AND ({named})",  # noqa: S608
            parameters,
        )
        width = len(self._terms)
        return {
            self._key(row): [None if one is None else _text(one) for one in row[width:]]
            for row in rows
        }

    def condition(self, keys: Sequence[Key]) -> str:
        """See the protocol."""
        pairs = [
            " AND ".join(
                f"{term.order} = {term.constant(value)}"
                for term, value in zip(self._terms, key, strict=True)
            )
            for key in keys
        ]
        return " OR ".join(f"({pair})" for pair in pairs)

    async def _fetch(self, sql: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        return await self._connection.fetch(sql, values, timeout_s=LONG_S)

    def _key(self, row: Sequence[Any]) -> Key:
        return tuple(term.read(value) for term, value in zip(self._terms, row, strict=False))

    def _within(self, within: Range, values: dict[str, Any]) -> str:
        """The condition for a range."""
        parts = [f"({self._agreement.where}\n)"] if self._agreement.where else []
        if within.unkeyed:
            parts.append(
                f"({' OR '.join(f'{name} IS NULL' for name in self._nullable) or 'FALSE'})"
            )
        else:
            parts += [f"{name} IS NOT NULL" for name in self._nullable]
        if within.after is not None:
            marks = self._marks(within.after, values)
            parts.append(f"({beyond([term.order for term in self._terms], marks, '>')})")
        if within.upto is not None:
            parts.append(f"({self._upto(within.upto, values)})")
        return " AND ".join(parts) or "TRUE"

    def _upto(self, key: Key, values: dict[str, Any]) -> str:
        return beyond([term.order for term in self._terms], self._marks(key, values), "<")

    def _equals(self, key: Key, values: dict[str, Any]) -> str:
        marks = self._marks(key, values)
        pairs = zip(self._terms, marks, strict=True)
        return "(" + " AND ".join(f"{term.order} = {mark}" for term, mark in pairs) + ")"

    def _marks(self, key: Key, values: dict[str, Any]) -> list[str]:
        marks: list[str] = []
        for term, value in zip(self._terms, key, strict=True):
            name = f"etl_{len(values)}"
            values[name] = term.bound(value)
            marks.append(f":{name}")
        return marks


class _Term:
    """One column of a key in SQL: what it is ordered by, and how its value is read and given."""

    def __init__(self, column: TableColumn, name: str, text: str, order: Order) -> None:
        self._is_int = order == "native"
        is_bytewise = column.is_bytewise and text == _utf8(name)
        self.is_indexed = self._is_int or is_bytewise
        # By its bytes: each collation of texts takes some that differ for the same.
        self._is_binary = not self.is_indexed
        self.order = name if self.is_indexed else f"CAST({text} AS BINARY)"
        self.shown = name if self.is_indexed else text

    def read(self, value: Any) -> int | str:
        """A value of the key."""
        return int(value) if self._is_int else _text(value)

    def bound(self, value: object) -> int | str | bytes:
        """A value of the key as it is bound."""
        if isinstance(value, int):
            return value
        return str(value).encode() if self._is_binary else str(value)

    def constant(self, value: object) -> str:
        """A value of the key in SQL."""
        if isinstance(value, int):
            return str(value)
        text = f"X'{str(value).encode().hex()}'"
        return text if self._is_binary else f"CONVERT({text} USING utf8mb4)"


def _column(table: Table, name: str) -> TableColumn:
    found = table.column(name)
    assert found is not None  # both sides agreed on it
    return found


# -- the form of a column in SQL -----------------------------------------------------------------

_TAB = r", '\t', "


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _field(text: str, form: Form, column: TableColumn, name: str, *, is_mariadb: bool) -> str:
    """A column as it stands in a row's line; NULL only where the server could not make it."""
    if form in ESCAPED and column.base in LARGE and is_mariadb:
        # MariaDB's REPLACE moves the rest of the text at each place: minutes for one of a few MiB.
        text = f"CAST({text} AS BINARY)"  # as characters they are counted from the start each time
        text = rf"REGEXP_REPLACE({text}, '\\\\', '\\\\\\\\')"
        text = rf"REGEXP_REPLACE({text}, '\\t', '\\\\t')"
    elif form in ESCAPED:
        text = rf"REPLACE(REPLACE({text}, '\\', '\\\\'), '\t', '\\t')"
    return rf"IF({name} IS NULL, '\\N', {text})"


def _utf8(text: str) -> str:
    return f"CONVERT({text} USING utf8mb4)"


def _trimmed(text: str) -> str:
    """A text of digits without zeros at its end, behind a point that is there."""
    return f"TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {text}))"


def canonical(form: Form, column: TableColumn, name: str) -> str:
    """A column's text in a form, NULL for NULL, as a SQL expression.

    Args:
        name: The column's, quoted.
    """
    is_filled = column.base in {"bit", "year"} or "zerofill" in column.declared  # else with zeros
    number = f"({name} + 0)" if is_filled else name
    match form:
        case "bytes":
            return f"MD5({name})"
        case "bool":
            odd = f"CONCAT(CHAR(0), {number})"
            return f"CASE {number} WHEN 1 THEN 'true' WHEN 0 THEN 'false' ELSE {odd} END"
        case "number":
            text = f"CAST({number} AS CHAR)"
            return _trimmed(text) if column.type.kind == "numeric" and column.type.scale else text
        case "exact" | "unsigned":
            return _double(f"({number} * 1e0)")
        case "date" | "time" | "timestamp" | "timestamptz" if column.base in _MOMENTS:
            text = f"CAST({name} AS CHAR)"
            text = _trimmed(text) if column.type.scale else text
            if column.base == "date" and form != "date":
                return f"CONCAT({text}, ' 00:00:00')"
            return f"CONCAT({text}, '+00')" if form == "timestamptz" else text
        case "uuid":
            return f"LOWER({_utf8(f'CAST({name} AS CHAR)')})"
        case "padded":
            return f"TRIM(TRAILING ' ' FROM {_utf8(name)})"
        case _ if column.charset is not None or column.base == "json":
            return _utf8(name)
        case _:
            if column.type.kind in {"int16", "int32", "int64", "numeric", "bool", "dynamic"}:
                return f"CAST({number} AS CHAR)"
            return _utf8(read_as(column, name))


def _double(x: str) -> str:
    """The eight bytes of a double precision, without the sign of a zero.

    No function of the server's gives them, so they are computed: scaling by powers of two is
    exact, and so is a whole number below 2 to the 53rd as an integer. LOG2 may be wrong by one at
    the powers of two themselves.
    """
    a = f"ABS({x})"
    near = f"LEAST(1023, FLOOR(LOG2({a})))"
    k = f"({near} + ({a} - POW(2, {near}) >= POW(2, {near})) - ({a} < POW(2, {near})))"
    # In two steps: 2 to the 1074th is no double precision.
    half = f"FLOOR((52 - {k}) / 2)"
    whole = f"CAST({a} * POW(2, {half}) * POW(2, 52 - {k} - {half}) AS UNSIGNED)"
    small = f"CAST({a} * POW(2, 537) * POW(2, 537) AS UNSIGNED)"
    bits = (
        f"IF({a} < 2.2250738585072014e-308, {small},"
        f" (CAST({k} + 1023 AS UNSIGNED) << 52) | ({whole} & {(1 << 52) - 1}))"
    )
    sign = f"IF({x} < 0, {1 << 63}, 0)"
    return f"IF({x} = 0, '{'0' * 16}', LOWER(LPAD(HEX({sign} | {bits}), 16, '0')))"
