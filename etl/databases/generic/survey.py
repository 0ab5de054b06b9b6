"""What is in a database of a generic dialect, and whether etl can work with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal

from etl.databases.database import Finding, TableInfo
from etl.databases.definition import (
    ColumnDefinition,
    IndexDefinition,
    SequenceDefinition,
    TableDefinition,
)
from etl.databases.digest import Snapshot
from etl.databases.generic.connect import Connection, opened
from etl.databases.generic.table import STAGING, Table, index_name
from etl.databases.sql import OWN_TABLES
from etl.databases.url import Url
from etl.errors import ConfigError, EtlError, SchemaMismatchError, TransientError


async def list_tables(url: Url) -> Sequence[TableInfo]:
    """See :meth:`etl.databases.database.Driver.list_tables`."""
    async with opened(url, "source") as connection:
        found: list[TableInfo] = []
        for name, kind in await connection.dialect.table_names(connection):
            if name in OWN_TABLES or STAGING in name:
                continue
            try:
                table = await connection.dialect.find_table(connection, None, name)
            except TransientError:
                raise  # a copy of what was found so far would look like one of all tables
            except EtlError:
                continue  # a view over something that is gone
            if table is not None:
                is_view = kind == "view"
                found.append(
                    TableInfo(
                        name=name,
                        schema=None,
                        shape=table.shape,
                        kind="view" if is_view else "table",
                    )
                )
        return found


async def describe(url: Url, tables: Sequence[TableInfo]) -> Sequence[TableDefinition]:
    """See :meth:`etl.databases.database.Driver.describe`."""
    async with opened(url, "source") as connection:
        found: list[TableDefinition] = []
        for one in tables:
            table = await connection.dialect.find_table(connection, one.schema, one.name)
            if table is None:
                raise SchemaMismatchError(
                    f"{url.name}: table {one.name!r} was dropped meanwhile. Nothing was moved; run"
                    " again"
                )
            found.append(await definition_of(connection, table))
        return found


async def definition_of(connection: Connection, table: Table) -> TableDefinition:
    """What a table has beside rows."""
    last = await connection.dialect.last_number(connection, table)
    triggers = await connection.dialect.triggers(connection, table)
    return TableDefinition(
        dialect="mysql" if connection.dialect.name == "mysql" else "generic",
        schema=table.schema,
        name=table.name,
        columns=tuple(
            ColumnDefinition(
                name=column.name,
                declared=column.declared,
                required=not column.nullable,
                # A backslash escapes in MySQL, and means itself elsewhere.
                default=column.default if "\\" not in (column.default or "") else None,
                identity="by default" if column.numbered else None,
                sequence=SequenceDefinition(schema=None, name="", options="", last=last)
                if column.numbered
                else None,
                generated="computed" if column.generated else None,
                comment=column.comment,
            )
            for column in table.columns
        ),
        indexes=tuple(
            IndexDefinition(
                # Names of indexes are the table's own in MySQL, and its schema's elsewhere.
                name=index_name(table.name, index.name),
                columns=index.columns,
                unique=index.unique,
                constraint="primary" if index.primary else None,
                sql="",
                remark="" if index.columns else "a prefix, words or expressions",
            )
            for index in table.indexes
        ),
        foreign_keys=tuple(
            await connection.dialect.foreign_keys(connection, table.schema, table.name)
        )
        if table.type == "table"
        else (),
        checks=tuple(await connection.dialect.checks(connection, table))
        if table.type == "table"
        else (),
        comment=table.comment,
        left_out=(
            *(f"trigger {name!r}" for name in triggers),
            *table.left_out,
            *(("that it is a view",) if table.type == "view" else ()),
        ),
    )


async def check(url: Url) -> Sequence[Finding]:
    """Look at the database without changing it; problems are findings, not errors."""
    try:
        async with opened(url, "target") as connection:
            return await connection.dialect.check(connection)
    except EtlError as error:
        return [Finding(subject="connection", state="error", message=str(error))]


def open_snapshot(
    url: Url, *, side: Literal["source", "target"]
) -> AbstractAsyncContextManager[Snapshot]:
    """See :class:`etl.databases.database.Driver`.

    Raises:
        ConfigError: The dialect is none for which etl knows how to hash rows.
    """
    scheme = url.dialect.partition("+")[0]
    if scheme not in {"mysql", "mariadb"}:
        raise ConfigError(
            f"{url.name}: etl verify compares PostgreSQL, SQLite and MySQL databases; it has no"
            " hashes for this dialect. Nothing was compared or written"
        )
    from etl.databases.generic.mysql.digest import open_snapshot

    return open_snapshot(url, side=side)
