"""Keeps passwords out of what is printed, whoever put them into a text.

Messages of etl hold none. A traceback quotes source lines, though, and a driver quotes what it was
given: everything that the command says passes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"

# Greedy up to the last @: a password may hold an unescaped one. The word itself stands in help.
_IN_URL = re.compile(r"(\b[A-Za-z][\w+.-]*://[^\s:/@'\"]*:)(?!password@)[^\s'\"]+(?=@)")
_IN_OPTION = re.compile(r"(?i)(\b(?:password|passwd|pwd|sslpassword)\s*=\s*)[^\s&'\",;)]+")
_URL_PASSWORD = re.compile(r"\b[A-Za-z][\w+.-]*://[^\s:/@'\"]*:([^\s'\"]+)@")
# A password like "postgres" or "flights" is no secret, and would garble every other message; where
# it stands in a URL it is hidden all the same.
_SHORTEST = 6


class Redactor:
    """Replaces passwords by ``***``: those in URLs, and known ones wherever they stand.

    Args:
        sources: Texts that may hold URLs with passwords: arguments, environment variables.
    """

    def __init__(self, sources: Iterable[str] = ()) -> None:
        known: set[str] = set()
        for text in sources:
            for match in _URL_PASSWORD.finditer(text):
                password = match[1]
                others = text[: match.start(1)] + text[match.end(1) :]
                known |= {
                    one
                    for one in (password, unquote(password))
                    if len(one) >= _SHORTEST and not one.isalpha() and one not in others
                }
        # Longest first: one password may begin like another.
        words = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, text: str) -> str:
        text = _IN_URL.sub(rf"\1{HIDDEN}", text)
        text = _IN_OPTION.sub(rf"\1{HIDDEN}", text)
        return self._known.sub(HIDDEN, text) if self._known else text
