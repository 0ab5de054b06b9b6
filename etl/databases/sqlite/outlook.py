"""What a SQLite file would do with rows, looked up without writing to it or making it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from etl.connector import Asked, RunInfo, Sink
from etl.databases.sqlite.connection import Connection, path_of
from etl.databases.sqlite.ddl import declare
from etl.databases.sqlite.fits import verdicts_of
from etl.databases.sqlite.load import Load
from etl.databases.sqlite.schema import (
    Table,
    TableColumn,
    affinity_of,
    find_table,
    table_name,
)
from etl.databases.types import FILES
from etl.databases.url import Url
from etl.errors import SchemaMismatchError
from etl.rows import Shape
from etl.verdict import Survey, refusal_of


@asynccontextmanager
async def _looking(url: Url) -> AsyncGenerator[Connection | None]:
    """A connection that may not write; None where there is no file yet."""
    path = path_of(url.path, url.name)
    if not path.exists():
        yield None
        return
    # Opened for reading only, a file in WAL mode would keep the files beside it.
    connection = Connection(path, access="rw", side="target", where=url.name)
    try:
        await connection.open()
        await connection.execute("PRAGMA query_only=ON")
        yield connection
    finally:
        await connection.close()


async def foresee(url: Url, asked: Sequence[Asked], info: RunInfo) -> Sequence[Survey]:
    """See :class:`etl.connector.Surveyor`."""
    async with _looking(url) as connection:
        return [await _survey(connection, one, info) for one in asked]


async def _survey(connection: Connection | None, asked: Asked, info: RunInfo) -> Survey:
    shape, sink = asked.shape, asked.sink
    load = Load(sink, pipeline=info.pipeline, flow=asked.flow)
    name = table_name(sink.table)
    final = await find_table(connection, name) if connection is not None else None
    verdicts = None
    refusal = None
    if shape is not None:
        columns = _planned(shape) if final is None else _of(final, shape)
        verdicts = verdicts_of(shape.columns, columns, sink.allows)
        refusal = refusal_of(verdicts, where=load.label, table=name, asks=asked.flow)
    try:
        await load.look(connection, shape, resumable=asked.resumable)
    except SchemaMismatchError as error:
        refusal = refusal or str(error)
    return Survey(
        exists=final is not None,
        verdicts=verdicts,
        frames="SQLite has no binary form of rows",
        lines="SQLite takes values, not lines",
        refusal=refusal,
    )


def _of(table: Table, shape: Shape) -> dict[str, TableColumn]:
    found = {name: table.column(name) for name in shape.names}
    return {name: column for name, column in found.items() if column is not None}


def _planned(shape: Shape) -> dict[str, TableColumn]:
    """The columns of the table that would be made."""
    return {
        column.name: TableColumn(
            name=column.name,
            declared=declare(column.type),
            affinity=affinity_of(declare(column.type)),
            is_exact=False,
            nullable=column.nullable,
            required=False,
            generated=False,
        )
        for column in shape.columns
    }


async def wants_profile(url: Url, sink: Sink[Any], shape: Shape) -> bool:
    """See :meth:`etl.connector.Session.wants_profile`."""
    if not sink.create or FILES.isdisjoint(column.type.dialect for column in shape.columns):
        return False
    async with _looking(url) as connection:
        return connection is None or await find_table(connection, table_name(sink.table)) is None
