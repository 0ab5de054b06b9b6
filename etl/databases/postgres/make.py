"""Makes tables from definitions: bare ones to load into, then their indexes and foreign keys.

A definition of PostgreSQL's own is made exactly. What the target lacks for a part of it (a function
in a default, an operator class of an extension) is left out and told; types are not: without
them there is no exact copy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import asyncpg

from etl.databases.definition import (
    ColumnDefinition,
    ForeignKey,
    IndexDefinition,
    Needed,
    SequenceDefinition,
    TableDefinition,
)
from etl.databases.postgres.catalogue import NAME_BYTES, cut_name
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.describe import spelled_out
from etl.databases.postgres.liveness import run_long
from etl.databases.postgres.needs import read_types
from etl.databases.postgres.translate import first_line
from etl.databases.sql import qualify, quote, quote_all
from etl.errors import DataError, SchemaMismatchError

MOST_COLUMNS = 1_600
"""Of one PostgreSQL table."""

_DDL_LOCK = 7_305_716_002_300_002
"""Any fixed number: sessions that make tables in one database take turns."""

_LACKING = (
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.FeatureNotSupportedError,
)


class Turn:
    """One session's turn to make tables, and what they need, in its database.

    It ends with the transaction. Sessions of one run wait for each other here first: the server
    ends a wait for its lock after some seconds, and over a long line a table takes seconds.

    Attributes:
        of_run: What the sessions of the run wait for.
    """

    def __init__(self, of_run: asyncio.Lock) -> None:
        self.of_run = of_run
        self._is_ours = False
        self.is_waiting = False  # for another session of the run

    async def take(self, connection: Connection) -> None:
        """Wait for it; at once where this transaction has it."""
        if not self._is_ours:
            self.is_waiting = True
            try:
                await self.of_run.acquire()
            finally:
                self.is_waiting = False
            self._is_ours = True
        await connection.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", _DDL_LOCK)

    def end(self) -> None:
        """The transaction has ended."""
        if self._is_ours:
            self._is_ours = False
            self.of_run.release()


@asynccontextmanager
async def optional(
    connection: Connection,
    what: str,
    notes: list[str],
    lacking: tuple[type[asyncpg.PostgresError], ...] = _LACKING,
) -> AsyncGenerator[None]:
    """Leave out, and tell, what the target lacks something for."""
    await connection.execute("SAVEPOINT etl_optional")
    try:
        yield
    except lacking as error:
        await connection.execute("ROLLBACK TO SAVEPOINT etl_optional")
        notes.append(f"not carried: {what}: {first_line(error)}")
    await connection.execute("RELEASE SAVEPOINT etl_optional")


async def make_schema(connection: Connection, schema: str, label: str) -> None:
    """Make a schema where it is missing.

    Raises:
        SchemaMismatchError: It is missing, and the user may not make it.
    """
    if await connection.fetchval_prepared(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)", schema
    ):
        return
    try:
        await connection.execute(f"CREATE SCHEMA {quote(schema)}")
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaMismatchError(
            f"{label}: the schema {schema!r} does not exist, and the user may not make it. Nothing"
            f" was written; CREATE SCHEMA {quote(schema)}"
        ) from error


async def make_needs(
    connection: Connection, definition: TableDefinition, label: str
) -> TableDefinition:
    """Make the types and collations that a table's columns need, where they are missing.

    Returns:
        The definition with the names that the types have here: an extension may stand in
        another schema.

    Raises:
        SchemaMismatchError: One is missing and cannot be made, or differs from the source's.
    """
    definition = await check_needs(connection, definition, label)
    for need in definition.needs:
        if need.kind == "collation":
            if await connection.fetchval(
                "SELECT pg_catalog.to_regcollation($1) IS NULL", need.name
            ):
                await make_schema(connection, need.schema, label)
                await connection.execute(need.sql or "")
        elif need.sql is not None and need.extension is None and not await _oid(connection, need):
            await make_schema(connection, need.schema, label)
            try:
                await connection.execute(need.sql)
            except _LACKING as error:
                raise SchemaMismatchError(
                    f"{label}: column {', '.join(map(repr, need.columns))} has the type"
                    f" {need.name}, which cannot be made in the target: {first_line(error)}."
                    " Nothing was written; make what it needs there, then run again"
                ) from error
    return definition


async def check_needs(
    connection: Connection, definition: TableDefinition, label: str
) -> TableDefinition:
    """Check that the types which a table's columns need are there, or can be made.

    Returns:
        The definition with the names that the types have here.

    Raises:
        SchemaMismatchError: One is missing and cannot be made, or differs from the source's.
    """
    for need in definition.needs:
        if need.kind == "collation":
            continue
        oid = await _oid(connection, need)
        if oid is not None:
            await _check_same(connection, need, oid, label)
        elif need.extension is not None:
            here = await _of_extension(connection, need)
            if here is None:
                raise _missing(need, label, f"CREATE EXTENSION {quote(need.extension)}")
            definition = _renamed(definition, need.name, here)
        elif need.sql is None:
            raise _missing(need, label, "make it by hand")
    return definition


async def _oid(connection: Connection, need: Needed) -> int | None:
    found: int | None = await connection.fetchval(
        "SELECT pg_catalog.to_regtype($1)::oid::bigint", need.name
    )
    return found


def _missing(need: Needed, label: str, remedy: str) -> SchemaMismatchError:
    columns = ", ".join(map(repr, need.columns))
    brought = f" (of the extension {need.extension!r})" if need.extension else ""
    return SchemaMismatchError(
        f"{label}: column {columns} has the type {need.name}{brought}, which does not exist in the"
        f" target. Nothing was written; {remedy} in the target, then run again"
    )


async def _check_same(connection: Connection, need: Needed, oid: int, label: str) -> None:
    """A type of the same name must be the same type: rows would be bent or refused otherwise."""
    if need.sql is None:
        return
    async with spelled_out(connection):
        found = (await read_types(connection, [oid])).needed(oid)
    if found and found[-1].sql != need.sql:
        columns = ", ".join(map(repr, need.columns))
        labels = "with other labels" if " AS ENUM (" in need.sql else "that is made otherwise"
        raise SchemaMismatchError(
            f"{label}: column {columns} has the type {need.name}, and the target has a type"
            f" {need.name} {labels}. Nothing was written; make them equal, or make the table"
            " yourself"
        )


async def _of_extension(connection: Connection, need: Needed) -> str | None:
    """The name of an extension's type here, in whatever schema the extension stands."""
    found: str | None = await connection.fetchval(
        """
        SELECT quote_ident(n.nspname) || '.' || quote_ident(t.typname)
        FROM pg_catalog.pg_type AS t
        JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
        JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_type'::regclass
            AND d.objid = t.oid AND d.deptype = 'e'
        JOIN pg_catalog.pg_extension AS x ON x.oid = d.refobjid AND x.extname = $1
        WHERE format('%I.%I', $2::text, t.typname) = $3 OR
            quote_ident($2) || '.' || '"' || replace(t.typname, '"', '""') || '"' = $3
            OR '"' || replace($2, '"', '""') || '"."' || replace(t.typname, '"', '""') || '"' = $3
        """,
        need.extension,
        need.schema,
        need.name,
    )
    return found


