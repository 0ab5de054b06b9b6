"""Hashes of a table's rows by ranges of its key, on SQLite's thread; see ``databases.digest``.

One connection and one read transaction serve a whole comparison.
"""

from __future__ import annotations

import marshal
import sqlite3
import struct
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import md5
from math import isinf
from sys import getsizeof
from typing import Any, TypeAlias, cast

from etl.databases.canonical import (
    ESCAPED,
    ODD,
    Described,
    Form,
    escaped,
    jsonb_text,
    moment_text,
    number_text,
)
from etl.databases.digest import Agreement, Digest, Key, Range, Referrer, hull, place_in
from etl.databases.sql import literal, quote
from etl.databases.sqlite.connection import Connection, open_source
from etl.databases.sqlite.errors import Side
from etl.databases.sqlite.schema import Table, find_table, is_bytewise, table_name
from etl.databases.url import Url
from etl.errors import ConfigError, DataError, SchemaMismatchError

TOGETHER = 16
"""Ranges of one scan where no index finds them; a row is compared with each bound in turn."""

_PAGE = 256
_LARGE = 1 << 16  # bytes of a row
_NULL = "\\N"

_Pages: TypeAlias = Iterator[list[tuple[Any, ...]]]
_Text: TypeAlias = Callable[[Any], str]


class FoldingCursor(sqlite3.Cursor):
    """A cursor that folds rows where they are read: on the connection's thread."""

    def fetchall(self) -> list[Any]:
        """What is made of all rows, where the connection has a ``fold``; else the rows."""
        fold = cast("FoldingConnection", self.connection).fold
        return super().fetchall() if fold is None else fold(self._pages())

    def _pages(self) -> Iterator[list[tuple[Any, ...]]]:
        # A page of large rows would be large: it grows as long as the rows are small.
        size = 1
        while page := self.fetchmany(size):
            yield page
            size = min(size * 2, _PAGE) if sum(map(getsizeof, page[-1])) < _LARGE else 1


class FoldingConnection(sqlite3.Connection):
    """A connection whose statements run on a :class:`FoldingCursor`."""

    fold: Callable[[_Pages], list[Any]] | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> FoldingCursor:
        """Run a statement on a new cursor."""
        return self.cursor(FoldingCursor).execute(sql, parameters)


@asynccontextmanager
async def open_snapshot(url: Url, *, side: Side) -> AsyncGenerator[SqliteSnapshot]:
    """See :class:`etl.databases.database.Driver`."""
    source = await open_source(url.path, url.name, FoldingConnection)
    connection = source.connection
    connection.side = side
    try:
        await connection.execute("BEGIN")
        await connection.value("SELECT count(*) FROM sqlite_schema")  # now the snapshot is taken
        encoding = await connection.value("PRAGMA encoding")
        yield SqliteSnapshot(connection, is_utf8=encoding == "UTF-8")
    finally:
        connection.poison()  # what still runs is not waited for
        await connection.close()


class SqliteSnapshot:
    """See :class:`etl.databases.digest.Snapshot`."""

    def __init__(self, connection: Connection, *, is_utf8: bool) -> None:
        self.connection = connection
        self._is_utf8 = is_utf8
        self._tables: dict[str, Table] = {}
        self._bytewise: set[str] = set()

    async def describe(self, table: str) -> Described:
        """See the protocol."""
        found = await find_table(self.connection, table_name(table))
        if found is None:
            raise SchemaMismatchError(
                f"{self.connection.where} has no table {table!r}. Nothing was changed"
            )
        self._tables[table] = found
        if await is_bytewise(self.connection, found.name):
            self._bytewise.add(table)
        return Described(
            name=table,
            label=found.name,
            columns=found.shape.columns,
            key=found.key,
            affinities={column.name: column.affinity for column in found.columns},
        )

    async def is_integer(self, table: Described, column: str) -> bool:
        """See the protocol."""
        found = self._tables[table.name]
        known = found.column(column)
        if known is not None and known.is_exact:
            return known.affinity == "integer"
        sql = (
            f"SELECT 1 FROM {quote(found.name)} WHERE typeof({quote(column)}) <> 'integer' LIMIT 1"  # noqa: S608
        )
        return await self.connection.value(sql) is None

    async def referrers(self, table: Described) -> Sequence[Referrer]:
        """See the protocol."""
        rows = await self.connection.fetch(
            "SELECT DISTINCT t.name, k.on_delete FROM sqlite_schema AS t,"
            " pragma_foreign_key_list(t.name) AS k"
            " WHERE t.type = 'table' AND k.\"table\" = ? COLLATE NOCASE ORDER BY 1, 2",
            (self._tables[table.name].name,),
        )
        actions = {"CASCADE", "SET NULL", "SET DEFAULT"}
        return [
            Referrer(table=name, on_delete=action if action in actions else None)
            for name, action in rows
        ]

    async def open(self, table: Described, agreement: Agreement, *, side: int) -> SqliteDigests:
        """See the protocol."""
        digests = SqliteDigests(
            self.connection,
            self._tables[table.name],
            agreement,
            side,
            is_bytewise=table.name in self._bytewise,
            is_utf8=self._is_utf8,
        )
        await digests.prepare()
        return digests


