"""What SQLite's catalogue says of a table, and what its loose types mean elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from etl.databases.sql import OWN_TABLES, fold, split_name
from etl.databases.sqlite.connection import Connection
from etl.errors import ConfigError, SchemaMismatchError
from etl.rows import Column, Kind, Shape, Type

Affinity: TypeAlias = Literal["integer", "text", "blob", "real", "numeric"]

STAGING = "__etl_new"
"""In the name of each table that rows are gathered in before they are published."""
_IS_STAGING = re.compile(rf".*{STAGING}_[0-9a-f]{{8}}", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """One column of a table.

    Attributes:
        declared: Its type as it was declared; may be empty.
        affinity: What SQLite turns stored values into, where it can.
        is_exact: Every value has the class that the affinity names: a STRICT table, or the
            row number.
        required: NOT NULL without a default, and not made by SQLite.
        generated: Computed; nobody can write it.
        is_number: The row's number under another name: SQLite makes one up for NULL.
        is_loose: Its values may be bent, because somebody asked for it by name.
    """

    name: str
    declared: str
    affinity: Affinity
    is_exact: bool
    nullable: bool
    required: bool
    generated: bool
    is_number: bool = False
    is_loose: bool = False

    @property
    def type(self) -> Type:
        """Its type among the dialects; ``dynamic`` where only the values tell the kind."""
        kind = _EXACT_KINDS[self.affinity] if self.is_exact else "dynamic"
        return Type(kind=kind, name=self.declared, dialect="sqlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A unique index without a condition, on plain columns, with the collation of each."""

    columns: tuple[str, ...]
    collations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table or view.

    Attributes:
        row_number: The INTEGER PRIMARY KEY, which is the row's number under another name.
        key: The primary key; empty where there is none.
    """

    name: str
    type: str
    columns: tuple[TableColumn, ...]
    key: tuple[str, ...] = ()
    row_number: str | None = None
    unique: tuple[Index, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def shape(self) -> Shape:
        """As another database may see it."""
        return Shape(
            columns=tuple(
                Column(
                    name=column.name,
                    type=column.type,
                    nullable=column.nullable and column.name not in self.key,
                )
                for column in self.columns
            ),
            key=self.key,
        )

    def column(self, name: str) -> TableColumn | None:
        """A column by name. SQLite does not tell apart names that differ in ASCII case only."""
        by_name = {column.name: column for column in self.columns}
        if name in by_name:
            return by_name[name]
        folded = fold(name)
        return next((column for column in self.columns if fold(column.name) == folded), None)

    def index_within(self, names: Sequence[str]) -> Index | None:
        """A unique index all of whose columns are among the names; an exact match first."""
        if self.row_number is not None and self.row_number in names:
            return Index(columns=(self.row_number,), collations=("BINARY",))
        wanted = set(names)
        fitting = [index for index in self.unique if set(index.columns) <= wanted]
        return min(fitting, key=lambda index: len(wanted) - len(index.columns), default=None)

    def index_on(self, names: Sequence[str]) -> Index | None:
        """A unique index on exactly these columns."""
        index = self.index_within(names)
        return index if index is not None and set(index.columns) == set(names) else None

    def collated(self, key: Sequence[str]) -> Mapping[str, str]:
        """See :class:`etl.databases.loading.TargetTable`."""
        index = self.index_on(key)
        if index is None:
            return {}
        pairs = zip(index.columns, index.collations, strict=True)
        return {name: collation for name, collation in pairs if collation != "BINARY"}


_EXACT_KINDS: Mapping[Affinity, Kind] = {
    "integer": "int64",
    "text": "text",
    "blob": "bytes",
    "real": "float64",
    "numeric": "dynamic",
}


def affinity_of(declared: str) -> Affinity:
    """The affinity of a declared type: https://www.sqlite.org/datatype3.html, section 3.1."""
    name = declared.upper()
    if "INT" in name:
        return "integer"
    if any(part in name for part in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if not name or "BLOB" in name:
        return "blob"
    if any(part in name for part in ("REAL", "FLOA", "DOUB")):
        return "real"
    return "numeric"


_NAMES: tuple[tuple[str, Kind], ...] = (
    (r"bool(ean)?", "bool"),
    (r"date", "date"),
    (r"time", "time"),
    (r"(timestamptz|datetimetz|timestamp with time zone|datetimeoffset)", "timestamptz"),
    (r"(datetime|timestamp)( without time zone)?", "timestamp"),
    (r"(numeric|decimal|number|money)", "numeric"),
    (r"jsonb?", "json"),
    (r"(uuid|guid|uniqueidentifier)", "uuid"),
)
_BY_AFFINITY: Mapping[Affinity, Kind] = {
    "integer": "int64",
    "text": "text",
    "blob": "bytes",
    "real": "float64",
    "numeric": "numeric",
}


def declared_kind(declared: str) -> Kind:
    """What a declared type means to people: by well-known names, else by affinity.

    A promise only: SQLite stores what it is given.
    """
    name = re.sub(r"\s*\(.*?\)\s*", " ", declared).strip()
    for pattern, kind in _NAMES:
        if re.fullmatch(pattern, name, re.IGNORECASE | re.ASCII):
            return kind
    return "text" if not name else _BY_AFFINITY[affinity_of(declared)]


def table_name(text: str) -> str:
    """The name of a table in the file, from ``name`` or ``main.name``.

    Raises:
        ConfigError: Another schema: a SQLite file has only the one.
    """
    schema, name = split_name(text)
    if schema is not None and fold(schema) != "main":
        raise ConfigError(
            f"table {text!r}: a SQLite file has no schema {schema!r}; name the table alone, and put"
            ' a name that holds a dot in double quotes: "a.b"'
        )
    return name


async def find_table(
    connection: Connection, name: str, schema: str = "main", *, nameless: bool = False
) -> Table | None:
    """A table or view with its columns and unique indexes; None where there is none.

    Args:
        nameless: Take a table with a column that has no name: it may be listed, not moved.

    Raises:
        SchemaMismatchError: A column has no name.
    """
    found = await connection.fetch(
        "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = ?"
        " AND name = ? COLLATE NOCASE",
        (schema, name),
    )
    if not found:
        return None
    name, kind, without_rowid, strict = found[0]
    rows = await connection.fetch(
        'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?, ?)'
        " WHERE hidden <> 1 ORDER BY cid",
        (name, schema),
    )
    if not nameless and not all(row[0] for row in rows):
        raise SchemaMismatchError(
            f"table {name!r} has a column without a name, which cannot be moved; read the table"
            " through a query that names it"
        )
    key = tuple(row[0] for row in sorted((r for r in rows if r[4]), key=lambda r: int(r[4])))
    table = Table(
        name=name,
        type=kind,
        columns=tuple(_column(row, bool(strict)) for row in rows),
        key=key,
    )
    if kind == "view":
        return table
    indexes, key_has_index = await _unique_indexes(connection, name, schema)
    if len(key) == 1 and not key_has_index and not without_rowid and kind == "table":
        number = key[0]
        columns = tuple(
            replace(
                column,
                is_exact=True,
                affinity="integer",
                nullable=False,
                required=False,
                is_number=True,
            )
            if column.name == number
            else column
            for column in table.columns
        )
        return replace(table, columns=columns, row_number=number, unique=indexes)
    if without_rowid:
        columns = tuple(
            replace(column, nullable=False) if column.name in key else column
            for column in table.columns
        )
        return replace(table, columns=columns, unique=indexes)
    return replace(table, unique=indexes)


def _column(row: Sequence[Any], strict: bool) -> TableColumn:
    name, declared, not_null, default, _, hidden = row
    if strict and declared.upper() == "ANY":
        # Outside STRICT tables the name would mean NUMERIC, which changes values.
        declared = "BLOB"
        strict = False
    generated = hidden in {2, 3}
    return TableColumn(
        name=name,
        declared=declared,
        affinity=affinity_of(declared),
        is_exact=strict,
        nullable=not not_null,
        required=bool(not_null) and default is None and not generated,
        generated=generated,
    )


async def _unique_indexes(
    connection: Connection, name: str, schema: str
) -> tuple[tuple[Index, ...], bool]:
    """The unique indexes without condition or expression; whether the primary key has one."""
    rows = await connection.fetch(
        "SELECT list.name, list.origin, list.partial, info.name, info.coll"
        " FROM pragma_index_list(?, ?) AS list, pragma_index_xinfo(list.name, ?) AS info"
        ' WHERE list."unique" AND info.key ORDER BY list.seq, info.seqno',
        (name, schema, schema),
    )
    parts: dict[str, list[Sequence[Any]]] = {}
    key_has_index = False
    for index, origin, partial, column, collation in rows:
        key_has_index = key_has_index or origin == "pk"
        if not partial:
            parts.setdefault(index, []).append((column, collation))
    indexes = tuple(
        Index(columns=tuple(c for c, _ in part), collations=tuple(str(c) for _, c in part))
        for part in parts.values()
        if all(column is not None for column, _ in part)  # None: an expression
    )
    return indexes, key_has_index


async def is_bytewise(connection: Connection, table: str) -> bool:
    """Whether no column of a table has a collation of its own.

    SQLite keeps away from an index where a comparison of several columns names a collation, be it
    the columns' own. So it is not named then.
    """
    plain: int | None = await connection.value(
        "SELECT sql NOT LIKE '%collate%' FROM sqlite_schema WHERE type = 'table' AND name = ?",
        (table,),
    )
    return bool(plain)


async def table_names(connection: Connection) -> list[str]:
    """The user's tables: without views, SQLite's own, those of etl, and shadow tables."""
    rows = await connection.fetch(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual')"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        " ORDER BY name"
    )
    names = [str(row[0]) for row in rows]
    return [n for n in names if n not in OWN_TABLES and _IS_STAGING.fullmatch(n) is None]
