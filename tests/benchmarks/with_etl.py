"""How the etl contenders run a flow."""

from __future__ import annotations

import os

from etl import Flow, Pipeline


def run(flow: Flow) -> None:
    """Run a flow from the beginning, with default limits."""
    # A name that no run before had, so that there is no position to go on from.
    report = Pipeline(f"benchmark {os.getpid()}", flow).run_sync()
    if report.status != "completed":
        raise RuntimeError(f"the run is {report.status}")
