"""The driver's and the server's errors as the project's own, without any of a row's values."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, TypeVar

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
E = TypeVar("E", bound=EtlError)

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
    if isinstance(error, ConnectionLostError):
        text = str(error) or text
    if (
        kind == "lost"
        or isinstance(error, ConnectionLostError | asyncpg.InterfaceError)
        or _is_dying(error)
    ):
        why = f" ({text})" if text else ""
        if isinstance(error, asyncpg.InterfaceError) and kind == "unknown" and not _is_lost(error):
            said = first_line(error)
            if isinstance(error, ValueError):  # "invalid input for query argument $1: 'value'"
                said = said.partition(": ")[0]
            return _with_detail(error, EtlError(f"{where}: the driver refused: {said}{tail}"))
        return _UNAVAILABLE[side](f"{where}: the connection to the {side} was lost{why}{tail}")
    if isinstance(error, TimeoutError) and server is None:
        return _UNAVAILABLE[side](f"{where}: the {side} did not answer in time{tail}")
    if kind == "not_ready":
        return _UNAVAILABLE[side](f"{where}: the {side} takes no connections now: {text}{tail}")
    if kind == "transient":
        why = "another session holds a lock for too long: " if code == "55P03" else ""
        return _UNAVAILABLE[side](f"{where}: {why}{text}{tail}; run again")
    if kind == "resources":
        then = "; make room on its disk" if code == "53100" else ""
        return ResourceError(
            f"{where}: the {side}'s server is out of a resource: {text}{tail}{then}"
        )
    if kind == "data" or _is_of_a_value(server):
        return _data_error(server, where, tail)
    if kind == "rights":
        hint = (
            "the database is read-only (a standby, or default_transaction_read_only)"
            if code == "25006"
            else "the user has no right to that"
        )
        return ConfigError(f"{where}: {hint}: {text}{tail}")
    if kind == "schema":
        return _with_detail(server, SchemaMismatchError(f"{where}: {text}{tail}"))
    if code == "57014":
        if "statement timeout" in text:
            return ConfigError(
                f"{where}: the server's statement_timeout ended the work{tail}. Raise it for this"
                " user: ALTER ROLE ... SET statement_timeout"
            )
        return _UNAVAILABLE[side](f"{where}: someone cancelled the statement: {text}{tail}")
    if kind == "unknown" and server is None and isinstance(error, OSError):
        return _UNAVAILABLE[side](f"{where}: {first_line(error)}{tail}")
    return _with_detail(server, EtlError(f"{where}: {text or first_line(error)}{tail}"))


def _is_dying(error: BaseException) -> bool:
    """The server has said good-bye between two statements, and the driver has not seen the end."""
    return isinstance(error, asyncpg.InternalClientError) and "switch to state" in str(error)


def _is_lost(error: BaseException) -> bool:
    return "closed" in str(error) or "connection" in str(error)


_COPY_LINE = re.compile(r"COPY .*?, line (\d+)(?:, column ([^:\n]+))?")


def _is_of_a_value(error: asyncpg.PostgresError | None) -> bool:
    """Whether a name is missing that stands in a value: of a ``regclass`` and the like."""
    line = _COPY_LINE.search(str(getattr(error, "context", None) or ""))
    code = getattr(error, "sqlstate", None) or ""
    return line is not None and line[2] is not None and code.startswith(("42", "3F"))


def _data_error(error: asyncpg.PostgresError | None, where: str, tail: str) -> DataError:
    context = str(getattr(error, "context", None) or "")
    column = getattr(error, "column_name", None)
    line = _COPY_LINE.search(context)
    row = int(line[1]) - 1 if line else None
    column = column or (line[2] if line else None)
    at = f", at row {row + 1} of the group that was being written" if row is not None else ""
    named = f" (column {column!r})" if column else ""
    said = safe_message(error)
    if _is_of_a_value(error):
        said = (
            "a value is the name of something that does not exist there (a table of the same copy"
            " does when it has ended: copy this one after it)"
        )
    return _with_detail(
        error, DataError(f"{where}: {said}{named}{at}{tail}", column=column, row=row, reason=said)
    )


# Names that a message about a value may quote; whatever else is quoted may be the value.
_NAMES = re.compile(r'\b(?:column|encoding|type|constraint|relation|table|enum|domain) "[^"]*"')
_FIRST_VALUE = re.compile(r"\s*(?:[:：]\s|[\"'`«»„“”‚‘’「『])")
_RAISED = re.compile(r"(PL/\S+ function [^\n]*)")


def safe_message(error: BaseException | None) -> str:
    """The server's primary message without the values that it may quote.

    What a function of the database raises by itself is left out as a whole: the message names the
    function, its line, and the SQLSTATE that it chose.
    """
    text = str(getattr(error, "message", None) or error or "").strip().partition("\n")[0]
    code = getattr(error, "sqlstate", None) or ""
    raised = _RAISED.match(str(getattr(error, "context", None) or ""))
    if raised and (
        not raised[1].startswith("PL/pgSQL")
        or raised[1].rpartition(" at ")[2].startswith(("RAISE", "ASSERT"))
    ):
        return f"{raised[1]} raised an error (SQLSTATE {code})"
    if code.startswith("P0"):
        return f"a function raised an error (SQLSTATE {code})"
    if code.startswith("22"):
        return _without_value(text) or f"a value does not fit (SQLSTATE {code})"
    return text


def _without_value(text: str) -> str:
    """What stands before the first value; servers that speak other languages quote otherwise."""
    if text.startswith('value "'):
        return "a value" + text.rpartition('"')[2]
    names = [found.span() for found in _NAMES.finditer(text)]
    for found in _FIRST_VALUE.finditer(text):
        if not any(start <= found.start() < stop for start, stop in names):
            return text[: found.start()]
    return text


def _with_detail(error: BaseException | None, ours: E) -> E:
    """Ours, with what the server says and its message leaves out: the values."""
    said = getattr(error, "message", None) or str(error or "")
    more = getattr(error, "detail", None)
    left_out = "" if isinstance(said, str) and said in str(ours) else said
    ours.detail = "; ".join(one for one in (left_out, more) if isinstance(one, str) and one) or None
    return ours


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
