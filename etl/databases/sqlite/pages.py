"""Pages of rows, fetched, measured and converted on the connection's thread.

A page ends when its rows reach the size of a batch, so that a page of 10-MB blobs holds one row
and not ten thousand. Measuring every value would cost as much as fetching it; so as long as
no value is large, which SQLite itself watches over, a sample is measured. Lines that SQLite joins
are measured as they are, and it watches over the size of the page.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from sys import getsizeof
from typing import Any, cast

from etl.batch import Reject
from etl.databases.sqlite.errors import UNREADABLE_TEXT, is_unreadable_text
from etl.databases.sqlite.lines import Doubt
from etl.databases.sqlite.turns import own_turn
from etl.errors import DataError

Fields = tuple[Any, ...]

LARGE = 4096
"""Bytes of one value from which every row is measured."""
_CHUNK = 32
_LARGE_LINE = 16_384  # a whole row
_LINES = 64  # as a chunk
_SAMPLE = 4  # of a chunk, every fourth row is measured
_FIRST_LINES = 64  # of a page that SQLite joins, before the size of lines is known
_FEWEST_LINES = 16  # when these are too large together, rows are measured one by one
_PAGES = 4  # a fetch: going to the thread and back costs as much as some tens of rows


@dataclass(frozen=True, slots=True)
class Page:
    """What is made of some rows, the key of the last of them, and their size in memory.

    ``rejects`` are the rows that nothing could be made of.
    """

    rows: Sequence[Any]
    last: Fields
    nbytes: int
    rejects: tuple[Reject, ...] = ()


class Joined:
    """Pages of lines that SQLite joins: each is the one row of a statement of its own.

    Python need not touch the lines one by one, and while SQLite writes a page, no other thread
    has to wait for the interpreter's lock.

    Args:
        statement: A SELECT of a number of lines after a key, and its parameters: how many lines,
            how many of them are not NULL, all of them in one text.
        convert: Makes a page of them.
    """

    def __init__(
        self,
        *,
        batch_rows: int,
        batch_bytes: int,
        statement: Callable[[Fields | None, int], tuple[str, Sequence[Any]]],
        convert: Callable[[bytes, int], Page],
        last: Fields | None,
    ) -> None:
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes
        self._statement = statement
        self._convert = convert
        self._last = last
        self._lines = min(_FIRST_LINES, batch_rows)

    def fetch(self, cursor: sqlite3.Cursor) -> tuple[int, int, bytes | None] | None:
        """The next lines; None where only few of them are large already."""
        connection = cursor.connection
        text_factory = connection.text_factory
        limit = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * self._batch_bytes)
        connection.text_factory = bytes
        try:
            while True:
                try:
                    cursor.execute(*self._statement(self._last, self._lines))
                    return cast("tuple[int, int, bytes | None]", cursor.fetchone())
                except sqlite3.DataError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_TOOBIG:
                        raise
                if self._lines <= _FEWEST_LINES:
                    return None
                self._lines //= 4
        finally:
            connection.text_factory = text_factory
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)

    def page(self, text: bytes, count: int) -> Page:
        """The page of some lines that were fetched.

        Raises:
            Doubt: They are not proven.
        """
        page = self._convert(text, count)
        self._last = page.last
        self._lines = max(1, min(self._batch_rows, self._batch_bytes * count // len(text)))
        return page


class Paging:
    """How to cut and convert the rows of one statement, and what came of it.

    The reader sets it on the connection before it runs the statement; after that only the
    thread touches it, while the reader waits.

    Args:
        key: Where the columns stand that order the rows.
        convert: Makes a page of rows and their size in memory.
        last: The key of the row before the first one.
        count: How many rows came before it.
        most: Rows to give before ``must_restart``; None: all.
        is_exact: Every row is measured, because large ones may come.
        are_lines: The rows are pieces of lines, with the key behind them.
        joined: The rows are pages of lines.

    Attributes:
        must_restart: There may be more: run a statement that starts after the last row that was
            given.
        is_exact: Set where a large value came up.
        doubt: Why the lines of the next page are not proven.
    """

    def __init__(
        self,
        *,
        batch_rows: int,
        batch_bytes: int,
        names: Sequence[str],
        key: Sequence[int],
        convert: Callable[[list[Fields], int], Page],
        is_unique: bool,
        label: str,
        last: Fields | None,
        count: int,
        most: int | None,
        is_exact: bool,
        are_lines: bool,
        joined: Joined | None = None,
    ) -> None:
        self.batch_rows = batch_rows
        self.batch_bytes = batch_bytes
        self.is_exact = is_exact
        self.must_restart = False
        self.doubt: Doubt | None = None
        self.doubtful_rows = 0
        self.are_lines = are_lines
        self.joined = joined
        self.large = _LARGE_LINE if are_lines else LARGE
        self.chunk = _LINES if are_lines else _CHUNK
        self._most = most
        self._names = names
        self._key = key
        self._convert = convert
        self._is_unique = is_unique
        self._label = label
        self._key_of: Callable[[Fields], Any] | None = itemgetter(*key) if key else None
        self._last: Any = last[0] if last is not None and len(key) == 1 else last
        self._count = count

    @contextmanager
    def only_small(self, connection: sqlite3.Connection) -> Generator[None]:
        """Let SQLite make no large value meanwhile; where one comes up, restart with care."""
        limit = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self.large)
        try:
            yield
        except sqlite3.DataError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_TOOBIG:
                raise
            # The statement has ended, and the rows that it has just given are lost.
            self.must_restart = self.is_exact = True
        finally:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)

    @property
    def room(self) -> int:
        """How many rows the next page may have."""
        return self.batch_rows if self._most is None else min(self.batch_rows, self._most)

    def page(self, rows: list[Fields], nbytes: int) -> Page | None:
        """A page of some rows; None where they are in doubt.

        Raises:
            DataError: They break what was promised of them.
        """
        if self._key_of is not None and not self._is_unique:
            self._check_keys(self._key_of, rows)
        try:
            page = self._convert(rows, nbytes)
        except Doubt as doubt:
            self.doubted(doubt, len(rows))
            return None
        self._count += len(rows)
        if self._most is not None:
            self._most -= len(rows)
            self.must_restart = self.must_restart or self._most <= 0
        return page

    def doubted(self, doubt: Doubt, rows: int) -> None:
        """The next rows are not proven; read them in another way."""
        self.must_restart = True
        self.doubt = doubt
        self.doubtful_rows = rows

    def _check_keys(self, key_of: Callable[[Fields], Any], rows: list[Fields]) -> None:
        keys = [self._last, *map(key_of, rows)]
        self._last = keys[-1]
        single = len(self._key) == 1
        names = ", ".join(self._names[i] for i in self._key)
        if any(key is None if single else None in key for key in keys[1:]):
            raise DataError(
                f"{self._label}: the key ({names}) is NULL in a row; it orders the read"
            )
        if any(map(_equal, keys, keys[1:])):
            raise DataError(
                f"{self._label}: two rows have the same key ({names}), so the read could not"
                " continue between them; name a key that is unique"
            )

    def unreadable(self, told: str, row: Sequence[Any] | None) -> DataError:
        """The error for a text that is not UTF-8: its column, and the row's key."""
        names = self._names
        column = next((n for n in names if told.startswith(f"{_COLUMN}{n}' with text")), None)
        where = f"row {self._count + 1} or one of the next"
        if row is not None and self._key:
            where = f"the row with {', '.join(f'{names[i]}={_shown(row[i])}' for i in self._key)}"
        if row is not None and column is None:
            column = next((n for n, v in zip(names, row, strict=True) if type(v) is _Broken), None)
        return DataError(
            f"{self._label}: the text in column {column!r} of {where} is not valid UTF-8; repair it"
            " in the source, or read it as CAST(... AS BLOB) in a query",
            column=column,
        )


