"""Passwords do not come out, whoever put them into a text."""

from __future__ import annotations

import json

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
        "sslpassword='s3cr3t-77'",
        'PGPASSWORD="a s3cr3t-77"',
        "{'password': 's3cr3t-77'}",
        "there is no file postgresql:/me:s3cr3t-77@db/shop",
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


def test_a_user_without_a_password_does_not_garble_the_host_of_the_same_name() -> None:
    message = "postgresql://warehouse:5432/warehouse cannot be reached"
    assert Redactor(["postgresql://warehouse@warehouse:5432/warehouse"])(message) == message


def test_json_stays_json_and_is_redacted() -> None:
    record = {
        "password": 's3cr3t-77"x', "n": 1, "text": "password=\"s3cr3t-77\" and pwd='s3cr3t-77'",
        "url": URL, "nested": '{"password": "s3cr3t-77", "pwd": null}', "pwd": None,
    }  # fmt: skip
    shown = Redactor()(json.dumps(record))
    assert "s3cr3t-77" not in shown
    assert json.loads(shown).keys() == record.keys()
    assert json.loads(shown)["n"] == 1


def test_a_password_with_quotes_is_known_in_json_and_in_reprs() -> None:
    password = "s3\"cr'et\\x"
    redact = Redactor([f"postgresql://me:{password}@db/shop"])
    for text in (password, json.dumps(password), repr(password)):
        assert "cr" not in redact(text)


def test_variables_that_hold_a_password_are_known() -> None:
    redact = Redactor([], {"PGPASSWORD": "s3cr3t-77", "HOME": "/home/me", "MY_TOKEN": "t0k3n-1"})
    assert redact("s3cr3t-77 and t0k3n-1 in /home/me") == "*** and *** in /home/me"


@pytest.mark.parametrize(
    "argument",
    ["me:pw@db/shop", "postgresql:me:it's a pw@db", "--name=postgresql://me:pw@db/x"],
)
def test_an_argument_is_hidden_where_it_is_quoted_even_if_its_password_is_a_word(
    argument: str,
) -> None:
    assert "pw" not in Redactor([argument])(f"no such thing: {argument!r}, {argument}")
