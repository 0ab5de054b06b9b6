"""MySQL, MariaDB, and any other dialect that SQLAlchemy has an asyncio driver for."""

from etl.databases.generic.build import build_row
from etl.databases.generic.outlook import foresee, wants_profile
from etl.databases.generic.reader import open_reader
from etl.databases.generic.state import open_state
from etl.databases.generic.survey import check, describe, list_tables, open_snapshot
from etl.databases.generic.target import open_target

__all__ = [
    "build_row",
    "check",
    "describe",
    "foresee",
    "list_tables",
    "open_reader",
    "open_snapshot",
    "open_state",
    "open_target",
    "wants_profile",
]
