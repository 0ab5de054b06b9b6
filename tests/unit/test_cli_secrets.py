"""Passwords do not come out, whoever put them into a text."""

from __future__ import annotations

import pytest

from etl.cli.secrets import Redactor

URL = "postgresql://me:s3cr3t-77@db.example:5432/shop"


@pytest.mark.parametrize(
    "text",
    [
        URL,
        f"Database({URL!r}) failed",
        "postgresql://me:p@ss@word-s3cr3t-77@db/shop",
        "postgres://:s3cr3t-77@db/shop",
        "host=db password=s3cr3t-77 user=me",
        "sqlite.db?user=me&PASSWORD=s3cr3t-77&x=1",
    ],
)
def test_passwords_in_urls_and_options_are_hidden(text: str) -> None:
    shown = Redactor()(text)
    assert "s3cr3t-77" not in shown
    assert "***" in shown


def test_the_rest_of_the_text_stays() -> None:
    assert Redactor()(f"cannot reach {URL}: refused") == (
        "cannot reach postgresql://me:***@db.example:5432/shop: refused"
    )
    for harmless in ("postgresql://db/shop", "at 12:30, a@b.example", "{'a': 1}", "x:y@z"):
        assert Redactor()(harmless) == harmless


def test_a_known_password_is_hidden_wherever_it_stands() -> None:
    redact = Redactor([URL, "postgresql://you:p%40ssw0rd!@db/x"])
    assert redact("wrong password s3cr3t-77") == "wrong password ***"
    assert redact("p@ssw0rd! and p%40ssw0rd!") == "*** and ***"


@pytest.mark.parametrize(
    "url",
    ["postgresql://postgres:postgres@db/x", "postgresql://a:abc@db/x", "postgresql://a:table@db/x"],
)
def test_a_password_that_is_a_common_word_does_not_garble_messages(url: str) -> None:
    message = "the role postgres may not read table abc of postgresql://db/x"
    assert Redactor([url])(message) == message
