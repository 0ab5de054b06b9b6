"""Who runs a pipeline: what a lock and a checkpoint say of the process that holds them."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast


def this_process(run_id: str) -> str:
    """A text that names this process for good: a process number alone may come again."""
    return json.dumps(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "run_id": run_id,
        },
        sort_keys=True,
    )


def describe(holder: str | None) -> str:
    """The holder in words; works for any text."""
    found = _read(holder)
    if not found.get("pid"):
        return "another process"
    return f"process {found['pid']} on host {found.get('host')}, since {found.get('since')}"


def is_alive_here(holder: str | None) -> bool:
    """Whether the holder is surely a living process of this host."""
    found = _read(holder)
    pid = found.get("pid")
    if not isinstance(pid, int) or found.get("host") != socket.gethostname():
        return False
    start = _process_start(pid)
    return start is not None and start == found.get("started")


def _read(holder: str | None) -> dict[str, Any]:
    try:
        found: object = json.loads(holder or "{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _process_start(pid: int) -> str | None:
    """When a living process began, in the kernel's ticks since boot; None: that cannot be told."""
    try:
        # The second field, the program's name, may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_bytes()
        state, *rest = fields.rpartition(b")")[2].decode().split()
        # A process that has ended stays listed until its parent asks for its status.
        return None if state in {"Z", "X"} else rest[18]
    except (OSError, IndexError, ValueError):
        return None