def _renamed(definition: TableDefinition, name: str, here: str) -> TableDefinition:
    bare = name.replace('"', "")
    return replace(
        definition,
        columns=tuple(
            replace(c, declared=here + c.declared.removeprefix(bare))
            if c.declared.replace('"', "").startswith(bare)
            else c
            for c in definition.columns
        ),
    )


async def make_table(
    connection: Connection, definition: TableDefinition, schema: str, name: str, label: str
) -> list[str]:
    """Make a table without its indexes and foreign keys.

    Returns:
        What could not be carried over.

    Raises:
        SchemaMismatchError: A type is missing, a name too long, or there are too many columns.
    """
    _check_names(definition, name, label)
    await make_schema(connection, schema, label)
    definition = await make_needs(connection, definition, label)
    notes: list[str] = []
    await _create(connection, definition, schema, name, notes)
    table = qualify(schema, name)
    for column in definition.columns:
        if column.default is not None:
            what = f"the default of {column.name!r}"
            # Of another database it may be no value of the type.
            async with optional(connection, what, notes, (*_LACKING, asyncpg.DataError)):
                await connection.execute(
                    f"ALTER TABLE {table} ALTER COLUMN {quote(column.name)}"
                    f" SET DEFAULT {column.default}"
                )
        if column.comment is not None:
            await _comment(connection, f"COLUMN {table}.{quote(column.name)}", column.comment)
    for check in definition.checks:
        async with optional(connection, f"the constraint {check.name!r}", notes):
            await connection.execute(
                f"ALTER TABLE {table} ADD CONSTRAINT {quote(check.name)} {check.sql}"
            )
            await _comment_constraint(connection, check.name, table, check.comment)
    notes += await make_numbers(connection, definition, schema, name, label)
    await make_rest(connection, definition, schema, name, notes)
    return notes


