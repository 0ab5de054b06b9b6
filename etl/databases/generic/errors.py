"""The errors of a driver under SQLAlchemy in the terms of :mod:`etl.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from etl.errors import (
    ConfigError,
    DataError,
    EtlError,
    OutOfMemoryError,
    ResourceError,
    SchemaMismatchError,
    SourceUnavailableError,
    TargetUnavailableError,
    chain,
)

if TYPE_CHECKING:
    from etl.databases.generic.dialect import Dialect

_UNAVAILABLE = {"source": SourceUnavailableError, "target": TargetUnavailableError}


def translated(
    error: BaseException, dialect: Dialect, side: Literal["source", "target"], where: str
) -> EtlError:
    """The error that a caller can act on; the driver's own is to become its cause."""
    if any(isinstance(one, MemoryError) for one in chain(error)):
        return OutOfMemoryError(where)
    unavailable = _UNAVAILABLE[side]
    if isinstance(error, TimeoutError):
        return unavailable(f"{where}: the {side} did not answer in time")
    driver = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    kind, said = dialect.classify(driver)
    if kind == "not_ready":
        return unavailable(f"{where}: the {side} takes no connections now: {said}")
    if kind == "lost" or getattr(error, "connection_invalidated", False):
        return unavailable(f"{where}: the connection to the {side} was lost ({said})")
    if kind == "transient":
        return unavailable(f"{where}: {said}; run again")
    if kind == "resources":
        return ResourceError(f"{where}: the {side}'s server is out of a resource: {said}")
    if kind == "data":
        return DataError(f"{where}: {said}", reason=said, column=column_in(said))
    if kind == "rights":
        return ConfigError(f"{where}: {said}")
    if kind == "schema":
        return SchemaMismatchError(f"{where}: {said}")
    if isinstance(error, UnicodeEncodeError):
        said = "a text holds a lone surrogate, which is no character"
        return DataError(f"{where}: {said}", reason=said)
    if isinstance(error, SQLAlchemyError | OSError):
        return EtlError(f"{where}: {said}")
    return EtlError(f"{where}: {type(error).__name__}: {said}")


def is_lost(error: BaseException, dialect: Dialect) -> bool:
    """Whether the connection is of no use any more."""
    driver = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    is_invalid = bool(getattr(error, "connection_invalidated", False))
    return is_invalid or dialect.classify(driver)[0] == "lost"


def column_in(said: str) -> str | None:
    """The column that a message names."""
    _, found, rest = said.partition("column '")
    return rest.partition("'")[0] if found and rest else None
