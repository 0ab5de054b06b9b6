"""In which form the rows of a flow reach its sinks: what both sides agree on before the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, cast

from etl.arrow.types import schema_of
from etl.batch import Batch
from etl.connector import (
    Columnar,
    Expecting,
    Framer,
    LineTaker,
    LineWriter,
    Profiler,
    Reader,
    Session,
)
from etl.engine.plan import FlowPlan
from etl.flow import Derived, Filter, Lookup, MapArrow, Merged, Step, Stream
from etl.rows import Column, Shape, Type, shape_of
from etl.stages import texts_in


async def reaching_shape(
    plan: FlowPlan, readers: Sequence[Reader[Any]], sessions: Sequence[Session]
) -> tuple[Shape | None, bool]:
    """The shape of the rows that reach the sinks, where it is known before the first one.

    And whether the source's values had to be looked at for it.
    """
    kind = plan.flow.stream.row_type
    if isinstance(kind, type) and is_dataclass(kind):
        return shape_of(kind, _source_key(plan, kind, readers)), False
    shapes, profiled = [reader.shape for reader in readers], False
    for at, reader in enumerate(readers):
        shape = shapes[at]
        if (
            shape is not None
            and isinstance(reader, Profiler)
            and await _needs_profile(plan, shape, sessions)
        ):
            shapes[at], profiled = await reader.profile(), True
    shape = shape_of_all(shapes)
    # What a function returns is seen when it comes: also a Row may have got other values.
    return (shape if _rows_untouched(plan) else None), profiled


def shape_of_all(shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape of the rows of all sources of a flow, in the columns of the first one.

    Of several it has no key: what identifies a row of each need not identify it among all.
    """
    first = shapes[0]
    if first is None or len(shapes) == 1:
        return first
    others = [{c.name: c for c in shape.columns} for shape in shapes[1:] if shape is not None]
    columns: list[Column] = []
    for column in first.columns:
        among = [column, *(other[column.name] for other in others if column.name in other)]
        columns.append(
            replace(
                column,
                type=_type_of_all([one.type for one in among]),
                nullable=len(among) < len(shapes) or any(one.nullable for one in among),
            )
        )
    return Shape(columns=tuple(columns))


def _type_of_all(types: Sequence[Type]) -> Type:
    """The type that holds the values of all, of those whose kinds were found in their values.

    A declared type is the first source's; what another one has beyond it is refused by value.
    """
    first, kinds = types[0], {one.kind for one in types}
    if len(kinds) == 1 or any(one.dialect not in _FOUND_IN_VALUES for one in types):
        return first
    if kinds <= {"int16", "int32", "int64", "float64", "numeric"}:
        return replace(first, kind="numeric")
    # Each field of a CSV file is a text, whatever all texts of its column look like.
    return replace(first, kind="text" if first.dialect == "csv" else "dynamic")


_FOUND_IN_VALUES = frozenset({"sqlite", "csv", "json"})
"""Dialects whose columns are what their values are."""


def starts_with_arrow(plan: FlowPlan) -> bool:
    """Whether functions of Arrow are the first to look at the rows of every source."""
    shared = plan.flow.stream.steps if isinstance(plan.flow.stream.origin, Merged) else ()
    paths = [(*one.steps, *shared) for one in plan.flow.branches.values()]
    return all(path and isinstance(path[0], MapArrow) for path in paths)


def _turns_rows_into_tables(plan: FlowPlan) -> bool:
    """Whether rows of a source, which functions may have changed, become tables of Arrow."""
    shared = plan.flow.stream.steps if isinstance(plan.flow.stream.origin, Merged) else ()
    for branch in plan.flow.branches.values():
        steps = (*branch.steps, *shared)
        first = next((at for at, step in enumerate(steps) if isinstance(step, MapArrow)), None)
        if first is not None:
            kind = Derived(branch.origin, steps[:first], "").row_type
            # A dataclass tells the types by itself.
            if kind is None or not is_dataclass(kind):
                return True
    return False


