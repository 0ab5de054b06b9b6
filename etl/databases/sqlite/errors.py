"""SQLite's errors in the terms of :mod:`etl.errors`. Messages never hold values."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from etl.errors import (
    ConfigError,
    DataError,
    EtlError,
    OutOfMemoryError,
    ResourceError,
    SchemaMismatchError,
    SourceUnavailableError,
    TargetUnavailableError,
    TransientError,
)

Side: TypeAlias = Literal["source", "target"]

UNREADABLE_TEXT = "Could not decode to UTF-8"
_REASONS: dict[int, str] = {
    sqlite3.SQLITE_PERM: "etl may not read or write it; check the rights on the file",
    sqlite3.SQLITE_AUTH: "SQLite was told not to allow it",
    sqlite3.SQLITE_READONLY: "it is read-only; check the rights on the file and its directory",
    sqlite3.SQLITE_CANTOPEN: (
        "it cannot be opened; check that its directory exists, and the rights on both"
    ),
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database, or it is encrypted",
    sqlite3.SQLITE_CORRUPT: (
        "it is damaged; restore a backup, or save what can be read with: sqlite3 FILE .recover"
    ),
}
_RESOURCES: dict[int, str] = {
    sqlite3.SQLITE_FULL: (
        "the disk is full; make room on it, and where SQLite puts its temporary files"
    ),
    sqlite3.SQLITE_IOERR: (
        "the disk or the file system reported an error, which may be that it is full"
    ),
}


def code_of(error: BaseException | None) -> int:
    """SQLite's primary result code; 0 where the error came from Python's own checks."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Whether another connection's lock was in the way: the statement can be tried again."""
    return code_of(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_unreadable_text(error: BaseException) -> bool:
    """Whether a text in the file is not valid UTF-8. The driver's message quotes the text."""
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith(UNREADABLE_TEXT)


def unavailable(side: Side, message: str) -> TransientError:
    """The error for a database that does not let us in now."""
    return (SourceUnavailableError if side == "source" else TargetUnavailableError)(message)


def translate(error: Exception, *, where: str, side: Side) -> EtlError:
    """The error of ours that tells the caller what to do about a driver's error.

    Args:
        where: The database, and the table where it matters.
    """
    code = code_of(error)
    if is_busy(error):
        return unavailable(
            side, f"{where} is locked by another connection, longer than etl waits; run again"
        )
    if code == sqlite3.SQLITE_INTERRUPT:
        return unavailable(side, f"{where}: the statement was interrupted; nothing of it was kept")
    if code == sqlite3.SQLITE_NOMEM:
        return OutOfMemoryError(where)
    if code in _RESOURCES:
        return ResourceError(f"{where}: {_RESOURCES[code]} ({name_of(error)})")
    if code in _REASONS:
        return ConfigError(f"{where}: {_REASONS[code]} ({name_of(error)})")
    if code in {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}:
        said, detail = str(error), None
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
            # Since SQLite 3.47 it may be made of the row's values.
            said, detail = "a trigger raised an error", said
        return DataError(
            f"{where} refused a row: {said}. Nothing of this transaction was kept",
            reason=said,
            detail=detail,
        )
    if is_unreadable_text(error):
        return DataError(f"{where}: a text is not valid UTF-8")
    return SchemaMismatchError(f"{where}: SQLite says: {error}")


@contextmanager
def translated(where: str, side: Side) -> Generator[None]:
    """Let no driver's error out of a block."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        hidden = None if is_unreadable_text(error) else error  # it quotes a value
        raise translate(error, where=where, side=side) from hidden


def name_of(error: BaseException | None) -> str:
    """SQLite's name for an error, such as ``SQLITE_IOERR_WRITE``, or its class."""
    return getattr(error, "sqlite_errorname", None) or type(error).__name__