async def add_columns(
    connection: Connection, definition: TableDefinition, table: str, label: str
) -> None:
    """Add columns to a table that has rows: NULL in those, and so without NOT NULL or a default.

    Args:
        table: Quoted and qualified.

    Raises:
        SchemaMismatchError: A type is missing.
    """
    definition = await make_needs(connection, definition, label)
    for column in definition.columns:
        bare = replace(column, required=False, identity=None)
        await connection.execute(
            f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {_line(bare, computed=False)}"
        )


async def make_numbers(
    connection: Connection, definition: TableDefinition, schema: str, name: str, label: str
) -> list[str]:
    """Give the columns that number rows their sequences.

    Returns:
        Which of them have another one than in the source.
    """
    notes: list[str] = []
    # A column that draws from another one's numbers comes after it.
    for column in sorted(definition.columns, key=lambda one: _is_borrowed(one.sequence)):
        sequence = column.sequence
        if column.identity is not None:
            options = sequence.options if sequence is not None else ""
            if options.startswith("AS "):  # an identity's numbers have the column's type
                options = "INCREMENT" + options.partition("INCREMENT")[2]
            if sequence is not None and sequence.name and sequence.schema is None:
                # The name that the server would make up may be one that another table wants.
                own = qualify(schema, temporary_name(name, sequence.name))
                options = f"SEQUENCE NAME {own} {options}"
            await connection.execute(
                f"ALTER TABLE {qualify(schema, name)} ALTER COLUMN {quote(column.name)} ADD"
                f" GENERATED {column.identity.upper()} AS IDENTITY"
                + (f" ({options})" if options else "")
            )
        elif sequence is not None:
            is_new = await _draw_from(connection, sequence, schema, name, column.name, label)
            if is_new and sequence.owner is not None:
                notes.append(
                    f"not carried: that {column.name!r} takes the numbers of {sequence.owner!r}:"
                    " it has a sequence of its own"
                )
    return notes


def _is_borrowed(sequence: SequenceDefinition | None) -> bool:
    """Whether a sequence belongs to another column of the same table."""
    return sequence is not None and sequence.schema is None and sequence.owner is not None


async def make_rest(
    connection: Connection,
    definition: TableDefinition,
    schema: str,
    name: str,
    notes: list[str],
) -> None:
    """Give a table its comment and storage parameters, and its columns what the planner knows."""
    table = qualify(schema, name)
    for column in definition.columns:
        for setting in column.settings:
            await connection.execute(
                f"ALTER TABLE {table} ALTER COLUMN {quote(column.name)} SET {setting}"
            )
    for option, value in definition.options:
        async with optional(connection, f"the storage parameter {option}", notes):
            await _set_option(connection, f"TABLE {table}", option, value)
    if definition.comment is not None:
        await _comment(connection, f"TABLE {table}", definition.comment)


