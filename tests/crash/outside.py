"""Databases as crash tests see them: made, emptied and read without etl."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from tests.crash.cases import Item, Rows

_TABLE = "(id BIGINT PRIMARY KEY, kind TEXT NOT NULL, amount BIGINT NOT NULL)"
_VERSION = "etl_version"


class Outside(Protocol):
    """A database, seen from outside.

    Attributes:
        url: What etl is given.
    """

    url: str

    def make_table(self, name: str, items: Sequence[Item]) -> None:
        """Make a table that holds items."""
        ...

    def empty(self) -> None:
        """Drop all tables but those that etl keeps, which are emptied: they take long to make."""
        ...

    def look(self, tables: Iterable[str]) -> tuple[Mapping[str, Rows], list[Any] | None]:
        """Each table's rows, sorted, and the one position, all at one instant.

        A table that is missing has no rows; a position is missing before the first commit.
        """
        ...


class SqliteOutside:
    """A SQLite file."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path

    def make_table(self, name: str, items: Sequence[Item]) -> None:
        with self._connected() as connection:
            # Declared as SQLite wants it for the key of its rows.
            connection.execute(f"CREATE TABLE {name} {_TABLE.replace('BIGINT', 'INTEGER')}")
            connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", map(row_of, items))
            connection.execute("COMMIT")

    def empty(self) -> None:
        with self._connected() as connection:
            for name in self._tables(connection):
                if not name.startswith("etl_"):
                    connection.execute(f'DROP TABLE "{name}"')
                elif name != _VERSION:
                    connection.execute(f"DELETE FROM {name}")
            connection.execute("COMMIT")

    def look(self, tables: Iterable[str]) -> tuple[Mapping[str, Rows], list[Any] | None]:
        with self._connected() as connection:
            there = self._tables(connection)
            rows = {
                name: sorted(connection.execute(f"SELECT {seen_of(name)} FROM {name}"))
                if name in there
                else []
                for name in tables
            }
            found = None
            if "etl_checkpoint" in there:
                found = connection.execute("SELECT position FROM etl_checkpoint").fetchone()
        return rows, position_of(found)

    @staticmethod
    def _tables(connection: sqlite3.Connection) -> set[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        return {name for (name,) in connection.execute(query)}

    @contextmanager
    def _connected(self) -> Generator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=20)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN IMMEDIATE")
            yield connection


class PostgresOutside:
    """A PostgreSQL database, which nobody else uses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._runner = asyncio.Runner()
        self._connection = self._runner.run(asyncpg.connect(url))

    def close(self) -> None:
        """Close the connection."""
        self._runner.run(self._connection.close())
        self._runner.close()

    def make_table(self, name: str, items: Sequence[Item]) -> None:
        async def make() -> None:
            await self._connection.execute(f"CREATE TABLE {name} {_TABLE}")
            await self._connection.copy_records_to_table(name, records=map(row_of, items))

        self._runner.run(make())

    def empty(self) -> None:
        async def drop() -> None:
            # A run that was killed may still have a session, which holds its locks.
            await self._connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            for name in await self._tables():
                if not name.startswith("etl_"):
                    await self._connection.execute(f'DROP TABLE "{name}"')
                elif name != _VERSION:
                    await self._connection.execute(f"DELETE FROM {name}")

        self._runner.run(drop())

    def look(self, tables: Iterable[str]) -> tuple[Mapping[str, Rows], list[Any] | None]:
        async def read() -> tuple[dict[str, Rows], Any]:
            async with self._connection.transaction(isolation="repeatable_read"):
                there = await self._tables()
                rows = {
                    name: sorted(
                        tuple(row)
                        for row in await self._connection.fetch(
                            f"SELECT {seen_of(name)} FROM {name}"
                        )
                    )
                    if name in there
                    else []
                    for name in tables
                }
                found = None
                if "etl_checkpoint" in there:
                    found = await self._connection.fetchrow("SELECT position FROM etl_checkpoint")
            return rows, found

        rows, found = self._runner.run(read())
        return rows, position_of(found)

    async def _tables(self) -> set[str]:
        found = await self._connection.fetch(
            "SELECT relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        return {row["relname"] for row in found}


def seen_of(name: str) -> str:
    """The columns of a table that are the same in each run."""
    return "sink, step, row_key, tries" if name == "etl_reject" else "*"


def row_of(item: Item) -> tuple[int, str, int]:
    return item.id, item.kind, item.amount


def position_of(found: Sequence[str | None] | None) -> list[Any] | None:
    return json.loads(found[0]) if found and found[0] else None