_COLUMN = f"{UNREADABLE_TEXT} column '"


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) and one is not None


class _Broken(bytes):
    """The bytes of a text that is not UTF-8."""


def _text_or_broken(value: bytes) -> str | _Broken:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _Broken(value)


def _shown(value: Any) -> str:
    return f"x'{value.hex()}'" if isinstance(value, bytes) else repr(value)


class PagedCursor(sqlite3.Cursor):
    """A cursor whose ``fetchmany`` gives pages, where the connection has a ``Paging``."""

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        """The next pages; none at the end, or where ``must_restart`` was set."""
        paging = cast("PagedConnection", self.connection).paging
        assert paging is not None
        pages: list[Page] = []
        room = _PAGES * paging.batch_bytes
        while len(pages) < _PAGES and room > 0 and not paging.must_restart:
            page = self._page(paging) if paging.joined is None else self._joined(paging)
            if page is None:
                break
            pages.append(page)
            room -= page.nbytes
        return pages

    def _page(self, paging: Paging) -> Page | None:
        with own_turn():
            rows, nbytes = self._measured(paging) if paging.is_exact else self._sampled(paging)
        return paging.page(rows, nbytes) if rows else None

    def _joined(self, paging: Paging) -> Page | None:
        assert paging.joined is not None
        found = paging.joined.fetch(self)
        if found is None:
            paging.must_restart = paging.is_exact = True
            return None
        count, proven, text = found
        if not count:
            return None
        try:
            if proven < count or text is None:
                raise Doubt("a value has no proof")
            return paging.joined.page(text, count)
        except Doubt as doubt:
            paging.doubted(doubt, count)
            return None

    def _measured(self, paging: Paging) -> tuple[list[Fields], int]:
        rows: list[Fields] = []
        nbytes = 0
        while nbytes < paging.batch_bytes and len(rows) < paging.room:
            row = self._next(paging, 1)
            if not row:
                break
            rows += row
            nbytes += getsizeof(row[0]) + sum(map(getsizeof, row[0]))
        return rows, nbytes

    def _sampled(self, paging: Paging) -> tuple[list[Fields], int]:
        rows: list[Fields] = []
        nbytes = 0
        while nbytes < paging.batch_bytes and len(rows) < paging.room:
            chunk: list[Fields] = []
            with paging.only_small(self.connection):
                chunk = self._next(paging, min(paging.chunk, paging.room - len(rows)))
            if not chunk:
                break
            rows += chunk
            sample = chunk[::_SAMPLE]
            weight = sum(map(getsizeof, chain.from_iterable(sample)))
            nbytes += weight * len(chunk) // len(sample)
            if not paging.are_lines:  # whose tuples do not stay
                nbytes += len(chunk) * getsizeof(chunk[0])
        return rows, nbytes

    def _next(self, paging: Paging, count: int) -> list[Fields]:
        try:
            return super().fetchmany(count)
        except sqlite3.OperationalError as error:
            if not is_unreadable_text(error):
                raise
            told = str(error)
        if paging.are_lines:
            # Values tell which one it is.
            paging.doubted(Doubt("a text that is not UTF-8"), count)
            return []
        # Not raised while the driver's error, which quotes the text, is being handled. The
        # cursor still stands on that row: look at it again, taking any bytes.
        self.connection.text_factory = _text_or_broken
        raise paging.unreadable(told, super().fetchone())


class PagedConnection(sqlite3.Connection):
    """A connection whose statements run on a :class:`PagedCursor`."""

    paging: Paging | None = None
    _last: weakref.ref[sqlite3.Cursor] | None = None

    def cursor(self, factory: Any = PagedCursor) -> Any:
        """A cursor for pages."""
        self._last = weakref.ref(made := super().cursor(factory))
        return made

    def execute(self, sql: str, parameters: Any = (), /) -> PagedCursor:
        """Run a statement on a new cursor."""
        paging = self.paging
        cursor: PagedCursor = self.cursor()
        if paging is None or paging.is_exact:
            return cursor.execute(sql, parameters)
        # The driver takes the first row here already.
        with paging.only_small(self):
            cursor.execute(sql, parameters)
        return cursor

    def close(self) -> None:
        """Close it, and the statement that was read last.

        The traceback of an error in the middle of a read holds its cursor; the file would stay
        locked for as long as anybody holds the error.
        """
        cursor = self._last() if self._last is not None else None
        if cursor is not None:
            cursor.close()
        super().close()