async def _create(
    connection: Connection,
    definition: TableDefinition,
    schema: str,
    name: str,
    notes: list[str],
) -> None:
    """CREATE TABLE; where the target lacks what computes a column, with plain columns instead."""
    await connection.execute("SAVEPOINT etl_create")
    computed = any(column.generated is not None for column in definition.columns)
    try:
        await connection.execute(_create_sql(definition, schema, name, computed=True))
    except _LACKING as error:
        if not computed:
            raise
        await connection.execute("ROLLBACK TO SAVEPOINT etl_create")
        await connection.execute(_create_sql(definition, schema, name, computed=False))
        notes.append(f"not carried: what computes its generated columns: {first_line(error)}")
    await connection.execute("RELEASE SAVEPOINT etl_create")


def _create_sql(definition: TableDefinition, schema: str, name: str, *, computed: bool) -> str:
    lines = [_line(column, computed=computed) for column in definition.columns]
    return f"CREATE TABLE {qualify(schema, name)} (\n    " + ",\n    ".join(lines) + "\n)"


def _line(column: ColumnDefinition, *, computed: bool) -> str:
    parts = [quote(column.name), column.declared]
    if column.collation is not None:
        parts.append(f"COLLATE {column.collation}")
    if column.generated is not None and computed:
        how = "STORED" if column.stored else "VIRTUAL"
        parts.append(f"GENERATED ALWAYS AS ({column.generated}) {how}")
    if column.required or column.identity is not None:
        if column.required_name is not None:
            parts.append(f"CONSTRAINT {quote(column.required_name)}")
        parts.append("NOT NULL")
    return " ".join(parts)


def _check_names(definition: TableDefinition, name: str, label: str) -> None:
    if len(definition.columns) > MOST_COLUMNS:
        raise SchemaMismatchError(
            f"{label}: the rows have {len(definition.columns):,} columns, and a PostgreSQL table"
            f" holds at most {MOST_COLUMNS:,}. Nothing was written; leave columns out"
        )
    for part in (name, *(column.name for column in definition.columns)):
        if len(part.encode()) > NAME_BYTES:
            raise SchemaMismatchError(
                f"{label}: the name {part!r} is longer than the {NAME_BYTES} bytes that"
                " PostgreSQL keeps. Nothing was written; rename it"
            )


async def _comment_constraint(
    connection: Connection, name: str, table: str, text: str | None
) -> None:
    if text is not None:
        await _comment(connection, f"CONSTRAINT {quote(name)} ON {table}", text)


async def _comment(connection: Connection, what: str, text: str) -> None:
    literal = await connection.fetchval("SELECT quote_literal($1::text)", text)
    await connection.execute(f"COMMENT ON {what} IS {literal}")


async def _set_option(connection: Connection, what: str, option: str, value: str) -> None:
    literal = await connection.fetchval("SELECT quote_literal($1::text)", value)
    await connection.execute(f"ALTER {what} SET ({option} = {literal})")


