"""How one sink gets its rows into its table: append, upsert, or through a staging table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from etl.batch import Batch
from etl.connector import Sink
from etl.databases.given import kind_of, layout_of, names_of
from etl.databases.loading import BaseLoad
from etl.databases.sql import OWN_TABLES, fold, quote, quote_all
from etl.databases.sqlite import made
from etl.databases.sqlite.adapt import create_index, indexes_of, lines_of
from etl.databases.sqlite.bind import SLICE, Binder, bare_values
from etl.databases.sqlite.connection import Connection
from etl.databases.sqlite.ddl import (
    add_column,
    create_staging,
    create_table,
    refuse_doubles,
    staged_type,
    suggest_table,
)
from etl.databases.sqlite.fits import verdicts_of
from etl.databases.sqlite.schema import STAGING, Table, TableColumn, find_table, table_name
from etl.databases.sqlite.words import has_word
from etl.engine import failpoints
from etl.errors import (
    ConfigError,
    DataError,
    EtlError,
    SchemaMismatchError,
    TargetUnavailableError,
)
from etl.rows import FileRows, Shape, place_of, shape_of
from etl.verdict import refusal_of

_VALUES_AT_ONCE = 999
"""What every build of SQLite takes as parameters of one statement."""


def staging_base(sink: str) -> str:
    """What the names of a sink's staging tables begin with."""
    return table_name(sink) + STAGING


