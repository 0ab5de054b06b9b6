"""How one sink gets its rows into its table: append, upsert, or through a staging table.

Making and dropping tables ends a transaction in MySQL. So it never happens in a lane's transaction:
it has a connection of its own, and stands after the checkpoint that it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, is_dataclass, replace
from sys import getsizeof
from typing import Any, TypeAlias

from etl.batch import Batch
from etl.connector import Sink
from etl.databases.generic import made
from etl.databases.generic.connect import LONG_S, Connection
from etl.databases.generic.ddl import (
    Plan,
    add_columns,
    add_foreign_key,
    create_staging,
    create_table,
    plan_table,
    staging_columns,
)
from etl.databases.generic.encode import Encoder, accepts
from etl.databases.generic.table import ROW, STAGING, Table, TableColumn
from etl.databases.given import kind_of, layout_of, names_of
from etl.databases.loading import BaseLoad
from etl.databases.sql import OWN_TABLES, split_name
from etl.engine import failpoints
from etl.errors import ConfigError, DataError, SchemaMismatchError
from etl.rows import Shape, Type, shape_of

_SLICE = 5_000
"""Rows of one call of the driver."""

Ddl: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]
"""A connection on which tables can be made while another has a transaction open; one at a time."""


async def run_ddl(connection: Connection, sql: str) -> None:
    """Make, change or drop a table, outside of a transaction: in MySQL it would end that."""
    await connection.rollback()
    await connection.execute(sql, timeout_s=LONG_S)
    await connection.commit()


def staging_base(table: str) -> str:
    """What the names of a table's staging tables begin with."""
    if len(table) > 40:  # a name has 64 characters at most
        table = table[:31] + "_" + hashlib.sha256(table.encode()).hexdigest()[:8]
    return table + STAGING


@dataclass(frozen=True, slots=True)
class _Way:
    """How rows with some columns go into a table."""

    names: tuple[str, ...]
    columns: tuple[str, ...]
    encoder: Encoder


