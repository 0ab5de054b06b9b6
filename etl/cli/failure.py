"""A failure as lines for a person: the root cause, what followed, what stands, what to do."""

from __future__ import annotations

import traceback
from pathlib import Path

from etl.cli.screen import Screen
from etl.errors import (
    ChannelBrokenError,
    ConfigError,
    EtlError,
    PipelineFailedError,
    TransientError,
    exit_code_of,
)
from etl.events import Report
from etl.observe.figures import plural

_MOST_CONSEQUENCES = 3


def show_failure(screen: Screen, error: BaseException) -> int:
    """Say what failed on stderr; return the exit code."""
    errors = error.errors if isinstance(error, PipelineFailedError) else ()
    if isinstance(error, PipelineFailedError) and errors:
        screen.error(f"{_pipeline(error)}{line_of(errors[0])}")
        _show_consequences(screen, errors)
        _show_state(screen, error)
    else:
        screen.error(line_of(error))
    if screen.traceback:
        screen.say("".join(traceback.format_exception(error)).rstrip())
    elif not isinstance(error, EtlError) or any(not isinstance(e, EtlError) for e in errors):
        screen.say("--traceback shows the whole chain")
    return exit_code_of(error)


def line_of(error: BaseException) -> str:
    """The message; for errors that are not etl's own, with their class and place."""
    text = str(error).strip()
    if isinstance(error, EtlError):
        return text or type(error).__name__
    place = _place(error)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{what} ({place})" if place else what


def _pipeline(error: PipelineFailedError) -> str:
    report = error.report
    return f"pipeline {report.pipeline!r}: " if isinstance(report, Report) else ""


def _show_consequences(screen: Screen, errors: tuple[BaseException, ...]) -> None:
    said = {line_of(errors[0])}
    rest: list[str] = []
    for error in errors[1:]:
        line = line_of(error)
        if not isinstance(error, ChannelBrokenError) and line not in said:
            said.add(line)
            rest.append(line)
    for line in rest[:_MOST_CONSEQUENCES]:
        screen.say(f"also: {line}")
    if len(rest) > _MOST_CONSEQUENCES:
        screen.say(f"also: {plural(len(rest) - _MOST_CONSEQUENCES, 'more failure')}")


def _show_state(screen: Screen, error: PipelineFailedError) -> None:
    """What stands and what to do; the causes tell of their own batch only."""
    report = error.report
    written = report.rows_written if isinstance(report, Report) else 0
    first = error.errors[0]
    if written:
        stands = f"{plural(written, 'row')} of this run are committed, with their positions"
        if written == 1:
            stands = "1 row of this run is committed, with its position"
    else:
        stands = "this run committed nothing"
    if isinstance(first, TransientError):
        then = "run the same command again"
    elif isinstance(first, ConfigError):
        then = "correct the set-up, then run the same command again"
    else:
        then = "when the cause is mended, run the same command again"
    goes_on = "; it goes on from there" if written else ""
    screen.say(f"state: {stands}; {then}{goes_on}")


def _place(error: BaseException) -> str:
    """``file:line`` where an unforeseen error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
