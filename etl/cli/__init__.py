"""The command ``etl``: the only part that prints, exits, or installs signal handlers.

Data goes to stdout (the report of a run, tables, plans, JSON lines), talk goes to stderr
(progress, notes, errors): ``etl run ... --json | jq`` gets data only.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from etl.cli.secrets import Redactor, hide_arguments
from etl.cli.sigterm import came, end_at_once, handle_signals
from etl.cli.streams import StandardStreams
from etl.errors import EXIT_FAILED, EXIT_SIGINT, EXIT_SIGTERM


def main() -> NoReturn:
    """Run the command with ``sys.argv`` and end the process with its exit code."""
    handle_signals()
    hide_arguments()
    streams = StandardStreams(Redactor(sys.argv, os.environ))
    try:
        from etl.cli.app import run_command

        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were imported
        code = EXIT_SIGINT
    if code == EXIT_SIGINT and came():
        code = EXIT_SIGTERM
    end_at_once()
    error = streams.lost
    if error is not None:
        sys.stderr.write(f"error: stdout is incomplete: {error.strerror}\n")
        code = code or EXIT_FAILED
    sys.exit(code)
