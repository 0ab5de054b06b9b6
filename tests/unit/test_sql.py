"""Names in SQL: quoting and reading of dotted names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.databases.sql import qualify, quote, quote_all, split_name
from etl.errors import ConfigError


def test_quotes_are_doubled() -> None:
    assert quote('a"b') == '"a""b"'
    assert quote('x"; DROP TABLE t; --') == '"x""; DROP TABLE t; --"'
    assert quote_all(["a", "B c"]) == '"a", "B c"'
    assert qualify(None, "t") == '"t"'
    assert qualify("s.x", "t") == '"s.x"."t"'


@pytest.mark.parametrize("name", ["", "a\x00b"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        quote(name)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("t", (None, "t")),
        ("Orders", (None, "Orders")),
        ("s.t", ("s", "t")),
        ('"a.b".t', ("a.b", "t")),
        ('s."t ""x"""', ("s", 't "x"')),
        ('"only"', (None, "only")),
        ("größe.straße", ("größe", "straße")),
    ],
)
def test_names_are_read_as_written(text: str, parts: tuple[str | None, str]) -> None:
    assert split_name(text) == parts


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a.b.c", '"a', 'a"b', '"a"b', '""', 'a.""', "a\x00b", '"a\x00"']
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="table name"):
        split_name(text)


_names = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1)


@given(schema=_names, table=_names)
def test_a_quoted_name_reads_back(schema: str, table: str) -> None:
    assert split_name(qualify(schema, table)) == (schema, table)
