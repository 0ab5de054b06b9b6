"""How one sink gets its rows into its table: append, upsert, or through a staging table."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import asyncpg

from etl.arrow.rows import ArrowRows, joined_tables
from etl.batch import Batch
from etl.connector import Sink
from etl.databases.definition import IndexDefinition, TableDefinition
from etl.databases.drift import told_added, told_ignored, told_lost
from etl.databases.given import names_of
from etl.databases.postgres import make, staging
from etl.databases.postgres.adapt import adapted
from etl.databases.postgres.arrow import arrow_payloads, texts_of
from etl.databases.postgres.asking import ask, fields_of
from etl.databases.postgres.catalogue import Relation, find_oids, find_relation, fingerprint
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.copying import Chunk, check_kept, copy_in
from etl.databases.postgres.describe import describe
from etl.databases.postgres.frames import HEADER, TRAILER, fitted, unfit_column
from etl.databases.postgres.guard import GROUP_S
from etl.databases.postgres.lines import (
    Encoder,
    WideFields,
    columns_of,
    payload,
)
from etl.databases.postgres.made import Made, State
from etl.databases.postgres.merging import Merger
from etl.databases.postgres.order import check_rewrite
from etl.databases.postgres.tables import (
    check_columns,
    check_target,
    check_types,
    definition_of,
    missing_table,
)
from etl.databases.sql import qualify, quote_all, split_name
from etl.databases.types import LooseColumn
from etl.databases.ways import fit
from etl.engine.threads import in_thread
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Column, Frames, Layout, Lines, Shape, TextRows, Type, shape_of


class Load:
    """One sink of a session.

    Invariant: what is remembered of the database here was committed, or belongs to the
    transaction that is open; :meth:`forget` drops it after a rollback.

    Attributes:
        staged: Rows go into a staging table, which is published at the end of the run.
        is_published: They are in place, while other flows of the run go on.
        described: The tables of the target that are replaced, by oid, as they were looked at last.
        notes: What could not be made as the source has it.
    """

    def __init__(
        self,
        sink: Sink[Any],
        pipeline: str,
        flow: str,
        default_schema: str,
        kept: set[str],
        *,
        each: bool = False,
        joins: bool = False,
    ) -> None:
        """Make one.

        Args:
            kept: Staging tables with rows that are in; shared by the lanes of a run. From then on
                they must exist.
            each: It is published by itself, when its flow has ended.
            joins: This is a worker process: its run has made and checked what there is to.
        """
        self.sink = sink
        self.flow = flow
        self.label = f"sink {sink.table!r}"
        self.staged = sink.mode == "replace"
        self.is_published = False
        self._each = each
        self._joins = joins
        schema, self._name = split_name(sink.table)
        self._schema = schema or default_schema
        self._staging = staging.staging_name(self._name, sink.mode, f"{pipeline}\n{flow}")
        self.notes: list[str] = []
        self._source = sink.definition if isinstance(sink.definition, TableDefinition) else None
        self._made = Made(default_schema, pipeline)
        self._added: tuple[str, ...] = ()
        self._definition: TableDefinition | None = None
        self._shape: Shape | None = None
        self._checked: Relation | None = None
        self._into: Relation | None = None
        self._fingerprint: str | None = None
        self._encoder: Encoder | None = None
        self._known: Layout | None = None  # of tables of Arrow whose types were checked
        self._asked: dict[int, Column] = {}
        self._names: tuple[str, ...] = ()
        self._is_checked = False
        self._may_drop_rows = False
        self._merger = Merger(self.label, sink.key, sink.add) if sink.mode == "upsert" else None
        self._marked: tuple[Any, ...] = ()
        self._kept = kept
        self._is_unfinished = False  # its foreign keys are still to be made
        self.described: Mapping[int, TableDefinition] = {}

    # --- before the first row ---

    async def prepare(
        self,
        connection: Connection,
        shape: Shape | None,
        *,
        resumable: bool,
        together: Sequence[int] = (),
    ) -> Sequence[str]:
        """Check the table, or make it where that is allowed and its columns are known.

        Args:
            together: Tables that the run replaces by renaming, all in one transaction.
        """
        # Taken before the table is looked at: what is changed after this look is seen then.
        looked_at = await fingerprint(connection, self._qualified(self.sink.table))
        final = await self._find(connection, shape, resumable=resumable)
        if self._joins and self.staged:
            await self.has_staging(connection)  # where it is there, it must stay
        if final is not None and looked_at is None:
            # Another lane or flow has made it between the two looks.
            looked_at = await fingerprint(connection, final.qualified)
            final = await self._final(connection)
        if final is not None and (added := await self._add_columns(connection, final)):
            final = added
            looked_at = await fingerprint(connection, final.qualified)
        if final is None:
            if self.sink.mode == "replace" or self._shape is None:
                return []
            final = await self._create_final(connection, self._shape)
            looked_at = await fingerprint(connection, final.qualified)
        self._check(final)
        if not self._joins:  # which tables are replaced together, only the run itself knows
            await self._check_replacing(connection, final, together)
        if not self.staged:
            self._into, self._fingerprint = final, looked_at
        return self.told(final)

    async def look(
        self,
        connection: Connection,
        shape: Shape | None,
        *,
        resumable: bool,
        together: Sequence[int] = (),
    ) -> Relation | None:
        """Check the table as it stands, and change nothing; None where it is to be made.

        Raises:
            SchemaMismatchError: It does not fit, or must not be made.
        """
        final = await self._find(connection, shape, resumable=resumable)
        if final is not None:
            names = shape.names if shape is not None else ()
            if self.sink.schema_change != "freeze":  # a run would add them, or leave them out
                names = tuple(name for name in names if name in final.by_name)
            self._check(final, names)
            await self._check_replacing(connection, final, together)
        return final

    async def _find(
        self, connection: Connection, shape: Shape | None, *, resumable: bool
    ) -> Relation | None:
        """The table; None where it is missing, and may be made."""
        sink = self.sink
        self.staged = sink.mode == "replace" or (sink.mode == "append" and not resumable)
        self._shape = shape
        final = await self._final(connection)
        if final is None and not sink.create:
            raise SchemaMismatchError(
                f"{self.label}: the table does not exist, and create=False forbids to make it."
                " Nothing was written"
            )
        return final

    async def _check_replacing(
        self, connection: Connection, final: Relation, together: Sequence[int]
    ) -> None:
        """Refuse to replace what must stay."""
        sink = self.sink
        if sink.mode == "replace":
            await self._check_own(connection, final)
        if sink.mode == "replace" and sink.swap == "rename":
            await staging.check_rename(connection, final, self._staging, self.label, together)
        elif sink.mode == "replace":
            await check_rewrite(connection, final, self.label, together)

    async def _add_columns(self, connection: Connection, final: Relation) -> Relation | None:
        """Give the table what the rows have and it lacks, where the sink asks for that."""
        missing = self._lacking(final)
        if not missing or self.sink.schema_change != "evolve":
            return None
        await connection.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", make.DDL_LOCK)
        new = Shape(columns=missing)
        kept, planned = len(self.notes), self._definition
        definition = await self._plan_table(connection, new)
        del self.notes[kept:]  # they are about the table as a whole
        self._definition = planned
        await make.add_columns(connection, definition, final.qualified, self.label)
        self._added = tuple(column.name for column in missing)
        return await self._final(connection)

    def _lacking(self, final: Relation) -> tuple[Column, ...]:
        """The rows' columns that a table has not, as far as they are known."""
        have = final.by_name
        columns = self._shape.columns if self._shape is not None else ()
        return tuple(column for column in columns if column.name not in have)

    def lacks_columns(self, final: Relation, shape: Shape) -> bool:
        """Whether the sink will add columns for rows of a shape."""
        have = final.by_name
        return self.sink.schema_change == "evolve" and any(n not in have for n in shape.names)

    def _taken(self, table: Relation, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the rows' columns that are to be written."""
        if self.sink.schema_change != "ignore":
            return tuple(names)
        have = table.by_name
        return tuple(name for name in names if name in have)

    @property
    def frame_columns(self) -> Sequence[Column] | None:
        """The columns into which rows may come as bytes; None where they may not."""
        shape, checked = self._shape, self._checked
        if shape is None or self.unfit_for_frames is not None:
            return None
        if checked is None:
            return shape.columns  # a missing table is made with their own types
        have = checked.by_name
        return [have[column.name].column for column in shape.columns]

    @property
    def unfit_for_frames(self) -> str | None:
        """Why rows of the shape that reaches it may not come as bytes; None: they may."""
        if self._shape is None:
            return "only the rows tell their columns"
        unfit = unfit_column(self._shape.columns)
        if unfit is not None:
            return f"the bytes of column {unfit.name!r} ({unfit.type.name}) may differ by server"
        if self._checked is None:
            made = self._source.columns if self._source is not None else ()
            if any(column.generated for column in made):
                return "its generated columns are computed anew"
            return None
        have = self._checked.by_name
        for column in self._shape.columns:
            own = have.get(column.name)
            if own is None or own.generated:
                return f"column {column.name!r} is not written"
            if fitted(column, own.column.type) is None:
                return (
                    f"column {column.name!r} ({column.type.name}) has another form than that of the"
                    f" table ({own.column.type.name})"
                )
        return None

    @property
    def needs_build(self) -> bool:
        """Something may be left to make when the rows are in."""
        return self.staged or self._source is not None

    @property
    def renames(self) -> bool:
        """The old table is dropped for a new one."""
        return self.sink.mode == "replace" and self.sink.swap == "rename"

    async def find_final(self, connection: Connection) -> Relation | None:
        """The table as it stands."""
        return await self._final(connection)

    async def _check_own(self, connection: Connection, final: Relation) -> None:
        """Refuse to replace somebody else's rows, where the sink asks for that."""
        if not self.sink.own_only or await self._made.state(connection, final.schema, final.name):
            return
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {final.qualified})"):  # noqa: S608
            raise SchemaMismatchError(
                f"{self.label}: the table {final.label!r} holds rows, and etl did not make it, so"
                " it is not replaced. Nothing was written; --force replaces it, --as and"
                " --target-schema write elsewhere, --mode append or upsert keep its rows"
            )

    def _check(self, final: Relation, names: Sequence[str] | None = None) -> None:
        """Refuse a table that does not fit.

        Args:
            names: Columns that will be written; None: all that the sink takes.
        """
        self._checked = final
        check_target(final, self.label)
        if self._shape is not None:
            taken = self._taken(final, self._shape.names) if names is None else names
            check_columns(final, taken, self.label)
            check_types(final, self._shape.columns, self.label, self.sink.allows)
        if self._merger is not None:
            self._merger.check(final, self._shape.names if self._shape is not None else None)

    def told(self, final: Relation) -> list[str]:
        """What a person should know before the first row."""
        notes = told_added(self._added, self.label)
        if self._source is not None and self._shape is not None:
            lost = [a.name for a in final.attributes if a.name not in self._shape.names]
            notes += told_lost(lost, self.label)
        notes += told_ignored([column.name for column in self._lacking(final)], self.label)
        if self.staged and self.sink.mode == "append":
            note = f"{self.label}: the read cannot be resumed, so its rows are gathered in"
            notes.append(f"{note} {self._staging!r} and appended when the run has ended")
        return notes

    async def _final(self, connection: Connection) -> Relation | None:
        found = await find_relation(connection, self.sink.table)
        if found is not None:
            # A bare name may be found anywhere in the search_path; staging goes beside it.
            self._schema = found.schema
        return found

    async def _create_final(self, connection: Connection, shape: Shape) -> Relation:
        # Two flows may want the same table: the second finds it made.
        await connection.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", make.DDL_LOCK)
        final = await self._final(connection)
        if final is None:
            definition = await self._plan_table(connection, shape)
            self.notes += await make.make_table(
                connection, definition, self._schema, self._name, self.label
            )
            for index in definition.indexes:
                await make.make_index(connection, index, self._schema, self._name, self.notes)
            await make.name_indexes(connection, definition, self._schema, self._name, self._name)
            unfinished = definition.foreign_keys or any(c.sequence for c in definition.columns)
            state: State = "building" if unfinished else "made"
            await self._made.record(connection, self._schema, self._name, state)
            final = await find_relation(connection, qualify(self._schema, self._name))
            assert final is not None
        return final

    async def _plan_table(self, connection: Connection, shape: Shape) -> TableDefinition:
        """What a missing table is to be: as the source has it, else from the rows' columns."""
        source = self._source
        if source is not None and source.dialect == "postgresql":
            self.notes += [f"not carried: {what}" for what in source.left_out]
            names = set(shape.names)
            definition = replace(
                source,
                columns=tuple(c for c in source.columns if c.name in names),
                needs=tuple(need for need in source.needs if not names.isdisjoint(need.columns)),
            )
            self._definition = self._with_key(definition)
            return self._definition
        key = self.sink.key or shape.key
        definition = await definition_of(
            connection, self._schema, self._name, shape, key, self.label
        )
        if source is not None:
            definition, notes = adapted(source, definition, shape)
            self.notes += notes
        self._definition = definition
        return definition

    def _with_key(self, definition: TableDefinition) -> TableDefinition:
        """With a unique index on the key of an upsert, which needs one."""
        key = self.sink.key
        unique = any(i.unique and set(i.columns) == set(key) for i in definition.indexes)
        if not key or unique:
            return definition
        own = IndexDefinition(
            name=f"{self._name}_{'_'.join(key)}_key"[:60], columns=key, unique=True,
            constraint=None, sql=f"({quote_all(key)})",
        )  # fmt: skip
        return replace(definition, indexes=(*definition.indexes, own))

    # --- staging ---

    @property
    def staging_table(self) -> str:
        """The quoted, qualified name of the staging table."""
        return qualify(self._schema, self._staging)

    async def has_staging(self, connection: Connection) -> bool:
        """Whether the staging table exists and still fits its table; from then on it must."""
        final = await self._final(connection)
        staged = await find_relation(connection, self.staging_table)
        found = staged is not None and (
            final is None
            or (
                await staging.is_like(connection, staged, final)
                if self.renames
                else staging.has_types_of(staged, final)
            )
        )
        if found:
            self._kept.add(self.staging_table)
        return found

    async def restage(self, connection: Connection) -> None:
        """Drop the staging table and make it anew, where its columns are known already."""
        await self._final(connection)
        await connection.execute(f"DROP TABLE IF EXISTS {self.staging_table}")
        self._into = None
        self._kept.discard(self.staging_table)
        await self._make_staging(connection, ())

    async def _make_staging(self, connection: Connection, rows: Sequence[Any]) -> None:
        """Make the staging table, unless its columns are told only by rows and there are none."""
        final = await self._final(connection)
        if final is not None and self.renames:
            old = (await describe(connection, [final.oid]))[final.oid]
            await staging.make_like(connection, final, old, self._staging, self.label)
        elif self._shape is None and not len(rows):
            return
        elif final is not None:
            names = self._shape.names if self._shape else names_of(rows, self.label)
            names = self._taken(final, names)
            check_columns(final, names, self.label)
            have = final.by_name
            names = tuple(name for name in names if not have[name].generated)
            await staging.make_bare(connection, final, self._staging, names)
        else:
            shape = self._shape or self._shape_of_rows(rows)
            definition = await self._plan_table(connection, shape)
            self.notes += await make.make_table(
                connection, definition, self._schema, self._staging, self.label
            )

    # --- after the load ---

    @property
    def _is_waiting(self) -> bool:
        """The rows are in a staging table."""
        return self.staged and not self.is_published

    async def is_first(self, connection: Connection) -> bool:
        """Whether the table is new: its foreign keys may name tables that come later."""
        final = await self._final(connection)
        if final is None:
            return True
        return await self._made.state(connection, final.schema, final.name) == "building"

    async def place(self, connection: Connection) -> tuple[tuple[str, str], str] | None:
        """The table's schema and name, and that of the staging table which becomes it."""
        await self._final(connection)
        found = await find_oids(connection, [self.staging_table]) if self._is_waiting else []
        if not found or not await self._becomes_table(connection):
            return None
        return (self._schema, self._name), self._staging

    async def _becomes_table(self, connection: Connection) -> bool:
        """Whether the staging table is renamed, not poured into the old one."""
        return self.renames or await self._final(connection) is None

    async def _wanted(self, connection: Connection) -> TableDefinition | None:
        """What the table is to have when it is finished; None: it is to stay as it is."""
        final = await self._final(connection)
        if self._is_waiting and await self._becomes_table(connection):
            if final is not None:
                known = self.described.get(final.oid)
                return known or (await describe(connection, [final.oid]))[final.oid]
        elif final is None or (
            await self._made.state(connection, final.schema, final.name) != "building"
        ):
            return None
        if self._definition is None and self._shape is not None:
            notes = len(self.notes)
            await self._plan_table(connection, self._shape)
            del self.notes[notes:]  # they were told by the run that made the table
        return self._definition

    async def _standing(self, connection: Connection) -> str | None:
        """The name under which the table to be finished stands now."""
        name = self._staging if self._is_waiting else self._name
        return name if await find_oids(connection, [qualify(self._schema, name)]) else None

    async def build_indexes(self, connection: Connection) -> None:
        """Make the indexes that the table is to have, each in a transaction of its own."""
        wanted = await self._wanted(connection)
        name = await self._standing(connection)
        if wanted is None or name is None:
            return
        for index in await make.missing_indexes(connection, wanted, self._schema, name):
            async with connection.transaction():
                await make.make_index(connection, index, self._schema, name, self.notes)

    async def build_keys(
        self, connection: Connection, places: Mapping[tuple[str, str], str]
    ) -> None:
        """Add the foreign keys that the table is to have, and finish a table that etl made.

        Args:
            places: Staging tables by the schema and name that they will have.
        """
        wanted = await self._wanted(connection)
        name = await self._standing(connection)
        if wanted is None or name is None:
            return
        is_exact = wanted.dialect == "postgresql" and (
            self._source is None or self._source.dialect == "postgresql"
        )
        for key in await make.missing_foreign_keys(connection, wanted, self._schema, name):
            async with connection.transaction():
                await make.make_foreign_key(
                    connection, key, self._schema, name, places, self.notes, is_exact=is_exact
                )
        if not self._is_waiting:
            async with connection.transaction():
                await make.set_sequences(connection, self._source, self._schema, self._name)
                await self._made.record(connection, self._schema, self._name, "made")

    async def swap(self, connection: Connection) -> staging.Swap | None:
        """What is to be renamed; None where there is nothing, or rows are poured."""
        self._is_unfinished = (
            self._each and self._source is not None and await self.is_first(connection)
        )
        found = await find_relation(connection, self.staging_table)
        if found is None or not await self._becomes_table(connection):
            return None
        definition = await self._wanted(connection)
        return staging.Swap(
            staging=found,
            name=self._name,
            definition=definition
            or TableDefinition(
                dialect="postgresql", schema=self._schema, name=self._name, columns=()
            ),
            source=self._source,
        )

    async def pour(self, connection: Connection, *, empties: bool) -> None:
        """Empty the table, or put the staged rows into it, in the transaction that is open."""
        final = await self._final(connection)
        if final is None:
            return
        if empties:
            if self.sink.mode == "replace":
                await staging.empty(connection, final)
            return
        found = await find_relation(connection, self.staging_table)
        if found is not None:
            await connection.execute(f"LOCK TABLE {final.qualified} IN ROW EXCLUSIVE MODE")
            final = await self._final(connection)  # as it is now that nobody can change it
            assert final is not None
            await staging.pour(connection, found, final, self._source)

    async def record(self, connection: Connection) -> None:
        """Remember that etl made the table, or all its rows."""
        if self.sink.mode == "replace" and await self._final(connection) is not None:
            state: State = "building" if self._is_unfinished else "made"
            await self._made.record(connection, self._schema, self._name, state)

    # --- rows ---

    def begin(self) -> None:
        """A transaction begins: the table is to be looked at again."""
        self._is_checked = False
        if self._merger is not None:
            self._merger.begin()

    def committed(self) -> None:
        """The transaction is in."""
        if self.staged and self._into is not None:
            self._kept.add(self.staging_table)

    def forget(self) -> None:
        """The transaction was rolled back: what it made is gone."""
        self._into = None
        self._fingerprint = None
        self._encoder = self._known = None
        if self._merger is not None:
            self._merger.forget()

    def drop_temporary(self) -> bool:
        """Forget the temporary table, as the session changes its connection; was there one?"""
        return self._merger is not None and self._merger.let_go()

    def mark(self) -> None:
        """A savepoint was set: note what is known of the database at this point."""
        self._marked = (
            self._into,
            self._fingerprint,
            self._encoder,
            self._names,
            self._is_checked,
            self._may_drop_rows,
        )
        if self._merger is not None:
            self._merger.mark()

    def recall(self) -> None:
        """What was made and locked since the savepoint is gone."""
        (
            self._into,
            self._fingerprint,
            self._encoder,
            self._names,
            self._is_checked,
            self._may_drop_rows,
        ) = self._marked
        self._known = None
        if self._merger is not None:
            self._merger.recall()

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        """The rows as lines for the table, once it is known; see ``Session.pack``."""
        rows, encoder, known = batch.rows, self._encoder, self._known
        if encoder is None or not rows or isinstance(rows, TextRows | Frames):
            return batch
        if isinstance(rows, ArrowRows):
            if rows.layout is not known:
                return batch  # its types are checked when it is written
            text = b"".join(arrow_payloads(rows, encoder.layout.columns, self.label))
            return batch.derive(TextRows(encoder.layout, Lines(text, len(rows))))
        if names_of(rows, self.label) != self._names:
            return batch  # in another order, or with columns to leave out: ``write`` sees to it
        lines = encoder.lines(rows)
        nbytes = lines.nbytes if isinstance(lines, WideFields) else None
        return batch.derive(TextRows(encoder.layout, lines, nbytes))

    async def columns(
        self, connection: Connection, names: Sequence[str]
    ) -> Sequence[Column] | None:
        """The columns that rows with these names go into; None where that is not known yet."""
        into = await find_relation(
            connection, self.staging_table if self.staged else self.sink.table
        )
        if into is None:
            return None
        have = into.by_name
        if any(name not in have or have[name].generated for name in names):
            return None
        return [self._written(have[name].column) for name in names]

    async def write(self, connection: Connection, batches: Sequence[Batch[Any]]) -> int:
        """Write a group of batches; return how many rows they had.

        Raises:
            DataError: A value is refused, or a trigger of the table dropped rows.
            SchemaMismatchError: The rows do not fit the table, or the table was changed.
        """
        count = 0
        groups = [batch.rows for batch in batches if len(batch.rows)]
        # A read that went on as text after some frames gives both.
        for in_frames, some in groupby(groups, lambda rows: isinstance(rows, Frames)):
            if in_frames:
                count += await self._write_frames(connection, cast("list[Frames]", list(some)))
            else:
                count += await self._write_rows(connection, list(some))
        return count

    async def delete(self, connection: Connection, condition: str) -> int:
        """Delete the table's rows for which a condition in SQL is true."""
        assert self._into is not None  # it was prepared, and makes no table
        status = await connection.execute(
            f"DELETE FROM {self._into.qualified} WHERE {condition}",  # noqa: S608
            timeout=GROUP_S,
        )
        return int(status.rpartition(" ")[2])

    async def _write_frames(self, connection: Connection, groups: Sequence[Frames]) -> int:
        first = groups[0]
        names = first.layout.names
        into = await self._table_for(connection, first, names)
        self._encoder_for(into, names)
        if _other_type(into, first.layout.columns) is not None:
            raise SchemaMismatchError(
                f"{self.label}: the columns of {into.label!r} have other types than at the start of"
                " the run. This group was rolled back; run again"
            )
        count = sum(map(len, groups))
        chunks: list[Chunk] = [HEADER, *groups, TRAILER]
        if self._merger is not None:
            shape = self._shape
            assert shape is not None  # else no frames were taken
            await self._merger.merge(
                connection, into, names, chunks, count, "binary",
                # Untouched rows of one instant: what identifies them in the source still does.
                are_unique=bool(shape.key) and set(shape.key) <= set(self.sink.key),
                # They come in ranges of the source's key.
                are_in_order=shape.key == self.sink.key,
                has_no_nulls=all(
                    not column.nullable for column in shape.columns if column.name in self.sink.key
                ),
                may_drop_rows=self._may_drop_rows,
            )  # fmt: skip
        else:
            kept = await copy_in(connection, into.schema, into.name, names, chunks, "binary")
            check_kept(kept, count, self.label)
        return count

    async def _write_rows(self, connection: Connection, groups: Sequence[Sequence[Any]]) -> int:
        names = names_of(groups[0], self.label)
        into = await self._table_for(connection, groups[0], names)
        encoder = self._encoder_for(into, names)
        chunks: list[Chunk] = []
        count = 0
        for rows in joined_tables(groups):
            if names_of(rows, self.label) != names:
                self._check_same(names_of(rows, self.label), names)
            try:
                if isinstance(rows, ArrowRows):
                    self._check_types_of(into, rows)
                    if self._asked:
                        texts = partial(texts_of, rows.table, encoder.layout.names)
                        await ask(connection, texts, self._asked, self.label)
                    chunks += await in_thread(
                        arrow_payloads, rows, encoder.layout.columns, self.label
                    )
                else:
                    lines = encoder.lines(rows)
                    if self._asked:
                        await ask(connection, partial(fields_of, lines), self._asked, self.label)
                    chunks.append(payload(lines, self.label))
            except DataError as error:
                error.row = None if error.row is None else count + error.row
                raise
            count += len(rows)
            await asyncio.sleep(0)  # let the other tasks of the program run
        if self._merger is not None:
            await self._merger.merge(
                connection, into, self._names, chunks, count, may_drop_rows=self._may_drop_rows
            )
        else:
            kept = await copy_in(connection, into.schema, into.name, self._names, chunks)
            check_kept(kept, count, self.label)
        return count

    def _check_types_of(self, into: Relation, rows: ArrowRows) -> None:
        """Refuse columns that a function of Arrow made and the table does not take.

        Raises:
            SchemaMismatchError: Names the column and both types.
        """
        if rows.layout is not self._known:
            check_types(into, rows.layout.columns, self.label, self.sink.allows)
            self._known = rows.layout

    async def _table_for(
        self, connection: Connection, rows: Sequence[Any], names: Sequence[str]
    ) -> Relation:
        """The table that rows are copied into, locked and as it was when it was checked."""
        if self._into is None:
            wanted = self.staging_table if self.staged else self._qualified(self.sink.table)
            self._fingerprint = await fingerprint(connection, wanted)
            found = await find_relation(connection, wanted)
            if found is not None and self._fingerprint is None:
                # Another lane has made it between the two looks.
                self._fingerprint = await fingerprint(connection, wanted)
                found = await find_relation(connection, wanted)
            if found is None:
                found = await self._make(connection, rows)
                self._fingerprint = await fingerprint(connection, found.qualified)
            if not self.staged:
                self._check(found)
            check_columns(found, self._taken(found, names), self.label)
            self._into = found
            self._encoder = self._known = None
        into = self._into
        if not self._is_checked:
            try:
                await connection.execute(f"LOCK TABLE {into.qualified} IN ROW EXCLUSIVE MODE")
            except asyncpg.UndefinedTableError as error:
                raise self._changed(into) from error
            now = await fingerprint(connection, into.qualified)
            if now is None or now != self._fingerprint:
                raise self._changed(into)
            self._may_drop_rows = await _may_drop_rows(connection, into)
            self._is_checked = True
        return into

    def _changed(self, into: Relation) -> SchemaMismatchError:
        return SchemaMismatchError(
            f"{self.label}: the table {into.label!r} was changed (ALTER, or dropped and made again)"
            " after the run had looked at it. The rows before are in and this group was rolled"
            " back; run again"
        )

    @staticmethod
    def _qualified(name: str) -> str:
        """A user's name, quoted; without a schema it follows the search_path."""
        schema, table = split_name(name)
        return qualify(schema, table)

    async def _make(self, connection: Connection, rows: Sequence[Any]) -> Relation:
        """Make a table for rows that tell their columns only now."""
        found: Relation | None = None
        if self.staged:
            # Another lane of this flow may be making it: the second finds it made.
            await connection.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", make.DDL_LOCK)
            found = await find_relation(connection, self.staging_table)
            if found is None:
                if self.staging_table in self._kept:
                    raise SchemaMismatchError(
                        f"{self.label}: its staging table {self._staging!r} was dropped during the"
                        " run. This group was rolled back; run again, and the load starts from the"
                        " beginning"
                    )
                await self._make_staging(connection, rows)
                found = await find_relation(connection, self.staging_table)
        elif self.sink.create:
            shape = self._shape or self._shape_of_rows(rows)
            found = await self._create_final(connection, shape)
        if found is None:
            raise SchemaMismatchError(
                f"{self.label}: its table is gone. This group was rolled back; run again"
            )
        return found

    def _shape_of_rows(self, rows: Sequence[Any]) -> Shape:
        columns = columns_of(rows)
        if columns is not None:
            return Shape(columns=columns)
        first: Any = rows[0]
        if is_dataclass(first):
            return shape_of(type(first))
        names = names_of(rows, self.label)  # refuses rows without
        of_mapping = issubclass(type(first), Mapping)
        values: list[object] = [first[name] for name in names] if of_mapping else list(first)
        raise missing_table(self.sink.table, names, values, self.sink.key, self.label)

    def _encoder_for(self, into: Relation, names: Sequence[str]) -> Encoder:
        if self._encoder is None:
            have = into.by_name
            names = self._taken(into, names)
            check_columns(into, names, self.label)
            columns = [
                self._written(have[name].column) for name in names if not have[name].generated
            ]
            if self._merger is not None:
                self._merger.check_names(names, "Nothing of this group was written")
            self._names = tuple(column.name for column in columns)
            self._encoder = Encoder(self.label, columns)
            self._asked = self._to_ask(columns)
        else:
            self._check_same(names, self._names, into)
        return self._encoder

    def _written(self, column: Column) -> Column:
        """A column, marked where its values may be bent."""
        if not self.sink.allows(column.name):
            return column
        source = self._source_type(column)
        if source is not None and not fit(source, column.type).may_bend:
            return column
        return LooseColumn(name=column.name, type=column.type, nullable=column.nullable)

    def _source_type(self, column: Column) -> Type | None:
        """The type of the rows' column of the same name, where it is known before them."""
        columns = self._shape.columns if self._shape is not None else ()
        return next((one.type for one in columns if one.name == column.name), None)

    def _to_ask(self, columns: Sequence[Column]) -> dict[int, Column]:
        """The columns, by place, of which only the server can tell whether it keeps a text."""
        unknown = Type(kind="text", name="", dialect="python")
        return {
            place: column
            for place, column in enumerate(columns)
            if not isinstance(column, LooseColumn)
            and fit(self._source_type(column) or unknown, column.type).way == "asked"
        }

    def _check_same(
        self, names: Sequence[str], expected: Sequence[str], into: Relation | None = None
    ) -> None:
        found = set(names)
        if into is not None:
            found = set(self._taken(into, names))
            found -= {a.name for a in into.attributes if a.generated}
        odd = found ^ set(expected)
        if odd:
            raise SchemaMismatchError(
                f"{self.label} got rows with different columns:"
                f" {', '.join(map(repr, sorted(odd)))} are in some and not in others. This group"
                " was rolled back; give all rows of a flow the same columns"
            )


def _other_type(table: Relation, columns: Sequence[Column]) -> Column | None:
    """The first column that the table has with another type, or not to be written."""
    have = table.by_name
    for column in columns:
        own = have.get(column.name)
        if own is None or own.generated or own.column.type != column.type:
            return column
    return None


async def _may_drop_rows(connection: Connection, table: Relation) -> bool:
    """Whether triggers or rules of the user's may drop rows that are inserted."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1"
        " AND NOT tgisinternal AND (tgtype & 3) = 3)"  # FOR EACH ROW, BEFORE
        " OR EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_class = $1)",
        table.oid,
    )
    return found
