"""Errors that are not the project's own: what a message may say of them.

What an error of a user's function says may quote a row, and so may a driver's. A message names
such an error by its class and its line; what it says itself becomes the ``detail`` of the project's
error. Only what the interpreter says of a wrong type, name or attribute stands in messages: it
quotes names of the program, not values.
"""

from __future__ import annotations

import os
import threading
from opcode import opmap
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import TypeVar

from etl.errors import EtlError
from etl.secrets import without_passwords

E = TypeVar("E", bound=EtlError)

MOST_DETAIL = 500
"""Characters of what a foreign error says that are kept: it may quote a whole row."""

_OF_PYTHON = (
    AttributeError,
    ImportError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ZeroDivisionError,
)
_OWN_FOLDER = f"{Path(__file__).parent}{os.sep}"
_RAISE = opmap["RAISE_VARARGS"]


def named(error: BaseException) -> str:
    """An error in a few words without a value: its class, and where it was raised.

    ``ValueError (orders.py:12)``; ``TypeError: 'int' object is not iterable (orders.py:12)``.
    """
    said = f": {without_passwords(str(error))}" if says_no_value(error) else ""
    place = place_of(error)
    return f"{type(error).__name__}{said}" + (f" ({place})" if place else "")


def said(error: BaseException) -> str:
    """An error of any kind as a message may quote it: the project's own as it is."""
    return str(error) if isinstance(error, EtlError) else named(error)


def detail_of(error: BaseException) -> str | None:
    """What an error says itself, without passwords; it may quote values."""
    return without_passwords(str(error).strip())[:MOST_DETAIL] or None


def because_of(error: BaseException, ours: E) -> E:
    """One of the project's errors with what a foreign one says as its detail."""
    ours.detail = error.detail if isinstance(error, EtlError) else detail_of(error)
    return ours


def says_no_value(error: BaseException) -> bool:
    """Whether the text of an error is fit for a message.

    The project's own errors are, and what the interpreter makes of names and types alone.
    """
    if isinstance(error, EtlError):
        return True
    trace = _last(error)
    if trace is None or not str(error):
        return False
    code = trace.tb_frame.f_code
    if isinstance(error, KeyError):  # a column that a row has not got
        return code.co_filename == f"{_OWN_FOLDER}rows.py"
    if isinstance(error, RuntimeError):  # the system gives this process no more threads
        return code.co_filename == threading.__file__
    # Whatever a "raise" in Python says was written by somebody.
    return isinstance(error, _OF_PYTHON) and code.co_code[trace.tb_lasti] != _RAISE


def place_of(error: BaseException) -> str:
    """Where it was raised: ``file.py:12``, the last line outside etl, or empty."""
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", _OWN_FOLDER))
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _last(error: BaseException) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace
