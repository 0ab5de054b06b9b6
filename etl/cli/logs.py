"""Log records of etl and asyncio as lines on stderr, while a command runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager

from etl.cli.failure import chain_lines
from etl.cli.screen import Screen

# The root logger stays as it is: a pipeline file may configure its own logging.
_LOGGERS = ("etl", "asyncio")
# How asyncio shows a task that failed; what its error says may quote a row.
_EXCEPTION = re.compile(r"exception=(\w+)\(.*\)>", re.DOTALL)


@contextmanager
def show_logs(screen: Screen) -> Generator[None]:
    """Show warnings and worse; ``--verbose`` shows all of etl's, ``--traceback`` whole chains."""
    handler = _ToScreen(screen)
    before: list[tuple[logging.Logger, int, bool]] = []
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.propagate = False
    if screen.verbose:
        logging.getLogger("etl").setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _ToScreen(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            error = record.exc_info[1] if record.exc_info else None
            text = _EXCEPTION.sub(r"exception=\1>", text)
            if error is not None and self._screen.traceback:
                lines = chain_lines(error, show_values=self._screen.show_values)
                text = "\n".join([text, *lines])
            elif error is not None:
                # Its class only: the message of a stranger's error may quote a row.
                text = f"{text} ({type(error).__name__})"
            self._screen.say(f"{record.levelname.lower()}: {text}")
        except Exception:
            self.handleError(record)
