"""What differs from dialect to dialect, and how SQLAlchemy alone answers it.

``Dialect`` is the portable answer, for any dialect with an asyncio driver. A dialect that
deserves better overrides parts of it: ``etl.databases.generic.mysql``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import types as sat

from etl.connector import RunInfo
from etl.databases.database import Finding
from etl.databases.definition import CheckDefinition, ColumnDefinition, ForeignKey
from etl.databases.generic.table import ROW, Index, RelationType, Table, TableColumn
from etl.errors import ConfigError, ErrorClass, SchemaMismatchError, classify
from etl.rows import Column, Kind, Type

if TYPE_CHECKING:
    from etl.databases.generic.connect import Connection

_KINDS: tuple[tuple[type[Any], Kind], ...] = (
    (sat.Boolean, "bool"),
    (sat.SmallInteger, "int16"),
    (sat.BigInteger, "int64"),
    (sat.Integer, "int32"),
    (sat.REAL, "float32"),
    (sat.Float, "float64"),
    (sat.Numeric, "numeric"),
    (sat.Uuid, "uuid"),
    (sat.JSON, "json"),
    (sat.Enum, "text"),
    (sat.String, "text"),
    (sat.LargeBinary, "bytes"),
    (sat.DateTime, "timestamp"),
    (sat.Date, "date"),
    (sat.Time, "time"),
    (sat.Interval, "interval"),
)
"""What is tried in turn: a subclass stands before its base."""


PREFIX = 191
"""How many characters of a long text are in a plain index."""


class Dialect:
    """A dialect that SQLAlchemy has and etl has no driver for.

    Attributes:
        name: Of its columns' types (``Type.dialect``).
        shows_late: The transactions that are open can be seen, so that rows which commit late
            are not missed.
        has_limit: It knows ``LIMIT ... OFFSET ...``.
        most_indexes: Of one table; None: as many as one likes.
    """

    name = "generic"
    shows_late = False
    has_limit = False
    most_indexes: int | None = None

    def __init__(self, dialect: sa.Dialect) -> None:
        self.sqlalchemy = dialect

    @property
    def has_long_unique(self) -> bool:
        """Whether a unique index may have entries of more than ``index_bytes``."""
        return False

    # -- SQL ---------------------------------------------------------------------------------

    def quote(self, name: str) -> str:
        """A name as an identifier."""
        if not name or "\x00" in name:
            raise ConfigError(f"{name!r} cannot be a name in a database")
        preparer = self.sqlalchemy.identifier_preparer
        text = preparer.quote_identifier(name)
        # Doubled for drivers that put values in where they find one; ``text()`` does that too.
        return text.replace("%%", "%") if getattr(preparer, "_double_percents", False) else text

    def qualify(self, schema: str | None, name: str) -> str:
        """A quoted name with its schema, where one is given."""
        return self.quote(name) if schema is None else f"{self.quote(schema)}.{self.quote(name)}"

    def literal(self, value: object) -> str:
        """A value as a constant; see :func:`etl.databases.sql.literal`."""
        from etl.databases.sql import literal

        return literal(value)

    def read_as(self, column: TableColumn) -> str:
        """The expression that gives a column's value exactly."""
        return self.quote(column.name)

    def order_by(self, column: TableColumn, *, is_unique: bool) -> str:
        """The expression by which a column orders a read.

        Args:
            is_unique: An index makes sure that keys differ; where not, values that differ must
                never be taken for equal.
        """
        return self.quote(column.name)

    def bound_key(self, column: TableColumn, value: Any, *, is_unique: bool) -> Any:
        """A key's value as it is bound, to be compared with ``order_by``."""
        return value

    def sorts(self, column: TableColumn, mark: str, *, is_unique: bool) -> str:
        """A bound value as an expression that sorts as the column does."""
        return mark

    # -- sessions ----------------------------------------------------------------------------

    async def set_up(self, connection: Connection) -> None:
        """Settings of a new session; notes what is known of it on the connection."""

    def transport(self, driver: Any) -> asyncio.Transport | None:
        """The transport under a driver's connection, where it must be held.

        That is so where the driver reads rows ahead without a bound, or waits for the server when
        it is told to close. None: it does neither.
        """
        return None

    async def open_snapshot(self, connection: Connection) -> None:
        """Begin a transaction that sees one instant."""

    async def lock(self, connection: Connection, info: RunInfo) -> str | None:
        """Take the lock of a pipeline; None where it is taken, else why there is none.

        Raises:
            AlreadyRunningError: Another run has it.
        """
        return "this dialect has none that etl knows"

    async def unlock(self, connection: Connection) -> None:
        """Give the lock back."""

    async def blocked_by(self, connection: Connection, session: int) -> str | None:
        """Who holds up another session's statement."""
        return None

    async def end(self, connection: Connection, session: int) -> None:
        """End another session of the same user, with its transaction."""

    def classify(self, error: BaseException) -> tuple[ErrorClass, str]:
        """The class of a driver's error, and what it says without a value."""
        kind = classify(error)
        if kind == "unknown":
            name = type(error).__name__
            if name in {"IntegrityError", "DataError"}:
                kind = "data"
            elif name == "ProgrammingError":
                kind = "schema"
        return kind, str(error).strip().partition("\n")[0] if kind != "data" else "a row is refused"

    async def clock(self, connection: Connection) -> datetime:
        """The present, by the server's clock where that can be asked."""
        return datetime.now(UTC)

    async def oldest_transaction(self, connection: Connection) -> datetime | None:
        """When the oldest transaction began that is open now (UTC); None: there is none."""
        return None

    async def sees_transactions(self, connection: Connection) -> str | None:
        """None where open transactions can be seen; else why not."""
        return "etl cannot see the open transactions of this dialect"

    async def open_transactions(self, connection: Connection) -> Sequence[str]:
        """What identifies the transactions that are open now."""
        return ()

    # -- the catalogue -----------------------------------------------------------------------

    async def table_names(self, connection: Connection) -> Sequence[tuple[str, RelationType]]:
        """The user's tables and views in the database of the URL."""

        def names(sync: sa.Connection) -> list[tuple[str, RelationType]]:
            inspector = sa.inspect(sync)
            found: list[tuple[str, RelationType]] = [
                (name, "table") for name in inspector.get_table_names()
            ]
            return found + [(name, "view") for name in inspector.get_view_names()]

        return sorted(await connection.run_sync(names))

    async def find_table(
        self, connection: Connection, schema: str | None, name: str
    ) -> Table | None:
        """A table or view with its columns and indexes; None where there is none."""

        def look(sync: sa.Connection) -> Table | None:
            inspector = sa.inspect(sync)
            inspector.clear_cache()
            is_view = name in inspector.get_view_names(schema)
            if not is_view and not inspector.has_table(name, schema):
                return None
            columns = tuple(self._column(one) for one in inspector.get_columns(name, schema))
            return Table(
                name=name,
                schema=schema,
                type="view" if is_view else "table",
                columns=columns,
                indexes=() if is_view else _indexes(inspector, schema, name),
            )

        return await connection.run_sync(look)

    def _column(self, found: Mapping[str, Any]) -> TableColumn:
        type_ = found["type"]
        kinds: list[Kind] = [kind for base, kind in _KINDS if isinstance(type_, base)]
        kind: Kind = kinds[0] if kinds else "other"
        if kind == "timestamp" and type_.timezone:
            kind = "timestamptz"
        declared = str(type_.compile(self.sqlalchemy))
        is_identity = bool(found.get("identity")) or found.get("autoincrement") is True
        has_default = found.get("default") is not None
        length = getattr(type_, "length", None) if kind == "text" else None
        return TableColumn(
            name=found["name"],
            type=Type(
                kind=kind,
                name=declared,
                dialect=self.name,
                precision=getattr(type_, "precision", None) if kind == "numeric" else None,
                scale=getattr(type_, "scale", None) if kind == "numeric" else None,
                length=length,
            ),
            declared=declared,
            base=declared.partition("(")[0].lower(),
            nullable=bool(found["nullable"]),
            required=not found["nullable"] and not has_default and not is_identity,
            generated=found.get("computed") is not None,
            numbered=is_identity,
        )

    async def describe_query(self, connection: Connection, sql: str) -> tuple[TableColumn, ...]:
        """The columns of a SELECT. Their types are what the first value of each tells."""
        names = await connection.column_names(f"SELECT * FROM {sql} WHERE 1 = 0")  # noqa: S608
        type_ = Type(kind="other", name="", dialect=self.name)
        return tuple(TableColumn(name=name, type=type_, declared="", base="") for name in names)

    async def foreign_keys(
        self, connection: Connection, schema: str | None, name: str
    ) -> Sequence[ForeignKey]:
        """The foreign keys of a table."""

        def look(sync: sa.Connection) -> list[ForeignKey]:
            return [
                ForeignKey(
                    name=one["name"] or "",
                    columns=tuple(one["constrained_columns"]),
                    schema=one["referred_schema"],
                    table=one["referred_table"],
                    references=tuple(one["referred_columns"]),
                )
                for one in sa.inspect(sync).get_foreign_keys(name, schema)
            ]

        return await connection.run_sync(look)

    async def triggers(self, connection: Connection, table: Table) -> Sequence[str]:
        """The names of a table's triggers, as far as they can be seen."""
        return ()

    async def checks(self, connection: Connection, table: Table) -> Sequence[CheckDefinition]:
        """The CHECK constraints of a table."""
        return ()

    async def last_number(self, connection: Connection, table: Table) -> int | None:
        """The last number that a numbered column was given."""
        return None

    async def check(self, connection: Connection) -> Sequence[Finding]:
        """What ``etl check`` says of a database that can be reached."""
        name = f"{self.sqlalchemy.name} by {self.sqlalchemy.driver}"
        why = "portable statements only: slower than a driver of etl's own"
        return [Finding(subject=name, state="ok", message=why)]

    async def profile(
        self, connection: Connection, columns: Sequence[TableColumn], origin: str
    ) -> Mapping[str, Type]:
        """The settled type of each column whose type only its values tell."""
        return {}

    # -- tables to make ----------------------------------------------------------------------

    def declare(self, column: Column, *, room: int | None) -> str:
        """How a column for values of a type is declared.

        Args:
            room: Most bytes that an index leaves for the column; None: it is in none.
        """
        type_ = column.type
        if type_.dialect == self.name and type_.name:
            return type_.name
        made: sat.TypeEngine[Any]
        match type_.kind:
            case "bool":
                made = sat.Boolean()
            case "int16":
                made = sat.SmallInteger()
            case "int32":
                made = sat.Integer()
            case "int64":
                made = sat.BigInteger()
            case "float32":
                made = sat.REAL()
            case "float64":
                made = sat.Double()
            case "numeric":
                made = sat.Numeric(type_.precision, type_.scale)
            case "bytes":
                made = sat.LargeBinary()
            case "date":
                made = sat.Date()
            case "time":
                made = sat.Time()
            case "timestamp":
                made = sat.DateTime()
            case "timestamptz":
                made = sat.DateTime(timezone=True)
            case "uuid":
                made = sat.Uuid()
            case _:
                made = sat.String(room // 4) if room is not None else sat.Text()
        return str(made.compile(self.sqlalchemy))

    def table_options(self) -> str:
        """What stands behind the columns in CREATE TABLE."""
        return ""

    def numbered(self) -> str:
        """The column that numbers staged rows, as CREATE TABLE spells it."""
        column = sa.Column(ROW, sa.BigInteger, sa.Identity(), primary_key=True)
        sa.Table("etl_staging", sa.MetaData(), column)
        text = str(sa.schema.CreateColumn(column).compile(dialect=self.sqlalchemy))
        return f"{text} PRIMARY KEY"

    def index_bytes(self) -> int | None:
        """Most bytes of an index's entry, where texts in it must be declared with a length."""
        return None

    def clause(
        self, column: ColumnDefinition, declared: str, kind: Kind, *, is_own: bool
    ) -> tuple[str, str | None]:
        """What stands behind a column's type, and what of its definition is lost.

        Args:
            is_own: The definition is of this very dialect.
        """
        lost = None if column.default is None else f"the default of {column.name!r}"
        return "NOT NULL" if column.required else "", lost

    def is_name(self, text: str) -> bool:
        """Whether the database takes a text for the name of an index or a constraint."""
        return True

    def check_names(self, table: str, columns: Sequence[str], label: str) -> None:
        """Refuse a table to make, or columns to add, with names that the database does not take.

        Raises:
            SchemaMismatchError: It says which, and why.
        """

    def prefix_of(self, column: str) -> str:
        """A long text's part in a plain index."""
        return self.quote(column)

    def check_target(self, table: Table, label: str) -> None:
        """Refuse a table that rows cannot be written into exactly.

        Raises:
            SchemaMismatchError: It cannot take part in a transaction.
        """
        if table.type != "table":
            raise SchemaMismatchError(
                f"{label}: {table.name!r} is a {table.type}, not a table. Nothing was written"
            )

    # -- writing -----------------------------------------------------------------------------

    def bind(self, value: Any, column: TableColumn) -> Any:
        """A value of Python's as the driver takes it.

        Raises:
            Misfit: The server would change it.
        """
        return value

    def row_limit(self, connection: Connection) -> int | None:
        """Most bytes of one row's values; None: there is no limit."""
        return None

    async def insert(
        self,
        connection: Connection,
        into: Table,
        names: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
    ) -> int:
        """Insert rows; return how many the server took."""
        table = sa.table(into.name, *columns_of(names), schema=into.schema)
        marks = {name: sa.bindparam(f"p{i}", None, sat.NullType()) for i, name in enumerate(names)}
        many = [{f"p{i}": value for i, value in enumerate(row)} for row in rows]
        await connection.execute(sa.insert(table).values(marks), many)
        return len(rows)  # not every driver counts them

    async def before_upsert(
        self, connection: Connection, into: Table, names: Sequence[str], key: Sequence[str]
    ) -> None:
        """What an upsert needs of its session, made before its transaction begins."""

    async def upsert(
        self,
        connection: Connection,
        into: Table,
        names: Sequence[str],
        key: Sequence[str],
        add: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """Update the row of each key, or insert it, in order: the last row of a key wins.

        Row by row, so it is right in any database, and slow in all of them.
        """
        table = sa.table(into.name, *columns_of(names), schema=into.schema)
        marks = {
            name: sa.bindparam(f"p{i}", None, sa.types.NullType()) for i, name in enumerate(names)
        }
        match = [table.c[name] == marks[name] for name in key]
        changes = {
            name: sa.func.coalesce(table.c[name], 0) + sa.func.coalesce(marks[name], 0)
            if name in add
            else marks[name]
            for name in names
            if name not in key
        }
        update = (
            sa.update(table).where(*match).values(changes)
            if changes
            else sa.update(table).where(*match).values({key[0]: marks[key[0]]})
        )
        insert = sa.insert(table).values(marks)
        for row in rows:
            values = {f"p{i}": value for i, value in enumerate(row)}
            if not await connection.execute(update, values):
                await connection.execute(insert, values)

    async def begin_rewrite(self, connection: Connection) -> None:
        """The tables of a transaction are emptied and filled again."""

    async def end_rewrite(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Before its commit: check what ``begin_rewrite`` let pass.

        Raises:
            DataError: A foreign key would be broken.
        """


def columns_of(names: Sequence[str]) -> list[sa.ColumnClause[Any]]:
    """Columns without a type: values go to the driver as they are."""
    return [sa.column(name) for name in names]


def _indexes(inspector: sa.Inspector, schema: str | None, name: str) -> tuple[Index, ...]:
    found: list[Index] = []
    primary = inspector.get_pk_constraint(name, schema)
    if primary and primary["constrained_columns"]:
        columns = tuple(primary["constrained_columns"])
        found.append(Index(name="", columns=columns, unique=True, primary=True))
    for one in inspector.get_indexes(name, schema):
        columns = tuple(c for c in one["column_names"] if c is not None)
        is_plain = len(columns) == len(one["column_names"]) and not _is_partial(one)
        found.append(
            Index(
                name=one["name"] or "",
                columns=columns if is_plain else (),
                unique=bool(one["unique"]),
            )
        )
    return tuple(found)


def _is_partial(index: Mapping[str, Any]) -> bool:
    options: Mapping[str, Any] = index.get("dialect_options") or {}
    return any(name.endswith("_where") and value for name, value in options.items())
