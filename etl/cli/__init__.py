"""The command ``etl``: the only part that prints, exits, or installs signal handlers.

Data goes to stdout (the report of a run, tables, plans, JSON lines), talk goes to stderr
(progress, notes, errors): ``etl run ... --json | jq`` gets data only.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from etl.cli.streams import StandardStreams
from etl.errors import EXIT_FAILED, EXIT_SIGINT


def main() -> NoReturn:
    """Run the command with ``sys.argv`` and end the process with its exit code."""
    # Process 1 of a container gets no default action for SIGTERM. A run installs its own.
    signal.signal(signal.SIGTERM, _end)
    streams = StandardStreams()
    try:
        from etl.cli.app import run_command

        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        code = EXIT_SIGINT
    except SystemExit as stop:  # from _end
        code = stop.code if isinstance(stop.code, int) else EXIT_FAILED
    error = streams.lost
    if error is not None:
        sys.stderr.write(f"error: stdout is incomplete: {error.strerror}\n")
        code = code or EXIT_FAILED
    sys.exit(code)


def _end(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