class SqliteDigests:
    """See :class:`etl.databases.digest.TableDigests`.

    Args:
        is_bytewise: No column of the table has a collation of its own.
        is_utf8: Texts are compared by their bytes in UTF-8; else by those in UTF-16.
    """

    def __init__(
        self,
        connection: Connection,
        table: Table,
        agreement: Agreement,
        side: int,
        *,
        is_bytewise: bool,
        is_utf8: bool,
    ) -> None:
        self._connection = connection
        self._agreement = agreement
        self._from = quote(table.name)
        self._forms: list[Form] = [compared.form for compared in agreement.columns]
        self._columns = [quote(compared.names[side]) for compared in agreement.columns]
        names = [agreement.columns[place].names[side] for place in agreement.key]
        self._names = [quote(name) for name in names]
        self._hash = _hashing(self._forms)
        native = "" if is_bytewise else " COLLATE BINARY"
        # A function for each form that orders a key by its text, made when it is opened.
        self._terms = [
            f"{quote(name)}{native}"
            if order == "native"
            else f"{_function(agreement.columns[place].form)}({quote(name)})"
            for name, order, place in zip(names, agreement.orders, agreement.key, strict=True)
        ]
        self._order = "{}" if is_utf8 else f"{_IN_UTF8}({{}})"
        by_index = table.row_number is not None and names == [table.row_number]
        by_index = by_index or any(
            list(index.columns) == names and set(index.collations) == {"BINARY"}
            for index in table.unique
        )
        in_order = is_bytewise and is_utf8
        in_order = in_order and all(order == "native" for order in agreement.orders)
        self._together = 1 if by_index and in_order else TOGETHER

    async def prepare(self) -> None:
        """Make the functions that its statements call."""
        await self._connection.create_function(_IN_UTF8, _in_utf8)
        for place, order in zip(self._agreement.key, self._agreement.orders, strict=True):
            if order == "bytes":
                form = self._forms[place]
                await self._connection.create_function(_function(form), _or_none(_TEXTS[form]))

    @property
    def together(self) -> int:
        """See the protocol."""
        return self._together

    async def digests(self, ranges: Sequence[Range]) -> Sequence[Digest]:
        """See the protocol."""
        values: list[Any] = []
        place = place_in(ranges, lambda key: self._compare("<=", key, values))
        where = self._within(hull(ranges), values)
        shown = ", ".join([*self._columns, place])
        sql = f"SELECT {shown} FROM {self._from} WHERE {where}"  # noqa: S608
        hashed = self._hash

        def fold(pages: _Pages) -> list[Digest]:
            count = [0] * len(ranges)
            first = [0] * len(ranges)
            second = [0] * len(ranges)
            for page in pages:
                for row, digest in zip(page, hashed(page), strict=True):
                    number = row[-1]
                    count[number] += 1
                    one, other = _halves(digest)
                    first[number] += one
                    second[number] += other
            return list(map(Digest, count, first, second))

        return cast("Sequence[Digest]", await self._folded(sql, values, fold))

    async def bounds(self, within: Range, every: int) -> Sequence[Key]:
        """See the protocol."""
        values: list[Any] = []
        where = self._within(within, values)
        order = ", ".join(map(self._order.format, self._terms))
        shown = ", ".join(f"{term} AS k{n}" for n, term in enumerate(self._terms))
        names = ", ".join(f"k{n}" for n in range(len(self._terms)))
        return await self._connection.fetch(
            f"SELECT {names} FROM (SELECT {shown}, row_number() OVER (ORDER BY {order}) AS n"  # noqa: S608
            f" FROM {self._from} WHERE {where})"
            f" WHERE n % {every:d} = 0 ORDER BY n",
            values,
        )

    async def rows(self, within: Range) -> Sequence[tuple[Key, str]]:
        """See the protocol."""
        values: list[Any] = []
        where = self._within(within, values)
        shown = ", ".join([*self._columns, *self._terms])
        sql = f"SELECT {shown} FROM {self._from} WHERE {where}"  # noqa: S608
        hashed = self._hash
        width = len(self._columns)

        def fold(pages: _Pages) -> list[tuple[Key, str]]:
            return [
                (row[width:], digest.hex())
                for page in pages
                for row, digest in zip(page, hashed(page), strict=True)
            ]

        return cast("Sequence[tuple[Key, str]]", await self._folded(sql, values, fold))

    async def cells(
        self, within: Range, keys: Sequence[Key], *, values: bool
    ) -> Mapping[Key, Sequence[str | None]]:
        """See the protocol."""
        arguments: list[Any] = []
        where = self._within(within, arguments)
        named = " OR ".join(self._compare("=", key, arguments) for key in keys)
        shown = ", ".join([*self._columns, *self._terms])
        sql = f"SELECT {shown} FROM {self._from} WHERE {where} AND ({named})"  # noqa: S608
        texts = [_or_none(_TEXTS[form]) for form in self._forms]
        width = len(self._columns)

        def cell(text: str | None) -> str | None:
            return text if values or text is None else md5(_encoded(text)).hexdigest()

        def fold(pages: _Pages) -> list[tuple[Key, list[str | None]]]:
            return [
                (
                    row[width:],
                    [cell(text(one)) for text, one in zip(texts, row, strict=False)],
                )
                for page in pages
                for row in page
            ]

        return dict(await self._folded(sql, arguments, fold))

    def condition(self, keys: Sequence[Key]) -> str:
        """See the protocol. Other sessions have none of the functions that texts are made with."""
        orders, places = self._agreement.orders, self._agreement.key
        terms = [
            term if order == "native" else _PLAINLY.get(self._forms[place], "").format(name)
            for term, name, order, place in zip(
                self._terms, self._names, orders, places, strict=True
            )
        ]
        if not all(terms):
            raise ConfigError(
                f"table {self._from}: its rows cannot be looked for by the key as PostgreSQL writes"
                " it, so they cannot be repaired one by one. Nothing was changed; copy the table"
                " again"
            )
        pairs = [
            " AND ".join(f"{t} = {_constant(v)}" for t, v in zip(terms, key, strict=True))
            for key in keys
        ]
        return " OR ".join(f"({pair})" for pair in pairs)

    async def _folded(
        self, sql: str, values: Sequence[Any], fold: Callable[[_Pages], list[Any]]
    ) -> list[Any]:
        raw = cast("FoldingConnection", self._connection.raw)
        raw.fold = fold
        try:
            return await self._connection.fetch(sql, values)
        except DataError as error:
            # A text that is not UTF-8 is compared by its bytes; to do so always would be slow.
            if raw.text_factory is not str or "UTF-8" not in str(error):
                raise
            raw.text_factory = _any_text
            return await self._connection.fetch(sql, values)
        finally:
            raw.fold = None

    def _within(self, within: Range, values: list[Any]) -> str:
        """The condition for a range."""
        parts = [f"({self._agreement.where}\n)"] if self._agreement.where else []
        if within.unkeyed:
            parts.append("(" + " OR ".join(f"{name} IS NULL" for name in self._names) + ")")
        else:
            parts += [f"{name} IS NOT NULL" for name in self._names]
        if within.after is not None:
            parts.append(self._compare(">", within.after, values))
        if within.upto is not None:
            parts.append(self._compare("<=", within.upto, values))
        return " AND ".join(parts) or "1"

    def _compare(self, operator: str, key: Key, values: list[Any]) -> str:
        values += key
        left = ", ".join(map(self._order.format, self._terms))
        right = ", ".join([self._order.format("?")] * len(key))
        return f"({left}) {operator} ({right})"


