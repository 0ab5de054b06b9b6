"""Stages: row functions fused into one loop, ``@stage``, and the check that no token is lost."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast, overload

from etl.batch import Batch, OpenPieces, Reject, Token
from etl.errors import (
    ConfigError,
    ConservationError,
    DataError,
    EtlError,
    StageError,
    is_about_a_row,
)
from etl.flow import Filter, FlatMap, Map, Stage, name_of
from etl.foreign import MOST_DETAIL, because_of, detail_of, named
from etl.rows import Row
from etl.secrets import without_passwords

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")

RowStep: TypeAlias = Map | Filter | FlatMap

READ_STEP = "row"
"""The step in which a source makes its rows (``row=Order``), and how many steps are then left: all,
and this one. A source does not know how many that is."""
ENTERS_ALL = 2**31 - 1
WRITE_STEP = "write"


@overload
def stage(
    function: Callable[Concatenate[AsyncIterator[Batch[T]], P], AsyncGenerator[Batch[U], None]], /
) -> Stage[T, U]: ...
@overload
def stage(
    *, per_partition: bool
) -> Callable[
    [Callable[Concatenate[AsyncIterator[Batch[T]], P], AsyncGenerator[Batch[U], None]]],
    Stage[T, U],
]: ...
def stage(
    function: Callable[..., AsyncGenerator[Batch[Any], None]] | None = None,
    /,
    *,
    per_partition: bool = False,
) -> Any:
    """Make a stage of an async generator function over batches.

    The function gets the batches of its flow and yields batches made from them, with
    ``batch.derive``, ``Batch.merge`` or ``batch.split``. A batch that has become empty is sent on
    too: its token must reach the checkpoint.

    Args:
        per_partition: Its state does not reach across partitions of the source.

    Raises:
        ConfigError: Not an async generator function.
    """

    def decorate(function: Callable[..., AsyncGenerator[Batch[Any], None]]) -> Stage[Any, Any]:
        if not inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"@stage {name_of(function)}: write it as 'async def' with 'yield' in it"
            )
        return Stage(function, per_partition=per_partition)

    return decorate if function is None else decorate(function)


def fuse(steps: Sequence[RowStep]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """One loop for several row functions, without a list between them.

    Raises (from the returned function):
        StageError: A function failed; names it and the row's place in the batch.
    """
    if not steps:
        return lambda rows: rows
    loop = _loop(steps)

    def run(rows: Sequence[Any]) -> Sequence[Any]:
        try:
            return loop(rows)
        except Exception as error:
            raise _located(rows, steps, error) from error

    return run


def fuse_batches(
    steps: Sequence[RowStep], *, sets_aside: bool, steps_left: int
) -> Callable[[Batch[Any]], Batch[Any]]:
    """The same loop over batches.

    Args:
        sets_aside: A row that a function fails on becomes a reject of its batch.
        steps_left: How many steps a row has to pass from the first of these on.

    Raises (from the returned function):
        StageError: As :func:`fuse`; where rows are set aside, only for errors that are not about
            a row, or do not come again.
    """
    if not sets_aside:
        fused = fuse(steps)
        return lambda batch: batch.derive(fused(batch.rows))
    loop = _loop(steps)

    def run(batch: Batch[Any]) -> Batch[Any]:
        kept: list[Any] = []
        rejects: list[Reject] = []
        rows = batch.rows
        for first in range(0, len(rows), _SIFTED):
            piece = rows[first : first + _SIFTED]
            try:
                kept += loop(piece)
            except Exception as error:
                passed, refused = _sifted(piece, first, steps, steps_left)
                if not refused:
                    raise _located(piece, steps, error) from error
                kept += passed
                rejects += refused
        return batch.derive(kept, rejects=rejects)

    return run


def _loop(steps: Sequence[RowStep]) -> Callable[[Sequence[Any]], list[Any]]:
    """The steps as one list comprehension: ``[v1 for v0 in rows if f0(v0) for v1 in (f1(v0),)]``.

    Not as nested ``map()`` and ``filter()``: to those a function that raises ``StopIteration`` (a
    ``next()`` that found nothing) looks like the end of the rows, and the rest would be lost
    without a word. The comprehension is not slower.
    """
    names: dict[str, Any] = {f"f{number}": function_of(step) for number, step in enumerate(steps)}
    value = "v0"
    clauses = ["for v0 in rows"]
    for number, step in enumerate(steps):
        call = f"f{number}({value})"
        if isinstance(step, Filter):
            clauses.append(f"if {call}")
            continue
        value = f"v{number + 1}"
        clauses.append(f"for {value} in " + (f"({call},)" if isinstance(step, Map) else call))
    exec(f"def loop(rows): return [{value} {' '.join(clauses)}]", names)
    loop: Callable[[Sequence[Any]], list[Any]] = names["loop"]
    return loop


def function_of(step: RowStep) -> Callable[[Any], Any]:
    """The user's function of a step."""
    return step.predicate if isinstance(step, Filter) else step.function


