"""Passwords in texts that other people wrote: found by their form, and hidden.

Messages of etl hold none. A user's exception may quote a URL, though, and a traceback quotes
source lines.
"""

from __future__ import annotations

import re

HIDDEN = "***"

# One slash is enough: a path made of a URL has lost the other. Greedy up to the last @, because a
# password may hold an unescaped one. The word itself stands in help.
_IN_URL = re.compile(r"(\b[A-Za-z][\w+.-]*:/+[^\s:/@'\"]*:)(?!password@)[^\s'\"]+(?=@)")
URL = re.compile(r"(?s)\s*[A-Za-z][\w+.-]*:/+[^\s:/@'\"]*:(.+)@")
"""A text that is one URL with a password, which may then hold spaces, quotes and @."""

# password=..., 'password': '...', PGPASSWORD=..., in quotes or not.
_IN_OPTION = re.compile(
    r"""(?ix) ( (?: password | passwd | pwd ) ["']? \s* (?: = | (?<=["']) : | (?<=["'])\s: ) \s* )
    (?: ' (?: [^'\\] | \\. )* ' | " (?: [^"\\] | \\. )* " | [^\s&'",;)}\]]+ )"""
)


def holds_url_with_password(text: str) -> bool:
    """Whether a URL with a password stands in a text, as where a name was asked for."""
    return _IN_URL.search(text) is not None or URL.match(text) is not None


def without_passwords(text: str) -> str:
    """The text with ``***`` for each password in a URL, an option or an assignment."""
    return _IN_OPTION.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}", text))
