"""Stages: row functions fused into one loop, ``@stage``, and the check that no token is lost."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, overload

from etl.batch import Batch, OpenPieces, Token
from etl.errors import ConfigError, ConservationError, DataError, EtlError, StageError
from etl.flow import Filter, FlatMap, Map, Stage, name_of
from etl.rows import Row

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")

RowStep: TypeAlias = Map | Filter | FlatMap


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


def _loop(steps: Sequence[RowStep]) -> Callable[[Sequence[Any]], list[Any]]:
    """The steps as one list comprehension: ``[v1 for v0 in rows if f0(v0) for v1 in (f1(v0),)]``.

    Not as nested ``map()`` and ``filter()``: to those a function that raises ``StopIteration`` (a
    ``next()`` that found nothing) looks like the end of the rows, and the rest would be lost
    without a word. The comprehension is not slower.
    """
    names: dict[str, Any] = {f"f{number}": _function(step) for number, step in enumerate(steps)}
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


def _function(step: RowStep) -> Callable[[Any], Any]:
    return step.predicate if isinstance(step, Filter) else step.function


def _located(rows: Sequence[Any], steps: Sequence[RowStep], first: Exception) -> EtlError:
    """Which function failed on which row: the slow loop, run only after the fast one failed."""
    for number, row in enumerate(rows):
        values: list[Any] = [row]
        for step in steps:
            function = _function(step)
            try:
                match step:
                    case Map():
                        values = [function(value) for value in values]
                    case Filter():
                        values = [value for value in values if function(value)]
                    case FlatMap():
                        values = [one for value in values for one in function(value)]
            except Exception as error:  # whatever a user's function raises
                return _blame(function, number, row, error)
    names = ", ".join(name_of(_function(step)) for step in steps)
    return StageError(
        f"one of the row functions {names} failed ({type(first).__name__}: {str(first)[:500]}), and"
        " did not when the batch was tried row by row: row functions must be pure. The batch was"
        " not written and the checkpoint did not move"
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
        return DataError(f"{what}: {error}", column=error.column, row=number)
    text = f"{what}: {type(error).__name__}: {str(error)[:500]}"
    if isinstance(error, KeyError) and isinstance(row, Row):
        text += f" (the row has {', '.join(row)})"
    return StageError(text + ". The batch was not written and the checkpoint did not move")


class TokenLedger:
    """The conservation check of one stage: what came in must go out once, in order.

    It costs a dictionary operation a batch, so it is always on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._owed: dict[Token, None] = {}
        self._open_pieces = OpenPieces()

    def takes(self, batch: Batch[Any]) -> None:
        """Note the tokens of a batch that enters."""
        for token in batch.tokens:
            self._owed[token] = None
        self._open_pieces.add(batch)

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
        # Not from ``source``: a stage that returns early may have closed it, as it should.
        async for _ in batches:
            raise ConservationError(
                f"stage {one.name!r} returned before its input had ended, and the rest would be"
                " lost. Go on to the end and send on what is not wanted as batch.derive([]). What"
                " it had sent on before may be written; the checkpoint did not move past it"
            )
        ledger.ends()
