"""The SQLite driver: sources, sinks and checkpoints in a file, by aiosqlite."""

from functools import partial

from etl.databases.build import build_row as build_row_by
from etl.databases.sqlite.build import Builder
from etl.databases.sqlite.digest import open_snapshot
from etl.databases.sqlite.outlook import foresee, wants_profile
from etl.databases.sqlite.reader import open_reader
from etl.databases.sqlite.state import open_state
from etl.databases.sqlite.survey import check, describe, list_tables
from etl.databases.sqlite.target import open_target

build_row = partial(build_row_by, Builder)

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
