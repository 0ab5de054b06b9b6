"""Target tables: whether rows fit into one, and making one that is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

from etl.databases.definition import ColumnDefinition, IndexDefinition, TableDefinition
from etl.databases.drift import REMEDY
from etl.databases.postgres.catalogue import NAME_BYTES, Attribute, Relation, cut_name
from etl.databases.postgres.connect import Connection
from etl.databases.sql import qualify, quote, quote_all, split_name
from etl.databases.types import EnumType, declare_postgres, declared_type
from etl.databases.ways import fit
from etl.errors import SchemaMismatchError
from etl.rows import Column, Shape
from etl.verdict import Verdict, refusal_of, spelled


def check_target(relation: Relation, label: str) -> None:
    """Refuse what rows cannot be copied into."""
    if relation.kind not in {"r", "p", "f"}:
        raise SchemaMismatchError(
            f"{label}: {relation.label!r} is not a table. Nothing was written; name a table"
        )


def check_columns(relation: Relation, names: Sequence[str], label: str) -> None:
    """Refuse rows whose columns the table lacks, or that lack columns which it needs.

    Raises:
        SchemaMismatchError: Names them.
    """
    have = relation.by_name
    unknown = [name for name in names if name not in have]
    if unknown:
        raise SchemaMismatchError(
            f"{label}: the table {relation.label!r} has no column"
            f" {', '.join(map(repr, unknown))}; it has {', '.join(have)}. Nothing was written;"
            f" {REMEDY}"
        )
    needed = [
        attribute.name
        for attribute in relation.attributes
        if not attribute.column.nullable
        and not attribute.default
        and not attribute.generated
        and attribute.name not in names
    ]
    if needed:
        raise SchemaMismatchError(
            f"{label}: the rows have no {', '.join(map(repr, needed))}, which the table"
            f" {relation.label!r} needs (NOT NULL without a default). Nothing was written"
        )


def verdicts_of(
    columns: Sequence[Column], relation: Relation | None, allows: Callable[[str], bool]
) -> list[Verdict]:
    """What becomes of each column in a table; None: in one that is made for them.

    Args:
        allows: Whether the values of a column may be bent.
    """
    have: Mapping[str, Attribute] = relation.by_name if relation is not None else {}
    found: list[Verdict] = []
    for column in columns:
        attribute = have.get(column.name)
        if relation is not None and (attribute is None or attribute.generated):
            continue
        target = attribute.column.type if attribute is not None else declared_type(column.type)
        verdict = fit(column.type, target)
        found.append(
            Verdict(
                column=column.name,
                source=spelled(column.type),
                target=target.name,
                fit=verdict,
                allowed=verdict.may_bend and allows(column.name),
            )
        )
    return found


def check_types(
    relation: Relation, columns: Sequence[Column], label: str, allows: Callable[[str], bool]
) -> None:
    """Refuse columns whose values would be bent, or can never go into the table's.

    Raises:
        SchemaMismatchError: Names the column and both types.
    """
    verdicts = verdicts_of(columns, relation, allows)
    refusal = refusal_of(verdicts, where=label, table=relation.label, asks=relation.name)
    if refusal is not None:
        raise SchemaMismatchError(refusal)


async def definition_of(
    connection: Connection, schema: str, name: str, shape: Shape, key: Sequence[str], label: str
) -> TableDefinition:
    """A table from a shape, with its primary key; makes the enum types that it uses.

    Raises:
        SchemaMismatchError: The schema, or a type that is not built in, is missing here.
    """
    await _check_schema(connection, schema, label)
    columns: list[ColumnDefinition] = []
    for column in shape.columns:
        if column.type.kind == "dynamic":
            raise SchemaMismatchError(
                f"{label}: column {column.name!r}"
                + (f" ({column.type.name})" if column.type.name else "")
                + " holds values of several kinds in the source (numbers, texts, blobs), which no"
                " one PostgreSQL type holds exactly. Nothing was written; clean the values, or"
                " convert them in a function and give the rows a dataclass"
            )
        columns.append(
            ColumnDefinition(
                name=column.name,
                declared=await _declared(connection, schema, column, label),
                required=not column.nullable or column.name in key,
            )
        )
    primary = IndexDefinition(
        name=_key_name(name),
        columns=tuple(key),
        unique=True,
        constraint="primary",
        sql=f"PRIMARY KEY ({quote_all(key)})",
    )
    return TableDefinition(
        dialect="postgresql",
        schema=schema,
        name=name,
        columns=tuple(columns),
        indexes=(primary,) if key else (),
    )


def _key_name(table: str) -> str:
    """What PostgreSQL itself would call the primary key of a table: cut to the length of a name."""
    suffix = "_pkey"
    return cut_name(table, NAME_BYTES - len(suffix)) + suffix


def _create(name: str, columns: Sequence[str], key: Sequence[str]) -> str:
    parts = [*columns, f"PRIMARY KEY ({quote_all(key)})"] if key else columns
    return f"CREATE TABLE {name} (\n    " + ",\n    ".join(parts) + "\n)"


async def _check_schema(connection: Connection, schema: str, label: str) -> None:
    found = await connection.fetchval(
        "SELECT oid::bigint FROM pg_catalog.pg_namespace WHERE nspname = $1", schema
    )
    if found is None:
        raise SchemaMismatchError(
            f"{label}: the schema {schema!r} does not exist. Nothing was written;"
            f" CREATE SCHEMA {quote(schema)}"
        )


async def _declared(connection: Connection, schema: str, column: Column, label: str) -> str:
    """The type of a column of the new table; makes an enum that is missing."""
    type_ = column.type
    if isinstance(type_, EnumType):
        return await _enum(connection, schema, column, type_, label)
    declared = declare_postgres(type_)
    if type_.dialect != "postgresql" or type_.kind != "other":
        return declared
    # In another database the same type may stand in another schema.
    bare = declared.partition(".")[2] if not declared.startswith('"') else ""
    for name in filter(None, (declared, bare)):
        if await connection.fetchval("SELECT pg_catalog.to_regtype($1) IS NOT NULL", name):
            return name
    raise SchemaMismatchError(
        f"{label}: column {column.name!r} has the type {type_.name}, which does not exist in the"
        " target. Nothing was written; make the type there (CREATE EXTENSION, CREATE TYPE), or"
        " leave the column out"
    )


async def _enum(
    connection: Connection, schema: str, column: Column, type_: EnumType, label: str
) -> str:
    name = split_name(type_.name)[1]
    qualified = qualify(schema, name)
    row = await connection.fetchrow(
        """
        SELECT ARRAY(
            SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = t.oid
            ORDER BY enumsortorder
        ) AS labels
        FROM pg_catalog.pg_type AS t WHERE t.oid = pg_catalog.to_regtype($1)
        """,
        qualified,
    )
    if row is not None:
        if tuple(row["labels"]) != type_.labels:
            raise SchemaMismatchError(
                f"{label}: column {column.name!r} has the enum type {type_.name}, and the target"
                f" has a type {qualified} with other labels. Nothing was written; give it the same"
                " labels in the same order, or make the table yourself"
            )
        return qualified
    # CREATE TYPE takes no bind parameters, so the server itself quotes the labels.
    labels = await connection.fetchval(
        "SELECT string_agg(quote_literal(l), ', ' ORDER BY place)"
        " FROM unnest($1::text[]) WITH ORDINALITY AS w(l, place)",
        list(type_.labels),
    )
    await connection.execute(f"CREATE TYPE {qualified} AS ENUM ({labels or ''})")
    return qualified


_SUGGESTED: Mapping[type, str] = {
    bool: "boolean",
    int: "bigint",
    float: "double precision",
    Decimal: "numeric",
    str: "text",
    bytes: "bytea",
    datetime: "timestamp with time zone",
    date: "date",
    time: "time",
    timedelta: "interval",
    UUID: "uuid",
    dict: "jsonb",
    list: "jsonb",
}


def missing_table(
    name: str, columns: Sequence[str], values: Sequence[object], key: Sequence[str], label: str
) -> SchemaMismatchError:
    """The refusal to guess a table from dicts or tuples, with the statement to start from."""
    definitions = [
        f"{quote(column)} {_SUGGESTED.get(type(value), 'text')}"
        for column, value in zip(columns, values, strict=True)
    ]
    statement = _create(qualify(*split_name(name)), definitions, key)
    return SchemaMismatchError(
        f"{label}: the table does not exist, and these rows do not say the types of their columns."
        " Nothing was written; return a dataclass, or make the table first, for example:\n"
        f"{statement};"
    )
