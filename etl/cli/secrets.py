"""Keeps passwords out of what is printed, whoever put them into a text.

Messages of etl hold none. A traceback quotes source lines, though, and a driver quotes what it was
given: everything that the command says passes through here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from urllib.parse import unquote

from etl.secrets import HIDDEN, URL, without_passwords

# The whole of an argument: a password may hold spaces, quotes and @. Without a scheme too; but
# what stands between a scheme and @ is a user.
_ARGUMENT = re.compile(r"(?s)\s*-*(?:[A-Za-z][\w+.-]*:/*[^\s:/@'\"]*:|[^\s:/@'\"]*:(?!//))(.+)@")
_QUERY = re.compile(r"(?i)[?&](?:password|sslpassword)=([^&\s]+)")
_VARIABLE = re.compile(r"(?i)passw(?:or)?d|passphrase|secret|token$")
# A password like "postgres" or "flights" is no secret, and would garble every other message; where
# it stands in a URL it is hidden all the same.
_SHORTEST = 6
_LONGEST_WORD = 12


class Redactor:
    """Replaces passwords by ``***``: those in URLs, and known ones wherever they stand.

    Args:
        arguments: The command's, each of which may be a URL with a password.
        environment: Variables that may hold one, or are one.
    """

    def __init__(
        self, arguments: Iterable[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        known: dict[str, str] = {}
        for text in arguments:
            spans = _spans(text, _ARGUMENT)
            shown = _without(text, spans)
            if shown != text:
                # A short password, or one that is a word, is known in its place only.
                known[text] = shown
                known[str(PurePath(text))] = shown
            known.update(dict.fromkeys(_telling(text, spans), HIDDEN))
        for name, text in (environment or {}).items():
            if text and _VARIABLE.search(name) and text[0] != "/" and _is_telling(text):
                known |= dict.fromkeys((text, json.dumps(text)[1:-1], repr(text)[1:-1]), HIDDEN)
            known.update(dict.fromkeys(_telling(text, _spans(text, URL)), HIDDEN))
        # Longest first: one password may begin like another.
        words = sorted(known, key=len, reverse=True)
        self._known = known
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(lambda found: self._known[found[0]], text)
        return without_passwords(text)


def _spans(text: str, url: re.Pattern[str]) -> list[tuple[int, int]]:
    """Where the passwords in a text are, which is one URL."""
    found = (url.match(text), *_QUERY.finditer(text))
    return sorted(match.span(1) for match in found if match)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    for start, stop in reversed(spans):
        text = text[:start] + HIDDEN + text[stop:]
    return text


def _telling(text: str, spans: list[tuple[int, int]]) -> set[str]:
    """The passwords, as they stand there and as they are, that can be told from other words."""
    found: set[str] = set()
    for start, stop in spans:
        others = text[:start] + text[stop:]
        for one in (text[start:stop], unquote(text[start:stop])):
            if _is_telling(one) and one not in others:
                found |= {one, json.dumps(one)[1:-1], repr(one)[1:-1]}
    return found


def _is_telling(password: str) -> bool:
    """Whether a password is not a common word, which would stand in messages for other reasons."""
    is_word = password.isalpha() and password.islower() and len(password) <= _LONGEST_WORD
    return len(password) >= _SHORTEST and not is_word


def hide_arguments() -> None:
    """Overwrite passwords in the command line that ``ps`` shows to every user of the machine.

    Linux only. They stood there for the moment until now, and may stand in a shell's history: a
    URL from the environment (``env:NAME``) is better.
    """
    try:
        first = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45])
        line = Path("/proc/self/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return
    if not first or not sys.platform.startswith("linux"):
        return
    at = 0
    for part in line.split(b"\0"):
        text = part.decode("utf-8", "surrogateescape")
        for start, stop in _spans(text, _ARGUMENT):
            import ctypes  # rarely needed, and slow to load

            begin = at + len(text[:start].encode("utf-8", "surrogateescape"))
            length = len(text[start:stop].encode("utf-8", "surrogateescape"))
            ctypes.memset(first + begin, ord("*"), length)
        at += len(part) + 1
