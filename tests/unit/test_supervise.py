"""The supervisor, the isolated root and ``finish``: who fails, when, and who is cancelled."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import pytest

from etl.engine.supervise import finish, guard, supervise, wait_for_root
from etl.errors import ChannelBrokenError, StageCancelledError, StageError

T = TypeVar("T")

Work = Coroutine[Any, Any, Any]


class Boom(Exception):
    pass


class Bell:
    """A channel as far as the supervisor knows: it hears of failures."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.rung = asyncio.Event()

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)
        self.rung.set()


async def fails(error: BaseException, turns: int = 0) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    raise error


async def returns(turns: int = 0) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


class Sibling:
    """Runs until it is cancelled; its clean-up takes some turns and may fail."""

    def __init__(self, cleanup_turns: int = 3, error: BaseException | None = None) -> None:
        self.cleaned_up = False
        self.started = asyncio.Event()
        self._turns = cleanup_turns
        self._error = error

    async def run(self) -> None:
        try:
            self.started.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(self._turns):
                await asyncio.sleep(0)
            if self._error is not None:
                raise self._error
            self.cleaned_up = True


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@pytest.mark.parametrize("who", ["first", "middle", "last"])
@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_a_failure_cancels_the_others_and_waits_for_their_cleanup(
    who: str, turns: int
) -> None:
    siblings = {name: Sibling() for name in ("first", "middle", "last")}
    units: dict[str, Work] = {name: one.run() for name, one in siblings.items() if name != who}
    units = {name: fails(Boom(), turns) if name == who else units[name] for name in siblings}
    with pytest.raises(StageError) as failure:
        await supervise(units, list)
    assert isinstance(failure.value.__cause__, Boom)
    assert who in str(failure.value)
    for name, sibling in siblings.items():
        assert name == who or not sibling.started.is_set() or sibling.cleaned_up
    assert not others()


async def test_all_return() -> None:
    await supervise({"a": returns(3), "b": returns()}, list)


async def test_an_error_of_the_package_passes_as_it_is() -> None:
    error = StageError("as it is")
    with pytest.raises(StageError) as failure:
        await supervise({"a": fails(error), "b": Sibling().run()}, list)
    assert failure.value is error


async def test_channels_fail_before_anybody_is_cancelled() -> None:
    bell = Bell()
    seen: list[int] = []

    async def sibling() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(len(bell.errors))

    with pytest.raises(StageError):
        await supervise({"a": fails(Boom(), 2), "b": sibling()}, lambda: [bell])
    assert seen == [1]
    assert isinstance(bell.errors[0], StageError)


async def test_channels_do_not_fail_at_a_clean_end() -> None:
    bell = Bell()
    await supervise({"a": returns(2)}, lambda: [bell])
    assert bell.errors == []


async def test_two_failures_are_both_reported_root_cause_first() -> None:
    with pytest.raises(BaseExceptionGroup) as failure:
        await supervise(
            {
                "consequence": Sibling(error=StageError("consequence")).run(),
                "cause": fails(StageError("cause"), 3),
            },
            list,
        )
    assert [str(one) for one in failure.value.exceptions] == ["cause", "consequence"]


async def test_two_failures_in_the_same_turn_are_both_reported() -> None:
    with pytest.raises(BaseExceptionGroup) as failure:
        await supervise({"a": fails(StageError("a"), 1), "b": fails(StageError("b"), 1)}, list)
    assert {str(one) for one in failure.value.exceptions} == {"a", "b"}


async def test_a_broken_channel_is_a_consequence_and_not_reported_beside_the_cause() -> None:
    bell = Bell()

    async def reader() -> None:
        try:
            await bell.rung.wait()
        except asyncio.CancelledError:
            raise ChannelBrokenError("broken") from None

    with pytest.raises(StageError, match="cause"):
        await supervise({"a": reader(), "b": fails(StageError("cause"), 2)}, lambda: [bell])


async def test_a_broken_channel_alone_is_reported() -> None:
    with pytest.raises(ChannelBrokenError):
        await supervise({"a": fails(ChannelBrokenError("alone"))}, list)


