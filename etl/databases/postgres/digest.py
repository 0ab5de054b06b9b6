"""Hashes of a table's rows by ranges of its key, computed in the server; see ``databases.digest``.

One connection and one repeatable-read transaction serve a whole comparison.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg

from etl.databases.canonical import ESCAPED, Described, Form
from etl.databases.digest import Agreement, Digest, Key, Order, Range, Referrer, hull, place_in
from etl.databases.postgres.catalogue import Attribute, Relation, get_relation
from etl.databases.postgres.connect import READING, Connection, connected
from etl.databases.postgres.describe import spelled_out
from etl.databases.postgres.liveness import run_long
from etl.databases.postgres.translate import Side, translating
from etl.databases.sql import literal, quote
from etl.databases.types import is_padded
from etl.databases.url import Url
from etl.rows import Kind

TOGETHER = 16
"""Ranges of one scan where no index finds them; a row is compared with each bound in turn."""

_INTS: frozenset[Kind] = frozenset({"int16", "int32", "int64"})
_MOST_ARGUMENTS = 90  # a function takes a hundred
_EXACT = 1 << 53  # integers up to this are exact in double precision

# Columns whose values PostgreSQL compares by their bytes, as COLLATE "C" does. A database of ICU's
# has a locale of the system too, which orders nothing. Up to PostgreSQL 14 no database names its
# provider; the one that is built in, from 17 on, compares bytes.
_BYTEWISE = """
SELECT a.attname::text
FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_collation AS c ON c.oid = a.attcollation
    JOIN pg_catalog.pg_database AS d ON d.datname = current_database()
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND CASE c.collprovider
    WHEN 'c' THEN c.collcollate IN ('C', 'POSIX')
    WHEN 'b' THEN true
    WHEN 'd' THEN CASE coalesce(to_jsonb(d) ->> 'datlocprovider', 'c')
        WHEN 'c' THEN d.datcollate IN ('C', 'POSIX')
        ELSE to_jsonb(d) ->> 'datlocprovider' = 'b'
    END
    ELSE false
END
"""


@asynccontextmanager
async def open_snapshot(url: Url, *, side: Side) -> AsyncGenerator[PostgresSnapshot]:
    """See :class:`etl.databases.database.Driver`."""
    async with connected(url, side, f"etl/verify{READING}") as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # To compile these long lists of expressions takes longer than to run them.
        await connection.execute("SET LOCAL jit = off")
        encoding: str = await connection.fetchval("SHOW server_encoding")
        yield PostgresSnapshot(connection, side, is_utf8=encoding in {"UTF8", "SQL_ASCII"})


_REFERRERS = """
SELECT DISTINCT k.conrelid::pg_catalog.regclass::text AS table, CASE k.confdeltype
    WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' END AS on_delete
