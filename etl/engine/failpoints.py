"""Named points at which a test ends the process, as a crash there would.

``ETL_FAILPOINTS=lane.after_write:3`` ends it (exit status 137, nothing cleaned up) at the third
time that point is reached. Without the variable a point costs one call that does nothing.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from etl.errors import ConfigError

VARIABLE: Final = "ETL_FAILPOINTS"
CRASHED: Final = 137

POINTS: Final = (
    "source.after_read",
    "stage.before_emit",
    "stage.after_emit",
    "lane.after_begin",
    "lane.mid_copy",
    "lane.after_write",
    "lane.after_rejects",
    "lane.after_checkpoint",
    "lane.commit_sent",
    "lane.after_commit",
    "run.before_build",
    "run.before_publish",
    "run.after_publish",
    "run.before_exit",
)

_left: dict[str, int] = {}  # hits until the crash, by point


def arm() -> None:
    """Read the variable; a run does so when it starts.

    Raises:
        ConfigError: It names no point.
    """
    _left.clear()
    for part in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, hit_number = part.partition(":")
        if name not in POINTS or not (hit_number or "1").isdigit():
            raise ConfigError(f"{VARIABLE}: {part!r} is no failpoint; known: {', '.join(POINTS)}")
        _left[name] = int(hit_number or "1")


def hit(name: str) -> None:
    """Crash here if a test asked for it."""
    if _left and _counts_down(name):
        os._exit(CRASHED)


def hit_after_send(name: str) -> None:
    """Crash two turns of the loop later: what is sent next is out, its answer is not read."""
    if _left and _counts_down(name):
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, os._exit, CRASHED)


def _counts_down(name: str) -> bool:
    if name not in _left:
        return False
    _left[name] -= 1
    return _left[name] == 0
