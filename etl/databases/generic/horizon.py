"""How far an incremental read may go, so that no row that commits later is left behind.

Time cursors end strictly below the start of the oldest open transaction, 200 ms before now, and
``settle`` before that. For other cursors the highest value is noted, then the transactions that
are open at that moment must end; ``settle`` waits instead where they cannot be seen.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from etl.databases.generic.connect import Connection
from etl.databases.generic.table import TableColumn
from etl.errors import ConfigError
from etl.rows import Kind

WAIT_S = 10.0
"""How long open transactions are waited for."""
_POLL_S = 0.1
_MARGIN = timedelta(milliseconds=200)
_TIMES: frozenset[Kind] = frozenset({"date", "timestamp", "timestamptz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Where a read ends.

    Attributes:
        upper: The bound of the first order column; None: there is none.
        below: How it binds.
        is_empty: There is nothing to read now.
        note: Why.
    """

    upper: Any = None
    below: str = "<"
    is_empty: bool = False
    note: str | None = None


async def check_rights(
    connection: Connection, lead: TableColumn, settle: timedelta | None, where: str
) -> None:
    """Refuse a read whose horizon could not be trusted.

    Raises:
        ConfigError: ``settle`` is needed here.
    """
    if settle is not None:
        return
    why = await connection.dialect.sees_transactions(connection)
    if why is not None:
        raise ConfigError(
            f"{where}: {why}, so rows that commit late could be missed. Nothing was moved; give"
            " settle=timedelta(...) (etl copy: --settle SECONDS), longer than any writing"
            " transaction lasts"
        )


async def find_horizon(
    connection: Connection, lead: TableColumn, origin: str, settle: timedelta | None, where: str
) -> Horizon:
    """Find how far to read; the snapshot of the read must be taken after this."""
    sees = await connection.dialect.sees_transactions(connection) is None
    if lead.type.kind in _TIMES:
        bound = await connection.dialect.clock(connection) - _MARGIN
        if sees:
            oldest = await connection.dialect.oldest_transaction(connection)
            bound = min(bound, oldest) if oldest is not None else bound
        bound -= settle or timedelta(0)
        if lead.type.kind != "timestamptz":
            # Without a zone, the text of an instant depends on the zone of who wrote it: the lower
            # of UTC and of what sessions have by default here.
            bound += timedelta(seconds=min(0, connection.limits.get("offset_s", 0)))
        return Horizon(upper=_as_value(bound, lead))
    name = connection.dialect.quote(lead.name)
    noted = await connection.value(f"SELECT MAX({name}) FROM {origin}")  # noqa: S608
    await connection.rollback()
    if noted is None:
        return Horizon(is_empty=True)
    if settle:
        await asyncio.sleep(settle.total_seconds())
    if sees:
        left = await _await_end(connection)
        if left:
            return Horizon(
                is_empty=True,
                note=f"{where}: transactions that may still bring rows have been open for more than"
                f" {WAIT_S:.0f} s (session {left}); nothing was moved, run again when they have"
                " ended",
            )
    return Horizon(upper=noted, below="<=")


async def _await_end(connection: Connection) -> str | None:
    """Wait until every transaction that is open now has ended; one that has not."""
    dialect = connection.dialect
    there = set(await dialect.open_transactions(connection))
    await connection.rollback()
    loop = asyncio.get_running_loop()
    end = loop.time() + WAIT_S
    while there:
        if loop.time() > end:
            return sorted(there)[0].split(" ")[1]
        await asyncio.sleep(_POLL_S)
        there &= set(await dialect.open_transactions(connection))
        await connection.rollback()
    return None


def _as_value(moment: datetime, lead: TableColumn) -> Any:
    """An instant as the column's values are compared: without a zone, in UTC.

    A column of fewer digits rounds, so a row may have a value below its own instant.
    """
    if lead.type.kind == "date":
        return moment.date()
    if not lead.type.scale:
        moment = moment.replace(microsecond=0)
    if lead.type.dialect == "mysql" or lead.type.kind == "timestamp":
        return moment.replace(tzinfo=None)
    return moment
