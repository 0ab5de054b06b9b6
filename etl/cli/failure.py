"""A failure as lines for a person: the root cause, what followed, what stands, what to do."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import cast

from etl.cli.screen import Screen
from etl.errors import (
    ChannelBrokenError,
    ConfigError,
    EtlError,
    PipelineFailedError,
    TargetWentBackError,
    TransientError,
    exit_code_of,
)
from etl.events import Report
from etl.figures import plural
from etl.foreign import detail_of, named, place_of, says_no_value

_MOST_CONSEQUENCES = 3
_HIDDEN = "what it says may quote a row: --show-values shows it"
_CAUSED = "The above exception was the direct cause of the following exception:"
_WHILE = "During handling of the above exception, another exception occurred:"


def show_failure(screen: Screen, error: BaseException, *, files_only: bool = False) -> int:
    """Say what failed on stderr; return the exit code.

    Args:
        files_only: Every target of the run is a file, of which no run keeps a part.
    """
    errors = error.errors if isinstance(error, PipelineFailedError) else ()
    if isinstance(error, PipelineFailedError) and errors:
        screen.error(f"{_pipeline(error)}{line_of(errors[0])}")
        _show_consequences(screen, errors)
        _show_state(screen, error, files_only=files_only)
    else:
        screen.error(line_of(error))
    hints: list[str] = []
    detail = _left_out(errors[0] if errors else error)
    if detail is not None and screen.show_values:
        screen.say(f"detail: {detail}")
    elif detail is not None:
        hints.append("--show-values shows what it says itself, which may quote values of rows")
    if screen.traceback:
        screen.say("\n".join(chain_lines(error, show_values=screen.show_values)))
    elif not isinstance(error, EtlError) or any(not isinstance(e, EtlError) for e in errors):
        hints.append("--traceback shows the whole chain")
    if hints:
        screen.say("; ".join(hints))
    return exit_code_of(error)


def _left_out(error: BaseException) -> str | None:
    """What an error says itself, where its line leaves that out."""
    if isinstance(error, EtlError):
        return error.detail
    return None if says_no_value(error) else detail_of(error)


def line_of(error: BaseException) -> str:
    """The message; for errors that are not etl's own, with their class and place."""
    if isinstance(error, EtlError):
        return str(error).strip() or type(error).__name__
    if place_of(error):
        return named(error)
    frames = traceback.extract_tb(error.__traceback__)  # of etl alone
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{named(error)}{place}"


def chain_lines(error: BaseException, *, show_values: bool) -> list[str]:
    """The tracebacks of an error and of what led to it, the first cause first.

    What errors of others say may quote a row's values, and so it is left out unless asked for.
    """
    return _lines(error, show_values, set())


def _lines(error: BaseException, show_values: bool, seen: set[int]) -> list[str]:
    seen.add(id(error))
    lines: list[str] = []
    before, link = error.__cause__, _CAUSED
    if before is None and not error.__suppress_context__:
        before, link = error.__context__, _WHILE
    if before is not None and id(before) not in seen:
        lines += [*_lines(before, show_values, seen), "", link, ""]
    frames = traceback.format_tb(error.__traceback__)
    if frames:
        lines += ["Traceback (most recent call last):", *"".join(frames).rstrip().split("\n")]
    lines += _last_lines(error, show_values)
    if _is_group(error):
        members = cast("BaseExceptionGroup[BaseException]", error).exceptions
        for number, one in enumerate(members, 1):
            lines.append(f"  error {number} of {len(members)}:")
            lines += ["    " + line for line in _lines(one, show_values, seen)]
    return lines


def _last_lines(error: BaseException, show_values: bool) -> list[str]:
    if show_values or _is_group(error) or says_no_value(error):
        return "".join(traceback.format_exception_only(error)).rstrip().split("\n")
    hidden = f": ({_HIDDEN})" if str(error) else ""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return [f"{module}{kind.__qualname__}{hidden}"]


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


def _show_state(screen: Screen, error: PipelineFailedError, *, files_only: bool) -> None:
    """What stands and what to do; the causes tell of their own batch only."""
    report = error.report
    written = report.rows_written if isinstance(report, Report) else 0
    first = error.errors[0]
    goes_on = "; it goes on from there" if written else ""
    if isinstance(first, TargetWentBackError):
        stands, goes_on = "the target has what its checkpoints say", "; it goes on from there"
    elif files_only:
        stands = "what was not written to its end is not in place, and an old file is as it was"
        goes_on = "; it begins anew"
    elif written:
        stands = f"{plural(written, 'row')} of this run are committed, with their positions"
        if written == 1:
            stands = "1 row of this run is committed, with its position"
    else:
        stands = "this run committed nothing"
    if "--full" in str(first):  # the same command again would fail as before
        then, goes_on = "go on as the message says", ""
    elif isinstance(first, TransientError):
        then = "run the same command again"
    elif isinstance(first, ConfigError):
        then = "correct the set-up, then run the same command again"
    else:
        then = "when the cause is mended, run the same command again"
    screen.say(f"state: {stands}; {then}{goes_on}")


def _is_group(error: BaseException) -> bool:
    return isinstance(error, BaseExceptionGroup)
