"""What a run would do, found out without doing it: connects, looks, and writes nothing.

No checkpoint is claimed, no table or file is made, and no lock is left: what a target says is what
:meth:`etl.connector.Session.prepare` would check before the first row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, is_dataclass
from typing import Any

from etl.connector import (
    Asked,
    Columnar,
    Framer,
    LineWriter,
    Profiler,
    Reader,
    RunInfo,
    Sink,
    Surveyor,
)
from etl.engine.forms import keep_columns, shape_of_all, starts_with_arrow
from etl.engine.plan import FlowPlan, Plan, is_own, step_label
from etl.flow import Filter, MapArrow, Source, Step
from etl.rows import Shape, shape_of
from etl.verdict import FlowSurvey, SinkSurvey, Survey

_UNKNOWN = Survey(
    exists=True,
    verdicts=None,
    frames="its target takes no bytes",
    lines="its target takes no lines",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What is known of the rows of a flow.

    Attributes:
        form: The form of the bytes that the source can give; None: it cannot.
        can_frame: It can in some reads.
        writes_lines: It can write its rows as lines of COPY text.
        is_columnar: Tables of Arrow are made of what it reads without a look at each value.
    """

    shape: Shape | None
    resumable: bool
    form: str | None
    can_frame: bool
    writes_lines: bool
    is_text: bool
    is_columnar: bool
    notes: tuple[str, ...]


async def survey(plan: Plan, info: RunInfo) -> list[FlowSurvey]:
    """Look at every flow of a plan; see :class:`etl.verdict.FlowSurvey`.

    Raises:
        ConfigError: A source cannot be read as it is described.
        TransientError: A database cannot be reached.
    """
    sources = {flow.name: await _look_at(flow, info) for flow in plan.flows}
    found: dict[tuple[str, str], Survey] = {}
    for target in plan.targets:
        asked = [
            Asked(
                flow=flow.name,
                sink=sink,
                shape=sources[flow.name].shape,
                resumable=sources[flow.name].resumable,
            )
            for flow in plan.flows
            for sink in flow.sinks
            if sink.target == target
        ]
        answers = (
            await target.survey(asked, info)
            if isinstance(target, Surveyor)
            else [_UNKNOWN] * len(asked)
        )
        for one, answer in zip(asked, answers, strict=True):
            found[one.flow, _name(one.sink)] = answer
    return [
        _of_flow(flow, sources[flow.name], [found[flow.name, _name(one)] for one in flow.sinks])
        for flow in plan.flows
    ]


def _name(sink: Sink[Any]) -> str:
    return f"{sink.target.name}\n{sink.table}"


async def _look_at(flow: FlowPlan, info: RunInfo) -> _Source:
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(branch.source.connect(info)) for branch in flow.branches
        ]
        first = readers[0]
        await keep_columns(flow, readers)  # refuses what a run would
        framer = first if isinstance(first, Framer) and len(readers) == 1 else None
        return _Source(
            shape=await _reaching_shape(flow, readers),
            resumable=all(reader.resumable for reader in readers),
            form=await framer.offers_frames() if framer is not None else None,
            can_frame=framer is not None,
            writes_lines=all(isinstance(reader, LineWriter) for reader in readers),
            is_text=isinstance(first, Framer),
            is_columnar=all(isinstance(reader, Columnar) for reader in readers)
            and not any(_is_built(branch.source) for branch in flow.branches),
            notes=tuple(note for reader in readers for note in reader.notes),
        )


async def _reaching_shape(flow: FlowPlan, readers: Sequence[Reader[Any]]) -> Shape | None:
    """The shape of the rows that reach the sinks, as a run would know it before the first one."""
    kind = flow.flow.stream.row_type
    if isinstance(kind, type) and is_dataclass(kind):
        return shape_of(kind)
    shapes = [await _found_shape(flow, reader) for reader in readers]
    streams = (flow.flow.stream, *flow.flow.branches.values())
    untouched = all(isinstance(step, Filter) for stream in streams for step in stream.steps)
    return shape_of_all(shapes) if untouched else None