async def _draw_from(
    connection: Connection,
    sequence: SequenceDefinition,
    schema: str,
    table: str,
    column: str,
    label: str,
) -> bool:
    """Let a column's default be the next number of a sequence; whether that had to be made."""
    place = qualify(schema, table)
    is_borrowed = _is_borrowed(sequence)
    if is_borrowed:
        name = await _sequence_of(connection, place, sequence.owner or "")
        if name is None:  # its owner is not a column that numbers rows here
            name = qualify(schema, temporary_name(table, sequence.name))
    elif sequence.schema is None:
        name = qualify(schema, temporary_name(table, sequence.name))
    else:
        await make_schema(connection, sequence.schema, label)
        name = qualify(sequence.schema, sequence.name)
    is_new: bool = await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NULL", name)
    await connection.execute(f"CREATE SEQUENCE IF NOT EXISTS {name} {sequence.options}")
    literal = await connection.fetchval("SELECT quote_literal($1::text)", name)
    await connection.execute(
        f"ALTER TABLE {place} ALTER COLUMN {quote(column)} SET DEFAULT nextval({literal}::regclass)"
    )
    if sequence.schema is None and (is_new or not is_borrowed):
        await connection.execute(f"ALTER SEQUENCE {name} OWNED BY {place}.{quote(column)}")
    return is_new


async def _sequence_of(connection: Connection, table: str, column: str) -> str | None:
    """The sequence that belongs to a column; None also where the table has no such column."""
    name: str | None = await connection.fetchval(
        "SELECT pg_catalog.pg_get_serial_sequence($1, attname) FROM pg_catalog.pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attname = $2 AND NOT attisdropped",
        table,
        column,
    )
    return name


def temporary_name(table: str, name: str) -> str:
    """What an index or sequence is called until its table has its own name."""
    return f"etl_{hashlib.sha256(chr(0).join((table, name)).encode()).hexdigest()[:24]}"


# --- after the load ---


async def missing_indexes(
    connection: Connection, definition: TableDefinition, schema: str, table: str
) -> list[IndexDefinition]:
    """The indexes of a definition that a table has not got yet."""
    rows = await connection.fetch_prepared(
        """
        SELECT c.relname::text AS name FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = pg_catalog.to_regclass($1)
        """,
        qualify(schema, table),
    )
    have = {row["name"] for row in rows}
    return [
        one
        for one in definition.indexes
        if one.name not in have and temporary_name(table, one.name) not in have
    ]