FROM pg_catalog.pg_constraint AS k
WHERE k.contype = 'f' AND k.confrelid = $1::bigint::oid
ORDER BY 1, 2
"""


class PostgresSnapshot:
    """See :class:`etl.databases.digest.Snapshot`."""

    def __init__(self, connection: Connection, side: Side, *, is_utf8: bool) -> None:
        self._connection = connection
        self._side: Side = side
        self._is_utf8 = is_utf8
        self._relations: dict[str, Relation] = {}

    async def describe(self, table: str) -> Described:
        """See the protocol."""
        with translating(self._side, f"table {table!r}", "nothing was changed"):
            relation = await get_relation(self._connection, table)
        self._relations[table] = relation
        return Described(
            name=table,
            label=relation.label,
            columns=relation.shape.columns,
            key=relation.shape.key,
            affinities={},
        )

    async def is_integer(self, table: Described, column: str) -> bool:
        """See the protocol."""
        return self._relations[table.name].by_name[column].column.type.kind in _INTS

    async def referrers(self, table: Described) -> Sequence[Referrer]:
        """See the protocol."""
        with translating(self._side, f"table {table.label!r}", "nothing was changed"):
            rows = await self._connection.fetch(_REFERRERS, self._relations[table.name].oid)
        return [Referrer(table=row["table"], on_delete=row["on_delete"]) for row in rows]

    async def open(self, table: Described, agreement: Agreement, *, side: int) -> PostgresDigests:
        """See the protocol."""
        relation = self._relations[table.name]
        with translating(self._side, f"table {table.label!r}", "nothing was changed"):
            found = await self._connection.fetch(_BYTEWISE, relation.oid)
        return PostgresDigests(
            self._connection,
            relation,
            agreement,
            side,
            self._side,
            bytewise=frozenset(row[0] for row in found),
            is_utf8=self._is_utf8,
        )


class PostgresDigests:
    """See :class:`etl.databases.digest.TableDigests`."""

    def __init__(
        self,
        connection: Connection,
        relation: Relation,
        agreement: Agreement,
        number: int,
        side: Side,
        *,
        bytewise: frozenset[str],
        is_utf8: bool,
    ) -> None:
        self._connection = connection
        self._side: Side = side
        self._label = relation.label
        self._agreement = agreement
        self._number = number
        attributes = [relation.by_name[c.names[number]] for c in agreement.columns]
        texts = [
            canonical(compared.form, attribute)
            for compared, attribute in zip(agreement.columns, attributes, strict=True)
        ]
        self._texts = texts
        line = _line(
            [
                _field(text, compared.form, attribute.column.nullable)
                for text, compared, attribute in zip(
                    texts, agreement.columns, attributes, strict=True
                )
            ]
        )
        if not is_utf8:
            line = f"convert_to({line}, 'UTF8')"
        self._hash = f"md5({line})"
        self._terms: list[_Term] = []
        for place, order in zip(agreement.key, agreement.orders, strict=True):
            attribute = attributes[place]
            self._terms.append(
                _term(attribute, texts[place], order, attribute.name in bytewise, is_utf8=is_utf8)
            )
        self._names = [quote(attributes[place].name) for place in agreement.key]
        self._has_nulls = any(attributes[place].column.nullable for place in agreement.key)
        self._from = relation.qualified
        # A condition of the user's may leave schemas out itself.
        self._is_pinned = bool(relation.names_objects) and not agreement.where
        by_index = {
            index.columns[: len(agreement.key)] for index in relation.indexes if index.ordered
        }
        key = tuple(attributes[place].name for place in agreement.key)
        is_found = key in by_index and all(term.is_indexed for term in self._terms)
        self._together = 1 if is_found and not relation.heirs else TOGETHER

    @property
    def together(self) -> int:
        """See the protocol."""
        return self._together

    async def digests(self, ranges: Sequence[Range]) -> Sequence[Digest]:
        """See the protocol."""
        arguments = _Arguments()
        where = self._within(hull(ranges), arguments)
        place = place_in(ranges, lambda key: self._compare("<=", key, arguments))
        rows = await self._fetch(
            f"""
            SELECT n, count(*) AS rows,
                sum(('x' || substr(h, 1, 16))::bit(64)::bigint)::text AS first,
                sum(('x' || substr(h, 17))::bit(64)::bigint)::text AS second
            FROM (SELECT {place} AS n, {self._hash} AS h FROM {self._from} WHERE {where} OFFSET 0)
                AS hashed
            GROUP BY n
            """,  # noqa: S608  quoted names, trusted condition
            arguments,
        )
        found = {
            row["n"]: Digest(row["rows"], int(row["first"]), int(row["second"])) for row in rows
        }
        return [found.get(number, Digest()) for number in range(len(ranges))]

    async def bounds(self, within: Range, every: int) -> Sequence[Key]:
        """See the protocol."""
        arguments = _Arguments()
        where = self._within(within, arguments)
        shown = ", ".join(f"{term.shown} AS k{n}" for n, term in enumerate(self._terms))
        order = ", ".join(term.order for term in self._terms)
        names = ", ".join(f"k{n}" for n in range(len(self._terms)))
        rows = await self._fetch(
            f"""
            SELECT {names}
            FROM (
                SELECT {shown}, row_number() OVER (ORDER BY {order}) AS n
                FROM {self._from} WHERE {where}
            ) AS numbered
            WHERE n % {every:d} = 0
            ORDER BY n
            """,  # noqa: S608
            arguments,
        )
        return [self._key(row) for row in rows]

    async def rows(self, within: Range) -> Sequence[tuple[Key, str]]:
        """See the protocol."""
        arguments = _Arguments()
        where = self._within(within, arguments)
        shown = ", ".join(term.shown for term in self._terms)
        rows = await self._fetch(
            f"SELECT {shown}, {self._hash} FROM {self._from} WHERE {where}",  # noqa: S608
            arguments,
        )
        return [(self._key(row), row[-1]) for row in rows]

    async def cells(
        self, within: Range, keys: Sequence[Key], *, values: bool
    ) -> Mapping[Key, Sequence[str | None]]:
        """See the protocol."""
        arguments = _Arguments()
        where = self._within(within, arguments)
        named = " OR ".join(self._compare("=", key, arguments) for key in keys)
        shown = ", ".join(term.shown for term in self._terms)
        texts = ", ".join(text if values else f"md5({text})" for text in self._texts)
        rows = await self._fetch(
            f"SELECT {shown}, ARRAY[{texts}]::text[] FROM {self._from}"  # noqa: S608
            f" WHERE {where} AND ({named})",
            arguments,
        )
        return {self._key(row): row[-1] for row in rows}

    def condition(self, keys: Sequence[Key]) -> str:
        """See the protocol."""
        constants = _Constants()
        return " OR ".join(self._compare("=", key, constants) for key in keys)

    async def _fetch(self, sql: str, arguments: _Arguments) -> Sequence[asyncpg.Record]:
        with translating(self._side, f"table {self._label!r}", "nothing was changed"):
            if not self._is_pinned:
                return await run_long(self._connection.fetch, sql, *arguments)
            async with spelled_out(self._connection):
                return await run_long(self._connection.fetch, sql, *arguments)

    def _key(self, row: asyncpg.Record) -> Key:
        return tuple(
            int(value) if term.is_int else value
            for term, value in zip(self._terms, row, strict=False)
        )

    def _within(self, within: Range, arguments: _Arguments) -> str:
        """The condition for a range."""
        parts = [f"({self._agreement.where}\n)"] if self._agreement.where else []
        nulls = f"num_nulls({', '.join(self._names)})"
        if within.unkeyed:
            parts.append(f"{nulls} > 0")
        elif self._has_nulls:
            parts.append(f"{nulls} = 0")
        if within.after is not None:
            parts.append(self._compare(">", within.after, arguments))
        if within.upto is not None:
            parts.append(self._compare("<=", within.upto, arguments))
        return " AND ".join(parts) or "true"

    def _compare(self, operator: str, key: Key, arguments: _Arguments) -> str:
        left = ", ".join(term.order for term in self._terms)
        right = ", ".join(
            term.given(str(value), arguments) for term, value in zip(self._terms, key, strict=True)
        )
        return f"({left}) {operator} ({right})"


class _Arguments(list[str]):
    """Values of a statement."""

    def add(self, value: str) -> str:
        """The placeholder of one more."""
        self.append(value)
        return f"${len(self)}::text"


class _Constants(_Arguments):
    """Values that stand in the statement itself."""

    def add(self, value: str) -> str:
        """The value as a constant."""
        return f"{literal(value)}::text"


class _Term:
    """One column of a key in SQL: what it is ordered by, and how its value is read and given."""

    def __init__(
        self, order: str, shown: str, cast: str | None, *, is_int: bool, is_indexed: bool
    ) -> None:
        self.order = order
        self.shown = shown
        self._cast = cast
        self.is_int = is_int
        self.is_indexed = is_indexed

    def given(self, value: str, arguments: _Arguments) -> str:
        """A value that the column is compared with."""
        if self._cast is None:
            return f"decode({arguments.add(value.encode().hex())}, 'hex')"
        return f"{arguments.add(value)}::{self._cast}"


def _term(
    attribute: Attribute, text: str, order: Order, is_bytewise: bool, *, is_utf8: bool
) -> _Term:
    name = quote(attribute.name)
    if order == "native":
        is_int = attribute.column.type.kind in _INTS
        return _Term(name, f"{name}::text", attribute.cast, is_int=is_int, is_indexed=True)
    if not is_utf8:
        # Its bytes may have another order, and the other side characters that it lacks.
        return _Term(f"convert_to({text}, 'UTF8')", text, None, is_int=False, is_indexed=False)
    if text == name and is_bytewise:
        return _Term(name, name, "text", is_int=False, is_indexed=True)
    return _Term(f'({text}) COLLATE "C"', text, "text", is_int=False, is_indexed=False)


def _line(fields: Sequence[str]) -> str:
    """Fields, joined by tabs."""
    while len(fields) > _MOST_ARGUMENTS:
        fields = [
            f"concat_ws(E'\\t', {', '.join(fields[at : at + _MOST_ARGUMENTS])})"
            for at in range(0, len(fields), _MOST_ARGUMENTS)
        ]
    return f"concat_ws(E'\\t', {', '.join(fields)})" if fields else "''"


def _field(text: str, form: Form, nullable: bool) -> str:
    """A column as it stands in a row's line."""
    if form in ESCAPED:
        # A collation without an order of its own has no replace().
        text = f"""replace(replace(({text}) COLLATE "C", E'\\\\', E'\\\\\\\\'), E'\\t', E'\\\\t')"""
    return f"coalesce({text}, E'\\\\N')" if nullable else text


