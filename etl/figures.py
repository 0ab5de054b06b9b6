"""Figures and names as a person reads them, safe to print."""

from __future__ import annotations

from unicodedata import combining, east_asian_width

_SIZES = ("KiB", "MiB", "GiB", "TiB")


def count(number: int) -> str:
    """``1,234,567``."""
    return f"{number:,}"


def short_count(number: float) -> str:
    """At most six characters: ``9,876``, ``12.3k``, ``4.5M``."""
    if number < 10_000:
        return f"{number:,.0f}"
    for unit in ("k", "M", "G"):
        number /= 1000
        if number < 999.95:
            return f"{number:.1f}{unit}"
    return f"{number:.0f}G"


def size(nbytes: int) -> str:
    """``512 B``, ``1.5 MiB``."""
    if nbytes < 1024:
        return f"{nbytes} B"
    number = float(nbytes)
    for unit in _SIZES:
        number /= 1024
        if number < 1023.95:
            return f"{number:.1f} {unit}"
    return f"{number:.0f} {_SIZES[-1]}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def plural(number: int, thing: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count(number)} {thing}" if number == 1 else f"{count(number)} {thing}s"


def width(text: str) -> int:
    """Columns that a printable text takes in a terminal."""
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def shorten(text: str, columns: int) -> str:
    """The text, cut to a number of columns, with an ellipsis where something is missing."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def printable(text: str, *, keep: str = "") -> str:
    """The text with everything escaped that a terminal would not show as a character.

    A table may be called ``"\\x1b[2J"``: control characters, line breaks, reversed writing and
    broken surrogates come out as backslash escapes. ``keep`` names characters to leave alone.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode("ascii")
        for one in text
    )
