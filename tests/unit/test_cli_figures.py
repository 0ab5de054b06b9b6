"""Figures and names are readable, and harmless to a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.figures import (
    count,
    duration,
    plural,
    printable,
    short_count,
    shorten,
    size,
    width,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3k"), (999_960, "1.0M"), (4.5e9, "4.5G")],
)
def test_short_counts_fit_six_characters(number: float, text: str) -> None:
    assert short_count(number) == text


@given(st.floats(min_value=0, max_value=9.99e11))
def test_no_short_count_is_longer(number: float) -> None:
    assert len(short_count(number)) <= 6


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plural_and_count() -> None:
    assert plural(1, "row") == "1 row"
    assert plural(0, "row") == "0 rows"
    assert count(1_234_567) == "1,234,567"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("orders", "orders"),
        ("größe 表", "größe 表"),
        ("\x1b[2Jx", "\\x1b[2Jx"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202egnp", "\\u202egnp"),
        ("\x9b31m", "\\x9b31m"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_are_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("orders", 6), ("größe", 5), ("gro\u0308ße", 5), ("表x", 3)]
)
def test_width_counts_columns(text: str, columns: int) -> None:
    assert width(text) == columns


@given(st.text(), st.integers(min_value=1, max_value=30))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    shown = shorten(text, columns)
    assert width(shown) <= columns
    assert shown == text or shown.endswith("…")


def test_line_breaks_can_be_kept() -> None:
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@given(st.text())
def test_what_is_printable_always_is(text: str) -> None:
    assert printable(text).isprintable()
