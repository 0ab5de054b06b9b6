"""Pages of rows, fetched and measured on the connection's thread.

A page ends when its rows reach the size of a batch, so that a page of 10-MB blobs holds one row
and not ten thousand. Measuring every value would cost as much as fetching it; so as long as
no value is large, which SQLite itself watches over, a sample is measured.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from sys import getsizeof
from typing import Any, cast

from etl.databases.sqlite.errors import UNREADABLE_TEXT, is_unreadable_text
from etl.errors import DataError

Fields = tuple[Any, ...]

LARGE = 4096
"""Bytes of one value from which every row is measured."""
_CHUNK = 32
_SAMPLE = 4  # of a chunk, every fourth row is measured
_PAGES = 4  # a fetch: going to the thread and back costs as much as some tens of rows


@dataclass(frozen=True, slots=True)
class Page:
    """Rows as the driver gave them, what is made of them, and their size in memory."""

    rows: list[Fields]
    items: Sequence[Any]
    nbytes: int


class Paging:
    """How to cut and convert the rows of one statement, and what came of it.

    The reader sets it on the connection before it runs the statement; after that only the
    thread touches it, while the reader waits.

    Attributes:
        is_exact: Every row is measured.
        must_restart: A large value came up: run the statement again after the last row that
            was given, measuring every row.
    """

    def __init__(
        self,
        *,
        batch_rows: int,
        batch_bytes: int,
        names: Sequence[str],
        key: Sequence[int],
        convert: Callable[[list[Fields]], Sequence[Any]],
        is_unique: bool,
        label: str,
    ) -> None:
        self.batch_rows = batch_rows
        self.batch_bytes = batch_bytes
        self.is_exact = False
        self.must_restart = False
        self._names = names
        self._key = key
        self._convert = convert
        self._is_unique = is_unique
        self._label = label
        self._key_of: Callable[[Fields], Any] | None = itemgetter(*key) if key else None
        self._last: Any = None
        self.count = 0

    def page(self, rows: list[Fields], nbytes: int) -> Page:
        """A page of some rows. Raises DataError where they break what was promised of them."""
        if self._key_of is not None and not self._is_unique:
            self._check_keys(self._key_of, rows)
        page = Page(rows, self._convert(rows), nbytes)
        self.count += len(rows)
        return page

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
        where = f"row {self.count + 1} or one of the next"
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
            rows, nbytes = self._measured(paging) if paging.is_exact else self._sampled(paging)
            if not rows:
                break
            pages.append(paging.page(rows, nbytes))
            room -= nbytes
        return pages

    def _measured(self, paging: Paging) -> tuple[list[Fields], int]:
        rows: list[Fields] = []
        nbytes = 0
        while nbytes < paging.batch_bytes and len(rows) < paging.batch_rows:
            row = self._next(paging, 1)
            if not row:
                break
            rows += row
            nbytes += getsizeof(row[0]) + sum(map(getsizeof, row[0]))
        return rows, nbytes

    def _sampled(self, paging: Paging) -> tuple[list[Fields], int]:
        rows: list[Fields] = []
        nbytes = 0
        while nbytes < paging.batch_bytes and len(rows) < paging.batch_rows:
            limit = self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGE)
            try:
                chunk = self._next(paging, min(_CHUNK, paging.batch_rows - len(rows)))
            except sqlite3.DataError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_TOOBIG:
                    raise
                # The statement has ended, and the rows of this chunk are lost.
                paging.must_restart = paging.is_exact = True
                break
            finally:
                self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)
            if not chunk:
                break
            rows += chunk
            sample = chunk[::_SAMPLE]
            weight = sum(map(getsizeof, chain.from_iterable(sample)))
            nbytes += weight * len(chunk) // len(sample) + len(chunk) * getsizeof(chunk[0])
        return rows, nbytes

    def _next(self, paging: Paging, count: int) -> list[Fields]:
        try:
            return super().fetchmany(count)
        except sqlite3.OperationalError as error:
            if not is_unreadable_text(error):
                raise
            told = str(error)
        # Not raised while the driver's error, which quotes the text, is being handled. The
        # cursor still stands on that row: look at it again, taking any bytes.
        self.connection.text_factory = _text_or_broken
        raise paging.unreadable(told, super().fetchone())


class PagedConnection(sqlite3.Connection):
    """A connection whose statements run on a :class:`PagedCursor`."""

    paging: Paging | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> PagedCursor:
        """Run a statement on a new cursor."""
        return self.cursor(PagedCursor).execute(sql, parameters)
