"""The table ``etl_table``: which tables of a file etl has made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from etl.databases.sql import fold, quote
from etl.databases.sqlite.connection import Connection


async def is_made(connection: Connection, name: str) -> bool:
    """Whether etl made the table, or put all its rows there."""
    if not await connection.fetch("SELECT 1 FROM sqlite_schema WHERE name = 'etl_table'"):
        return False  # a survey comes before the first run
    return bool(
        await connection.fetch("SELECT 1 FROM etl_table WHERE name = ?", (quote(fold(name)),))
    )


async def is_building(connection: Connection, name: str) -> bool:
    """Whether etl made the table and has not filled it for the first time yet."""
    return bool(
        await connection.fetch(
            "SELECT 1 FROM etl_table WHERE name = ? AND state = 'building'", (quote(fold(name)),)
        )
    )


async def record(
    connection: Connection, name: str, pipeline: str, state: Literal["building", "made"] = "made"
) -> None:
    """Remember that etl made the table, in the transaction that is open."""
    await connection.execute(
        "INSERT INTO etl_table (name, state, pipeline, made_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET state = excluded.state, pipeline = excluded.pipeline,"
        " made_at = excluded.made_at",
        (quote(fold(name)), state, pipeline, datetime.now(UTC).isoformat(timespec="seconds")),
    )
