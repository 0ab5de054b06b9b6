"""``etl copy --dry-run`` and ``etl plan --connect``: what would become of each column."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Mapping, Sequence

from etl.cli.running import RunOptions
from etl.cli.screen import Screen
from etl.errors import EXIT_DONE, EXIT_USAGE
from etl.figures import plural, printable, shorten
from etl.observe.jsonlines import as_line
from etl.pipeline import Pipeline
from etl.verdict import FlowSurvey, SinkSurvey, Verdict

_WIDTH = 80
_STYLES: Mapping[str, str] = {"lossy": "bold red", "refused": "bold red", "checked": ""}
_NAME, _TYPE = 20, 18


def foretell(screen: Screen, pipeline: Pipeline, options: RunOptions) -> int:
    """Print what a run would do; the exit code that it would be refused with, or 0."""
    limits = options.limits(pipeline.limits)
    on_error = options.policy(pipeline.on_error)
    surveys = asyncio.run(pipeline.survey(limits=limits, on_error=on_error))
    for survey in surveys:
        if screen.json:
            screen.out(as_line(_record(pipeline, survey)))
        else:
            _show(screen, survey)
    refusals = [survey.refusal for survey in surveys if survey.refusal is not None]
    for refusal in refusals:
        screen.error(refusal)
    if not screen.json:
        _sum_up(screen, surveys)
    return EXIT_USAGE if refusals else EXIT_DONE


def _show(screen: Screen, survey: FlowSurvey) -> None:
    for sink in survey.sinks:
        made = "" if sink.exists else ", which is made"
        _line(screen, f"{survey.flow} into {sink.table} of {sink.target}{made}", style="bold")
    _line(screen, f"path  {survey.path}", indent="  ")
    if survey.not_faster is not None:
        _line(screen, f"      not faster: {survey.not_faster}", indent="  ")
    for note in survey.notes:
        _line(screen, f"note  {note}", indent="  ")
    for sink in survey.sinks:
        if len(survey.sinks) > 1:
            _line(screen, f"{sink.target} {sink.table}", indent="  ")
        _show_columns(screen, sink)


def _line(screen: Screen, text: str, *, indent: str = "", style: str = "") -> None:
    """A text in lines of at most 80 columns."""
    lines = textwrap.wrap(
        printable(text),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "      ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    for line in lines:
        screen.out(line, style=style)


def _show_columns(screen: Screen, sink: SinkSurvey) -> None:
    if sink.verdicts is None:
        _line(screen, "columns are told by the first rows; each value is checked", indent="  ")
        return
    rows = [_cells(one) for one in sink.verdicts]
    head = ("column", "from", "way", "to", "verdict")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(5)]
    for number, row in enumerate((head, *rows)):
        cells = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        style = "" if number else "bold"
        screen.out("  " + cells.rstrip(), style=_STYLES.get(row[4], style))
        verdict = sink.verdicts[number - 1] if number else None
        if verdict is not None and verdict.fit.example is not None:
            does = "becomes" if verdict.allowed else "would become"
            text = f"{verdict.fit.example} {does} {verdict.fit.becomes}"
            _line(screen, text, indent="    ")


def _cells(one: Verdict) -> tuple[str, str, str, str, str]:
    grade = "lossy, allowed" if one.allowed else one.fit.grade
    return (
        shorten(printable(one.column), _NAME),
        shorten(_short(one.source), _TYPE),
        one.fit.way,
        shorten(_short(one.target), _TYPE),
        grade,
    )


def _short(type: str) -> str:
    """A type as people write it, where its full name is long."""
    for long, short in (
        ("character varying", "varchar"),
        ("character(", "char("),
        (" with time zone", "tz"),
        (" without time zone", ""),
        ("double precision", "double"),
    ):
        type = type.replace(long, short)
    return printable(type)


def _sum_up(screen: Screen, surveys: Sequence[FlowSurvey]) -> None:
    grades = [
        "lossy" if verdict.allowed else verdict.fit.grade
        for survey in surveys
        for sink in survey.sinks
        for verdict in sink.verdicts or ()
    ]
    counts = [
        f"{grades.count(grade)} {grade}"
        for grade in ("exact", "widened", "checked", "lossy", "refused")
        if grade in grades
    ]
    told = f", {plural(len(grades), 'column')}: {', '.join(counts)}" if counts else ""
    _line(screen, f"{plural(len(surveys), 'flow')}{told}; nothing was written")


def _record(pipeline: Pipeline, survey: FlowSurvey) -> dict[str, object]:
    return {
        "pipeline": pipeline.name,
        "flow": survey.flow,
        "path": survey.path,
        "not_faster": survey.not_faster,
        "refusal": survey.refusal,
        "notes": list(survey.notes),
        "sinks": [
            {
                "table": sink.table,
                "target": sink.target,
                "exists": sink.exists,
                "columns": None
                if sink.verdicts is None
                else [
                    {
                        "column": one.column,
                        "source": one.source,
                        "way": one.fit.way,
                        "target": one.target,
                        "verdict": one.fit.grade,
                        "example": one.fit.example,
                        "becomes": one.fit.becomes,
                        "allowed": one.allowed,
                    }
                    for one in sink.verdicts
                ],
            }
            for sink in survey.sinks
        ],
    }
