"""Where the command writes: data to stdout, talk to stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import TextIO

from etl.cli.secrets import Redactor
from etl.figures import printable, shorten, width

# In rich's words, so that a moving display understands them too.
_ANSI = {"bold red": "\x1b[1;31m", "yellow": "\x1b[33m", "bold": "\x1b[1m"}
_PLAIN = "\x1b[0m"
_SHORTEST_NAME = 12


class Screen:
    """The streams of one command, and how it was asked to use them.

    Names are printed with control characters escaped, and never read as markup.

    Attributes:
        json: Data is JSON lines.
        verbose: Say more.
        traceback: Show the whole chain of a failure.
        show_values: Let errors quote the values of rows.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        verbose: bool = False,
        traceback: bool = False,
        show_values: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json = json
        self.verbose = verbose
        self.traceback = traceback
        self.show_values = show_values
        self._out = stdout or sys.stdout
        self._err = stderr or sys.stderr
        self._redact = Redactor(sys.argv, os.environ)
        self._above: Callable[[str, str], None] | None = None

    def owning_stdout(self) -> AbstractContextManager[object]:
        """Keep JSON lines apart from what a pipeline file or its functions print: to stderr."""
        return redirect_stdout(self._err) if self.json else nullcontext()

    def out(self, line: str, *, style: str = "") -> None:
        """One line of data to stdout, without passwords."""
        self._out.write(_styled(self._redact(line), style, self._out) + "\n")
        self._out.flush()

    def say(self, text: str, *, style: str = "") -> None:
        """Talk to stderr, without passwords. Line breaks in it stay, indented."""
        first, *more = printable(self._redact(text), keep="\n").split("\n")
        lines = "\n".join([first, *("  " + line for line in more)])
        if self._above is not None:
            self._above(lines, style)
        else:
            self._err.write(_styled(lines, style, self._err) + "\n")
            self._err.flush()

    def note(self, text: str) -> None:
        """Something that a person should know."""
        self.say(f"note: {text}", style="yellow")

    def error(self, text: str) -> None:
        """A failure, on one line."""
        self.say(f"error: {text}", style="bold red")

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: str = "",
        indent: str = "",
        fit: bool = False,
    ) -> None:
        """Aligned columns to stdout.

        Args:
            right: Holds a ``>`` for each column that is set to the right.
            indent: Stands before each line.
            fit: In a terminal, cut the first column where the lines would be too long.
        """
        cells = [[printable(cell) for cell in row] for row in (head, *rows)]
        widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
        if fit and self.shared:
            others = sum(widths[1:]) + 2 * len(widths[1:])
            widths[0] = min(
                widths[0], max(_SHORTEST_NAME, shutil.get_terminal_size().columns - others)
            )
            cells = [[shorten(row[0], widths[0]), *row[1:]] for row in cells]
        for number, row in enumerate(cells):
            parts: list[str] = []
            for i, cell in enumerate(row):
                gap = " " * (widths[i] - width(cell))
                parts.append(gap + cell if right[i : i + 1] == ">" else cell + gap)
            self.out(indent + "  ".join(parts).rstrip(), style="" if number else "bold")

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal that a moving display can be drawn on."""
        return self._err.isatty() and os.environ.get("TERM", "") != "dumb"

    @property
    def shared(self) -> bool:
        """Whether stdout is a terminal too, so that what is printed must not cross the display."""
        return self._out.isatty()

    @property
    def terminal(self) -> TextIO:
        """The stream to draw on, where :attr:`live`."""
        return self._err

    def divert(self, above: Callable[[str, str], None] | None) -> None:
        """Send talk to a moving display, which puts it above itself; None ends that."""
        self._above = above


def _styled(text: str, style: str, stream: TextIO) -> str:
    if not style or os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"{_ANSI[style]}{text}{_PLAIN}"
