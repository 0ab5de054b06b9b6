"""Errors, grouped by what the caller does next; SQLSTATE classes; exit codes.

``ConfigError``: fix the set-up. ``TransientError``: run again. ``DataError``: fix the rows.
Every message says what, where, in which state things are, and what to do. No message holds a
password or a row's values, but for those that say which row it is; what a program may need beyond
that are attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REJECTS = 3
EXIT_ACTIVE = 4
EXIT_TEMPORARY = 75
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class EtlError(Exception):
    """The root of every error that this package raises on purpose.

    Attributes:
        detail: What a database or a user's function says itself, where the message leaves it out
            because it may quote a row's values. The command shows it with ``--show-values``.
    """

    exit_code: ClassVar[int] = EXIT_FAILED
    detail: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class with ``args``, the message alone: some take more or other
        # arguments. Where an error cannot be read again, the pool of processes that it came
        # through is broken, and nobody learns what failed.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[EtlError], args: tuple[Any, ...], attributes: dict[str, Any]) -> EtlError:
    """An error as it was, from a pickle or a copy."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ConfigError(EtlError):
    """The set-up is wrong: a URL, a name, an option, a pipeline. Nothing was moved."""

    exit_code = EXIT_USAGE


class SchemaMismatchError(ConfigError):
    """A table or column is missing, or has a type or key that does not fit."""


class TransientError(EtlError):
    """A passing condition: a lost connection, a lock, a server that restarts. Run again.

    Attributes:
        is_final: Only another run helps, since what this one was writing is not whole any more.
    """

    exit_code = EXIT_TEMPORARY
    is_final: bool = False


class SourceUnavailableError(TransientError):
    """The source database cannot be reached or went away; safe to retry."""


class TargetUnavailableError(TransientError):
    """The target database cannot be reached or went away; its transaction was rolled back."""


class TargetWentBackError(TargetUnavailableError):
    """The target is in an earlier state than a run of ours left it in: a standby that lacked the
    last transactions was promoted, or a backup restored. Rows and position went back together, so
    the next run goes on from there."""

    is_final = True

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: the target is not as this run left it: it went back to an earlier state (a"
            " standby that lacked the last transactions took over, or a backup was restored), or"
            " its checkpoint was reset. Rows and positions went back together; nothing was written"
            " since. Run it again"
        )


class CommitInDoubtError(TransientError):
    """The answer to COMMIT was lost: the transaction is in, or it is not.

    The lane settles it by reading the checkpoint row; nobody else handles it.
    """


class ResourceError(TransientError):
    """Disk full, out of memory, a limit of the server: retrying at once would not help."""


