"""The command ``etl``: the only part that prints, exits, or installs signal handlers.

Data goes to stdout (the report of a run, tables, plans, JSON lines), talk goes to stderr
(progress, notes, errors): ``etl run ... --json | jq`` gets data only.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from etl.cli.sigterm import came, end_at_once, handle_signals
from etl.errors import EXIT_DONE, EXIT_FAILED, EXIT_SIGINT, EXIT_SIGTERM


def main() -> NoReturn:
    """Run the command with ``sys.argv`` and end the process with its exit code."""
    code, streams = EXIT_SIGINT, None
    try:
        handle_signals()
        # Imported here, where a signal ends the command as it should.
        from etl.cli.secrets import Redactor, hide_arguments
        from etl.cli.streams import StandardStreams

        streams = StandardStreams(Redactor(sys.argv, os.environ))
        hide_arguments()
        from etl.cli.app import run_command

        code = run_command(sys.argv[1:])
        end_at_once()
    except KeyboardInterrupt:  # before the command began, or when it had ended
        end_at_once()
    if code == EXIT_SIGINT and came():
        code = EXIT_SIGTERM
    lost = streams.lost if streams is not None else None
    if lost is not None:
        done = "; all else is done" if code == EXIT_DONE else ""
        sys.stderr.write(f"error: stdout is incomplete: {lost.strerror}{done}\n")
        code = code or EXIT_FAILED
    sys.exit(code)
