"""The table ``etl_table``: which tables of a target etl has made, and which are not finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from etl.databases.postgres.connect import Connection
from etl.databases.sql import qualify

TABLE = "etl_table"
State: TypeAlias = Literal["building", "made"]


class Made:
    """What etl made in one database. The caller owns the transaction."""

    def __init__(self, home: str, pipeline: str) -> None:
        self._table = qualify(home, TABLE)
        self._pipeline = pipeline

    async def state(self, connection: Connection, schema: str, name: str) -> State | None:
        """``building`` where constraints are still to be added; None: etl did not make it."""
        if await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NULL", self._table):
            return None  # a survey comes before the first run
        found: State | None = await connection.fetchval(
            f"SELECT state FROM {self._table} WHERE name = $1",  # noqa: S608
            qualify(schema, name),
        )
        return found

    async def record(self, connection: Connection, states: Mapping[str, State]) -> None:
        """Remember which tables etl made, of those that there are, by their quoted names."""
        if not states:
            return
        await connection.execute(
            f"INSERT INTO {self._table} AS t (name, state, pipeline, made_at)"  # noqa: S608
            " SELECT name, state, $3, now()"
            " FROM unnest($1::text[], $2::text[]) AS m(name, state)"
            " WHERE pg_catalog.to_regclass(name) IS NOT NULL"
            " ON CONFLICT (name) DO UPDATE"
            " SET state = excluded.state, pipeline = excluded.pipeline, made_at = excluded.made_at",
            list(states),
            list(states.values()),
            self._pipeline,
        )
