"""The command ``etl``: the only part that prints, exits, or installs signal handlers.

Data goes to stdout (the report of a run, tables, plans, JSON lines), talk goes to stderr
(progress, notes, errors): ``etl run ... --json | jq`` gets data only.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from etl.cli.streams import to_nowhere
from etl.errors import EXIT_SIGINT


def main() -> NoReturn:
    """Run the command with ``sys.argv`` and end the process with its exit code."""
    # Process 1 of a container gets no default action for SIGTERM. A run installs its own.
    signal.signal(signal.SIGTERM, _end)
    try:
        from etl.cli.app import run_command

        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:
        _last_words("stopped\n")
        code = EXIT_SIGINT
    except SystemExit as stop:  # from _end, or a pipeline file's own
        code = stop.code if isinstance(stop.code, int) else 1
    _close_streams()
    sys.exit(code)


def _end(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def _last_words(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, AttributeError):  # closed
        pass


def _close_streams() -> None:
    """Flush what a pipeline file printed; a reader that left (``| head``) is no failure."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, AttributeError, ValueError):
            to_nowhere(number)
