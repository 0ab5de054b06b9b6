"""Where to cut a table into key ranges of about equal size."""

from __future__ import annotations

from collections.abc import Sequence

from etl.batch import Position
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.liveness import run_long
from etl.databases.postgres.selection import Selection
from etl.databases.sql import quote, quote_all

_SAMPLE_ROWS = 20_000
"""From ten times as many rows on, a table is sampled: pages at random, about so many rows."""


async def find_chunks(
    connection: Connection, selection: Selection, *, most: int, least_rows: int
) -> Sequence[Position]:
    """The last key of each range, the highest key last; see ``Reader.chunks``.

    Everything is compared in the database, so the ranges follow the column's collation.
    """
    origin, rows = selection.origin, 0
    relation = selection.relation
    if relation is not None and relation.is_table and origin == relation.qualified:
        # Estimates of the last ANALYZE; -1 where there was none.
        estimate: float = await connection.fetchval(
            "SELECT reltuples FROM pg_catalog.pg_class WHERE oid = $1", relation.oid
        )
        if estimate >= 10 * _SAMPLE_ROWS:
            rows = int(estimate)
            percent = max(100 * _SAMPLE_ROWS / estimate, 0.001)
            origin += f" TABLESAMPLE SYSTEM ({percent:.6f})"
    keys = quote_all(selection.order)
    if not rows:
        rows = await run_long(connection.fetchval, f"SELECT count(*) FROM {origin}")  # noqa: S608
    number = min(most, rows // least_rows)
    if number < 2:
        return ()
    # Under a name of its own: else the text would be what ORDER BY sorts by.
    texts = ", ".join(f"{quote(n)}::text AS etl_{i}" for i, n in enumerate(selection.order))
    down = ", ".join(f"{quote(name)} DESC" for name in selection.order)
    found = await run_long(
        connection.fetch,
        # The last row of each of the ranges but the last, which goes up to the highest key.
        f"""
        SELECT {texts} FROM (
            SELECT {keys}, row_number() OVER (ORDER BY {keys}) AS etl_r, count(*) OVER () AS etl_n
            FROM {origin}
        ) AS etl_s
        WHERE etl_r * $1 / etl_n > (etl_r - 1) * $1 / etl_n AND etl_r < etl_n
        ORDER BY {keys}
        """,  # noqa: S608
        number,
    )
    top = await run_long(
        connection.fetchrow,
        f"SELECT {texts} FROM {selection.origin} ORDER BY {down} LIMIT 1",  # noqa: S608
    )
    if top is None:
        return ()
    bounds = [tuple(row) for row in found]
    highest = tuple(top)
    # The highest key of the sample may be that of the table.
    return [*(bound for bound in bounds if bound != highest), highest]
