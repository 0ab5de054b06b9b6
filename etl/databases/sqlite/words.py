"""The words of a SQL text that SQLite keeps: enough to find names, clauses and where they end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))
    |(?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<text>'(?:[^']|'')*')
    |(?P<name>[^\W\d][\w$]*)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Word:
    """A word, and where it stands.

    Attributes:
        kind: ``quoted`` and ``name`` are names or key words, ``text`` a literal.
    """

    kind: str
    text: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """A key word in upper case; empty for anything quoted."""
        return self.text.upper() if self.kind == "name" else ""


def words_of(sql: str) -> list[Word]:
    """The words of a text, without white space and comments."""
    return [
        Word(match.lastgroup or "", match[0], match.start(), match.end())
        for match in _WORD.finditer(sql)
        if match.lastgroup != "space"
    ]


def after_name(sql: str, keyword: str) -> str | None:
    """What follows the name in ``CREATE ... TABLE name``; None where it is no such statement."""
    words = words_of(sql)
    at = next((i for i, word in enumerate(words) if word.key == keyword), None)
    if at is None or any(word.key == "VIRTUAL" for word in words[:at]):
        return None
    at += 1
    while at < len(words) and words[at].key in {"IF", "NOT", "EXISTS"}:
        at += 1
    if at + 1 < len(words) and words[at + 1].text == ".":
        at += 2
    return sql[words[at].end :] if at < len(words) else None


def checks_in(sql: str) -> list[str]:
    """The CHECK constraints of a CREATE TABLE."""
    words = words_of(sql)
    found: list[str] = []
    for at, word in enumerate(words):
        if word.key == "CHECK" and at + 1 < len(words) and words[at + 1].text == "(":
            end = _closing(words, at + 1)
            found.append(sql[word.start : words[end].end])
    return found


def _closing(words: Sequence[Word], at: int) -> int:
    """The place of the parenthesis that closes the one at a place."""
    depth = 0
    for place in range(at, len(words)):
        depth += {"(": 1, ")": -1}.get(words[place].text, 0)
        if depth == 0:
            return place
    return len(words) - 1


def collations_in(sql: str) -> list[str]:
    """The collations that a CREATE TABLE names, but for the usual one."""
    words = words_of(sql)
    names = [
        words[at + 1].text.strip('"`[]')
        for at, word in enumerate(words[:-1])
        if word.key == "COLLATE"
    ]
    return [name for name in dict.fromkeys(names) if name.upper() != "BINARY"]


def has_word(sql: str, keyword: str) -> bool:
    """Whether a key word stands in a text, outside of names, literals and comments."""
    return any(word.key == keyword for word in words_of(sql))
