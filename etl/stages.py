"""Stages: row functions fused into one loop, ``@stage``, and the check that no token is lost."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, overload

from etl.batch import Batch, Token
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

    def run(rows: Sequence[Any]) -> Sequence[Any]:
        found: Iterable[Any] = rows
        for step in steps:
            match step:
                case Map(function):
                    found = map(function, found)
                case Filter(predicate):
                    found = filter(predicate, found)
                case FlatMap(function):
                    found = chain.from_iterable(map(function, found))
        try:
            return list(found)
        except Exception as error:
            raise _located(rows, steps) or error from error

    return run


def _located(rows: Sequence[Any], steps: Sequence[RowStep]) -> EtlError | None:
    """Which function failed on which row: the slow loop, run only after the fast one failed."""
    for number, row in enumerate(rows):
        values: list[Any] = [row]
        for step in steps:
            try:
                match step:
                    case Map(function):
                        values = [function(value) for value in values]
                    case Filter(function):
                        values = [value for value in values if function(value)]
                    case FlatMap(function):
                        values = [one for value in values for one in function(value)]
            except Exception as error:  # noqa: BLE001  whatever a user's function raises
                return _blame(function, number, row, error)
    return None


def _blame(function: Callable[..., Any], number: int, row: Any, error: Exception) -> EtlError:
    what = f"{name_of(function)} failed on row {number} of a batch"
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

    def takes(self, batch: Batch[Any]) -> None:
        """Note the tokens of a batch that enters."""
        for token in batch.tokens:
            self._owed[token] = None

    def gives(self, batch: Batch[Any]) -> None:
        """Settle the tokens of a batch that leaves.

        Raises:
            ConservationError: A token that is not owed, or not the next of its partition.
        """
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
                            " came in, or kept one back. Nothing of it was written"
                        )
                    break
            del self._owed[token]

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
    one: Stage[Any, Any], batches: AsyncIterator[Batch[Any]]
) -> AsyncGenerator[Batch[Any], None]:
    """A stage's output, checked for conservation."""
    ledger = TokenLedger(one.name)

    async def noted() -> AsyncGenerator[Batch[Any], None]:
        async for batch in batches:
            ledger.takes(batch)
            yield batch

    source = noted()
    async with aclosing(source), aclosing(one.apply(source)) as results:
        async for batch in results:
            if not isinstance(batch, Batch):
                raise StageError(
                    f"stage {one.name!r} yielded {type(batch).__name__}, not a Batch; use"
                    " batch.derive(rows). Nothing of it was written"
                )
            ledger.gives(batch)
            yield batch
        async for _ in source:  # the stage returned early: what it left unread is owed as well
            break
        ledger.ends()
