"""How far an incremental read may go, so that no row that commits later is left behind.

A row becomes visible when its transaction commits, which may be long after its cursor value was
made. So a read stops below what a transaction that is still open could yet bring:

- Time cursors: strictly below the start of the oldest open transaction, 200 ms before now, and
  ``settle`` before that. Sound for values that the database makes itself with ``now()``, and
  for those of clients whose clocks agree with it within 200 ms. Without a time zone they must
  be in UTC or in the time zone that the server gives to sessions, and one that has summer time
  repeats an hour of each year.
- Other cursors: the highest value is noted; then every transaction that was open at that moment
  must end; then rows up to the noted value are read. Sound for values drawn from one sequence
  without a cache (``CACHE 1``, the default). With ``settle``, that time is waited too.

A prepared transaction counts from when it was prepared; rows that it made with an earlier clock
need ``settle``.

A role that cannot see other users' transactions, and a standby, where they do not show, need
``settle`` instead: an upper bound of how long a writing transaction lasts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from etl.batch import Position
from etl.databases.horizon import told_later, told_lower, told_unseen
from etl.databases.postgres.connect import READING, Connection
from etl.databases.postgres.liveness import run_long
from etl.databases.postgres.selection import Selection, set_bounds
from etl.databases.sql import quote
from etl.errors import ConfigError, DataError
from etl.rows import Kind

WAIT_S = 10.0
"""How long open transactions are waited for."""
_POLL_S = 0.1

_TIME_KINDS: frozenset[Kind] = frozenset({"timestamp", "timestamptz", "date"})

# Transactions that may write rows; a base backup, a vacuum or a read of etl does not.
_OPEN = f"""
FROM pg_catalog.pg_stat_activity
WHERE datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND pid <> pg_catalog.pg_backend_pid() AND xact_start IS NOT NULL
    AND backend_type NOT IN ('autovacuum worker', 'parallel worker', 'walsender')
    AND NOT (application_name LIKE 'etl/%' AND application_name LIKE '%{READING}')
