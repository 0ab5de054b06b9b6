"""The SQLite driver: sources, sinks and checkpoints in a file, by aiosqlite."""

from etl.databases.sqlite.reader import open_reader

__all__ = ["open_reader"]