def canonical(form: Form, attribute: Attribute) -> str:
    """A column's text in a form, NULL for NULL, as a SQL expression."""
    name = quote(attribute.name)
    type = attribute.column.type
    match form:
        case "text":
            if type.kind == "text" and not is_padded(type) and attribute.cast != "name":
                return name if type.name == "text" else f"{name}::text"
            # The text that COPY writes; a cast to text may be another one. A row of nothing but
            # NULL IS NULL too.
            return f"CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END"
        case "padded":
            return f"rtrim({name}::text, ' ')"
        case "number":
            return f"trim_scale({name}::numeric)::text"
        case "wide":
            if type.kind in _INTS:
                # Others were refused when they were to be copied.
                exact = f"{name} BETWEEN -{_EXACT} AND {_EXACT}"
                return f"CASE WHEN {exact} THEN {name}::float8::text ELSE {name}::text END"
            return f"{name}::float8::text"
        case "single":
            return f"encode(float4send({name}::float4), 'hex')"
        case "double":
            return f"encode(float8send({_double(name, type.kind)}), 'hex')"
        case "unsigned":
            double = _double(name, type.kind)
            return (
                f"CASE WHEN {name} = 0 THEN '{'0' * 16}' ELSE encode(float8send({double}), 'hex')"
                " END"
            )
        case "exact":
            return (
                f"CASE WHEN {name} = 0 THEN '{'0' * 16}'"
                f" ELSE encode(float8send({name}::float8), 'hex') END"
            )
        case "flag":
            return f"left({name}::text, 1)"
        case "bytes":
            return f"md5({name})"
        case "timestamp":
            return f"{name}::timestamp::text"
        case "jsonb":
            return f"{name}::jsonb::text"
        case _:
            return f"{name}::text"


def _double(name: str, kind: Kind) -> str:
    # SQLite gets the number that a real's shortest text means.
    return f"{name}::text::float8" if kind == "float32" else name
