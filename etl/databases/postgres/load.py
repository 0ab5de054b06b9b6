"""How one sink gets its rows into its table: append, upsert, or through a staging table."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, cast

import asyncpg

from etl.arrow.rows import ArrowRows, joined_tables
from etl.batch import Batch
from etl.databases.given import names_of
from etl.databases.postgres.arrow import arrow_payloads, texts_of
from etl.databases.postgres.asking import ask, fields_of
from etl.databases.postgres.catalogue import Relation, find_relation, fingerprint
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.copying import Chunk, check_kept, copy_in
from etl.databases.postgres.frames import HEADER, TRAILER, fitted, unfit_column
from etl.databases.postgres.guard import GROUP_S
from etl.databases.postgres.lines import Encoder, WideFields, payload
from etl.databases.postgres.sink_table import SinkTable
from etl.databases.postgres.tables import check_columns, check_types
from etl.databases.types import LooseColumn
from etl.databases.ways import fit
from etl.engine.threads import in_thread
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Column, Frames, Layout, Lines, TextRows, Type


class Load(SinkTable):
    """Writes the rows of one sink of a session.

    Invariant: what is remembered of the database here was committed, or belongs to the
    transaction that is open; :meth:`forget` drops it after a rollback.
    """

    # Before its first rows:
    _encoder: Encoder | None = None
    _known: Layout | None = None  # of tables of Arrow whose types were checked
    _is_checked = False
    _may_drop_rows = False
    _names: tuple[str, ...] = ()
    _asked: Mapping[int, Column] | None = None
    _marked: tuple[Any, ...] = ()

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
            if self.staged:
                self._check_staged(found, names)
            else:
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
    found: bool = await connection.fetchval_prepared(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1"
        " AND NOT tgisinternal AND (tgtype & 3) = 3)"  # FOR EACH ROW, BEFORE
        " OR EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_class = $1)",
        table.oid,
    )
    return found
