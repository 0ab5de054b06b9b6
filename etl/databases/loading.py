"""One sink of a session, as far as every dialect that has tables of rows asks the same of it.

What a sink must be told before the first row, and what it refuses, does not depend on how its
database spells it. How a table is looked up, made, staged and written does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from etl.connector import Sink
from etl.databases.definition import TableDefinition
from etl.databases.drift import (
    REMEDY,
    told_added,
    told_computed,
    told_ignored,
    told_lost,
    told_merged,
    told_unstaged,
)
from etl.databases.sql import listed
from etl.errors import SchemaMismatchError
from etl.rows import Column, Shape


class TargetColumn(Protocol):
    """A column of a target's table."""

    @property
    def name(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def generated(self) -> bool: ...


C = TypeVar("C", bound=TargetColumn)
C_co = TypeVar("C_co", bound=TargetColumn, covariant=True)


class TargetTable(Protocol[C_co]):
    """A table that rows go into."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> Sequence[C_co]: ...
    def column(self, name: str, /) -> C_co | None: ...

    def collated(self, key: Sequence[str], /) -> Mapping[str, str]:
        """Of the columns of a unique key those that are not compared by their bytes, so that some
        different texts are the same, each with its collation."""
        ...


def staging_name(base: str, pipeline: str, flow: str) -> str:
    """The staging table of a sink.

    Several flows, of several pipelines too, may load one table, each by way of its own: a position
    speaks of the rows of one load.

    Args:
        base: What the names of the staging tables beside one table begin with.
    """
    own = hashlib.sha256(f"{pipeline}\n{flow}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{base}_{own[:8]}"


class BaseLoad(Generic[C]):
    """One sink of a session.

    Attributes:
        is_staged: Rows go into a staging table, which is published at the end of the run.
        staging: Its name.
        staging_base: What it begins with: the same for all loads of one table.
        notes: What could not be made as the source has it.
    """

    def __init__(self, sink: Sink[Any], *, flow: str, pipeline: str, staging: str) -> None:
        """Describe one.

        Args:
            staging: What the names of its staging tables begin with.
        """
        self.sink = sink
        self.flow = flow
        self.label = f"sink {sink.table!r}"
        self.is_staged = sink.mode == "replace"
        self.staging_base = staging
        self.staging = staging_name(staging, pipeline, flow)
        self.notes: list[str] = []
        self._pipeline = pipeline
        self._source = sink.definition if isinstance(sink.definition, TableDefinition) else None
        self._shape: Shape | None = None
        self._added: tuple[str, ...] = ()
        self._checked: TargetTable[C] | None = None  # the table that rows end in

    def _take_shape(self, shape: Shape | None, *, resumable: bool) -> None:
        """Note which columns come.

        Raises:
            SchemaMismatchError: A second read would add numbers up twice.
        """
        sink = self.sink
        self.is_staged = sink.mode == "replace" or (sink.mode == "append" and not resumable)
        if sink.add and not resumable:
            raise SchemaMismatchError(
                f"{self.label}: the source cannot be resumed, and a second read would add its"
                f" {listed(sink.add)} again. Nothing was written; give the source a key= with a"
                " unique index"
            )
        self._shape = shape

    @property
    def _names(self) -> tuple[str, ...]:
        """The columns that come, as far as they are known."""
        return self._shape.names if self._shape is not None else ()

    def _kept(self, final: TargetTable[C]) -> tuple[str, ...]:
        """Those that a look compares with the table: a run would add the others, or pass over."""
        if self.sink.schema_change == "freeze":
            return self._names
        return tuple(name for name in self._names if final.column(name) is not None)

    def _lacking(self, final: TargetTable[C]) -> list[Column]:
        """The rows' columns that a table has not, as far as they are known."""
        columns = self._shape.columns if self._shape is not None else ()
        return [column for column in columns if final.column(column.name) is None]

    def lacks_columns(self, final: TargetTable[C], shape: Shape) -> bool:
        """Whether the sink will add columns for rows of a shape."""
        return self.sink.schema_change == "evolve" and any(
            final.column(name) is None for name in shape.names
        )

    def _told(self, final: TargetTable[C]) -> list[str]:
        """What a person should know before the first row."""
        notes = told_added(self._added, self.label)
        given = {column.name for name in self._names if (column := final.column(name)) is not None}
        if self._source is not None and self._shape is not None:
            lost = [c.name for c in final.columns if not c.generated and c.name not in given]
            notes += told_lost(lost, self.label)
        notes += told_ignored([column.name for column in self._lacking(final)], self.label)
        if self.is_staged and self.sink.mode == "append":
            notes.append(
                f"{self.label}: the read cannot be resumed, so its rows are gathered in"
                f" {self.staging!r} and appended when the run has ended"
            )
        computed = [c.name for c in final.columns if c.generated and c.name in given]
        notes += told_computed(computed, self.label)
        if self.sink.mode == "upsert":
            types = {c.name: c.type for c in self._shape.columns} if self._shape else {}
            of_source = {c.name: c.declared for c in self._source.columns} if self._source else {}
            merged = {
                name: collation
                for name, collation in final.collated(self.sink.key).items()
                # Where keys are compared so in the source, it has no two such rows.
                if name not in types
                or types[name].dialect != "mysql"
                or (name in of_source and not of_source[name].endswith(f" COLLATE {collation}"))
            }
            notes += told_merged(merged, self.label)
        return notes

    # -- what is refused ---------------------------------------------------------------------

    def _columns(self, table: TargetTable[C], names: Sequence[str]) -> list[tuple[str, C]]:
        """The rows' columns that are written, and the table's for each.

        Raises:
            SchemaMismatchError: The table lacks one, or needs one that the rows lack.
        """
        # A staging table lacks what the table itself computes.
        found = [(name, table.column(name)) for name in names if not self._is_computed(name)]
        unknown = [name for name, column in found if column is None]
        if unknown and table.name == self.staging:
            final = self._checked
            late = [name for name in unknown if final is None or final.column(name) is not None]
            if late:
                raise SchemaMismatchError(told_unstaged(late, self.label))
        if unknown and self.sink.schema_change != "ignore":
            raise SchemaMismatchError(
                f"{self.label}: the table {table.name!r} has no column {listed(unknown)}; it has"
                f" {', '.join(table.names)}. Nothing was written; {REMEDY}"
            )
        given = {column.name for _, column in found if column is not None}
        needed = [c.name for c in table.columns if c.required and c.name not in given]
        if needed:
            raise SchemaMismatchError(
                f"{self.label}: the rows have no {listed(needed)}, which the table {table.name!r}"
                " needs (NOT NULL without a default). Nothing was written"
            )
        pairs = [(name, c) for name, c in found if c is not None and not c.generated]
        if not pairs:
            raise SchemaMismatchError(f"{self.label}: the rows have no column to write")
        return pairs

    def _is_computed(self, name: str) -> bool:
        column = self._checked.column(name) if self._checked is not None else None
        return column is not None and column.generated

    def _check_key_names(self, names: Sequence[str]) -> None:
        for name in (*self.sink.key, *self.sink.add):
            if name not in names:
                raise SchemaMismatchError(
                    f"{self.label}: the rows have no column {name!r}, which upsert(key=, add=)"
                    f" names; they have {', '.join(names)}. Nothing was written"
                )

    def _existing(self, final: TargetTable[C], name: str) -> C:
        column = final.column(name)
        if column is None:
            raise SchemaMismatchError(
                f"{self.label}: the table {final.name!r} has no column {name!r}, which upsert(key=,"
                f" add=) names; it has {', '.join(final.names)}. Nothing was written"
            )
        return column

    def _may_not_make(self, statement: str | None) -> SchemaMismatchError:
        """The table is missing.

        Args:
            statement: What would make it, where the columns are known.
        """
        suggestion = f"; this would make it:\n{statement}" if statement is not None else ""
        return SchemaMismatchError(
            f"{self.label}: the table does not exist, and create=False forbids to make it."
            f" Nothing was written{suggestion}"
        )

    def _not_own(self, final: TargetTable[C]) -> SchemaMismatchError:
        """A table with rows that etl did not make is to be replaced."""
        return SchemaMismatchError(
            f"{self.label}: the table {final.name!r} holds rows, and etl did not make it, so it"
            " is not replaced. Nothing was written; --force replaces it, --as writes to another"
            " one, --mode append or upsert keep its rows"
        )

    def _changed_meanwhile(self, final: TargetTable[C]) -> SchemaMismatchError:
        """Staged rows do not fit the table any more."""
        return SchemaMismatchError(
            f"{self.label}: the columns of {final.name!r} were changed after its new rows had"
            " begun to be staged. It is as it was; run again, and the load starts from the"
            " beginning"
        )