async def _found_shape(flow: FlowPlan, reader: Reader[Any]) -> Shape | None:
    """The shape of a source, with the kinds of its values where a sink will ask for them."""
    shape = reader.shape
    if shape is not None and isinstance(reader, Profiler):
        dynamic = any(column.type.kind == "dynamic" for column in shape.columns)
        for sink in flow.sinks if dynamic else ():
            target = sink.target
            if isinstance(target, Surveyor) and await target.wants_profile(sink, shape):
                return await reader.profile()
    return shape


def _of_flow(flow: FlowPlan, source: _Source, answers: Sequence[Survey]) -> FlowSurvey:
    path, why = _path(flow, source, answers)
    return FlowSurvey(
        flow=flow.name,
        path=path,
        not_faster=why,
        sinks=tuple(
            SinkSurvey(
                table=sink.table,
                target=sink.target.name,
                exists=answer.exists,
                verdicts=answer.verdicts,
            )
            for sink, answer in zip(flow.sinks, answers, strict=True)
        ),
        notes=(
            *source.notes,
            *_arrow_notes(flow),
            *(note for answer in answers for note in answer.notes),
        ),
        refusal=next((one.refusal for one in answers if one.refusal is not None), None),
    )


def _path(flow: FlowPlan, source: _Source, answers: Sequence[Survey]) -> tuple[str, str | None]:
    """How rows travel, and why not on a faster path."""
    touched = _touched(flow)
    answer = answers[0]
    if starts_with_arrow(flow):
        return _arrow_path(flow, source, answers), touched
    if any(is_own(branch.source) for branch in flow.branches):
        return "Python rows: objects of a source of your own", touched
    if _is_built(flow.branches[0].source):
        return "Python rows: each is built whole, for row=", "row= asks for objects"
    if source.can_frame:
        lines = "text lines, which nobody looks at"
        if touched is not None:
            rows = "rows, of which a function decodes the fields that it looks at"
            return (rows if _has_functions(flow) else lines), touched
        if answer.frames is not None:
            return lines, answer.frames
        if source.form is None:
            return lines, (
                "the source gives bytes only of a whole table with a key, without cursor= and"
                " declared steps, whose rows lie about in the order of the key"
            )
        return "binary pass-through: the source's bytes, which nobody looks at", None
    values = "Python rows: the values that the source holds"
    if source.writes_lines and touched is None and answer.lines is None:
        return "text lines that the source's database writes itself", None
    return values, touched or answer.lines


def _is_built(source: Source[Any]) -> bool:
    """Whether an object is made of each of its rows."""
    return isinstance(source.row_type, type) and is_dataclass(source.row_type)


def _arrow_path(flow: FlowPlan, source: _Source, answers: Sequence[Survey]) -> str:
    """How rows travel whose first functions are of Arrow."""
    path = "tables of Arrow, "
    if source.is_columnar:
        path += "parsed in C++"
    else:
        path += "made of Python's values, which the source gives"
    if not all(isinstance(step, MapArrow) for step in _steps(flow)):
        return path + "; then rows of Python's values, for the steps behind map_arrow"
    rows = next((answer.tables for answer in answers if answer.tables is not None), None)
    return path + ("; written in C++" if rows is None else f"; then rows, because {rows}")


def _arrow_notes(flow: FlowPlan) -> list[str]:
    """What is not known of a flow whose last functions are of Arrow."""
    last = next((one for one in reversed(_steps(flow)) if not isinstance(one, Filter)), None)
    if not isinstance(last, MapArrow):
        return []
    note = (
        f"what types the columns have behind {step_label(last)} is known when it has run: its first"
        " table is checked against the target's columns before anything of it is written"
    )
    return [note]


def _steps(flow: FlowPlan) -> Sequence[Step]:
    """All steps of a flow, those of each branch of a merge first."""
    of_branches = [step for one in flow.flow.branches.values() for step in one.steps]
    return [*of_branches, *(flow.flow.stream.steps if len(flow.branches) > 1 else ())]


def _has_functions(flow: FlowPlan) -> bool:
    return bool(flow.shared) or any(one.inline or one.legs for one in flow.branches)


def _touched(flow: FlowPlan) -> str | None:
    """What looks at the rows on their way; None: nothing."""
    if _has_functions(flow):
        return "functions look at the rows"
    if len(flow.sinks) > 1:
        return "the rows go to several sinks"
    if len(flow.branches) > 1:
        return "several sources are merged"
    if flow.sets_aside:
        return "a bad row must be found among the good ones (on_error)"
    return None
