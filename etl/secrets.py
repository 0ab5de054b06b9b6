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

# password=..., in quotes or not; 'password': '...'. The quotes stay, so that JSON stays JSON.
_NAME = r"(?:password|passwd|pwd)"
_QUOTED = (
    r"""(?:(?P<plain>["'])(?:\\.|(?!(?P=plain)).)*(?P=plain)"""
    r"""|(?P<escaped>\\["'])(?:(?!(?P=escaped)).)*(?P=escaped))"""
)
_IN_OPTION = re.compile(rf"""(?is)({_NAME}\s*=\s*)(?:{_QUOTED}|[^\s&'",;)}}\]\\]+)""")
_IN_MAPPING = re.compile(rf"""(?is)({_NAME}\\?["']\s*:\s*){_QUOTED}""")


def holds_url_with_password(text: str) -> bool:
    """Whether a URL with a password stands in a text, as where a name was asked for."""
    return _IN_URL.search(text) is not None or URL.match(text) is not None


def without_passwords(text: str) -> str:
    """The text with ``***`` for each password in a URL, an option or an assignment."""
    text = _IN_URL.sub(rf"\1{HIDDEN}", text)
    for pattern in (_IN_OPTION, _IN_MAPPING):
        text = pattern.sub(_hidden, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    quote: str = found["plain"] or found["escaped"] or ""
    return f"{found[1]}{quote}{HIDDEN}{quote}"
