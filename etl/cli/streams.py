"""What to do with a standard stream whose reader has gone (``| head``)."""

from __future__ import annotations

import os


def to_nowhere(number: int) -> None:
    """Point a file descriptor at nothing.

    Python flushes its streams at the end of the process, and a pipeline file may print: without
    this, each would trip over the closed pipe once more.
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return
    os.dup2(nowhere, number)
    os.close(nowhere)
