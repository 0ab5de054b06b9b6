"""PostgreSQL, through asyncpg: COPY out of a source, COPY into a target.

``selection`` describes a read and ``horizon`` says how far an incremental one may go; ``reader``
runs it. A target has a ``session`` for each lane; it holds a ``load`` for each sink, which turns
rows into COPY text (``lines``), and makes tables (``tables``, ``staging``) where they are missing.
"""

from etl.databases.postgres.digest import open_snapshot
from etl.databases.postgres.inspection import check, describe, list_tables
from etl.databases.postgres.outlook import foresee, wants_profile
from etl.databases.postgres.reader import open_reader
from etl.databases.postgres.selection import build_row
from etl.databases.postgres.state import open_state
from etl.databases.postgres.target import open_target

__all__ = [
    "build_row",
    "check",
    "describe",
    "list_tables",
    "open_reader",
    "open_snapshot",
    "open_state",
    "open_target",
    "foresee",
    "wants_profile",
]
