"""The table ``etl_table``: which of a target's tables etl has made, and what it has to finish."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa

from etl.databases.checkpoints import now
from etl.databases.generic.connect import Connection

_TABLE = sa.table("etl_table", *map(sa.column, ("name", "state", "pipeline", "made_at")))


async def state_of(connection: Connection, name: str) -> str | None:
    """``building`` or ``made``; None for a table that etl did not make.

    Args:
        name: Quoted, with its schema where it has one.
    """
    found = await connection.value(sa.select(_TABLE.c.state).where(_TABLE.c.name == name))
    return None if found is None else str(found)


async def record(
    connection: Connection, name: str, pipeline: str, state: Literal["building", "made"] = "made"
) -> None:
    """Remember that etl made the table, in the transaction that is open."""
    values = {"state": state, "pipeline": pipeline, "made_at": now()}
    if not await connection.execute(
        sa.update(_TABLE).where(_TABLE.c.name == name).values(**values)
    ):
        await connection.execute(sa.insert(_TABLE).values(name=name, **values))