class DataError(EtlError):
    """A row cannot be read, converted or written; the batch was rolled back.

    Attributes:
        column: The column, where one is to blame.
        row: The row's place among those that were given, counted from 0, as far as it is known.
        reason: Why, in a few words: without the place, the state of things, or a value.
    """

    def __init__(
        self,
        message: str,
        *,
        column: str | None = None,
        row: int | None = None,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.detail = detail
        self.column = column
        self.row = row
        self.reason = reason or message


class TooManyRejectsError(EtlError):
    """More rows were refused than the policy allows; the group of the last of them rolled back."""


class RowTooLargeError(DataError):
    """A row that the run's memory limit cannot hold; the message names the limit that it needs."""


class OutOfMemoryError(EtlError):
    """The process got no more memory from the system; the transaction was rolled back."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: out of memory: the system gives this process no more. The transaction was"
            " rolled back and the checkpoint did not move; give the process more memory (a row is"
            " held up to three times as it is read, and again as it is written), or lower the"
            " limit on rows in flight (--memory, Limits(memory=))"
        )


class FencedError(EtlError):
    """A newer run of the same pipeline took over; this one wrote nothing since."""

    exit_code = EXIT_ACTIVE


class AlreadyRunningError(EtlError):
    """Another run of the pipeline is active; this one did nothing."""

    exit_code = EXIT_ACTIVE

    @classmethod
    def told(cls, what: str) -> AlreadyRunningError:
        """The error with what can be done, for the command and for programs."""
        return cls(
            f"{what}. Nothing was moved; wait for it, or fence it off (--take-over, take_over=True)"
        )


class StageError(EtlError):
    """A function or stage of the pipeline failed, or broke a rule of the engine."""


class ConservationError(StageError):
    """A stage lost, repeated or reordered a token, so the position would have been wrong."""


class StageCancelledError(StageError):
    """A stage raised ``CancelledError`` although nobody cancelled it."""


class StageStuckError(StageError):
    """A stage went on after it was cancelled, and was left behind; nothing it does is written."""


class ChannelBrokenError(EtlError):
    """The other side of a channel failed. A consequence, never the cause."""


class RunAbortedError(EtlError):
    """A person or a deadline ended the run before it was done; open transactions rolled back.

    What was committed before stays, with its position: the next run goes on from there.
    """

    exit_code = EXIT_TEMPORARY

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class PipelineFailedError(EtlError):
    """A run failed. ``errors`` holds every cause, the root cause first.

    Attributes:
        errors: What the flows raised, in the order in which it happened.
        report: What the run had done by then (a ``Report``).
    """

    def __init__(self, message: str, errors: Sequence[BaseException], report: Any = None) -> None:
        super().__init__(message)
        self.detail = next((e.detail for e in errors[:1] if isinstance(e, EtlError)), None)
        self.errors = tuple(errors)
        self.report = report

    @property
    def retryable(self) -> bool:
        """Whether every cause is a passing condition."""
        return bool(self.errors) and all(isinstance(e, TransientError) for e in self.errors)


def exit_code_of(error: BaseException) -> int:
    """The exit code of the command for an error; the root cause decides."""
    if isinstance(error, PipelineFailedError) and error.errors:
        return exit_code_of(error.errors[0])
    return error.exit_code if isinstance(error, EtlError) else EXIT_FAILED


def is_about_a_row(error: BaseException) -> bool:
    """Whether an error that a function raised for a row may be that row's own fault.

    A lost connection, a full disk or a wrong set-up would fail for every row.
    """
    return isinstance(error, Exception) and not isinstance(
        error, TransientError | ConfigError | OSError | MemoryError
    )


ErrorClass = Literal[
    "lost", "not_ready", "transient", "resources", "data", "schema", "rights", "unknown"
]

_STATES: dict[str, ErrorClass] = {
    "57P01": "lost",
    "57P02": "lost",
    "57P03": "not_ready",
    # A session that was ended for its time: idle in a transaction (a process that was frozen),
    # a transaction that took too long, idle; or for its database, which was dropped.
    "25P03": "lost",
    "25P04": "lost",
    "57P04": "lost",
    "57P05": "lost",
    "53300": "not_ready",
    "40001": "transient",
    "40P01": "transient",
    "55P03": "transient",
    "42501": "rights",
    "25006": "rights",
    # What a trigger says of a row, and a row that is too large for an index or in all.
    "P0001": "data",
    "P0004": "data",
    "54000": "data",
}
_CLASSES: dict[str, ErrorClass] = {
    "08": "lost",
    "53": "resources",
    "22": "data",
    "23": "data",
    "42": "schema",
    "28": "rights",
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it, each once: the real cause is often behind the first."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__cause__, one.__context__]


def classify(error: BaseException) -> ErrorClass:
    """The class of a driver's error, by SQLSTATE and by the whole exception chain.

    A transaction that is left while its connection dies raises an error without a
    SQLSTATE, and the real one is only in ``__context__``.
    """
    answer: ErrorClass = "unknown"
    for one in chain(error):
        state = getattr(one, "sqlstate", None)
        if isinstance(state, str):
            found = _STATES.get(state) or _CLASSES.get(state[:2])
            if _met_other_ddl(one, state):
                found = "transient"
            if found in {"lost", "not_ready"}:
                return found
            if found and answer == "unknown":
                answer = found
        elif isinstance(one, ConnectionRefusedError):
            return "not_ready"
        elif isinstance(one, ConnectionError | OSError) and not isinstance(one, TimeoutError):
            return "lost"
    return answer


# What PostgreSQL says, in English only, of what another session drops or alters at this moment.
_GONE = (
    "could not open relation with OID",
    "cache lookup failed for",
    "tuple concurrently ",
)


def _met_other_ddl(error: BaseException, state: str) -> bool:
    """Whether another session made, dropped or altered the same at the same moment.

    Who made a thing of one name first is seen by an index of the catalogue only.
    """
    if state == "XX000":
        return str(getattr(error, "message", None) or error).startswith(_GONE)
    return state == "23505" and getattr(error, "schema_name", None) == "pg_catalog"
