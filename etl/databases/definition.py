"""What a table has beside rows: keys, defaults, constraints, indexes, comments.

A driver describes a table of its own so (``describe``), and makes a missing target table from such
a description, of its own dialect or of another. SQL in it is of the dialect that described it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Constraint: TypeAlias = Literal["primary", "unique", "exclusion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceDefinition:
    """Where a column's numbers come from.

    Attributes:
        schema: None: beside the table.
        options: As in CREATE SEQUENCE.
        last: The last number that was given; None where none was, or the user may not know.
        first: The number that it begins with, where none was given yet.
        owner: The other column that it belongs to: ``column`` of the same table, or
            ``table.column``.
    """

    schema: str | None
    name: str
    options: str
    last: int | None = None
    first: int | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDefinition:
    """One column.

    Attributes:
        declared: Its type, as its dialect spells it; a user's type with its schema.
        required_name: Of the constraint NOT NULL, where it has one.
        default: An expression; None also where a sequence or the server gives the value.
        identity: ``always`` or ``by default``; its numbers come from ``sequence``.
        sequence: Of an identity, or one that the default draws from.
        generated: The expression that computes it.
        stored: Of a generated column: kept in the table, not computed when it is read.
        settings: What ALTER COLUMN sets for the planner: statistics and the like.
    """

    name: str
    declared: str
    required: bool = False
    required_name: str | None = None
    collation: str | None = None
    default: str | None = None
    identity: Literal["always", "by default"] | None = None
    sequence: SequenceDefinition | None = None
    generated: str | None = None
    stored: bool = True
    comment: str | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexDefinition:
    """One index, or the constraint that it stands for.

    Attributes:
        name: Empty where the database made one up.
        columns: Its key, where that is plain columns only; empty for expressions.
        sql: What follows the table's name in CREATE INDEX, or the text of the constraint.
        remark: What a database that knows only plain indexes would lose: ``WHERE``, a method.
        comment: Of the index.
        remarked: The comment on the constraint.
        options: Storage parameters, where ``sql`` does not have them.
    """

    name: str
    columns: tuple[str, ...]
    unique: bool
    constraint: Constraint | None
    sql: str
    remark: str = ""
    comment: str | None = None
    remarked: str | None = None
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """One foreign key.

    Attributes:
        schema: Of the other table; None: the usual one of the database.
        references: The other table's columns; empty: its primary key.
        rest: Actions and the like, as they follow the columns.
        is_validated: Every row was checked.
        has_period: The last column is a range, which has to lie in those of the other table.
    """

    name: str
    columns: tuple[str, ...]
    schema: str | None
    table: str
    references: tuple[str, ...]
    rest: str = ""
    is_validated: bool = True
    has_period: bool = False
    comment: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether each row names one of the other table, so that any database can have it."""
        return self.is_validated and not self.has_period


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDefinition:
    """One CHECK constraint, with the word CHECK."""

    name: str
    sql: str
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Something that a table's columns need in its database: a type, a collation.

    Attributes:
        kind: For a person: ``type``, ``collation``.
        name: With its schema, quoted.
        schema: Where it stands.
        sql: Makes it; None where etl cannot.
        extension: The extension that brings it.
        columns: The columns that need it.
    """

    kind: Literal["type", "collation"]
    name: str
    schema: str
    sql: str | None
    extension: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDefinition:
    """One table.

    Attributes:
        schema: None where the dialect has none.
        sql: SQLite's CREATE TABLE, from behind the table's name.
        options: Storage parameters.
        collations: Those that only its dialect knows, where the columns do not say.
        left_out: What hangs on it and is never carried over (triggers, policies, grants).
    """

    dialect: Literal["postgresql", "sqlite", "mysql", "generic"]
    schema: str | None
    name: str
    columns: tuple[ColumnDefinition, ...]
    indexes: tuple[IndexDefinition, ...] = ()
    checks: tuple[CheckDefinition, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    needs: tuple[Needed, ...] = ()
    sql: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    collations: tuple[str, ...] = ()
    comment: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def primary_key(self) -> IndexDefinition | None:
        """The index of the primary key."""
        return next((one for one in self.indexes if one.constraint == "primary"), None)
