"""How far an incremental read may go, so that no row that commits later is left behind.

Time cursors end strictly below the start of the oldest open transaction, 200 ms before now, and
``settle`` before that. For other cursors the highest value is noted, then the transactions that
are open at that moment must end; ``settle`` waits instead where they cannot be seen.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from etl.databases.generic.connect import LONG_S, Connection
from etl.databases.generic.table import TableColumn
from etl.databases.horizon import told_later, told_lower, told_unseen
from etl.errors import ConfigError
from etl.rows import Kind

WAIT_S = 10.0
"""How long open transactions are waited for."""
_POLL_S = 0.1
_MARGIN = timedelta(milliseconds=200)
_SOON = timedelta(minutes=1)
"""Rows of a time within it come with the next run, and are not worth a note."""
_NUMBERS = (int, Decimal)
_TIMES: frozenset[Kind] = frozenset({"date", "timestamp", "timestamptz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Where a read ends.

    Attributes:
        upper: The bound of the first order column; None: there is none.
        below: How it binds.
        is_empty: There is nothing to read now.
        note: Why, or which rows are left out for longer than a moment.
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
        raise ConfigError(told_unseen(where, why))


async def find_horizon(
    connection: Connection,
    lead: TableColumn,
    origin: str,
    settle: timedelta | None,
    where: str,
    *,
    term: str,
    after: Any,
    is_table: bool,
) -> Horizon:
    """Find how far to read; the snapshot of the read must be taken after this.

    Args:
        term: The expression by which the cursor orders the read.
        after: The cursor's value in the position that the read goes on from.
    """
    sees = await connection.dialect.sees_transactions(connection) is None
    if lead.type.kind in _TIMES:
        now = await connection.dialect.clock(connection)
        bound = now - _MARGIN
        if sees:
            oldest = await connection.dialect.oldest_transaction(connection)
            bound = min(bound, oldest) if oldest is not None else bound
        bound -= settle or timedelta(0)
        later = now + _SOON
        if lead.type.kind != "timestamptz":
            # Without a zone, the text of an instant depends on the zone of who wrote it: the lower
            # of UTC and of what sessions have by default here.
            offset_s = connection.limits.get("offset_s", 0)
            bound += timedelta(seconds=min(0, offset_s))
            later += timedelta(seconds=max(0, offset_s))
        note = None
        if is_table:  # a query may take long, and would be done twice
            note = await _note_of_later(
                connection, lead, origin, where, term, _as_value(later, lead)
            )
        return Horizon(upper=_as_value(bound, lead), note=note)
    # By what orders the read: a text's own collation has another greatest value than its bytes.
    noted = await connection.value(f"SELECT MAX({term}) FROM {origin}", timeout_s=LONG_S)  # noqa: S608
    await connection.rollback()
    if noted is None:
        return Horizon(is_empty=True)
    if isinstance(noted, _NUMBERS) and isinstance(after, _NUMBERS) and noted < after:
        return Horizon(is_empty=True, note=told_lower(where, lead.name))
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


async def _note_of_later(
    connection: Connection, lead: TableColumn, origin: str, where: str, term: str, later: Any
) -> str | None:
    """Rows whose time has not come: without a word they would be taken for copied."""
    count = await connection.value(
        f"SELECT COUNT(*) FROM {origin} WHERE {term} > :etl_0",  # noqa: S608
        {"etl_0": later},
        timeout_s=LONG_S,
    )
    return told_later(where, lead.name, count) if count else None


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
