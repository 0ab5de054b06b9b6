"""One SQLite connection on aiosqlite's thread, with the rules that keep it safe.

aiosqlite's thread goes on with a statement whose task was cancelled, so a connection whose
operation was cut is *poisoned*: it is interrupted and closed, never used again. It is always
closed: an open one would keep the interpreter from exiting.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias, TypeVar, cast
from urllib.parse import quote as quote_url

import aiosqlite

from etl.databases.sqlite.errors import (
    Side,
    code_of,
    is_busy,
    is_unreadable_text,
    translate,
    translated,
    unavailable,
)
from etl.databases.sqlite.turns import WritingConnection
from etl.engine.supervise import finish
from etl.errors import ConfigError, EtlError

T = TypeVar("T")

Access: TypeAlias = Literal["ro", "rw"]

LOCK_WAIT_S = 30.0
"""How long to wait for the write lock of another process."""
_BUSY_TIMEOUT_S = 0.25  # SQLite's own wait cannot be interrupted, so it is short and repeated
_BUSY_PAUSE_S = 0.02
_WAL_WAIT_S = 5.0
_INTERRUPT_EVERY_S = 0.02
OLDEST = (3, 37, 0)


class Connection:
    """A connection for one task at a time.

    Attributes:
        where: The database, for messages.
        poisoned: An operation was cut; only ``close`` is left.
    """

    def __init__(self, path: Path, *, access: Access, side: Side, where: str) -> None:
        self.where = where
        self.side: Side = side
        self.poisoned = False
        self._uri = f"file://{quote_url(os.fsencode(path.absolute()))}?mode={access}"
        self._aio: aiosqlite.Connection | None = None
        self._raw: sqlite3.Connection | None = None

    async def open(
        self, factory: type[sqlite3.Connection] = sqlite3.Connection, *, immutable: bool = False
    ) -> None:
        """Connect.

        Args:
            factory: The class of the driver's connection, whose methods run on the thread.
            immutable: Promise SQLite that nobody changes the file.
        """

        def make(*args: Any, **options: Any) -> sqlite3.Connection:
            self._raw = factory(*args, **options)
            return self._raw

        async def connect() -> None:
            self._aio = aiosqlite.connect(
                self._uri + ("&immutable=1" if immutable else ""),
                uri=True,
                factory=make,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
                # A statement that is kept keeps the values that were bound to it last.
                cached_statements=0,
            )
            await self._aio

        try:
            with translated(self.where, self.side):
                # Cut in the middle, the driver would lose a connection that it has made.
                await finish(connect())
        except BaseException:
            await self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._aio is not None and not self.poisoned

    @property
    def in_transaction(self) -> bool:
        """Whether SQLite is in a transaction now: some errors end one without a word."""
        return self._raw is not None and self._aio is not None and self._raw.in_transaction

    @property
    def total_changes(self) -> int:
        """Rows that were changed through this connection, by triggers too."""
        return self.raw.total_changes

    @property
    def raw(self) -> sqlite3.Connection:
        """The driver's connection, for what may be set from any thread."""
        assert self._raw is not None
        return self._raw

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        rows = await self.run(lambda driver: driver.execute_fetchall(sql, parameters))
        return cast("list[tuple[Any, ...]]", list(rows))

    async def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The first column of the first row; None where there is no row."""
        rows = await self.fetch(sql, parameters)
        return rows[0][0] if rows else None

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement without rows; return how many rows it changed."""
        cursor = await self.run(lambda driver: driver.execute(sql, parameters))
        return cursor.rowcount

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run a statement for each row. The iterable is consumed on the connection's thread."""
        # Not tried again: the iterable may be half consumed.
        cursor = await self.run(lambda driver: driver.executemany(sql, rows), wait_s=0)
        return cursor.rowcount

    async def create_function(self, name: str, function: Callable[[Any], Any]) -> None:
        """Let SQL call a pure function of one value."""
        await self.run(
            lambda driver: driver.create_function(name, 1, function, deterministic=True)  # pyright: ignore[reportUnknownMemberType]  a bare Callable there
        )

    async def run(
        self,
        work: Callable[[aiosqlite.Connection], Awaitable[T]],
        *,
        wait_s: float | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> T:
        """One operation of the driver; cut by a cancellation, it poisons the connection.

        Args:
            work: Called again while another connection's lock is in the way.
            wait_s: How long; default: ``LOCK_WAIT_S``.
            given_up: Whether to stop waiting.
        """
        aio = self._aio
        if aio is None or self.poisoned:
            raise unavailable(self.side, f"{self.where}: the connection is closed")
        deadline = monotonic() + (LOCK_WAIT_S if wait_s is None else wait_s)
        try:
            while True:
                try:
                    return await work(aio)
                except (sqlite3.Error, sqlite3.Warning) as error:
                    if not is_busy(error) or monotonic() > deadline or given_up():
                        quotes_value = is_unreadable_text(error)
                        raise translate(error, where=self.where, side=self.side) from (
                            None if quotes_value else error
                        )
                await asyncio.sleep(_BUSY_PAUSE_S)
        except asyncio.CancelledError:
            self.poison()
            raise

    async def begin(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Begin a transaction that may write, waiting for other writers.

        IMMEDIATE: a transaction that reads first and writes later fails at once where another
        one wrote in between.
        """
        await self.run(lambda driver: driver.execute_fetchall("BEGIN IMMEDIATE"), given_up=given_up)

    async def commit(self) -> None:
        """Commit. Outside WAL, readers can be in the way: then it waits, still in transaction."""
        await self.run(lambda driver: driver.execute_fetchall("COMMIT"))

    async def roll_back(self) -> None:
        """Leave the transaction, where there is one; an error poisons the connection."""
        if not self.is_open or not self.in_transaction:
            return
        try:
            await self.execute("ROLLBACK")
        except BaseException:
            self.poison()
            raise

    def poison(self) -> None:
        """Use it no more; end what it is doing."""
        self.poisoned = True
        self.interrupt()

    def interrupt(self) -> None:
        """End the running statement soon; nothing happens where there is none."""
        if self._raw is not None and self._aio is not None:
            with suppress(sqlite3.ProgrammingError):  # it was closed at this moment
                self._raw.interrupt()

    async def close(self) -> None:
        """Close it, through any number of cancellations. Does nothing when it is closed."""
        await finish(self._close())

    async def _close(self) -> None:
        aio = self._aio
        if aio is None:
            return
        closing = asyncio.ensure_future(aio.close())
        while not closing.done():
            if self.poisoned:
                # Again and again: an interrupt that comes before the thread has begun the
                # statement is lost.
                self.interrupt()
            await asyncio.wait({closing}, timeout=_INTERRUPT_EVERY_S)
        self._aio = self._raw = None
        with suppress(sqlite3.Error):  # nothing of the file depends on an orderly close
            closing.result()


def path_of(text: str, where: str) -> Path:
    """The file of a URL.

    Raises:
        ConfigError: Its directory is missing, or it is a directory itself; or this Python comes
            with a SQLite that is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise ConfigError(
            f"this Python has SQLite {sqlite3.sqlite_version}; etl needs 3.37 or newer"
        )
    path = Path(text)
    if path.is_dir():
        raise ConfigError(f"{where} is a directory, not a database file")
    if not path.parent.is_dir():
        raise ConfigError(f"{where}: the directory {str(path.parent)!r} does not exist; make it")
    return path


async def open_source(url_path: str, where: str, factory: type[sqlite3.Connection]) -> Source:
    """Open an existing file for reading only.

    Raises:
        ConfigError: The file is missing or cannot be read; nothing is created.
    """
    path = path_of(url_path, where)
    if not path.exists():
        raise ConfigError(f"{where}: there is no such file, and what is read must exist")
    connection = Connection(path, access="ro", side="source", where=where)
    try:
        await connection.open(factory)
        await connection.value("SELECT count(*) FROM sqlite_schema")
        return Source(connection, str(await connection.value("PRAGMA journal_mode")), ())
    except ConfigError as refused:
        await connection.close()
        if code_of(refused.__cause__) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            raise
        if _has_content(path.with_name(path.name + "-wal")) or _has_content(
            path.with_name(path.name + "-journal")
        ):
            raise ConfigError(
                f"{where} was left in the middle of its last changes and cannot be read where"
                " its directory cannot be written; open it once with its own program, or copy it"
                " together with its -wal or -journal file to a directory that can be written"
            ) from refused
        if not _wants_shared_memory(path):
            raise
    except BaseException:
        await connection.close()
        raise
    # A file in WAL mode cannot be read without the files beside it. Where those can be neither
    # found nor made, nobody else can be writing through this directory either.
    connection = Connection(path, access="ro", side="source", where=where)
    try:
        await connection.open(factory, immutable=True)
        await connection.value("PRAGMA schema_version")
    except BaseException:
        await connection.close()
        raise
    note = (
        f"{where} is in WAL mode in a directory that cannot be written: it is read as a file"
        " that nobody changes meanwhile"
    )
    return Source(connection, "immutable", (note,))


class Source:
    """A connection for reading, its journal mode, and what a person should know."""

    def __init__(self, connection: Connection, journal: str, notes: Sequence[str]) -> None:
        self.connection = connection
        self.journal = journal
        self.notes = tuple(notes)


async def open_target_file(url_path: str, where: str) -> tuple[Connection, Sequence[str]]:
    """Open a file for writing; make it, readable by its owner only, where it is missing.

    Returns:
        The connection and notes.

    Raises:
        ConfigError: It cannot be made, or has a second name.
    """
    path = path_of(url_path, where)
    make_file(path, where)
    if (names := path.stat().st_nlink) > 1:
        # SQLite's log and journal lie beside the name by which a file was opened, so who opens it
        # by another sees neither. See "How To Corrupt An SQLite Database File", 2.5.
        raise ConfigError(
            f"{where}: the file has {names} names (hard links), and SQLite programs that open it by"
            " different ones destroy it. Nothing was moved; make it a file of its own (cp), or name"
            " it by symbolic links"
        )
    connection = await connect_target(path, where)
    try:
        mode = await connection.value("PRAGMA journal_mode")
        notes: list[str] = []
        if mode != "wal":
            mode = await _to_wal(connection)
        if mode != "wal":
            notes.append(
                f"{where} keeps its journal mode {mode!r} (WAL was refused): readers and etl"
                " wait for each other"
            )
    except BaseException:
        await connection.close()
        raise
    return connection, notes


async def connect_target(path: Path, where: str) -> Connection:
    """A connection for writing to an existing file.

    Foreign keys hold, checked when a transaction ends. In WAL mode ``synchronous=NORMAL``: after
    a power failure the last transactions may be gone, rows and positions together.
    """
    connection = Connection(path, access="rw", side="target", where=where)
    try:
        await connection.open(WritingConnection)
        await connection.execute("PRAGMA foreign_keys=ON")
        if await connection.value("PRAGMA journal_mode") == "wal":
            await connection.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        await connection.close()
        raise
    return connection


def make_file(path: Path, where: str) -> None:
    """Make an empty database file with private rights, where it is missing."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"{where} cannot be made: {error.strerror}") from error


async def _to_wal(connection: Connection) -> str:
    """Turn WAL on; the mode that the file has afterwards."""
    try:
        rows = await connection.run(
            lambda driver: driver.execute_fetchall("PRAGMA journal_mode=WAL"), wait_s=_WAL_WAIT_S
        )
        return str(next(iter(rows))[0])
    except EtlError:
        # Others are in the file now, or it cannot have the files beside it. The mode is a
        # matter of speed, not of right and wrong.
        return str(await connection.value("PRAGMA journal_mode"))


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _wants_shared_memory(path: Path) -> bool:
    """Whether the header says WAL: the file's read version is 2.

    Closing a descriptor drops every lock that this process has on the file; so this is only for a
    file that SQLite could not open.
    """
    with path.open("rb") as file:
        return file.read(20)[19:20] == b"\x02"
