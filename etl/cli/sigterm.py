"""Signals where no run handles them: SIGTERM ends the command as Ctrl-C does."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C, it passes through ``except Exception`` and cleans up."""


def handle_signals() -> None:
    """Raise :class:`Terminated` at SIGTERM and KeyboardInterrupt at SIGINT, in the main thread.

    Process 1 of a container has no default action for them, and would go on; and a background job
    of a script begins with SIGINT ignored.
    """
    signal.signal(signal.SIGTERM, _raise)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once() -> None:
    """From now on a signal just ends the process: nothing is left to clean up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def came() -> bool:
    """Whether SIGTERM was what ended the command: typer takes each interrupt for Ctrl-C."""
    return _came


_came = False


def _raise(_number: int, _frame: FrameType | None) -> NoReturn:
    global _came
    _came = True
    raise Terminated
