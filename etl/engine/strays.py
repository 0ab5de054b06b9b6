"""Tasks that outlive the code that made them: left behind by a run, or forgotten by a user.

A task that swallows its cancellation cannot be ended from outside. A task that a stage made and
forgot is the user's own: it is named, not cancelled.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any

_left_behind: set[asyncio.Task[Any]] = set()  # a task that nobody refers to may be collected


class Unit:
    """Marks the tasks that are made in one unit of a run."""


_unit: ContextVar[Unit | None] = ContextVar("etl_unit", default=None)


def context_of(unit: Unit) -> Context:
    """A context for the unit's task, so that the tasks made in it can be told."""
    context = copy_context()
    context.run(_unit.set, unit)
    return context


def forgotten(unit: Unit) -> list[str]:
    """The tasks made in a unit that still run, each as its name and function."""
    return sorted(
        f"{task.get_name()} ({_function(task)})"
        for task in _made_in(unit)
        if task not in _left_behind
    )


def forgotten_note(unit: str, tasks: list[str]) -> str:
    """What a person is told of them."""
    return (
        f"{unit} left {'tasks' if len(tasks) > 1 else 'a task'} running:"
        f" {', '.join(tasks[:5])}. etl does not cancel what it did not start; await it in the"
        " stage, for example in an asyncio.TaskGroup"
    )


def leave_behind(task: asyncio.Task[Any]) -> None:
    """Give up a task that does not stop, with the engine's own tasks that it waits for.

    It stays referenced, and ``asyncio.run`` does not wait for it: that would hang for ever.
    """
    unit = _context_of(task).get(_unit)
    tasks = {task}
    if unit is not None:
        tasks |= {one for one in _made_in(unit) if one.get_name().startswith("etl:")}
    for one in tasks:
        _left_behind.add(one)
        one.add_done_callback(_ended)
        # What asyncio has for tasks that are not its own to await.
        asyncio._unregister_task(one)
        vars_of: Any = one
        vars_of._log_destroy_pending = False  # as gather does; it was reported already


def _ended(task: asyncio.Task[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # retrieved, or the loop would report it


def _made_in(unit: Unit) -> Iterator[asyncio.Task[Any]]:
    current = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not current and not task.done() and _context_of(task).get(_unit) is unit:
            yield task


def _context_of(task: asyncio.Task[Any]) -> Context:
    find = getattr(task, "get_context", None)  # Python 3.12
    if find is not None:
        found: Context = find()
        return found
    return next((one for one in gc.get_referents(task) if isinstance(one, Context)), Context())


def _function(task: asyncio.Task[Any]) -> str:
    work: Any = task.get_coro()
    code = getattr(work, "cr_code", None) or getattr(work, "gi_code", None)
    name = getattr(work, "__qualname__", type(work).__name__)
    return f"{name} in {code.co_filename}:{code.co_firstlineno}" if code is not None else name
