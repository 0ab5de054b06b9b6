"""What the kill loop runs with ``etl run``; the environment names the databases."""

from __future__ import annotations

import os

from etl import Limits
from tests.crash import victim

mode = os.environ["KILL_MODE"]
pipeline = victim.pipeline(
    os.environ["KILL_SOURCE"],
    os.environ["KILL_TARGET"],
    os.environ["KILL_TARGET"],
    mode,
    incremental=mode != "replace",
    limits=Limits(batch_rows=500, group_rows=1000),
)
