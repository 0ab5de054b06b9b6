"""One run of a pipeline at a time: an advisory lock on a small file beside the database.

Only manners: the epoch in the checkpoint is what keeps two runs apart. The kernel drops the lock
when its process dies. It is not on the database file itself: closing any descriptor of that
would drop SQLite's own locks.

A file for each pipeline, ``NAME.db.etl-<hash of the pipeline's name>.lock``, and ``flock`` on it:
the file says who holds it, and pipelines do not block each other. (Ranges of one file for all of
them would be record locks, which a process loses when it closes any descriptor of the file.) A
run has the file until all else of it is closed, and removes it as the last thing that it does. A
killed run leaves its file, unlocked; the next one takes it over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
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

_log = logging.getLogger("etl")
_held: set[int] = set()


def _close_in_child() -> None:
    """A forked child must not keep the lock when its parent has ended."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


@asynccontextmanager
async def run_lock(database: Path, info: RunInfo) -> AsyncGenerator[None]:
    """Hold the lock of a pipeline on a database.

    A take-over goes on without it where another run holds it.

    Raises:
        AlreadyRunningError: Another run holds it.
    """
    if sys.platform == "win32":
        yield
        return
    path = _path(database, info.pipeline)
    descriptor = await _acquire(path, info)
    try:
        yield
    finally:
        if descriptor is not None:
            # By its holder alone: who waits for it sees then that its name is gone, and makes a
            # new one. Without the lock, it could be one that another run has just got.
            with suppress(OSError):
                if _is_still(path, descriptor):
                    path.unlink()
            _held.discard(descriptor)
            os.close(descriptor)


def _path(database: Path, pipeline: str) -> Path:
    """The lock's file; the same one where the database is named by a link."""
    digest = hashlib.sha256(pipeline.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    real = database.resolve()
    return real.with_name(f"{real.name}.etl-{digest}.lock")


async def _acquire(path: Path, info: RunInfo) -> int | None:
    """The locked descriptor; None in a take-over, and where the file system has no locks."""
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _warn(path, error)
            return None
        kept = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, info.holder.encode(), 0)
                _held.add(descriptor)
                kept = True
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
            if info.take_over:
                _log.warning(
                    "pipeline %r: taking over from %s; it is fenced off, and writes nothing more",
                    info.pipeline,
                    describe(holder),
                )
                return None
            if is_alive_here(holder) or monotonic() > deadline:
                raise AlreadyRunningError.told(
                    f"pipeline {info.pipeline!r} is already running: {describe(holder)} holds"
                    f" {str(path)!r}"
                ) from None
        except OSError as error:
            _warn(path, error)
            return None
        finally:
            if not kept:
                os.close(descriptor)
        await asyncio.sleep(_POLL_S)


def _warn(path: Path, error: OSError) -> None:
    _log.warning(
        "no lock on %s (%s): two runs at once are told apart only by the epoch, and the older one"
        " fails",
        path,
        error.strerror,
    )


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one that has the name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
