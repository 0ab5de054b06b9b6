"""One run of a pipeline at a time: an advisory lock on a small file beside the database.

Only manners: the epoch in the checkpoint is what keeps two runs apart. The kernel drops the lock
when its process dies. It is not on the database file itself: closing any descriptor of that
would drop SQLite's own locks.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

from etl.connector import RunInfo
from etl.engine.holder import describe, is_alive_here
from etl.errors import AlreadyRunningError

if sys.platform != "win32":  # there the epoch alone has to do
    import fcntl

PATIENCE_S = 5.0
"""How long a lock is tried whose holder is not surely alive: a killed process ends in a moment."""
_POLL_S = 0.05


@asynccontextmanager
async def run_lock(database: Path, info: RunInfo) -> AsyncGenerator[None]:
    """Hold the lock of a pipeline on a database.

    Raises:
        AlreadyRunningError: Another run holds it.
    """
    if info.take_over or sys.platform == "win32":
        yield
        return
    digest = hashlib.sha256(info.pipeline.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    path = database.with_name(f"{database.name}.etl-{digest}.lock")
    descriptor = await _acquire(path, info)
    try:
        yield
    finally:
        if descriptor is not None:
            # Unlinked while it is held, so that nobody gets a lock on a name that is gone.
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


async def _acquire(path: Path, info: RunInfo) -> int | None:
    """The locked descriptor; None where the file system has no locks."""
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        locked = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = _is_still(path, descriptor)
            if locked:
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, info.holder.encode(), 0)
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
            if is_alive_here(holder) or monotonic() > deadline:
                raise AlreadyRunningError(
                    f"pipeline {info.pipeline!r} is already running: {describe(holder)} holds"
                    f" {str(path)!r}. Nothing was moved; wait for it, or use --take-over to fence"
                    " it off"
                ) from None
        except OSError:
            return None
        finally:
            if not locked:
                os.close(descriptor)
        await asyncio.sleep(_POLL_S)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one that has the name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
