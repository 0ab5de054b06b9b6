"""MySQL, MariaDB, and any other dialect that SQLAlchemy has an asyncio driver for."""

from functools import partial

from etl.databases.build import build_row as build_row_by
from etl.databases.generic.build import Builder
from etl.databases.generic.outlook import foresee, wants_profile
from etl.databases.generic.reader import open_reader
from etl.databases.generic.state import open_state
from etl.databases.generic.survey import check, describe, list_tables, open_snapshot
from etl.databases.generic.target import open_target

build_row = partial(build_row_by, Builder)

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
