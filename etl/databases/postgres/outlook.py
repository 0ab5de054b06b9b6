"""What a PostgreSQL target would do with rows, looked up in one transaction that writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from etl.connector import Asked, RunInfo, Sink
from etl.databases.definition import TableDefinition
from etl.databases.postgres.catalogue import find_relation
from etl.databases.postgres.connect import Connection, application_name, connected
from etl.databases.postgres.load import Load
from etl.databases.postgres.make import Turn, check_needs
from etl.databases.postgres.tables import verdicts_of
from etl.databases.postgres.target import home_schema
from etl.databases.url import Url
from etl.errors import SchemaMismatchError
from etl.rows import Shape
from etl.verdict import Survey, refusal_of


async def foresee(url: Url, asked: Sequence[Asked], info: RunInfo) -> Sequence[Survey]:
    """See :class:`etl.connector.Surveyor`."""
    async with connected(url, "target", application_name(info, "target")) as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        schema = await home_schema(connection, url)
        replaced = [
            relation.oid
            for one in asked
            if one.sink.mode == "replace"
            and (relation := await find_relation(connection, one.sink.table)) is not None
        ]
        found: list[Survey] = []
        for one in asked:
            load = Load(one.sink, info.pipeline, one.flow, schema, set(), Turn(asyncio.Lock()))
            found.append(await _survey(connection, load, one, replaced))
        await connection.execute("ROLLBACK")
        return found


async def _survey(
    connection: Connection, load: Load, asked: Asked, replaced: Sequence[int]
) -> Survey:
    shape, sink = asked.shape, asked.sink
    final = await load.find_final(connection)
    verdicts = None
    refusal = None
    if shape is not None:
        verdicts = verdicts_of(shape.columns, final, sink.allows)
        refusal = refusal_of(
            verdicts, where=load.label, table=final.label if final else sink.table, asks=asked.flow
        )
    try:
        await load.look(connection, shape, resumable=asked.resumable, together=replaced)
        if final is None and isinstance(sink.definition, TableDefinition):
            if sink.definition.dialect == "postgresql":
                await check_needs(connection, sink.definition, load.label)
    except SchemaMismatchError as error:
        refusal = refusal or str(error)
    return Survey(
        exists=final is not None,
        verdicts=verdicts,
        frames=load.unfit_for_frames,
        lines=None,
        tables=None,
        refusal=refusal,
        notes=load.told(final) if final is not None else (),
    )


async def wants_profile(url: Url, sink: Sink[Any], shape: Shape) -> bool:
    """See :meth:`etl.connector.Session.wants_profile`."""
    if not sink.create:
        return False
    async with connected(url, "target", "etl/survey") as connection:
        return await find_relation(connection, sink.table) is None