async def test_a_stray_cancellation_is_a_failure_that_names_its_task() -> None:
    sibling = Sibling()
    with pytest.raises(StageCancelledError, match="unit x") as failure:
        await supervise(
            {"unit x": fails(asyncio.CancelledError(), 1), "other": sibling.run()}, list
        )
    assert isinstance(failure.value.__cause__, asyncio.CancelledError)
    assert sibling.cleaned_up


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_would_end_the_program_is_a_failure_that_names_its_task(
    kind: type[BaseException],
) -> None:
    sibling = Sibling()
    with pytest.raises(
        StageError, match=rf"unit x raised {kind.__name__} \(test_supervise.py:\d+\); a"
    ):
        await supervise({"unit x": fails(kind(), 1), "other": sibling.run()}, list)
    assert sibling.cleaned_up


async def test_cancelling_the_caller_cancels_all_and_waits() -> None:
    siblings = [Sibling(), Sibling(cleanup_turns=6)]
    bell = Bell()
    task = asyncio.create_task(
        supervise({str(n): one.run() for n, one in enumerate(siblings)}, lambda: [bell])
    )
    await asyncio.gather(*(one.started.wait() for one in siblings))
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert cancelled.value.args == ("why",)
    assert all(one.cleaned_up for one in siblings)
    assert len(bell.errors) == 1


async def test_cancelled_before_the_first_turn_no_unit_is_left_unawaited() -> None:
    """The units never start; their coroutines must be closed, or Python warns."""

    async def parent() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await supervise({"a": returns(), "b": returns()}, list)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(parent())


async def test_a_second_cancel_during_cleanup_still_waits() -> None:
    sibling = Sibling(cleanup_turns=0)
    slow = asyncio.Event()
    cleaning = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await finish(slow.wait())

    task = asyncio.create_task(supervise({"a": sibling.run(), "b": stubborn()}, list))
    await sibling.started.wait()
    task.cancel()
    await cleaning.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    slow.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not others()


async def test_a_failure_during_the_cleanup_of_a_cancellation_is_reported() -> None:
    sibling = Sibling(error=StageError("in clean-up"))
    task = asyncio.create_task(supervise({"a": sibling.run()}, list))
    await sibling.started.wait()
    task.cancel()
    with pytest.raises(StageError, match="in clean-up"):
        await task


