"""Structured concurrency around ``asyncio.gather``.

``gather`` lets the siblings of a failed task run on, forgets second errors, and takes a stray
``CancelledError`` of a child for a cancellation of the caller. ``TaskGroup`` ignores such a stray
one and, before Python 3.13, can lose a cancellation from outside. So: ``gather``, with what it
lacks added here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

from etl.engine.strays import Unit, context_of, forgotten, leave_behind
from etl.errors import (
    ChannelBrokenError,
    EtlError,
    OutOfMemoryError,
    RunAbortedError,
    StageCancelledError,
    StageError,
    StageStuckError,
)
from etl.foreign import because_of, named

_GRACE_TICKS: Final = 10
_CANCEL_AGAIN: Final = frozenset({5, 7, 9})  # of the ticks of a grace

T = TypeVar("T")


class Failable(Protocol):
    """What hears of a failure before anybody is cancelled: a channel."""

    def fail(self, error: BaseException) -> None: ...


async def guard(name: str, work: Coroutine[Any, Any, T]) -> T:
    """Run a task's work; turn what a task must not raise into an error that names it.

    A ``CancelledError`` that nobody asked for would end ``gather`` as if the caller had been
    cancelled; ``SystemExit`` and ``KeyboardInterrupt`` would tear down the event loop.

    Raises:
        StageCancelledError: The work raised ``CancelledError`` by itself.
        StageError: The work raised ``SystemExit``, ``KeyboardInterrupt``, ``GeneratorExit`` or the
            like; or an error that is not of this package, so that it gets a name.
    """
    try:
        return await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling() == 0:
            raise _stray(name) from error
        raise
    except EtlError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(name) from error
    except Exception as error:
        ours = StageError(
            f"{name} failed: {named(error)}. Its batch was not written and the checkpoint did not"
            " move"
        )
        raise because_of(error, ours) from error
    except BaseException as error:
        raise ends_the_program(name, error) from error


def ends_the_program(name: str, error: BaseException) -> StageError:
    """What becomes of ``SystemExit`` and the like, which would tear down the event loop."""
    return StageError(
        f"{name} raised {named(error)}; a function or stage must not end the program."
        " Its batch was not written"
    )


def _stray(name: str) -> StageCancelledError:
    return StageCancelledError(
        f"{name} raised CancelledError although nobody cancelled it; a task or timeout"
        " inside it leaked its own cancellation. Its batch was not written"
    )


async def supervise(
    units: Mapping[str, Coroutine[Any, Any, Any]],
    channels: Callable[[], list[Failable]],
    *,
    grace_s: float = 5.0,
    patient: Collection[str] = (),
    on_forgotten: Callable[[str, list[str]], None] | None = None,
) -> None:
    """Run named coroutines together; all end, also when one fails or the caller is cancelled.

    On the first failure every channel fails, so that nobody takes the end of a broken stream
    for a clean one; then the others are cancelled and waited for. One that runs code of the
    user's may go on for ever; it is cancelled again a few times, and left behind when the grace
    is over.

    Args:
        units: What runs, by the name in messages and of its task.
        channels: The channels between them, asked for when something fails.
        grace_s: Seconds that a unit may go on after it was cancelled.
        patient: Units that are waited for however long they take: their clean-up is bounded by
            itself, and what they hold must not be closed under them.
        on_forgotten: Told at the end of a unit that is not patient and of the tasks that were
            made in it and still run.

    Raises:
        StageStuckError: A unit did not stop; where there was another cause, beside that.
        BaseExceptionGroup: Every error, the root cause first, where there are several.
        BaseException: The only error; or the very ``CancelledError`` that was received, since
            a cancel scope recognises its own by identity.
    """
    order: list[BaseException] = []  # errors as they happen: the first is the root cause

    async def noted(name: str, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await guard(name, work)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            order.append(error)
            raise

    marks = {name: Unit() for name in units}
    tasks = [
        asyncio.create_task(noted(name, work), name=f"etl:{name}", context=context_of(marks[name]))
        for name, work in units.items()
    ]
    own_task = asyncio.current_task()
    cancels = own_task.cancelling() if own_task is not None else 0
    together = asyncio.gather(*tasks)
    # What it ends with after this was cancelled; else the loop would report that nobody asked.
    together.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        # Shielded: a cancelled gather would wait for a task that never ends.
        await asyncio.shield(together)
    except BaseException as first:
        cancel = first if isinstance(first, asyncio.CancelledError) else None
        if cancel is not None and own_task is not None and own_task.cancelling() == cancels:
            # A function has cancelled the task that it runs in.
            names = [name for task, name in zip(tasks, units, strict=True) if task.cancelled()]
            if names:
                cancel = None
                order.append(_stray(names[0]))
        for channel in channels():
            channel.fail(first)
        pending = {task for task in tasks if not task.done()}
        for task in pending:
            task.cancel()
        own = {task for task, name in zip(tasks, units, strict=True) if name in patient}
        ticks = 0
        while pending:
            mine = pending - own
            try:
                # In ticks, each counted once however long it took: while a function blocks the
                # loop nobody can clean up, so that time is not theirs.
                _, pending = await asyncio.wait(
                    pending, timeout=grace_s / _GRACE_TICKS if mine else None
                )
            except asyncio.CancelledError as again:  # cancelled again while cleaning up
                cancel = again
                for task in pending:
                    task.cancel()
                continue
            ticks += 1
            if ticks >= _GRACE_TICKS:
                pending &= own
            elif ticks in _CANCEL_AGAIN:
                for task in pending - own:
                    task.cancel()
        for task, name, work in zip(tasks, units, units.values(), strict=True):
            if not task.done():
                leave_behind(task)
                order.append(_stuck(name, grace_s))
                continue
            if not task.cancelled():
                task.exception()  # retrieved, or the loop would report it
            work.close()  # one that was cancelled before its first step was never awaited
        errors = [error for error in order if not isinstance(error, ChannelBrokenError)]
        if not errors:
            if cancel is not None:
                raise cancel  # noqa: B904  the very object that came
            errors = order[:1]
        if len(errors) == 1:
            raise errors[0] from errors[0].__cause__
        raise BaseExceptionGroup("several parts of the run failed", errors) from None
    finally:
        for name, mark in marks.items():
            if on_forgotten is not None and name not in patient and (left := forgotten(mark)):
                on_forgotten(name, left)


def _stuck(name: str, grace_s: float) -> StageStuckError:
    return StageStuckError(
        f"{name} did not stop within {grace_s:g} s after it was cancelled: it swallows"
        " CancelledError, or its clean-up does not end. It was left behind; what was open is rolled"
        " back, and nothing that it still does is written. Let CancelledError pass, or raise"
        " Limits(abort_grace_s=...)"
    )


async def wait_for_root(root: asyncio.Task[T]) -> T:
    """Wait for a root task; forward the first cancellation, and re-raise that same object.

    Some cancel scopes (anyio's) deliver a cancellation on every turn of the loop until they
    end, which would cut each ``await`` of a clean-up. Only the waiter sees those.
    """
    received: asyncio.CancelledError | None = None
    while not root.done():
        try:
            await asyncio.shield(root)
        except asyncio.CancelledError as error:
            if root.done():
                if received is None and not root.cancelled():
                    received = error
                break
            if received is None:
                received = error
                root.cancel()
        except BaseException:
            break
    if received is not None:
        # An error is worth more than the cancellation, but not one that only says "aborted".
        cause = None if root.cancelled() else root.exception()
        if cause is None or isinstance(cause, RunAbortedError):
            raise received
    return root.result()


async def finish(
    awaitable: Awaitable[T],
    *,
    on_cancel: Callable[[], None] | None = None,
    grace_s: float | None = None,
) -> T:
    """Await what must not be cut (COMMIT, ROLLBACK, closing), through any number of cancels.

    The awaitable needs a timeout of its own. An error of it wins over the cancellation, which is
    raised at the end otherwise.

    Args:
        on_cancel: Called at the first cancellation, to make the awaitable end sooner. The error
            with which it then ends is a consequence: the cancellation wins.
        grace_s: Seconds that it may go on after the first cancellation; then it is cancelled
            itself. None: as long as it takes.
    """
    inner = asyncio.ensure_future(awaitable)
    received: asyncio.CancelledError | None = None
    late: asyncio.TimerHandle | None = None
    while not inner.done():
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError as error:
            if inner.cancelled():
                if received is None:
                    raise
                break
            if received is None and on_cancel is not None:
                on_cancel()
            if received is None and grace_s is not None:
                late = asyncio.get_running_loop().call_later(grace_s, inner.cancel)
            received = received or error
        except BaseException:
            break
    if late is not None:
        late.cancel()
    if received is not None and inner.cancelled():
        raise received
    if received is not None and on_cancel is not None:
        raise received from inner.exception()
    result = inner.result()
    if received is not None:
        raise received
    return result
