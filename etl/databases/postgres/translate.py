"""The driver's and the server's errors as the project's own, without any of a row's values."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import asyncpg

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
    chain,
    classify,
)

Side = Literal["source", "target"]

_UNAVAILABLE: dict[Side, type[TransientError]] = {
    "source": SourceUnavailableError,
    "target": TargetUnavailableError,
}

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class ConnectionLostError(Exception):
    """The connection ended while it was in use; never leaves this package."""


@contextmanager
def translating(side: Side, where: str, state: str = "") -> Generator[None]:
    """Turn errors of the driver into the project's own.

    Args:
        where: The table or what is done, for the message: ``table 'orders'``.
        state: In which state things are then: ``nothing was written``.

    Raises:
        EtlError: As :func:`translated` says.
    """
    try:
        yield
    except (*DRIVER_ERRORS, ConnectionLostError) as error:
        raise translated(error, side, where, state) from error


def translated(error: BaseException, side: Side, where: str, state: str = "") -> EtlError:
    """The error that a caller can act on; the driver's own is to become its cause."""
    tail = f". {state[0].upper()}{state[1:]}" if state else ""
    if any(isinstance(one, MemoryError) for one in chain(error)):
        return OutOfMemoryError(where)  # asyncio cuts the connection for it
    kind = classify(error)
    server = next((one for one in chain(error) if isinstance(one, asyncpg.PostgresError)), None)
    code = getattr(server, "sqlstate", None) or ""
    text = safe_message(server) if server is not None else ""
    if (
        kind == "lost"
        or isinstance(error, ConnectionLostError | asyncpg.InterfaceError)
        or _is_dying(error)
    ):
        why = f" ({text})" if text else ""
        if isinstance(error, asyncpg.InterfaceError) and kind == "unknown" and not _is_lost(error):
            return EtlError(f"{where}: the driver refused: {first_line(error)}{tail}")
        return _UNAVAILABLE[side](f"{where}: the connection to the {side} was lost{why}{tail}")
    if isinstance(error, TimeoutError) and server is None:
        return _UNAVAILABLE[side](f"{where}: the {side} did not answer in time{tail}")
    if kind == "not_ready":
        return _UNAVAILABLE[side](f"{where}: the {side} takes no connections now: {text}{tail}")
    if kind == "transient":
        why = "another session holds a lock for too long: " if code == "55P03" else ""
        return _UNAVAILABLE[side](f"{where}: {why}{text}{tail}; run again")
    if kind == "resources":
        return ResourceError(f"{where}: the {side}'s server is out of a resource: {text}{tail}")
    if kind == "data":
        return _data_error(server, where, tail)
    if kind == "rights":
        hint = (
            "the database is read-only (a standby?)"
            if code == "25006"
            else "the user has no right to that"
        )
        return ConfigError(f"{where}: {hint}: {text}{tail}")
    if kind == "schema":
        return SchemaMismatchError(f"{where}: {text}{tail}")
    if code == "57014":
        if "statement timeout" in text:
            return ConfigError(
                f"{where}: the server's statement_timeout ended the work{tail}. Raise it for this"
                " user: ALTER ROLE ... SET statement_timeout"
            )
        return _UNAVAILABLE[side](f"{where}: someone cancelled the statement: {text}{tail}")
    if kind == "unknown" and server is None and isinstance(error, OSError):
        return _UNAVAILABLE[side](f"{where}: {first_line(error)}{tail}")
    return EtlError(f"{where}: {text or first_line(error)}{tail}")


def _is_dying(error: BaseException) -> bool:
    """The server has said good-bye between two statements, and the driver has not seen the end."""
    return isinstance(error, asyncpg.InternalClientError) and "switch to state" in str(error)


def _is_lost(error: BaseException) -> bool:
    return "closed" in str(error) or "connection" in str(error)


_COPY_LINE = re.compile(r"COPY .*?, line (\d+)(?:, column ([^:\n]+))?")


def _data_error(error: asyncpg.PostgresError | None, where: str, tail: str) -> DataError:
    context = str(getattr(error, "context", None) or "")
    column = getattr(error, "column_name", None)
    line = _COPY_LINE.search(context)
    row = int(line[1]) - 1 if line else None
    column = column or (line[2] if line else None)
    at = f", at row {row + 1} of the group that was being written" if row is not None else ""
    named = f" (column {column!r})" if column else ""
    said = safe_message(error)
    return DataError(f"{where}: {said}{named}{at}{tail}", column=column, row=row, reason=said)


_QUOTED_VALUE = re.compile(r'^(?:value )?".*?"(?= is out of range)', re.DOTALL)


def safe_message(error: BaseException | None) -> str:
    """The server's primary message without the value that it may quote."""
    text = str(getattr(error, "message", None) or error or "")
    code = getattr(error, "sqlstate", None) or ""
    if code.startswith("22"):
        # Those that quote a value do so after a colon, or before "is out of range".
        text = _QUOTED_VALUE.sub("a value", text.partition(': "')[0].partition(": 0x")[0])
    return text.strip().partition("\n")[0]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
