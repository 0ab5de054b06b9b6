"""How the etl contenders run a flow."""

from __future__ import annotations

import os

import etl.databases.postgres
import etl.databases.sqlite  # noqa: F401  both now, so that no clock sees the imports
from etl import Flow, Pipeline, Report


def run(flow: Flow) -> Report:
    """Run a flow from the beginning, with default limits."""
    # A name that no run before had, so that there is no position to go on from.
    report = Pipeline(f"benchmark {os.getpid()}", flow).run_sync()
    if report.status != "completed":
        raise RuntimeError(f"the run is {report.status}")
    return report
