"""Tables as a generic dialect describes them: what a read and a sink need to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from etl.databases.sql import listed
from etl.errors import SchemaMismatchError
from etl.rows import Column, Shape, Type

STAGING = "__etl_staging"
ROW = "etl_row"
"""The number of a staged row, in the order in which rows came."""

RelationType: TypeAlias = Literal["table", "view", "query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """One column.

    Attributes:
        declared: Its type in full, as CREATE TABLE spells it.
        base: The type's bare word, in lower case.
        required: NOT NULL without a default: rows must bring it.
        generated: The database computes it.
        numbered: The database numbers it where a row brings none.
        octets: Most bytes of a text or binary string.
        labels: Those of an enum or a set.
        is_bytewise: Its collation compares as the bytes of UTF-8, also at the end.
    """

    name: str
    type: Type
    declared: str
    base: str
    nullable: bool = True
    required: bool = False
    generated: bool = False
    numbered: bool = False
    octets: int | None = None
    labels: tuple[str, ...] = ()
    charset: str | None = None
    collation: str | None = None
    is_bytewise: bool = False
    default: str | None = None
    comment: str | None = None

    @property
    def column(self) -> Column:
        """For a shape."""
        return Column(name=self.name, type=self.type, nullable=self.nullable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """An index over whole columns; ``columns`` is empty where it is over anything else."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table, a view, or the rows of a query.

    Attributes:
        is_transactional: What is written can be rolled back.
    """

    name: str
    schema: str | None
    type: RelationType
    columns: tuple[TableColumn, ...]
    indexes: tuple[Index, ...] = ()
    engine: str = ""
    is_transactional: bool = True
    comment: str | None = None
    left_out: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key."""
        return next((index.columns for index in self.indexes if index.primary), ())

    @property
    def shape(self) -> Shape:
        return Shape(columns=tuple(c.column for c in self.columns), key=self.key)

    def column(self, name: str) -> TableColumn | None:
        return next((column for column in self.columns if column.name == name), None)

    def is_unique(self, names: tuple[str, ...]) -> bool:
        """Whether a unique index makes sure that some columns identify a row."""
        return any(i.unique and i.columns and set(i.columns) <= set(names) for i in self.indexes)

    def collated(self, key: Sequence[str]) -> Mapping[str, str]:
        """See :class:`etl.databases.loading.TargetTable`."""
        found = (column for name in key if (column := self.column(name)) is not None)
        return {
            column.name: column.collation
            for column in found
            if column.collation is not None and not column.is_bytewise
        }

    def has_index_on(self, names: tuple[str, ...]) -> bool:
        """Whether a unique index is on exactly these columns."""
        return any(i.unique and i.columns and set(i.columns) == set(names) for i in self.indexes)


def missing_column(where: str, name: str, table: Table, what: str = "") -> SchemaMismatchError:
    """The error for a column that is not there."""
    return SchemaMismatchError(
        f"{where} has no column {name!r}{what}; it has {listed(table.names)}"
    )


def index_name(table: str, name: str) -> str:
    """A name for an index that is no other table's."""
    return f"{table}_{name}"