"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Where a read ends.

    Attributes:
        upper: The bound of the first order column, as text; None: there is nothing to read.
        below: How it binds.
        note: Why nothing can be read now, or which rows are left out for longer than a moment.
    """

    upper: str | None
    below: str
    note: str | None = None


async def check_rights(
    connection: Connection, selection: Selection, settle: timedelta | None
) -> None:
    """Refuse a read whose horizon could not be trusted.

    Raises:
        ConfigError: ``settle`` is needed here.
    """
    if settle is not None:
        return
    row = await connection.fetchrow(
        """
        SELECT pg_catalog.pg_is_in_recovery() AS standby,
            pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees
        """
    )
    assert row is not None
    if row["standby"]:
        why = "the source is a standby, which does not show the transactions that are open on its"
        why += " primary"
    elif not row["sees"]:
        why = "the user may not see other users' transactions (GRANT pg_read_all_stats)"
    else:
        return
    raise ConfigError(told_unseen(selection.label, why))


async def find_horizon(
    connection: Connection,
    selection: Selection,
    after: Position | None,
    settle: timedelta | None,
) -> Horizon:
    """Find how far to read; the snapshot of the read must be taken after this."""
    assert selection.leads is not None
    if selection.leads.kind in _TIME_KINDS:
        return await _time_horizon(connection, selection, settle or timedelta(0))
    return await _noted_horizon(connection, selection, after, settle or timedelta(0))


async def _time_horizon(connection: Connection, selection: Selection, settle: timedelta) -> Horizon:
    # A column of fewer digits rounds or cuts what now() gives, so a row may have a value below the
    # start of its own transaction. A view's or a query's column does not tell.
    assert selection.leads is not None
    of_table = selection.relation is not None and selection.relation.is_table
    zone = "'UTC'"
    if selection.leads.kind != "timestamptz":
        zone = "(SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'TimeZone')"
    unit = "microsecond" if of_table and "(" not in selection.leads.name else "second"
    cast = selection.casts[0]
    upper: str = await connection.fetchval(
        # Without a time zone, the text of an instant depends on the zone of who wrote it: the
        # lower of UTC and of what sessions have by default here.
        f"""
        SELECT least(instant::{cast}, (instant AT TIME ZONE zone)::{cast})::text
        FROM (SELECT date_trunc('{unit}', least(
                clock_timestamp() - interval '200 ms',
                CASE WHEN pg_catalog.pg_is_in_recovery()
                    THEN pg_catalog.pg_last_xact_replay_timestamp() END,
                (SELECT min(xact_start) {_OPEN}),
                (SELECT min(prepared) FROM pg_catalog.pg_prepared_xacts
                    WHERE database = current_database())
            ) - $1::interval) AS instant) AS i,
            (SELECT {zone} AS zone) AS z
        """,  # noqa: S608  the server's own spelling of a type
        settle,
    )
    note = await _note_of_later(connection, selection, zone) if of_table else None
    return Horizon(upper=upper, below="<", note=note)


async def _note_of_later(connection: Connection, selection: Selection, zone: str) -> str | None:
    """Rows whose time has not come: without a word they would be taken for copied."""
    lead, cast = quote(selection.order[0]), selection.casts[0]
    rows = selection.sql(None, None, None, ordered=False)
    found = await run_long(
        connection.fetchrow,
        f"""
        SELECT count(*) AS later, count(*) FILTER (WHERE NOT isfinite({lead})) AS never
        FROM ({rows}) AS etl_rows,
            (SELECT clock_timestamp() + interval '1 minute' AS instant, {zone} AS zone) AS z
        WHERE {lead} > greatest(instant::{cast}, (instant AT TIME ZONE zone)::{cast})
        """,  # noqa: S608
    )
    assert found is not None
    later, never = found["later"], found["never"]
    if not later:
        return None
    more = f" (of 'infinity', which never comes: {never})" if never else ""
    return told_later(selection.label, selection.order[0], later, more)


async def _noted_horizon(
    connection: Connection, selection: Selection, after: Position | None, settle: timedelta
) -> Horizon:
    lead = quote(selection.order[0])
    await set_bounds(connection, after, None, None)
    rows = selection.sql(after, None, None, ordered=False)
    upper: str | None = await run_long(
        connection.fetchval,
        # Without a name of its own the text would be what ORDER BY sorts by.
        f"SELECT {lead}::text AS etl_upper FROM ({rows}) AS etl_rows WHERE {lead} IS NOT NULL"  # noqa: S608
        f" ORDER BY {lead} DESC LIMIT 1",
    )
    if upper is None:
        if after is None:
            return Horizon(upper=None, below="<=")
        if await _is_lower(connection, selection, after):
            note = told_lower(selection.label, selection.order[0])
            return Horizon(upper=None, below="<=", note=note)
        _refuse_end(selection, after[0])
        return Horizon(upper=None, below="<=")
    _refuse_end(selection, upper)
    await asyncio.sleep(settle.total_seconds())
    blocker = await _wait_for_open(connection)
    if blocker is not None:
        return Horizon(
            upper=None,
            below="<=",
            note=f"{selection.label}: nothing was read, because {blocker} and could still bring"
            f" rows with a smaller {selection.order[0]!r}. The next run reads them once it has"
            " ended",
        )
    return Horizon(upper=upper, below="<=")


def _refuse_end(selection: Selection, upper: Any) -> None:
    """Refuse a value behind which nothing comes: the position would stay there for ever."""
    if upper in {"NaN", "Infinity"} and selection.casts[0].startswith("numeric"):
        raise DataError(
            f"{selection.label}: the cursor {selection.order[0]!r} (numeric) is {upper} in some"
            " row, and no row comes after that: whatever is added would be left out for ever."
            " Nothing was moved; correct such rows, or read a query that leaves them out"
        )


async def _is_lower(connection: Connection, selection: Selection, after: Position) -> bool:
    """Whether the table has rows and ends before the position."""
    lead = quote(selection.order[0])
    rows = selection.sql(None, None, None, ordered=False)
    is_lower: bool | None = await run_long(
        connection.fetchval,
        f"SELECT {lead} < $1::text::{selection.casts[0]} FROM ({rows}) AS etl_rows"  # noqa: S608
        f" WHERE {lead} IS NOT NULL ORDER BY {lead} DESC LIMIT 1",
        after[0],
    )
    return bool(is_lower)


async def _wait_for_open(connection: Connection) -> str | None:
    """Wait for the transactions that are open now; name one that does not end in time."""
    noted: dict[tuple[str, str], str] = await _open_transactions(connection)
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    while True:
        if not noted:
            return None
        if loop.time() > until:
            return next(iter(noted.values()))
        await asyncio.sleep(_POLL_S)
        still = await _open_transactions(connection)
        noted = {key: noted[key] for key in noted.keys() & still.keys()}


async def _open_transactions(connection: Connection) -> dict[tuple[str, str], str]:
    rows = await connection.fetch(
        f"""
        SELECT pid::text AS id, xact_start::text AS since, application_name AS name
        {_OPEN}
        UNION ALL
        SELECT gid, prepared::text, NULL FROM pg_catalog.pg_prepared_xacts
        WHERE database = current_database()
        ORDER BY since
        """  # noqa: S608
    )
    return {
        (row["id"], row["since"]): (
            f"a transaction of session {row['id']} ({row['name'] or 'no application_name'}) has"
            f" been open since {row['since']}"
            if row["name"] is not None
            else f"the prepared transaction {row['id']!r} has been waiting since {row['since']}"
        )
        for row in rows
    }
