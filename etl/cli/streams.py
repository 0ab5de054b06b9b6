"""Standard streams that outlive their reader."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

_READER_LEFT = frozenset({errno.EPIPE, errno.EIO})


class _Forgiving(io.FileIO):
    """Drops what cannot be written any more, instead of ending the run that wrote it.

    Attributes:
        lost: Why data was lost although somebody wanted it (a full disk), or None.
    """

    lost: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # any buffer
        except OSError as error:
            if error.errno not in _READER_LEFT:
                self.lost = error
            return memoryview(data).nbytes  # type: ignore[arg-type]


class StandardStreams:
    """Puts forgiving streams in place of ``sys.stdout`` and ``sys.stderr``.

    Their reader may go (``| head``) without any harm to who prints: Python raises
    ``BrokenPipeError`` then, in the command, in a pipeline file that prints, and once more at the
    end of the process. A character that the encoding lacks is escaped instead of refused. What
    Python itself writes to stderr, such as warnings with their source lines, is redacted.

    Args:
        redact: Takes the passwords out of a text.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        # A standard stream that is closed leaves its number to the next file or socket that is
        # opened, and whatever is written to it later would go there.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
        # Kept: they would close the descriptors with them.
        self._originals = sys.stdout, sys.stderr
        self._out = _Forgiving(1, "w", closefd=False)
        sys.stdout = _text(self._out, self._originals[0])
        sys.stderr = _text(_Forgiving(2, "w", closefd=False), self._originals[1], redact)

    @property
    def lost(self) -> OSError | None:
        """Why data on stdout was lost although somebody wanted it, or None."""
        sys.stdout.flush()
        return self._out.lost


class _Redacting(io.TextIOWrapper):
    """Writes each text as a function gives it."""

    redact: Callable[[str], str] | None = None

    def write(self, text: str, /) -> int:
        return super().write(text if self.redact is None else self.redact(text))


def _text(
    raw: io.FileIO, original: TextIO | None, redact: Callable[[str], str] | None = None
) -> TextIO:
    stream = _Redacting(
        io.BufferedWriter(raw),
        encoding=original.encoding if original is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == 2,
    )
    stream.redact = redact
    return stream