def texts_in(function: object) -> set[str]:
    """The texts in a function's code, and in that of helpers in its module.

    Whoever looks at a column of a row names it, as a rule by a constant. This is a guess: what
    depends on it may be slow when it is wrong, and must be right.
    """
    found: set[str] = set()
    seen: set[int] = set()
    todo = [function]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            found.add(one)
        elif isinstance(one, tuple):
            todo += cast("tuple[object, ...]", one)
        elif isinstance(one, partial):
            todo += cast("tuple[object, ...]", (one.func, one.args, *one.keywords.values()))
        elif isinstance(one, MethodType):
            todo.append(one.__func__)
        elif isinstance(one, FunctionType) and id(one) not in seen:
            seen.add(id(one))
            for code in codes_of(one.__code__):
                todo += (value for value in code.co_consts if isinstance(value, str | tuple))
                held = [one.__globals__.get(name) for name in code.co_names]
                todo += (value for value in held if not _is_foreign(value, one))
            cells = one.__closure__ or ()
            todo += (value for cell in cells for value in _content(cell))
    return found


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from codes_of(one)


def _is_foreign(value: object, function: FunctionType) -> bool:
    """A function of another module: a library's says nothing of columns."""
    return isinstance(value, FunctionType) and value.__module__ != function.__module__


def _content(cell: CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # it is empty yet
        return ()


_SIFTED = 256
"""Rows of a piece: where one fails, these go through the steps again, one by one."""


def _sifted(
    rows: Sequence[Any], first: int, steps: Sequence[RowStep], steps_left: int
) -> tuple[list[Any], list[Reject]]:
    """Rows of which one failed, one by one: what comes out, and what is set aside.

    Args:
        first: The place of the first of them in its batch.
    """
    kept: list[Any] = []
    rejects: list[Reject] = []
    for number, row in enumerate(rows, first):
        values, refused = _stepwise(row, steps)
        kept += values
        for value, place, error in refused:
            if not is_about_a_row(error):
                raise _blame(function_of(steps[place]), number, row, error) from error
            label = label_of(steps[place])
            rejects.append(reject_of(error, value, number, label, steps_left - place))
    return kept, rejects


def _stepwise(
    row: Any, steps: Sequence[RowStep]
) -> tuple[list[Any], list[tuple[Any, int, Exception]]]:
    """One row through the steps: what comes out, and what was refused where."""
    values: list[Any] = [row]
    refused: list[tuple[Any, int, Exception]] = []
    for place, step in enumerate(steps):
        function = function_of(step)
        passed: list[Any] = []
        for value in values:
            try:
                match step:
                    case Map():
                        passed.append(function(value))
                    case Filter():
                        if function(value):
                            passed.append(value)
                    case FlatMap():
                        passed += list(function(value))
            except Exception as error:  # whatever a user's function raises
                refused.append((value, place, error))
        values = passed
    return values, refused


def reject_of(error: Exception, row: Any, ordinal: int, step: str, steps_left: int) -> Reject:
    """What is kept of a row that a step refused.

    The reason holds no value of the row; what the error says itself may quote one and is the
    detail.
    """
    cause = error.__cause__
    if isinstance(error, DataError):
        reason = f"{type(error).__name__}: {error.reason}"
        detail = None if error.detail is None else without_passwords(error.detail)[:MOST_DETAIL]
    else:
        reason, detail = named(error), detail_of(error)
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return Reject(
        row=row,
        ordinal=ordinal,
        step=step,
        steps_left=steps_left,
        reason=reason,
        detail=detail,
        column=getattr(error, "column", None),
        sqlstate=code if isinstance(code, str) else None,
    )


def label_of(step: RowStep) -> str:
    """A row function in two words."""
    kind = {Map: "map", Filter: "filter", FlatMap: "flat_map"}[type(step)]
    return f"{kind} {name_of(function_of(step))}"


def _located(rows: Sequence[Any], steps: Sequence[RowStep], first: Exception) -> EtlError:
    """Which function failed on which row: the slow loop, run only after the fast one failed."""
    for number, row in enumerate(rows):
        _, refused = _stepwise(row, steps)
        if refused:
            _, place, error = refused[0]
            return _blame(function_of(steps[place]), number, row, error)
    names = ", ".join(name_of(function_of(step)) for step in steps)
    return because_of(
        first,
        StageError(
            f"one of the row functions {names} failed ({named(first)}), and did not when the"
            " batch was tried row by row: row functions must be pure. The batch was not written and"
            " the checkpoint did not move"
        ),
    )


def _place(function: Callable[..., Any]) -> str:
    """A function's name; of a lambda also where it stands, because all are called the same."""
    name = name_of(function)
    code = getattr(function, "__code__", None)
    if "<lambda>" in name and code is not None:
        return f"{name} ({code.co_filename}:{code.co_firstlineno})"
    return name


def _blame(function: Callable[..., Any], number: int, row: Any, error: Exception) -> EtlError:
    what = f"{_place(function)} failed on row {number + 1} of a batch"
    if isinstance(error, DataError):
        message = f"{what}: {error}"
        return because_of(
            error, DataError(message, column=error.column, row=number, reason=error.reason)
        )
    text = f"{what}: {named(error)}"
    if isinstance(error, KeyError) and isinstance(row, Row):
        text += f" (the row has {', '.join(row)})"
    text += ". The batch was not written and the checkpoint did not move"
    return because_of(error, StageError(text))


class TokenLedger:
    """The conservation check of one stage: what came in must go out once, in order.

    It costs a dictionary operation a batch, so it is always on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._owed: dict[Token, None] = {}
        self._open_pieces = OpenPieces()
        self._rejects: dict[int, Reject] = {}  # by identity: equal ones are two rows
        self._rejects_of: dict[Token, list[Reject]] = {}
        self._rejects_of_pieces: list[Reject] = []

    def takes(self, batch: Batch[Any]) -> None:
        """Note the tokens and rejects of a batch that enters."""
        for token in batch.tokens:
            self._owed[token] = None
        self._open_pieces.add(batch)
        if batch.rejects or self._rejects_of_pieces:
            self._rejects.update((id(reject), reject) for reject in batch.rejects)
            self._rejects_of_pieces += batch.rejects
            if batch.tokens:
                self._rejects_of[batch.tokens[-1]] = self._rejects_of_pieces
                self._rejects_of_pieces = []

    def gives(self, batch: Batch[Any]) -> None:
        """Settle the tokens of a batch that leaves.

        Raises:
            ConservationError: A token that is not owed, or not the next of its partition; rows
                that no token covers.
        """
        if batch.rows and not batch.tokens and not batch.pieces_of:
            raise ConservationError(
                f"stage {self._name!r} sent on {len(batch.rows)} rows without a token: it made a"
                " batch of its own. Make each batch from one that came in, with derive, merge or"
                " split. Nothing of it was written"
            )
        if batch.partial and not self._covered.issuperset(batch.pieces_of):
            raise ConservationError(
                f"stage {self._name!r} sent on a piece of a batch after the batch's last piece,"
                " which carries the token. Send the pieces in the order in which split made them."
                " Nothing of it was written"
            )
        if self._rejects or batch.rejects:
            self._gives_rejects(batch)
        for token in batch.tokens:
            if token not in self._owed:
                raise ConservationError(
                    f"stage {self._name!r} sent on a token that it does not hold (twice, or made"
                    " up). Make each batch from one that came in, with derive, merge or split."
                    " Nothing of it was written"
                )
            for owed in self._owed:
                if owed.partition == token.partition:
                    if owed != token:
                        raise ConservationError(
                            f"stage {self._name!r} sent batches on in another order than they"
                            " came in, or dropped one: a batch whose rows are all filtered out must"
                            " still be sent on (batch.derive([])). Nothing of it was written"
                        )
                    break
            del self._owed[token]

    def _gives_rejects(self, batch: Batch[Any]) -> None:
        """Settle rejects: each leaves once, and no later than the token that covers it."""
        for reject in batch.rejects:
            if self._rejects.pop(id(reject), None) is None:
                raise ConservationError(
                    f"stage {self._name!r} sent on a rejected row that it does not hold (twice, or"
                    " made up). Make each batch from one that came in, with derive, merge or split."
                    " Nothing of it was written"
                )
        for token in batch.tokens:
            if any(id(reject) in self._rejects for reject in self._rejects_of.pop(token, ())):
                raise ConservationError(
                    f"stage {self._name!r} lost a rejected row: it made a batch of its own with the"
                    " tokens of another. Make it with derive, merge or split. Nothing of it was"
                    " written"
                )

    @property
    def _covered(self) -> set[str]:
        """Partitions of which a token is still to come."""
        return {token.partition for token in self._owed} | self._open_pieces.partitions.keys()

    def ends(self) -> None:
        """The stage has ended cleanly.

        Raises:
            ConservationError: Tokens are still owed.
        """
        if self._owed:
            raise ConservationError(
                f"stage {self._name!r} dropped {len(self._owed)} batch(es): a batch whose rows are"
                " all filtered out must still be sent on (batch.derive([])). The checkpoint did"
                " not move past them; correct the stage, then run again"
            )


async def through_stage(
    one: Stage[Any, Any], batches: AsyncGenerator[Batch[Any], None]
) -> AsyncGenerator[Batch[Any], None]:
    """A stage's output, checked for conservation. Closes ``batches``."""
    ledger = TokenLedger(one.name)

    async def noted() -> AsyncGenerator[Batch[Any], None]:
        async for batch in batches:
            ledger.takes(batch)
            yield batch
            del batch

    source = noted()
    async with aclosing(batches), aclosing(source), aclosing(one.apply(source)) as results:
        async for batch in results:
            if not isinstance(batch, Batch):
                raise StageError(
                    f"stage {one.name!r} yielded {type(batch).__name__}, not a Batch; use"
                    " batch.derive(rows). Nothing of it was written"
                )
            ledger.gives(batch)
            yield batch
            del batch
        # Not from ``source``: a stage that returns early may have closed it, as it should.
        async for _ in batches:
            raise ConservationError(
                f"stage {one.name!r} returned before its input had ended, and the rest would be"
                " lost. Go on to the end and send on what is not wanted as batch.derive([]). What"
                " it had sent on before may be written; the checkpoint did not move past it"
            )
        ledger.ends()