class Load(BaseLoad[TableColumn]):
    """See :class:`etl.databases.loading.BaseLoad`.

    Invariant: what is remembered of the tables here was committed, or belongs to the open
    transaction; :meth:`forget` drops it after a rollback.

    Attributes:
        is_new: etl made the table, and its first load has not ended yet.
    """

    def __init__(self, sink: Sink[Any], *, pipeline: str, flow: str) -> None:
        super().__init__(sink, flow=flow, pipeline=pipeline, staging=staging_base(sink.table))
        self._name = table_name(sink.table)
        if fold(self._name) in OWN_TABLES:
            raise ConfigError(f"{self.label}: a table of that name is etl's own; choose another")
        if fold(self._name).startswith("sqlite_"):
            raise ConfigError(
                f"{self.label}: names that begin with sqlite_ are SQLite's own; choose another"
            )
        self.is_new = False
        self._indexes: list[str] | None = None
        self._into: Table | None = None
        self._schema_version: int | None = None
        self._plans: dict[tuple[str, ...], tuple[str, Binder]] = {}
        self._is_there_for_good = False  # the table that rows go into; rows of this load are in it

    # -- before the first row ----------------------------------------------------------------

    async def prepare(
        self, connection: Connection, shape: Shape | None, *, resumable: bool
    ) -> Sequence[str]:
        """Check the table, or make it where that is allowed and its columns are known.

        Raises:
            SchemaMismatchError: It does not fit.
        """
        final = await self._find(connection, shape, resumable=resumable)
        if final is None:
            if self.is_staged or self._shape is None:
                return []
            final = await self._create(connection, self._shape)
        await self._check_own(connection, final)
        final = await self._add_columns(connection, final)
        self._check(final)
        self._is_there_for_good = not self.is_staged
        self.is_new = await made.is_building(connection, final.name)
        return self._told(final)

    async def look(
        self, connection: Connection | None, shape: Shape | None, *, resumable: bool
    ) -> Table | None:
        """Check the table as it stands, and change nothing; None where it is to be made.

        Args:
            connection: None: there is no file yet.

        Raises:
            SchemaMismatchError: It does not fit, or must not be made.
        """
        final = await self._find(connection, shape, resumable=resumable)
        if connection is None or final is None:
            return None
        await self._check_own(connection, final)
        self._check(final, self._kept(final))
        return final

    async def _find(
        self, connection: Connection | None, shape: Shape | None, *, resumable: bool
    ) -> Table | None:
        """The table; None where it is missing, and may be made."""
        self._take_shape(shape, resumable=resumable)
        final = await find_table(connection, self._name) if connection is not None else None
        if final is None:
            self._check_creation()
        return final

    async def _add_columns(self, connection: Connection, final: Table) -> Table:
        """Give the table what the rows have and it lacks, where the sink asks for that."""
        self._added = ()
        missing = self._lacking(final)
        if self.sink.schema_change != "evolve" or not missing or final.type != "table":
            return final
        refuse_doubles([column.name for column in missing], self.label)
        for column in missing:
            await connection.execute(add_column(final.name, column))
        self._added = tuple(column.name for column in missing)
        found = await find_table(connection, self._name)
        assert found is not None
        return found

    async def _check_own(self, connection: Connection, final: Table) -> None:
        """Refuse to replace somebody else's rows, where the sink asks for that."""
        if self.sink.mode != "replace" or not self.sink.own_only:
            return
        if await made.is_made(connection, final.name):
            return
        if await connection.fetch(f"SELECT 1 FROM {quote(final.name)} LIMIT 1"):  # noqa: S608
            raise self._not_own(final)

    def _check_creation(self) -> None:
        """Whether a missing table can be made; refuses early what is known early."""
        shape = self._shape
        statement: str | None = None
        if shape is not None:
            statement = create_table(self._name, shape, self._new_key(shape))
            self._check_key_names(shape.names)
        if not self.sink.create:
            raise self._may_not_make(statement)

    async def _create(self, connection: Connection, shape: Shape) -> Table:
        await self._make(connection, self._name, shape, self._new_key(shape))
        await self._make_indexes(connection)
        await made.record(connection, self._name, self._pipeline, "building")
        found = await find_table(connection, self._name)
        assert found is not None
        return found

    async def _make(
        self, connection: Connection, name: str, shape: Shape, key: Sequence[str]
    ) -> None:
        """Make the table under a name, as the source has it where SQLite can have that."""
        source = self._source
        self._indexes = []
        if source is None:
            await connection.execute(create_table(name, shape, key))
            return
        self.notes = []
        if source.dialect != "sqlite":
            clauses, constraints, self.notes = lines_of(source, shape)
            own = source.primary_key.columns if source.primary_key is not None else ()
            self._indexes = [
                create_index(index, self._name, columns, unique=unique)
                for index, columns, unique in indexes_of(source, self.notes)
            ]
            if key and set(key) != set(own) and own:
                # The key of an upsert needs an index of its own.
                constraints.append(f"UNIQUE ({quote_all(key)})")
            statement = create_table(
                name, shape, own or key, clauses=clauses, constraints=constraints
            )
            await connection.execute(statement)
            return
        self.notes = [f"not carried: {what}" for what in source.left_out]
        self._indexes = [
            f"CREATE {'UNIQUE ' if index.unique else ''}INDEX {quote(index.name)}"
            f" ON {quote(self._name)} {index.sql}"
            for index in source.indexes
            if index.name
        ]
        if source.sql is not None:
            try:
                await connection.execute(f"CREATE TABLE {quote(name)}{source.sql}")
            except EtlError as error:
                # A CHECK that names its own table, for one, works under that name only.
                self.notes.append(f"not carried: the table's own CREATE TABLE ({error})")
            else:
                await self._ensure_key(connection, name, shape)
                return
        await connection.execute(create_table(name, shape, key))

    async def _ensure_key(self, connection: Connection, name: str, shape: Shape) -> None:
        """The key of an upsert needs a unique index."""
        table = await find_table(connection, name)
        key = self.sink.key
        if key and table is not None and table.index_on(key) is None and self._indexes is not None:
            self._indexes.append(
                create_index(f"{self._name}_{'_'.join(key)}_key", self._name, key, unique=True)
            )

    async def _make_indexes(self, connection: Connection) -> None:
        """Make the indexes, when the table has its own name."""
        for statement in self._indexes or ():
            await connection.execute("SAVEPOINT etl_index")
            try:
                await connection.execute(statement)
            except EtlError as error:
                await connection.execute("ROLLBACK TO etl_index")
                self.notes.append(f"not carried: {statement.partition(' ON ')[0][7:]}: {error}")
            await connection.execute("RELEASE etl_index")

    async def _number_on(self, connection: Connection) -> None:
        """Let AUTOINCREMENT go on after the source's last number, never before its own."""
        source = self._source
        last = max(
            (c.sequence.last for c in source.columns if c.sequence and c.sequence.last is not None)
            if source is not None
            else (),
            default=None,
        )
        if last is None or await find_table(connection, "sqlite_sequence") is None:
            return
        if await connection.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, self._name)
        ):
            return
        sql = await connection.value(
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?", (self._name,)
        )
        if has_word(str(sql), "AUTOINCREMENT"):
            await connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (self._name, last)
            )

    def _new_key(self, shape: Shape) -> tuple[str, ...]:
        return self.sink.key or shape.key

    def _check(self, final: Table, names: Sequence[str] | None = None) -> None:
        """Refuse a table that does not fit.

        Args:
            names: Columns that will be written; None: all.
        """
        if final.type not in {"table", "virtual"}:
            raise SchemaMismatchError(
                f"{self.label}: {final.name!r} is a {final.type}, not a table. Nothing was written"
            )
        self._checked = final
        if self._shape is not None:
            pairs = self._pairs(final, self._shape.names if names is None else names)
            verdicts = verdicts_of(self._shape.columns, dict(pairs), self.sink.allows)
            refusal = refusal_of(verdicts, where=self.label, table=final.name)
            if refusal is not None:
                raise SchemaMismatchError(refusal)
        if self.sink.mode != "upsert":
            return
        key = self._key_columns(final)
        if final.index_on(key) is None:
            raise SchemaMismatchError(
                f"{self.label}: no unique index is on exactly the key ({', '.join(key)}) of"
                f" {final.name!r}; one with WHERE or over expressions does not count. Nothing was"
                f" written; for example: CREATE UNIQUE INDEX ... ON {quote(final.name)}"
                f" ({quote_all(key)})"
            )
        for name in self.sink.add:
            column = self._existing(final, name)
            if column.affinity == "text":
                raise SchemaMismatchError(
                    f"{self.label}: column {name!r} is declared {column.declared}, and SQLite adds"
                    " texts up as floating-point numbers. Nothing was written; declare it INTEGER,"
                    " NUMERIC or REAL"
                )
        if self._shape is not None:
            self._check_key_names(self._shape.names)

    def _key_columns(self, final: Table) -> tuple[str, ...]:
        return tuple(self._existing(final, name).name for name in self.sink.key)

    def _pairs(self, table: Table, names: Sequence[str]) -> list[tuple[str, TableColumn]]:
        refuse_doubles(names, self.label)
        return self._columns(table, names)

    # -- staging -----------------------------------------------------------------------------

    async def has_staging(self, connection: Connection) -> bool:
        """Whether the staging table is there and still fits its table and the rows that come;
        from then on it must."""
        staged = await find_table(connection, self.staging)
        final = await find_table(connection, self._name)
        self._is_there_for_good = (
            staged is not None and _fits(staged, final) and self._has_all(staged, final)
        )
        return self._is_there_for_good

    def _has_all(self, staged: Table, final: Table | None) -> bool:
        """Whether staged rows have each column that is written: the source may have got one."""
        for name in self._shape.names if self._shape is not None else ():
            column = None if final is None else final.column(name)
            is_written = final is None or (column is not None and not column.generated)
            if is_written and staged.column(name) is None:
                return False
        return True

    async def make_staging(self, connection: Connection) -> None:
        """Make it anew, empty; where the columns are not known yet, the first rows make it."""
        await connection.execute(f"DROP TABLE IF EXISTS {quote(self.staging)}")
        self.forget()
        self._is_there_for_good = False
        if self._shape is not None:
            await self._create_staging(connection, self._shape)

    async def _create_staging(self, connection: Connection, shape: Shape) -> None:
        """For an existing table: the columns that come, with its types, no constraints. For a
        missing one: the table itself under another name."""
        final = await find_table(connection, self._name)
        if final is None:
            self._check_creation()
            key = shape.key if self.sink.mode == "replace" else ()
            await self._make(connection, self.staging, shape, key)
            return
        self._check(final)
        pairs = self._pairs(final, shape.names)
        statement = create_staging(self.staging, [(c.name, c.declared) for _, c in pairs])
        await connection.execute(statement)

    async def publish(self, connection: Connection) -> str | None:
        """Put the staged rows in place, in the open transaction.

        The rows of an existing table are rewritten, so its indexes, triggers, views and rights
        stay.

        Returns:
            The name of the table where its former rows are gone.
        """
        staged = await find_table(connection, self.staging)
        final = await find_table(connection, self._name)
        is_replaced = self.sink.mode == "replace"
        if final is None:
            if staged is not None:
                await connection.execute(
                    f"ALTER TABLE {quote(self.staging)} RENAME TO {quote(self._name)}"
                )
                if self._indexes is None:  # an earlier run made the staging table
                    await self._plan_indexes(connection)
                await self._make_indexes(connection)
                await self._number_on(connection)
                await made.record(connection, self._name, self._pipeline)
            return self._name if is_replaced else None
        self._check(final)
        if staged is not None and not _fits(staged, final):
            raise self._changed_meanwhile(final)
        name = quote(final.name)
        if is_replaced:
            await connection.execute(f"DELETE FROM {name}")  # noqa: S608  a quoted name
        if staged is not None:
            columns = quote_all(staged.names)
            expected = await connection.value(f"SELECT count(*) FROM {quote(self.staging)}")  # noqa: S608
            order = "" if staged.key else " ORDER BY rowid"
            written = await connection.execute(
                f"INSERT INTO {name} ({columns})"  # noqa: S608  quoted names
                f" SELECT {columns} FROM {quote(self.staging)}{order}"
            )
            self._check_count(final, expected, written)
            await connection.execute(f"DROP TABLE {quote(self.staging)}")
        if is_replaced:
            await self._number_on(connection)
            await made.record(connection, self._name, self._pipeline)
        return final.name if is_replaced else None

    async def finish(self, connection: Connection) -> None:
        """End the first load of a table that was made, in the open transaction."""
        if self.is_new and not self.is_staged:
            await self._number_on(connection)
            await made.record(connection, self._name, self._pipeline)

    async def _plan_indexes(self, connection: Connection) -> None:
        """The indexes of a table that an earlier run made: as if it were made again."""
        shape = self._shape
        if shape is None:
            self._indexes = []
            return
        scratch = f"{self.staging}_scratch"
        await self._make(connection, scratch, shape, self._new_key(shape))
        await connection.execute(f"DROP TABLE {quote(scratch)}")

    # -- rows --------------------------------------------------------------------------------

    def forget(self) -> None:
        """Look at the tables again before the next row."""
        self._into = None
        self._schema_version = None
        self._plans.clear()

    def committed(self) -> None:
        """The transaction is in, and with it the table that it made."""
        self._is_there_for_good = self._is_there_for_good or self._into is not None

    async def write(
        self, connection: Connection, batches: Sequence[Batch[Any]], check: Callable[[], None]
    ) -> int:
        """Write the rows of a group, in the open transaction; return how many.

        Args:
            check: Called between slices; raises where the transaction is gone or given up.

        Raises:
            DataError: A row does not fit or is refused.
        """
        written = 0
        version = await connection.value("PRAGMA schema_version")
        if version != self._schema_version:
            self.forget()
        for batch in batches:
            rows = batch.rows
            if not rows:
                continue
            statement, binder = await self._plan(connection, rows)
            before = written
            for first in range(0, len(rows), SLICE):
                check()
                part = rows if len(rows) <= SLICE else rows[first : first + SLICE]
                try:
                    written += await self._write(connection, statement, binder, part, first)
                except DataError as error:
                    error.row = None if error.row is None else before + error.row
                    raise
                failpoints.hit("lane.mid_copy")
        check()
        return written

    async def _write(
        self,
        connection: Connection,
        statement: str,
        binder: Binder,
        rows: Sequence[Any],
        first: int,
    ) -> int:
        changes = connection.total_changes
        lines = binder.bare_lines(rows) if self._makes_values else None
        try:
            if lines is not None:
                changed = await self._write_lines(connection, statement, binder, lines)
            else:
                changed = await connection.execute_many(
                    statement, self._tuples(binder, rows, first)
                )
        except DataError as error:
            if error.row is None and lines is None:
                # SQLite does not say which row it refused: those before it are in. Triggers may
                # have changed rows too, so it is only where to look first.
                error.row = first + min(connection.total_changes - changes, len(rows) - 1)
            elif error.row is not None and isinstance(rows, FileRows):
                raise DataError(
                    f"{place_of(rows, error.row - first)}{error}",
                    column=error.column,
                    row=error.row,
                    reason=error.reason,
                    detail=error.detail,
                ) from error
            raise
        except (OverflowError, UnicodeEncodeError) as error:
            # The driver does not say which value it could not take.
            binder.refuse_unstorable(rows, first)
            raise DataError(f"{self.label}: a value cannot be stored ({error})") from error
        assert self._into is not None
        if not statement.endswith(_NOTHING):
            self._check_count(self._into, len(rows), changed)
        return len(rows)

    @property
    def _makes_values(self) -> bool:
        """Whether the table's affinities are applied to what is inserted, and nothing else asked.

        A virtual table gets values as they are bound.
        """
        return self.sink.mode != "upsert" and self._into is not None and self._into.type == "table"

    async def _write_lines(
        self, connection: Connection, statement: str, binder: Binder, lines: Sequence[str]
    ) -> int:
        """Insert many rows by each statement: less than half the time of one by one."""
        many = max(1, _VALUES_AT_ONCE // len(binder.columns))
        whole = len(lines) // many * many
        changed = 0
        if whole:
            marks = statement[statement.rindex("(") :]
            together = (bare_values(lines[at : at + many]) for at in range(0, whole, many))
            several = statement + f", {marks}" * (many - 1)
            changed = await connection.execute_many(several, together)
        if whole < len(lines):
            alone = (bare_values(lines[at : at + 1]) for at in range(whole, len(lines)))
            changed += await connection.execute_many(statement, alone)
        return changed

    def _tuples(self, binder: Binder, rows: Sequence[Any], first: int) -> Iterator[tuple[Any, ...]]:
        """The rows to bind; converted on the connection's thread, as it takes them.

        Raises:
            DataError: NULL in the key of an upsert: it equals nothing, so such a row would be
                inserted each time.
        """
        if self.sink.mode != "upsert":
            yield from binder.tuples(rows, first)
            return
        tuples = list(binder.tuples(rows, first))
        columns = [column.name for column in binder.columns]
        assert self._into is not None
        for name in self._key_columns(self._into):
            place = columns.index(name)
            values = [row[place] for row in tuples]
            if None in values:
                number = first + values.index(None)
                raise DataError(
                    f"{self.label}: the key column {name!r} is None in row {number + 1} of the"
                    " batch. Nothing of this group was written",
                    column=name,
                    row=number,
                    reason="NULL in the key",
                )
        yield from tuples

    def _check_count(self, table: Table, expected: int, written: int) -> None:
        if written != expected and table.type == "table":
            raise DataError(
                f"{self.label}: SQLite kept {written} of {expected} rows; a trigger on"
                f" {table.name!r} dropped the others with RAISE(IGNORE). Nothing of this"
                " transaction was kept",
                reason="a trigger of the table drops the row",
            )

    async def _plan(self, connection: Connection, rows: Sequence[Any]) -> tuple[str, Binder]:
        """The statement and the binder for rows with these columns."""
        names = names_of(rows, self.label)
        if self._into is None:
            self._into = await self._open_table(connection, rows, names)
            # Making the table has changed it.
            self._schema_version = await connection.value("PRAGMA schema_version")
        plan = self._plans.get(names)
        if plan is None:
            pairs = self._pairs(self._into, names)
            number = await self._row_number(connection)
            binder = Binder(
                self.label,
                [name for name, _ in pairs],
                [
                    replace(
                        column,
                        is_number=column.name == number,
                        is_loose=self.sink.allows(name),
                    )
                    for name, column in pairs
                ],
            )
            statement = self._statement(self._into, [column for _, column in pairs])
            plan = self._plans[names] = (statement, binder)
        return plan

    async def _row_number(self, connection: Connection) -> str | None:
        """The column that numbers the rows of the table itself, also where these are staged."""
        final = await find_table(connection, self._name)
        return final.row_number if final is not None else None

    async def _open_table(
        self, connection: Connection, rows: Sequence[Any], names: Sequence[str]
    ) -> Table:
        """The table that rows go into: the staging table, or the final one; made if missing."""
        name = self.staging if self.is_staged else self._name
        table = await find_table(connection, name)
        if table is None:
            if self._is_there_for_good:
                raise SchemaMismatchError(
                    f"{self.label}: the table {name!r} was dropped or renamed during the run, and"
                    " rows of it are not here any more. This group was rolled back; run again"
                    + (", and the load starts from the beginning" if self.is_staged else "")
                )
            shape = self._shape
            if shape is None:
                final = await find_table(connection, self._name)
                shape = self._shape_of(rows, names, final)
            if self.is_staged:
                await self._create_staging(connection, shape)
            else:
                self._check_creation()
                await self._create(connection, shape)
            table = await find_table(connection, name)
            assert table is not None
        if not self.is_staged:
            self._check(table)
        if self.sink.mode == "upsert":
            self._check_key_names(names)
        return table

    def _shape_of(self, rows: Sequence[Any], names: Sequence[str], final: Table | None) -> Shape:
        """The columns of a table to make, as the first rows tell them."""
        layout = layout_of(rows)
        if layout is not None:
            return Shape(columns=layout.shown)
        kind = kind_of(rows[0])
        if is_dataclass(kind):
            return shape_of(kind)
        if final is not None:
            by_name = {column.name: column for column in final.shape.columns}
            pairs = self._pairs(final, names)
            return Shape(columns=tuple(by_name[column.name] for _, column in pairs))
        first: Any = rows[0]
        values = list(first.values()) if issubclass(kind, Mapping) else list(first)
        raise SchemaMismatchError(
            f"{self.label}: the table does not exist, and rows of type {kind.__name__} do"
            " not tell the types of its columns. Nothing was written; make it, for example:\n"
            + suggest_table(self._name, names, values, self.sink.key)
        )

    def _statement(self, table: Table, columns: Sequence[TableColumn]) -> str:
        names = [column.name for column in columns]
        marks = ", ".join("?" * len(names))
        insert = f"INSERT INTO {quote(table.name)} ({quote_all(names)}) VALUES ({marks})"  # noqa: S608
        if self.sink.mode != "upsert":
            return insert
        key = self._key_columns(table)
        add = {self._existing(table, name).name for name in self.sink.add}
        changes = [
            f"{c} = coalesce({c}, 0) + coalesce(excluded.{c}, 0)"
            if name in add
            else f"{c} = excluded.{c}"
            for name in names
            if name not in key
            for c in (quote(name),)
        ]
        action = f" DO UPDATE SET {', '.join(changes)}" if changes else _NOTHING
        return f"{insert} ON CONFLICT ({quote_all(key)}){action}"


_NOTHING = " DO NOTHING"


def _fits(staged: Table, final: Table | None) -> bool:
    """Whether staged rows go into the table, or in its place, with the values that they have."""
    if final is None:
        return True
    of_final = {column.name: staged_type(column.declared) for column in final.columns}
    return all(of_final.get(column.name) == column.declared for column in staged.columns)


def gone(where: str) -> TargetUnavailableError:
    """The transaction ended by itself: SQLite does that on some errors, without a word."""
    return TargetUnavailableError(
        f"{where}: SQLite has rolled the transaction back by itself; nothing of it was kept"
    )