# -- rows as hashes --------------------------------------------------------------------------


def _hashing(forms: Sequence[Form]) -> Callable[[list[Any]], list[bytes]]:
    """From a page of rows to their hashes; what follows the columns in a row is left out."""
    width = len(forms)
    if set(forms) <= {"value"}:
        # Between two files the driver's own values will do: their serial form keeps everything
        # apart that SQLite does. Its version 2 has no references, which would differ.
        dumps = marshal.dumps
        return lambda page: [md5(dumps(row[:width], 2)).digest() for row in page]
    columns = [_column(form) for form in forms]

    def hashed(page: list[Any]) -> list[bytes]:
        parts = zip(*page, strict=True)
        fields = [column(values) for column, values in zip(columns, parts, strict=False)]
        return [md5(_encoded("\t".join(line))).digest() for line in zip(*fields, strict=True)]

    return hashed


def _column(form: Form) -> Callable[[Sequence[Any]], Sequence[str]]:
    text = _TEXTS[form]
    has_fast = form in _STRAIGHT
    escapes = form in ESCAPED

    def convert(values: Sequence[Any]) -> Sequence[str]:
        kinds = set(map(type, values))
        if kinds == {int} and form in {"plain", "integer"}:
            return list(map(str, values))
        if kinds == {str} and has_fast:
            if escapes and _has_special(values):
                return list(map(escaped, values))
            return values
        if escapes:
            return [_NULL if v is None else escaped(text(v)) for v in values]
        return [_NULL if v is None else text(v) for v in values]

    return convert