async def test_guard_lets_a_real_cancellation_pass() -> None:
    task = asyncio.create_task(guard("a", Sibling().run()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


# -- The isolated root --------------------------------------------------------------------------


async def isolated(work: Coroutine[Any, Any, T]) -> T:
    return await wait_for_root(asyncio.create_task(work))


async def test_isolated_gives_the_result() -> None:
    async def work() -> int:
        return 7

    assert await isolated(work()) == 7


async def test_isolated_forwards_one_cancel_and_raises_the_same_object() -> None:
    sibling = Sibling(cleanup_turns=5)
    seen: list[BaseException] = []

    async def parent() -> None:
        try:
            await isolated(sibling.run())
        except asyncio.CancelledError as error:
            seen.append(error)
            raise

    task = asyncio.create_task(parent())
    await sibling.started.wait()
    for number in range(4):
        task.cancel(f"number {number}")
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sibling.cleaned_up  # the other three did not reach it
    assert seen[0].args == ("number 0",)


async def test_isolated_raises_the_error_of_the_work() -> None:
    with pytest.raises(Boom):
        await isolated(fails(Boom(), 2))


async def test_isolated_under_an_anyio_scope_cleans_up_and_ends_the_scope() -> None:
    sibling = Sibling(cleanup_turns=8)
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_later(0, scope.cancel)
        await isolated(sibling.run())
    assert scope.cancelled_caught
    assert sibling.cleaned_up


async def test_isolated_under_a_timeout_becomes_a_timeout_error() -> None:
    sibling = Sibling()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await isolated(sibling.run())
    assert sibling.cleaned_up
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_isolated_in_a_task_group_is_cancelled_with_it() -> None:
    sibling = Sibling()

    async def boom() -> None:
        await sibling.started.wait()
        raise Boom

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(isolated(sibling.run()))
            group.create_task(boom())

    with pytest.raises(ExceptionGroup) as failure:
        await both()
    assert [type(one) for one in failure.value.exceptions] == [Boom]
    assert sibling.cleaned_up


# -- finish -------------------------------------------------------------------------------------


class Commit:
    """A piece of work that must not be cut."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.done = False
        self._error = error

    async def run(self) -> str:
        self.started.set()
        await self.go.wait()
        if self._error is not None:
            raise self._error
        self.done = True
        return "in"


async def test_finish_gives_the_result() -> None:
    commit = Commit()
    commit.go.set()
    assert await finish(commit.run()) == "in"


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_finish_survives_any_number_of_cancels_then_raises_the_first(cancels: int) -> None:
    commit = Commit()
    task = asyncio.create_task(finish(commit.run()))
    await commit.started.wait()
    for number in range(cancels):
        task.cancel(f"number {number}")
        await asyncio.sleep(0)
    assert not task.done()
    commit.go.set()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert cancelled.value.args == ("number 0",)
    assert commit.done


async def test_finish_cancelled_before_it_starts_still_does_the_work() -> None:
    commit = Commit()
    commit.go.set()

    async def parent() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await finish(commit.run())

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(parent())
    assert commit.done


async def test_finish_an_error_of_the_work_wins_over_the_cancellation() -> None:
    commit = Commit(error=Boom())
    task = asyncio.create_task(finish(commit.run()))
    await commit.started.wait()
    task.cancel()
    commit.go.set()
    with pytest.raises(Boom):
        await task


async def test_finish_calls_on_cancel_once_and_then_the_cancellation_wins() -> None:
    """What ``on_cancel`` interrupts fails because of the cancellation, not beside it."""
    calls: list[int] = []
    commit = Commit(error=Boom())

    def interrupt() -> None:
        calls.append(1)
        commit.go.set()

    task = asyncio.create_task(finish(commit.run(), on_cancel=interrupt))
    await commit.started.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert calls == [1]
    assert isinstance(cancelled.value.__cause__, Boom)


async def test_finish_cuts_what_goes_on_after_the_grace_of_a_cancellation() -> None:
    commit = Commit()
    task = asyncio.create_task(finish(commit.run(), grace_s=0.01))
    await commit.started.wait()
    task.cancel("the first")
    await asyncio.sleep(0)
    task.cancel("the second")
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert cancelled.value.args == ("the first",)
    assert not commit.done


async def test_finish_without_a_cancellation_takes_longer_than_the_grace() -> None:
    commit = Commit()
    asyncio.get_running_loop().call_later(0.02, commit.go.set)
    assert await finish(commit.run(), grace_s=0.0) == "in"


async def test_finish_under_a_timeout_completes_and_then_times_out() -> None:
    commit = Commit()
    asyncio.get_running_loop().call_later(0.01, commit.go.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await finish(commit.run())
    assert commit.done
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_finish_in_a_task_group_that_fails_completes() -> None:
    commit = Commit()

    async def boom() -> None:
        await commit.started.wait()
        asyncio.get_running_loop().call_soon(commit.go.set)
        raise Boom

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(finish(commit.run()))
            group.create_task(boom())

    with pytest.raises(ExceptionGroup):
        await both()
    assert commit.done


async def test_finish_under_an_anyio_scope_completes() -> None:
    commit = Commit()
    with anyio.CancelScope() as scope:
        loop = asyncio.get_running_loop()
        loop.call_soon(scope.cancel)
        loop.call_later(0.01, commit.go.set)
        await finish(commit.run())
    assert scope.cancelled_caught
    assert commit.done


async def test_finish_work_that_is_cancelled_by_itself_raises() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await finish(work())


@asynccontextmanager
async def reports_to_the_loop() -> AsyncGenerator[list[dict[str, Any]], None]:
    """What the loop's exception handler is told: errors that nobody retrieved."""
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(context))
    try:
        yield found
    finally:
        loop.set_exception_handler(None)


async def test_no_error_is_left_unretrieved() -> None:
    async with reports_to_the_loop() as found:
        with pytest.raises(BaseExceptionGroup):
            await supervise({"a": fails(StageError("a"), 1), "b": fails(StageError("b"), 1)}, list)
        gc.collect()
        await asyncio.sleep(0)
    assert found == []


async def test_what_a_cancelled_group_ends_with_is_not_reported_to_the_loop() -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
    work = asyncio.create_task(supervise({"a": Sibling().run(), "b": returns()}, list))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait({work})
    gc.collect()
    assert reported == []