class Load(BaseLoad[TableColumn]):
    """See :class:`etl.databases.loading.BaseLoad`.

    Attributes:
        is_building: etl made the table, and foreign keys may be missing.
    """

    def __init__(self, sink: Sink[Any], *, pipeline: str, flow: str, ddl: Ddl) -> None:
        self.schema, self.name = split_name(sink.table)
        super().__init__(sink, flow=flow, pipeline=pipeline, staging=staging_base(self.name))
        if self.name.lower() in OWN_TABLES:
            raise ConfigError(f"{self.label}: a table of that name is etl's own; choose another")
        self.is_building = False
        self._ddl = ddl
        self._into: Table | None = None
        self._ways: dict[tuple[str, ...], _Way] = {}
        self._temporary_for: tuple[int, tuple[str, ...]] | None = None

    # -- before the first row ----------------------------------------------------------------

    async def prepare(
        self, connection: Connection, shape: Shape | None, *, resumable: bool
    ) -> Sequence[str]:
        """Check the table, or make it where that is allowed and its columns are known.

        Raises:
            SchemaMismatchError: It does not fit.
        """
        final = await self._look_up(connection, shape, resumable=resumable)
        if final is None:
            if self.is_staged or shape is None:
                return []
            final = await self._create(connection, shape)
        await self._check_own(connection, final)
        final = await self._add_columns(connection, final)
        self._check(connection, final)
        state = await made.state_of(connection, self.qualified(connection))
        self.is_building = state == "building"
        await connection.rollback()
        return self._told(final)

    async def look(
        self, connection: Connection, shape: Shape | None, *, resumable: bool, knows_own: bool
    ) -> Table | None:
        """Check the table as it stands, and change nothing; None where it is to be made.

        Args:
            knows_own: etl's own tables are there, which tell what etl has made.

        Raises:
            SchemaMismatchError: It does not fit, or must not be made.
        """
        final = await self._look_up(connection, shape, resumable=resumable)
        if final is not None:
            await self._check_own(connection, final, knows_own=knows_own)
            self._check(connection, final, self._kept(final))
        return final

    async def _look_up(
        self, connection: Connection, shape: Shape | None, *, resumable: bool
    ) -> Table | None:
        """The table; None where it is missing, and may be made."""
        if self.sink.lossy:
            raise SchemaMismatchError(
                f"{self.label}: lossy= (--allow-lossy) is for PostgreSQL and SQLite targets; here"
                " every value arrives exactly or is refused. Nothing was written; leave it out, and"
                " convert such columns in the source with cast(...) or in a function"
            )
        self._take_shape(shape, resumable=resumable)
        final = await self.find(connection)
        if final is None:
            if not self.sink.create:
                raise self._not_there(connection)
            if shape is not None:
                self._check_key_names(shape.names)
                connection.dialect.check_names(self.name, shape.names, self.label)
                self.plan(connection, shape)  # refuses what has no type here
        elif self.sink.schema_change == "evolve":
            added = [column.name for column in self._lacking(final)]
            connection.dialect.check_names(self.name, added, self.label)
        return final

    async def _add_columns(self, connection: Connection, final: Table) -> Table:
        """Give the table what the rows have and it lacks, where the sink asks for that."""
        self._added = ()
        missing = self._lacking(final)
        if self.sink.schema_change != "evolve" or not missing or final.type != "table":
            return final
        have = [name for name in self._names if final.column(name) is not None]
        self._check(connection, final, have)  # what is added stays, whatever comes then
        statement = add_columns(
            connection.dialect, self.qualified(connection), missing, self._source, self.label
        )
        await self._make(connection, statement)
        self._added = tuple(column.name for column in missing)
        found = await self.find(connection)
        assert found is not None
        return found

    def qualified(self, connection: Connection) -> str:
        """The quoted name of the table."""
        return connection.dialect.qualify(self.schema, self.name)

    def staged(self, connection: Connection) -> str:
        """The quoted name of the staging table."""
        return connection.dialect.qualify(self.schema, self.staging)

    async def find(self, connection: Connection) -> Table | None:
        """The table as it is."""
        return await connection.dialect.find_table(connection, self.schema, self.name)

    async def _find_staging(self, connection: Connection) -> Table | None:
        return await connection.dialect.find_table(connection, self.schema, self.staging)

    async def wants_profile(self, connection: Connection, shape: Shape) -> bool:
        """Whether the table, or columns of it, will be made by what the rows hold."""
        own = connection.dialect.name
        if all(c.type.dialect == own for c in shape.columns if c.type.kind == "dynamic"):
            return False  # by their names
        final = await self.find(connection)
        if final is None:
            return self.sink.create
        return self.lacks_columns(final, shape)

    def _not_there(self, connection: Connection) -> SchemaMismatchError:
        statement: str | None = None
        if self._shape is not None:
            plan = self.plan(connection, self._shape)
            statement = create_table(connection.dialect, self.qualified(connection), plan)
        return self._may_not_make(statement)

    async def _check_own(
        self, connection: Connection, final: Table, *, knows_own: bool = True
    ) -> None:
        """Refuse to replace somebody else's rows, where the sink asks for that."""
        if self.sink.mode != "replace" or not self.sink.own_only:
            return
        name = self.qualified(connection)
        if knows_own and await made.state_of(connection, name) is not None:
            return
        if await connection.fetch(f"SELECT 1 FROM {name} LIMIT 1"):  # noqa: S608
            raise self._not_own(final)

    def plan(self, connection: Connection, shape: Shape) -> Plan:
        """The table that would be made."""
        key = self.sink.key or shape.key
        plan = plan_table(connection.dialect, shape, key, self.sink.key, self._source, self.label)
        self.notes = list(plan.notes)
        return plan

    async def _create(self, connection: Connection, shape: Shape) -> Table:
        plan = self.plan(connection, shape)
        await connection.rollback()
        await self._make(
            connection, create_table(connection.dialect, self.qualified(connection), plan)
        )
        found = await self.find(connection)
        assert found is not None
        name = self.qualified(connection)
        state = "building" if plan.foreign_keys else "made"
        await made.record(connection, name, self._pipeline, state)  # type: ignore[arg-type]
        await connection.commit()
        return found

    def _check(
        self, connection: Connection, final: Table, names: Sequence[str] | None = None
    ) -> None:
        """Refuse a table into which rows with these columns (all of theirs) cannot go."""
        connection.dialect.check_target(final, self.label)
        self._checked = final
        if self._shape is not None:
            self._columns(final, self._names if names is None else names)
            for column in self._shape.columns:
                target = final.column(column.name)
                if target is not None and not target.generated:
                    if not accepts(column.type, target):
                        raise SchemaMismatchError(
                            f"{self.label}: column {column.name!r} is {_named(column.type)} in the"
                            f" rows and {target.type.name} in the table {final.name!r}, and there"
                            " is no exact way from the one to the other. Nothing was written;"
                            " convert it in a function, or change the table"
                        )
            self._check_key_names(self._shape.names)
        if self.sink.mode != "upsert":
            return
        for name in (*self.sink.key, *self.sink.add):
            self._existing(final, name)
        if not final.has_index_on(self.sink.key):
            keys = ", ".join(map(connection.dialect.quote, self.sink.key))
            raise SchemaMismatchError(
                f"{self.label}: no unique index is on exactly the key"
                f" ({', '.join(self.sink.key)}) of {final.name!r}; one over prefixes or expressions"
                " does not count. Nothing was written; for example: CREATE UNIQUE INDEX ... ON"
                f" {self.qualified(connection)} ({keys})"
            )

    # -- staging -----------------------------------------------------------------------------

    async def has_staging(self, connection: Connection) -> bool:
        """Whether the staging table is there and still fits its table."""
        staged = await self._find_staging(connection)
        return staged is not None and self._fits(staged, await self.find(connection))

    def _fits(self, staged: Table, final: Table | None) -> bool:
        """Whether it holds all that rows bring, in the types of the table."""
        brought = self._names
        if final is not None:
            brought = tuple(name for name, _ in staging_columns(final, self._names))
        if not set(brought) <= set(staged.names):
            return False
        if final is None:
            return True
        have = {column.name: column.declared for column in final.columns}
        return all(
            have.get(column.name) == column.declared
            for column in staged.columns
            if column.name != ROW
        )

    async def make_staging(self, connection: Connection) -> None:
        """Make it anew, empty; where the columns are not known yet, the first rows make it.

        Called when the checkpoint that says "from the beginning" is committed: a crash between
        the two makes the next run do the same.
        """
        self.forget()
        await run_ddl(connection, f"DROP TABLE IF EXISTS {self.staged(connection)}")
        if self._shape is not None:
            await self._create_staging(connection, self._shape)

    async def _create_staging(self, connection: Connection, shape: Shape) -> None:
        final = await self.find(connection)
        await connection.rollback()
        if final is not None:
            self._check(connection, final)
            columns = staging_columns(final, shape.names)
        else:
            plan = self.plan(connection, shape)
            columns = [(name, declared) for name, declared, _ in plan.columns]
        await self._make(
            connection, create_staging(connection.dialect, self.staged(connection), columns)
        )

    async def _make(self, connection: Connection, statement: str) -> None:
        """Make a table, or add columns to it.

        Raises:
            SchemaMismatchError: The server has no such table.
        """
        try:
            await run_ddl(connection, statement)
        except SchemaMismatchError as error:
            why = str(error).rstrip(".")
            raise SchemaMismatchError(
                f"{self.label}: the table {self.name!r} cannot be made so: {why}. No row was"
                " written to it; make it by hand, or change the columns with select(...) or"
                " cast(...)"
            ) from error

    async def make_final(self, connection: Connection) -> Table | None:
        """Before a publication: the table that staged rows go into, made where it is missing."""
        final = await self.find(connection)
        if final is None and self._shape is not None:
            final = await self._create(connection, self._shape)
        elif final is None:
            staged = await self._find_staging(connection)
            if staged is not None:
                columns = tuple(c.column for c in staged.columns if c.name != ROW)
                final = await self._create(connection, Shape(columns=columns))
        await connection.rollback()
        return final

    async def empty(self, connection: Connection) -> None:
        """Throw the rows away that a ``replace`` replaces, in the open transaction."""
        if self.sink.mode == "replace" and await self.find(connection) is not None:
            name = self.qualified(connection)
            await connection.execute(f"DELETE FROM {name}", timeout_s=LONG_S)  # noqa: S608

    async def pour(self, connection: Connection) -> Table | None:
        """Put the staged rows into the table, in the open transaction; the table.

        Raises:
            DataError: A constraint of the table refuses one.
            SchemaMismatchError: The table was changed meanwhile.
        """
        staged = await self._find_staging(connection)
        final = await self.find(connection)
        if final is None:
            return None
        self._check(connection, final)
        if staged is None and self._shape is not None:  # else only a first row makes it
            raise SchemaMismatchError(
                f"{self.label}: the staging table {self.staging!r} is gone. Nothing was replaced;"
                " run again, and the load starts from the beginning"
            )
        if staged is not None:
            if not self._fits(staged, final):
                raise self._changed_meanwhile(final)
            quote = connection.dialect.quote
            columns = ", ".join(quote(name) for name in staged.names if name != ROW)
            into, origin = self.qualified(connection), self.staged(connection)
            expected = await connection.value(f"SELECT COUNT(*) FROM {origin}")  # noqa: S608
            written = await connection.execute(
                f"INSERT INTO {into} ({columns}) SELECT {columns} FROM {origin}"  # noqa: S608
                f" ORDER BY {quote(ROW)}",
                timeout_s=LONG_S,
            )
            self._check_count(final, int(expected), written)
        if self.sink.mode == "replace":
            name = self.qualified(connection)
            is_new = await made.state_of(connection, name) == "building"
            if not is_new:
                await made.record(connection, name, self._pipeline)
        return final

    async def drop_staging(self, connection: Connection) -> None:
        """After a publication."""
        await run_ddl(connection, f"DROP TABLE IF EXISTS {self.staged(connection)}")

    async def build(self, connection: Connection) -> None:
        """Add the foreign keys that a table which etl made is to have.

        Raises:
            DataError: The rows break one.
        """
        name = self.qualified(connection)
        final = await self.find(connection)
        if final is None or await made.state_of(connection, name) != "building":
            await connection.rollback()
            return
        there = await connection.dialect.foreign_keys(connection, self.schema, self.name)
        await connection.rollback()
        have = {(key.columns, key.table) for key in there}
        for given in self._source.foreign_keys if self._source is not None else ():
            key = given
            if not key.is_plain:
                continue  # told when the table was made
            if (key.columns, key.table) in have or not set(key.columns) <= set(final.names):
                continue
            if not key.references:
                other = await connection.dialect.find_table(connection, key.schema, key.table)
                key = replace(key, references=other.key if other is not None else ())
            try:
                await run_ddl(connection, add_foreign_key(connection.dialect, name, key))
            except DataError as error:
                raise DataError(
                    f"{self.label}: the rows break the foreign key {key.name!r} to {key.table!r}:"
                    f" {error}",
                    reason=error.reason,
                ) from error
            except SchemaMismatchError as error:
                self.notes.append(f"not carried: the foreign key {key.name!r}: {error}")
        await made.record(connection, name, self._pipeline)
        await connection.commit()

    # -- rows --------------------------------------------------------------------------------

    def forget(self) -> None:
        """Look at the tables again before the next row."""
        self._into = None
        self._ways.clear()
        self._temporary_for = None

    async def get_ready(self, connection: Connection) -> None:
        """Before a transaction: what an upsert needs of its session."""
        if self.sink.mode != "upsert" or self._shape is None:
            return
        await self._open(connection, (), self._shape.names)
        await self._make_temporary(connection, self._way(connection, self._shape.names))

    async def _make_temporary(self, connection: Connection, way: _Way) -> None:
        of = (id(connection), way.columns)
        if self._temporary_for != of:
            assert self._into is not None
            await connection.dialect.before_upsert(
                connection, self._into, way.columns, self.sink.key
            )
            self._temporary_for = of

    async def write(self, connection: Connection, batches: Sequence[Batch[Any]]) -> int:
        """Write the rows of a group, in the open transaction; return how many.

        Raises:
            DataError: A row does not fit or is refused.
        """
        written = 0
        for batch in batches:
            rows = batch.rows
            if not len(rows):
                continue
            names = names_of(rows, self.label)
            into = await self._open(connection, rows, names)
            way = self._way(connection, names)
            for first in range(0, len(rows), _SLICE):
                part = rows if len(rows) <= _SLICE else rows[first : first + _SLICE]
                try:
                    tuples = way.encoder.tuples(part)
                    self._check_size(connection, tuples, way)
                    await self._send(connection, into, way, tuples)
                except DataError as error:
                    if error.row is not None:
                        error.row += written
                    raise
                written += len(tuples)
                failpoints.hit("lane.mid_copy")
        return written

    async def _send(
        self,
        connection: Connection,
        into: Table,
        way: _Way,
        tuples: Sequence[tuple[Any, ...]],
    ) -> None:
        dialect = connection.dialect
        try:
            if self.sink.mode == "upsert":
                self._refuse_null_keys(way, tuples)
                await self._make_temporary(connection, way)
                key, add = self.sink.key, self.sink.add
                await dialect.upsert(connection, into, way.columns, key, add, tuples)
            else:
                count = await dialect.insert(connection, into, way.columns, tuples)
                self._check_count(into, len(tuples), count)
        except DataError as error:
            if error.row is not None or str(error).startswith(self.label):
                raise
            raise DataError(
                f"{self.label}: {error.reason}. Nothing of this group was written",
                column=error.column,
                reason=error.reason,
            ) from error

    def _check_size(
        self, connection: Connection, tuples: Sequence[tuple[Any, ...]], way: _Way
    ) -> None:
        """Refuse a row that the server's packets cannot hold: it would cut the connection."""
        limit = connection.dialect.row_limit(connection)
        if limit is None or not tuples:
            return
        for number, row in enumerate(tuples):
            size = sum(getsizeof(v) for v in row if v.__class__ is str or v.__class__ is bytes)
            if size * 2 < limit:
                continue
            sent = 1024 + sum(_sent_bytes(value) for value in row)
            if sent > limit:
                raise DataError(
                    f"{self.label}: row {number + 1} of the batch has {sent:,} bytes as it is"
                    f" sent, and the server's max_allowed_packet is {limit:,}. Nothing of this"
                    " group was written; raise it on the server, and run again",
                    row=number,
                    reason="it is larger than the server's max_allowed_packet",
                )

    def _refuse_null_keys(self, way: _Way, tuples: Sequence[tuple[Any, ...]]) -> None:
        for name in self.sink.key:
            place = way.columns.index(name)
            for number, row in enumerate(tuples):
                if row[place] is None:
                    raise DataError(
                        f"{self.label}: the key column {name!r} is None in row {number + 1} of the"
                        " batch. Nothing of this group was written",
                        column=name,
                        row=number,
                        reason="NULL in the key",
                    )

    def _check_count(self, table: Table, expected: int, written: int) -> None:
        if written not in {expected, -1}:
            raise DataError(
                f"{self.label}: the table {table.name!r} took {written} of {expected} rows. Nothing"
                " of this transaction was kept",
                reason="the table drops the row",
            )

    def _way(self, connection: Connection, names: tuple[str, ...] | Sequence[str]) -> _Way:
        names = tuple(names)
        way = self._ways.get(names)
        if way is None:
            assert self._into is not None
            pairs = self._columns(self._into, names)
            if self.sink.mode == "upsert":
                self._check_key_names(names)
            way = self._ways[names] = _Way(
                names=names,
                columns=tuple(column.name for _, column in pairs),
                encoder=Encoder(
                    self.label,
                    [name for name, _ in pairs],
                    [column for _, column in pairs],
                    connection.dialect.bind,
                ),
            )
        return way

    async def _open(
        self, connection: Connection, rows: Sequence[Any], names: Sequence[str]
    ) -> Table:
        """The table that rows go into: the staging table, or the final one; made if missing.

        It is made on another connection, so that the open transaction is not ended by that.
        """
        if self._into is not None:
            return self._into
        look = self._find_staging if self.is_staged else self.find
        table = await look(connection)
        if table is None:
            shape = self._shape
            if shape is None:
                shape = await self._shape_of(connection, rows, names)
            if not self.is_staged and not self.sink.create:
                raise self._not_there(connection)
            async with self._ddl() as other:
                if await look(other) is None:  # no other lane has made it meanwhile
                    await (self._create_staging if self.is_staged else self._create)(other, shape)
            table = await look(connection)
            if table is None:
                raise SchemaMismatchError(f"{self.label}: its table is gone; run again")
        if not self.is_staged:
            self._check(connection, table)
        self._into = table
        return table

    async def _shape_of(
        self, connection: Connection, rows: Sequence[Any], names: Sequence[str]
    ) -> Shape:
        """The columns of a table to make, as the first rows tell them."""
        layout = layout_of(rows)
        if layout is not None:
            return Shape(columns=layout.columns)
        kind = kind_of(rows[0])
        if is_dataclass(kind):
            return shape_of(kind)
        final = await self.find(connection)
        if final is not None:
            pairs = self._columns(final, names)
            return Shape(columns=tuple(column.column for _, column in pairs))
        raise SchemaMismatchError(
            f"{self.label}: the table does not exist, and rows of type {kind.__name__} do not tell"
            f" the types of its columns ({', '.join(names)}). Nothing was written; make it, or"
            " return a dataclass"
        )


def _sent_bytes(value: Any) -> int:
    """How much of a packet a value takes at most: some characters are escaped."""
    if value.__class__ is bytes:
        return len(value) + sum(value.count(one) for one in b"\0\n\r\\'\"\x1a") + 16
    if value.__class__ is str:
        return len(value.encode("utf-8", "replace")) + sum(map(value.count, "\0\n\r\\'\"\x1a")) + 8
    return 64


def _named(type_: Type) -> str:
    return type_.name or type_.kind