def _has_special(values: Sequence[str]) -> bool:
    joined = "".join(values)
    return "\\" in joined or "\t" in joined


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_halves = struct.Struct(">qq").unpack
_double = struct.Struct(">d").pack
_single = struct.Struct(">f").pack
_STRAIGHT: frozenset[Form] = frozenset({"plain", "text", "flag"})
"""Forms in which a text stands as it is."""


def _odd(value: Any) -> str:
    """The text of a value of a class that no copy would have made."""
    return ODD + _value(value)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return "t" + value
    if isinstance(value, bytes):
        return "b" + value.hex()
    return "r" + _double(value).hex() if isinstance(value, float) else f"i{value}"


def _loose(value: Any) -> str:
    if isinstance(value, bytes):
        return "b" + value.hex()
    if isinstance(value, str):
        # A number in a column of texts is a text, and the other way round.
        return "t" + value if number_text(value)[:1] == ODD else "n" + number_text(value)
    return "n" + number_text(_digits(value))


def _digits(value: int | float) -> str:
    if isinstance(value, float) and isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, int) else _odd(value)


def _integer(value: Any) -> str:
    return _plain(value) if isinstance(value, int | float) else _odd(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return _digits(value) if isinstance(value, int | float) else _odd(value)


def _padded(value: Any) -> str:
    return value.rstrip(" ") if isinstance(value, str) else _odd(value)


def _number(value: Any) -> str:
    if isinstance(value, bytes):
        return _odd(value)
    return number_text(value if isinstance(value, str) else _digits(value))


def _as_double(value: Any) -> str:
    return _double(value).hex() if isinstance(value, int | float) else _odd(value)


def _unsigned(value: Any) -> str:
    return _as_double(0.0 if value == 0 else value)


def _exact(value: Any) -> str:
    if isinstance(value, str) and number_text(value)[:1] != ODD:
        value = float(value)  # a number in a column of texts
    return _unsigned(value)


def _as_single(value: Any) -> str:
    try:
        return _single(value).hex() if isinstance(value, int | float) else _odd(value)
    except OverflowError:
        return _odd(value)


def _bool(value: Any) -> str:
    if isinstance(value, int | float) and value in {0, 1}:  # 1.0 in a REAL column
        return "true" if value else "false"
    return _odd(value)


def _bytes(value: Any) -> str:
    return md5(value).hexdigest() if isinstance(value, bytes) else _odd(value)


def _instant(value: Any) -> str:
    if not isinstance(value, str) or value.endswith("+00"):
        return _odd(value)
    return value.removesuffix(":00") if value.endswith("+00:00") else value


def _moment(kind: str) -> _Text:
    return lambda value: moment_text(kind, value) if isinstance(value, str) else _odd(value)


def _uuid(value: Any) -> str:
    return value.lower() if isinstance(value, str) else _odd(value)


def _jsonb(value: Any) -> str:
    return jsonb_text(value) if isinstance(value, str) else _odd(value)


_TEXTS: Mapping[Form, _Text] = {
    "plain": _plain,
    "text": _text,
    "padded": _padded,
    "number": _number,
    "wide": _odd,
    "double": _as_double,
    "unsigned": _unsigned,
    "exact": _exact,
    "single": _as_single,
    "integer": _integer,
    "bool": _bool,
    "flag": _plain,
    "bytes": _bytes,
    "instant": _instant,
    "date": _moment("date"),
    "time": _moment("time"),
    "timestamp": _moment("timestamp"),
    "timestamptz": _moment("timestamptz"),
    "uuid": _uuid,
    "jsonb": _jsonb,
    "value": _value,
    "loose": _loose,
}


_PLAINLY: Mapping[Form, str] = {
    "plain": "{} COLLATE BINARY",
    "text": "{} COLLATE BINARY",
    "flag": "{} COLLATE BINARY",
    "integer": "{} COLLATE BINARY",
    "uuid": "lower({})",
}
"""Keys whose text in SQL is the one that is compared."""


_IN_UTF8 = "etl_in_utf8"


def _in_utf8(value: Any) -> Any:
    """What orders a value in a file of UTF-16 as in one of UTF-8: for a text, its bytes' digits."""
    return _encoded(value).hex() if isinstance(value, str) else value


def _constant(value: object) -> str:
    return f"X'{value.hex()}'" if isinstance(value, bytes) else literal(value)


def _or_none(text: _Text) -> Callable[[Any], str | None]:
    return lambda value: None if value is None else text(value)


def _function(form: Form) -> str:
    return f"etl_{form}_text"


def _any_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