async def make_index(
    connection: Connection, index: IndexDefinition, schema: str, table: str, notes: list[str]
) -> None:
    """Make an index or its constraint, under a name that gives way to its own later.

    Raises:
        DataError: The rows break it.
    """
    place, name = qualify(schema, table), temporary_name(table, index.name)
    if index.constraint is not None:
        statement = f"ALTER TABLE {place} ADD CONSTRAINT {quote(name)} {index.sql}"
    else:
        unique = "UNIQUE " if index.unique else ""
        statement = f"CREATE {unique}INDEX {quote(name)} ON {place} {index.sql}"
    try:
        async with optional(connection, f"the index {index.name!r}", notes):
            await run_long(connection.execute, statement)
            if index.comment is not None:
                await _comment(connection, f"INDEX {qualify(schema, name)}", index.comment)
            await _comment_constraint(connection, name, place, index.remarked)
            for option, value in index.options:
                await _set_option(connection, f"INDEX {qualify(schema, name)}", option, value)
    except (asyncpg.UniqueViolationError, asyncpg.ExclusionViolationError) as error:
        raise DataError(
            f"table {table!r}: the rows that were loaded are not unique, as its"
            f" {index.constraint or 'index'} {index.name!r} asks ({quote_all(index.columns)}). It"
            " was not put in place, and what was loaded stays; mend the rows in the source and run"
            " with --full"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A table that has its own name, and whose indexes and sequences are to get theirs.

    Attributes:
        built_as: The table's name when they were made.
    """

    definition: TableDefinition
    schema: str
    built_as: str


async def name_indexes(connection: Connection, tables: Sequence[Built]) -> set[tuple[str, str]]:
    """Give indexes and owned sequences their own names, where these are free.

    However many tables there are, it takes two round trips, unless a name is not free.

    Returns:
        Schema and name of those that had another one until now.
    """
    wanted = [
        (kind, table.schema, temporary_name(table.built_as, name), name)
        for table in tables
        for kind, name in [
            *(("INDEX", index.name) for index in table.definition.indexes),
            *(
                ("SEQUENCE", column.sequence.name)
                for column in table.definition.columns
                if column.sequence is not None
                and column.sequence.schema is None
                and not _is_borrowed(column.sequence)
            ),
        ]
        if name  # another dialect has no names for what numbers its rows
    ]
    if not wanted:
        return set()
    rows = await connection.fetch_prepared(
        "SELECT now, pg_catalog.to_regclass(wanted) IS NULL AS is_free"
        " FROM unnest($1::text[], $2::text[]) AS n(now, wanted)"
        " WHERE pg_catalog.to_regclass(now) IS NOT NULL",
        [qualify(schema, now) for _, schema, now, _ in wanted],
        [qualify(schema, name) for _, schema, _, name in wanted],
    )
    is_free = {row["now"]: row["is_free"] for row in rows}
    renames: dict[tuple[str, str], str] = {}
    late: list[tuple[str, str, str, str]] = []
    for kind, schema, now, name in wanted:
        place = qualify(schema, now)
        if place not in is_free:
            continue
        if is_free[place] and (schema, name) not in renames:
            renames[schema, name] = f"ALTER {kind} {place} RENAME TO {quote(name)}"
        else:
            late.append((kind, schema, place, name))
    if renames:
        await connection.execute("; ".join(renames.values()))
    for kind, schema, place, name in late:
        free = await free_name(connection, schema, name)
        await connection.execute(f"ALTER {kind} {place} RENAME TO {quote(free)}")
    return {*renames, *((schema, name) for _, schema, _, name in late)}


async def free_name(connection: Connection, schema: str, name: str) -> str:
    """The name, or the first one after it that nothing in the schema has."""
    tried, number = name, 0
    while not await connection.fetchval_prepared(
        "SELECT pg_catalog.to_regclass($1) IS NULL", qualify(schema, tried)
    ):
        number += 1
        room = NAME_BYTES - len(str(number))
        tried = cut_name(name, room) + str(number)
    return tried


async def missing_foreign_keys(
    connection: Connection, wanted: Sequence[ForeignKey], schema: str, table: str
) -> list[ForeignKey]:
    """Those of some foreign keys that a table has not got yet."""
    rows = await connection.fetch_prepared(
        "SELECT conname::text AS name FROM pg_catalog.pg_constraint"
        " WHERE contype = 'f' AND conrelid = pg_catalog.to_regclass($1)",
        qualify(schema, table),
    )
    have = {row["name"] for row in rows}
    return [key for key in wanted if key.name not in have]


async def make_foreign_key(
    connection: Connection,
    key: ForeignKey,
    table: tuple[str, str],
    other: tuple[str, str],
    notes: list[str],
    label: str,
    *,
    is_exact: bool,
) -> None:
    """Add a foreign key.

    Args:
        table: The schema and the name under which the table stands now.
        other: The same of the table that it refers to.
        is_exact: The source proved the key, so that rows which break it are an error.

    Raises:
        DataError: Rows break it.
    """
    what = f"the foreign key {key.name!r} to {key.table!r}"
    referenced = qualify(*other)
    if await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NULL", referenced):
        notes.append(f"not carried: {what}, a table that the target lacks")
        return
    columns = f" ({_names(key.references, key)})" if key.references else ""
    statement = (
        f"ALTER TABLE {qualify(*table)} ADD CONSTRAINT {quote(key.name)} FOREIGN KEY"
        f" ({_names(key.columns, key)}) REFERENCES {referenced}{columns} {key.rest}"
    ).rstrip()
    try:
        async with optional(connection, what, notes):
            await connection.execute("SAVEPOINT etl_key")
            try:
                await run_long(connection.execute, statement)
                await _comment_constraint(connection, key.name, qualify(*table), key.comment)
            except asyncpg.DuplicateObjectError:
                await connection.execute("ROLLBACK TO SAVEPOINT etl_key")
                if await missing_foreign_keys(connection, [key], *table):
                    raise
                # Another run that finishes the table has just made it.
            except (
                asyncpg.ForeignKeyViolationError,
                asyncpg.DatatypeMismatchError,
                asyncpg.InvalidForeignKeyError,
                asyncpg.UndefinedColumnError,
            ) as error:
                if is_exact and isinstance(error, asyncpg.ForeignKeyViolationError):
                    raise
                await connection.execute("ROLLBACK TO SAVEPOINT etl_key")
                notes.append(f"not carried: {what}: {first_line(error)}")
    except asyncpg.ForeignKeyViolationError as error:
        raise DataError(
            f"{label}: rows that were loaded break {what}: the tables were read at"
            " different instants, or the other table was not copied with it. Nothing was put in"
            " place; run with --full, or copy both together"
        ) from error


def _names(columns: Sequence[str], key: ForeignKey) -> str:
    *others, last = map(quote, columns)
    return ", ".join([*others, f"PERIOD {last}" if key.has_period else last])


async def set_sequences(
    connection: Connection, wanted: TableDefinition | None, schema: str, table: str
) -> None:
    """Move the sequences of a table past what the source gave and what its rows hold; never back.

    Args:
        wanted: The source's definition, which knows the last numbers.
    """
    if wanted is None:
        return
    place = qualify(schema, table)
    for column in wanted.columns:
        sequence = column.sequence
        if sequence is None:
            continue
        name: str | None
        if sequence.schema is not None:
            name = qualify(sequence.schema, sequence.name)
        else:
            owner = sequence.owner if _is_borrowed(sequence) else None
            name = await _sequence_of(connection, place, owner or column.name)
        if name is not None:
            await _set_sequence(connection, sequence, name, place, column.name)


async def _set_sequence(
    connection: Connection, sequence: SequenceDefinition, name: str, table: str, column: str
) -> None:
    """See above. Rows count only where the sequence could have numbered them and can go on."""
    bounds = await connection.fetchrow(_BOUNDS, name, table, column)
    if bounds is None:
        return  # the table was made by somebody else, without the column
    up, low, high = bounds["increment"] > 0, bounds["low"], bounds["high"]
    numbers = [
        await connection.fetchval(f"SELECT CASE WHEN is_called THEN last_value END FROM {name}")  # noqa: S608
    ]
    if sequence.last is not None and low <= sequence.last <= high:
        if bounds["cycles"]:  # its rows do not tell where it is
            numbers.clear()
        numbers.append(sequence.last)
    if bounds["is_number"] and not bounds["cycles"]:
        # Not one that ends the sequence: it would give no number any more.
        within = f"> {low} AND {{0}} <= {high}" if not up else f">= {low} AND {{0}} < {high}"
        given = quote(column)
        numbers.append(
            await run_long(
                connection.fetchval,
                f"SELECT {'max' if up else 'min'}({given})::bigint FROM {table}"  # noqa: S608
                f" WHERE {given} {within.format(given)}",
            )
        )
    best = max if up else min
    last = best((number for number in numbers if number is not None), default=None)
    first = sequence.first
    if first is not None and low <= first <= high and (last is None or best(first, last) != last):
        await connection.execute("SELECT setval($1::text::regclass, $2, false)", name, first)
    elif last is not None:
        await connection.execute("SELECT setval($1::text::regclass, $2)", name, last)


_BOUNDS = """
SELECT q.seqincrement AS increment, q.seqmin AS low, q.seqmax AS high, q.seqcycle AS cycles,
    coalesce(nullif(t.typbasetype, 0), t.oid) = ANY (
        '{int2,int4,int8,numeric,float4,float8}'::regtype[]::oid[]) AS is_number
FROM pg_catalog.pg_sequence AS q, pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE q.seqrelid = $1::text::regclass AND a.attrelid = $2::text::regclass AND a.attname = $3
"""
