"""Events into Python's logging, for a program that runs pipelines inside itself."""

from __future__ import annotations

import logging

from etl.events import Committed, Event, Retrying, RunEnded, RunStarted, StateChanged
from etl.figures import printable
from etl.observe.sentences import sentence


class LogEvents:
    """An observer that logs each event as one line.

    Commits are DEBUG, retries and a drain or abort WARNING, a failed run ERROR, the rest INFO.
    It configures nothing: where the lines go is the program's choice.

    Args:
        logger: Default: the logger ``etl.run``.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("etl.run")
        self._pipeline = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._pipeline = event.pipeline
        elif isinstance(event, RunEnded):
            self._pipeline = event.report.pipeline
        level = _level(event)
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s: %s", printable(self._pipeline), printable(sentence(event)))


def _level(event: Event) -> int:
    if isinstance(event, Committed):
        return logging.DEBUG
    if isinstance(event, Retrying | StateChanged):
        return logging.WARNING
    if isinstance(event, RunEnded) and event.report.status == "failed":
        return logging.ERROR
    return logging.INFO
