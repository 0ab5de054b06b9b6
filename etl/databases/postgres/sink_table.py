"""The table of a sink: looked at, checked, made, staged, and finished when the rows are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from etl.connector import Sink
from etl.databases.definition import IndexDefinition, TableDefinition
from etl.databases.drift import (
    told_added,
    told_computed,
    told_ignored,
    told_lost,
    told_merged,
    told_unstaged,
)
from etl.databases.given import names_of
from etl.databases.postgres import make, staging
from etl.databases.postgres.adapt import adapted
from etl.databases.postgres.catalogue import Relation, find_oids, find_relation, fingerprint
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.describe import describe
from etl.databases.postgres.lines import columns_of
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
from etl.errors import SchemaMismatchError
from etl.rows import Column, Shape, shape_of


class SinkTable:
    """The table of one sink of a session, and the staging table beside it.

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
        turn: make.Turn,
        *,
        each: bool = False,
        joins: bool = False,
    ) -> None:
        """Make one.

        Args:
            kept: Staging tables with rows that are in; shared by the lanes of a run. From then on
                they must exist.
            turn: Its session's.
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
        self._default_schema = default_schema
        self._schema = schema or default_schema
        self._staging = staging.staging_name(self._name, f"{pipeline}\n{flow}")
        self.notes: list[str] = []
        self._source = sink.definition if isinstance(sink.definition, TableDefinition) else None
        self._made = Made(default_schema, pipeline)
        self._added: tuple[str, ...] = ()
        self._computed: tuple[str, ...] = ()  # by the table, and not so by the source
        self._definition: TableDefinition | None = None
        self._shape: Shape | None = None
        self._checked: Relation | None = None
        # What rows go into, and what it was when it was looked at.
        self._into: Relation | None = None
        self._fingerprint: str | None = None
        self._merger = Merger(self.label, sink.key, sink.add) if sink.mode == "upsert" else None
        self._kept = kept
        self._turn = turn
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
        await self._look_at_computed(connection, final)
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
            await self._look_at_computed(connection, final)
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

    async def _look_at_computed(self, connection: Connection, final: Relation) -> None:
        """Note what the table computes and the source does not, or by another expression."""
        if self._source is None or not any(a.generated for a in final.attributes):
            return
        given = {column.name: column.generated for column in self._source.columns}
        own = (await describe(connection, [final.oid]))[final.oid]
        # Another dialect does not tell its expression.
        tells = self._source.dialect == "postgresql"
        self._computed = tuple(
            column.name
            for column in own.columns
            if column.generated is not None
            and column.name in given
            and (given[column.name] is None or (tells and given[column.name] != column.generated))
        )

    async def _add_columns(self, connection: Connection, final: Relation) -> Relation | None:
        """Give the table what the rows have and it lacks, where the sink asks for that."""
        missing = self._lacking(final)
        if not missing or self.sink.schema_change != "evolve":
            return None
        await self._turn.take(connection)
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
        """Those of the rows' columns that are to be written, or are an error there."""
        have = table.by_name
        if self.sink.schema_change == "ignore":
            return tuple(name for name in names if name in have)
        # A bare staging table lacks what the table computes.
        final = () if self._checked is None else self._checked.attributes
        computed = {attribute.name for attribute in final if attribute.generated}
        return tuple(name for name in names if name in have or name not in computed)

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

    @staticmethod
    def _qualified(name: str) -> str:
        """A user's name, quoted; without a schema it follows the search_path."""
        schema, table = split_name(name)
        return qualify(schema, table)

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
        notes += told_computed(self._computed, self.label)
        if self.staged and self.sink.mode == "append":
            note = f"{self.label}: the read cannot be resumed, so its rows are gathered in"
            notes.append(f"{note} {self._staging!r} and appended when the run has ended")
        if self.sink.mode == "upsert":
            notes += told_merged(self._merged(final), self.label)
        return notes

    def _merged(self, final: Relation) -> dict[str, str]:
        """What takes different keys for the same, by column; not where the source has the type."""
        types = {c.name: c.type.name for c in self._shape.columns} if self._shape else {}
        return {
            one.name: one.nondeterministic
            for one in final.attributes
            if one.nondeterministic is not None
            and one.name in self.sink.key
            and (one.nondeterministic != "citext" or types.get(one.name) != one.column.type.name)
        }

    async def _final(self, connection: Connection) -> Relation | None:
        found = await find_relation(connection, self.sink.table)
        if found is not None:
            # A bare name may be found anywhere in the search_path; staging goes beside it.
            self._schema = found.schema
        return found

    async def _create_final(self, connection: Connection, shape: Shape) -> Relation:
        # Two flows may want the same table: the second finds it made.
        await self._turn.take(connection)
        final = await self._final(connection)
        if final is None:
            definition = await self._plan_table(connection, shape)
            self.notes += await make.make_table(
                connection, definition, self._schema, self._name, self.label
            )
            for index in definition.indexes:
                await make.make_index(connection, index, self._schema, self._name, self.notes)
            made = make.Built(definition=definition, schema=self._schema, built_as=self._name)
            await make.name_indexes(connection, [made])
            unfinished = definition.foreign_keys or any(c.sequence for c in definition.columns)
            state: State = "building" if unfinished else "made"
            await self._made.record(connection, {qualify(self._schema, self._name): state})
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
        """Whether the staging table exists and still fits its table and the rows that come;
        from then on it must."""
        final = await self._final(connection)
        staged = await find_relation(connection, self.staging_table)
        if staged is None:
            found = False
        elif final is not None and self.renames:
            found = await staging.is_like(connection, staged, final)
        else:
            fits = final is None or staging.has_types_of(staged, final)
            found = fits and self._has_all(staged, final)
        if found:
            self._kept.add(self.staging_table)
        return found

    def _check_staged(self, staged: Relation, names: Sequence[str]) -> None:
        """Refuse rows with columns that the table takes, but that the staged rows have not."""
        final = None if self._checked is None else self._checked.by_name
        late = [
            name
            for name in names
            if name not in staged.by_name
            and (final is None or (name in final and not final[name].generated))
        ]
        if late:
            raise SchemaMismatchError(told_unstaged(late, self.label))

    def _has_all(self, staged: Relation, final: Relation | None) -> bool:
        """Whether staged rows have each column that is written: the source may have got one."""
        names = self._shape.names if self._shape is not None else ()
        if final is not None:
            own = final.by_name
            names = tuple(name for name in names if name in own and not own[name].generated)
        return staged.by_name.keys() >= set(names)

    async def restage(self, connection: Connection) -> None:
        """Drop the staging table and make it anew, where its columns are known already."""
        await self._final(connection)
        if staged := await find_oids(connection, [self.staging_table]):
            # It may have foreign keys, and to drop one locks both of its tables.
            await self._turn.take(connection)
            await staging.drop(connection, self.staging_table, staged[0])
        self._into = None
        self._kept.discard(self.staging_table)
        await self._make_staging(connection, ())

    async def _make_staging(self, connection: Connection, rows: Sequence[Any]) -> None:
        """Make the staging table, unless its columns are told only by rows and there are none."""
        final = await self._final(connection)
        if final is not None and self.renames:
            # Somebody's lock on the table is waited for before others have to wait for this.
            await connection.execute(f"LOCK TABLE {final.qualified} IN ACCESS SHARE MODE")
            final = await self._final(connection)  # another pipeline may have put one in its place
            assert final is not None
            old = (await describe(connection, [final.oid]))[final.oid]
            if old.left_out:
                # The server makes names up for statistics, and two who look at once find the same
                # one free.
                await self._turn.take(connection)
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
            # Others may need the same schema, types and names of sequences.
            await self._turn.take(connection)
            shape = self._shape or self._shape_of_rows(rows)
            definition = await self._plan_table(connection, shape)
            self.notes += await make.make_table(
                connection, definition, self._schema, self._staging, self.label
            )

    async def _make(self, connection: Connection, rows: Sequence[Any]) -> Relation:
        """Make a table for rows that tell their columns only now."""
        found: Relation | None = None
        if self.staged:
            # Another lane of this flow may be making it: the second finds it made.
            await self._turn.take(connection)
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
        return await self._is_building(connection, final)

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

    async def _wanted(
        self, connection: Connection, *, keys: bool = False
    ) -> TableDefinition | None:
        """What the table is to have when it is finished; None: it is to stay as it is.

        Args:
            keys: With the foreign keys that a stopped run has left out.
        """
        final = await self._final(connection)
        if self._is_waiting and await self._becomes_table(connection):
            if final is not None:
                known = self.described.get(final.oid)
                known = known or (await describe(connection, [final.oid]))[final.oid]
                if not keys or not await self._is_building(connection, final):
                    return known
                # The run that made it was stopped before it made these.
                planned = await self._planned(connection, final) or known
                have = {key.name: key for key in (*planned.foreign_keys, *known.foreign_keys)}
                return replace(known, foreign_keys=tuple(have.values()))
        elif final is None or not await self._is_building(connection, final):
            return None
        return await self._planned(connection, final)

    async def _is_building(self, connection: Connection, final: Relation) -> bool:
        return await self._made.state(connection, final.schema, final.name) == "building"

    async def _planned(
        self, connection: Connection, final: Relation | None
    ) -> TableDefinition | None:
        """What the table is to have by its source."""
        if self._definition is None and self._shape is not None:
            notes = len(self.notes)
            shape = self._shape if final is None else _as_made(self._shape, final)
            await self._plan_table(connection, shape)
            del self.notes[notes:]  # they were told by the run that made the table
        return self._definition

    async def _standing(self, connection: Connection) -> str | None:
        """The name under which the table to be finished stands now."""
        name = self._staging if self._is_waiting else self._name
        return name if await find_oids(connection, [qualify(self._schema, name)]) else None

    async def build_indexes(self, connection: Connection) -> None:
        """Make the indexes that the table is to have, each in a transaction of its own."""
        if not self._is_waiting:
            return  # it was made with them, under other names where their own were not free
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
        wanted = await self._wanted(connection, keys=True)
        name = await self._standing(connection)
        if wanted is None or name is None:
            return
        is_exact = wanted.dialect == "postgresql" and (
            self._source is None or self._source.dialect == "postgresql"
        )
        keys = wanted.foreign_keys
        for key in await make.missing_foreign_keys(connection, keys, self._schema, name):
            # A key locks both tables, so those of one run are made one after the other.
            async with self._turn.of_run, connection.transaction():
                # A copy names tables of the usual schema without it, also those that a
                # table of another schema refers to.
                other = (key.schema or self._default_schema, key.table)
                await make.make_foreign_key(
                    connection,
                    key,
                    (self._schema, name),
                    (other[0], places.get(other, key.table)),
                    self.notes,
                    self.label,
                    is_exact=is_exact,
                )
        if not self._is_waiting:
            async with connection.transaction():
                await make.set_sequences(connection, self._source, self._schema, self._name)
                await self._made.record(connection, {qualify(self._schema, self._name): "made"})

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

    @property
    def placed(self) -> Mapping[str, State]:
        """What is to be remembered of a table that was put in place: all its rows are etl's."""
        if self.sink.mode != "replace":
            return {}
        return {qualify(self._schema, self._name): "building" if self._is_unfinished else "made"}


def _as_made(shape: Shape, table: Relation) -> Shape:
    """Rows' columns for a table that was made for them: what the rows do not tell, it does.

    The run that made it had looked through all rows for the types; one that goes on has not.
    """
    have = table.by_name
    return replace(
        shape,
        columns=tuple(
            replace(column, type=have[column.name].column.type)
            if column.type.kind == "dynamic" and column.name in have
            else column
            for column in shape.columns
        ),
    )
