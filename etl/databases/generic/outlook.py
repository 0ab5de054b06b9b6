"""What a database of a generic dialect would do with rows, looked up without changing it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from etl.connector import Asked, RunInfo, Sink
from etl.databases.generic.connect import Connection, opened
from etl.databases.generic.ddl import Plan
from etl.databases.generic.encode import accepts
from etl.databases.generic.load import Load
from etl.databases.generic.table import Table
from etl.databases.url import Url
from etl.errors import SchemaMismatchError
from etl.rows import Column, Shape
from etl.verdict import Fit, Survey, Verdict, refusal_of, spelled

_EXACT = Fit(way="as it is", grade="exact")
_CHECKED = Fit(way="converted", grade="checked")
_REFUSED = Fit(way="converted", grade="refused")


async def foresee(url: Url, asked: Sequence[Asked], info: RunInfo) -> Sequence[Survey]:
    """See :class:`etl.connector.Surveyor`."""
    async with opened(url, "target") as connection:
        knows_own = await connection.dialect.find_table(connection, None, "etl_table") is not None
        return [
            await _survey(
                connection, one, _load(url, one.sink, info.pipeline, one.flow), knows_own=knows_own
            )
            for one in asked
        ]


def _load(url: Url, sink: Sink[Any], pipeline: str, flow: str) -> Load:
    return Load(sink, pipeline=pipeline, flow=flow, ddl=partial(opened, url, "target"))


async def _survey(connection: Connection, asked: Asked, load: Load, *, knows_own: bool) -> Survey:
    shape = asked.shape
    verdicts: list[Verdict] | None = None
    refusal: str | None = None
    final = await load.find(connection)
    try:
        if shape is not None:
            if final is None:
                verdicts = _of_plan(load.plan(connection, shape), shape, connection.dialect.name)
            else:
                verdicts = _of_table(final, shape)
                refusal = refusal_of(verdicts, where=load.label, table=final.name, asks=asked.flow)
        await load.look(connection, shape, resumable=asked.resumable, knows_own=knows_own)
    except SchemaMismatchError as error:
        refusal = refusal or str(error)
    await connection.rollback()
    return Survey(
        exists=final is not None,
        verdicts=verdicts,
        frames="this dialect has no binary form of rows",
        lines="this dialect takes values, not lines",
        refusal=refusal,
    )


def _of_plan(plan: Plan, shape: Shape, dialect: str) -> list[Verdict]:
    """Of the table that would be made."""
    declared = {name: type_ for name, type_, _ in plan.columns}
    return [
        _verdict(column, declared[column.name], _is_same(column, declared[column.name], dialect))
        for column in shape.columns
    ]


def _of_table(table: Table, shape: Shape) -> list[Verdict]:
    found: list[Verdict] = []
    for column in shape.columns:
        target = table.column(column.name)
        if target is None or target.generated:
            continue
        if accepts(column.type, target):
            same = _is_same(column, target.declared, target.type.dialect)
            found.append(_verdict(column, target.declared, same))
        else:
            found.append(_verdict(column, target.declared, None))
    return found


def _is_same(column: Column, declared: str, dialect: str) -> bool:
    """Whether it is the same type of the same dialect, so that every value of the one fits."""
    return column.type.dialect == dialect and spelled(column.type).lower() == declared.lower()


def _verdict(column: Column, declared: str, same: bool | None) -> Verdict:
    return Verdict(
        column=column.name,
        source=spelled(column.type),
        target=declared,
        fit=_REFUSED if same is None else _EXACT if same else _CHECKED,
    )


async def wants_profile(url: Url, sink: Sink[Any], shape: Shape) -> bool:
    """See :meth:`etl.connector.Session.wants_profile`."""
    async with opened(url, "target") as connection:
        load = _load(url, sink, "", "")
        return await load.wants_profile(connection, shape)