async def keep_columns(plan: FlowPlan, readers: Sequence[Reader[Any]]) -> bool:
    """Let the sources hand on what becomes a table of Arrow, quickly where that is wanted first.

    Returns:
        Whether a source had to look at its values to know the kinds of its columns.

    Raises:
        SchemaMismatchError: No one kind holds the values of a column.
    """
    is_first = starts_with_arrow(plan)
    if not is_first and not _turns_rows_into_tables(plan):
        return False
    profiled = False
    for reader in readers:
        if is_first and isinstance(reader, Columnar):
            reader.keep_columns()
        shape = reader.shape
        # The fields of a CSV file are texts to a function, whatever all of them look like.
        if isinstance(reader, Profiler) and any(
            one.type.kind == "dynamic" and one.type.dialect != "csv"
            for one in (shape.columns if shape is not None else ())
        ):
            shape, profiled = await reader.profile(), True
        if is_first and shape is not None:
            schema_of(shape.columns)
    return profiled


async def _needs_profile(plan: FlowPlan, shape: Shape, sessions: Sequence[Session]) -> bool:
    """Whether a table is to be made for rows whose columns do not tell what they hold."""
    if not any(column.type.kind == "dynamic" for column in shape.columns):
        return False
    for lane, session in zip(plan.lanes, sessions, strict=True):
        for number in range(len(lane.sinks)):
            if await session.wants_profile(number, shape):
                return True
    return False


def packing(sessions: Sequence[Session]) -> Callable[[Batch[Any]], Batch[Any]]:
    """Into the form that the only session wants; several may each want another one."""
    return sessions[0].pack if len(sessions) == 1 else as_it_is


def as_it_is(batch: Batch[Any]) -> Batch[Any]:
    return batch


async def agree_on_lines(
    plan: FlowPlan, readers: Sequence[Reader[Any]], sessions: Sequence[Session]
) -> None:
    """Let the source write the rows as the target takes them, where nothing looks at them.

    Where functions do, a source may be glad to know at which columns.
    """
    streams = (plan.flow.stream, *plan.flow.branches.values())
    if texts := {text for one in streams for step in one.steps for text in _texts_of(step)}:
        for reader in readers:
            if isinstance(reader, Expecting):
                reader.expect(texts)
    if len(sessions) > 1 or any(stream.steps for stream in streams):
        return  # lines for one table may not be right for another
    if plan.on_error != "fail":
        return  # rows that are kept must be the source's, not what they would be in the target
    for reader in readers:
        if isinstance(reader, LineWriter) and isinstance(sessions[0], LineTaker) and reader.shape:
            columns = await sessions[0].line_columns(reader.shape.names)
            if columns is not None:
                reader.write_lines(columns)


def _texts_of(step: Step) -> set[str]:
    """Texts in the functions of a step."""
    match step:
        case Filter():
            return texts_in(step.predicate)
        case Lookup():
            return texts_in((step.key, step.combine))
        case _:
            return texts_in(step.function)


def _rows_untouched(plan: FlowPlan) -> bool:
    streams: list[Stream[Any]] = [plan.flow.stream, *plan.flow.branches.values()]
    return all(isinstance(step, Filter) for stream in streams for step in stream.steps)


def _source_key(plan: FlowPlan, row: type[Any], readers: Sequence[Reader[Any]]) -> tuple[str, ...]:
    """The source's key, where the rows still have it: the key of a table made for them."""
    shape = readers[0].shape
    if not _rows_untouched(plan) or shape is None or len(readers) > 1:
        return ()
    names = getattr(row, "__dataclass_fields__", {})
    return shape.key if all(name in names for name in shape.key) else ()


async def offer_frames(
    plan: FlowPlan, readers: Sequence[Reader[Any]], sessions: Sequence[Session]
) -> None:
    """Rows that nobody looks at may pass as bytes, where both sides speak of the same ones."""
    # A bad row among bytes could not be told from the good ones.
    if not plan.is_untouched or plan.on_error != "fail":
        return
    for reader in readers:
        form = await reader.offers_frames() if isinstance(reader, Framer) else None
        columns = sessions[0].takes_frames(0, form) if form is not None else None
        if columns is not None:
            cast("Framer", reader).use_frames(columns)
