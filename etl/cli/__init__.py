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
    handle_signals()
    streams = None
    try:
        # Imported here, where a signal ends the command as it should.
        from etl.cli.secrets import Redactor, hide_arguments
        from etl.cli.streams import StandardStreams

        hide_arguments()
        streams = StandardStreams(Redactor(sys.argv, os.environ))
        from etl.cli.app import run_command

        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were imported
        code = EXIT_SIGINT
    if code == EXIT_SIGINT and came():
        code = EXIT_SIGTERM
    end_at_once()
    lost = streams.lost if streams is not None else None
    if lost is not None:
        done = "; all else is done" if code == EXIT_DONE else ""
        sys.stderr.write(f"error: stdout is incomplete: {lost.strerror}{done}\n")
        code = code or EXIT_FAILED
    sys.exit(code)
