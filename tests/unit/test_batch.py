"""Batches and tokens: what derive, merge and split keep; positions as text; weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.batch import (
    Batch,
    OpenPieces,
    Position,
    Token,
    decode_position,
    encode_position,
    weigh,
)

TOKEN = Token("main", 0, None, (1,))
NEXT = Token("main", 1, (1,), (2,))
OTHER = Token("other", 0, None, ("a",))

_VALUES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.none() | st.lists(_VALUES).map(tuple))
def test_a_position_survives_its_text(position: Position | None) -> None:
    assert decode_position(encode_position(position)) == position


@pytest.mark.parametrize("text", ["{}", '"a"', "1", "null"])
def test_a_text_that_is_not_an_array_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="JSON array"):
        decode_position(text)


def test_derive_keeps_the_tokens_for_other_rows_and_for_none() -> None:
    batch = Batch([1, 2], position=(1,), tokens=(TOKEN,))
    for rows in ([3], []):
        derived = batch.derive(rows)
        assert derived.rows == rows
        assert derived.tokens == (TOKEN,)
        assert derived.position == (1,)
        assert not derived.partial


def test_derive_weighs_again_only_what_has_changed() -> None:
    batch = Batch([1, 2], nbytes=7)
    assert batch.derive(batch.rows).nbytes == 7
    assert batch.derive(["a long text" * 100]).nbytes > 1000


def test_merge_has_all_tokens_in_order() -> None:
    merged = Batch.merge(
        [Batch([1], position=(1,), tokens=(TOKEN,)), Batch([2], position=(2,), tokens=(NEXT,))],
        ["both"],
    )
    assert merged.tokens == (TOKEN, NEXT)
    assert merged.position == (2,)
    assert merged.rows == ["both"]


def test_merge_of_nothing_has_no_tokens() -> None:
    assert Batch.merge([], []).tokens == ()


def test_split_gives_the_token_to_the_last_piece() -> None:
    pieces = Batch([1, 2, 3], position=(1,), tokens=(TOKEN,)).split([[1], [2], [3]])
    assert [piece.rows for piece in pieces] == [[1], [2], [3]]
    assert [piece.partial for piece in pieces] == [True, True, False]
    assert [piece.tokens for piece in pieces] == [(), (), (TOKEN,)]
    assert pieces[0].pieces_of == ("main",)


def test_split_into_nothing_still_carries_the_token() -> None:
    nothing: list[list[int]] = []
    (only,) = Batch([1], tokens=(TOKEN,)).split(nothing)
    assert only.tokens == (TOKEN,)
    assert len(only.rows) == 0


def test_pieces_that_are_split_again_or_merged_know_what_they_are_pieces_of() -> None:
    batch = Batch([1, 2, 3, 4], tokens=(TOKEN,))
    first, last = batch.split([[1, 2], [3, 4]])
    again = first.split([[1], [2]])
    assert all(piece.partial and not piece.tokens for piece in again)
    assert Batch.merge(again, [1, 2]).pieces_of == ("main",)
    whole = Batch.merge([*again, last], batch.rows)
    assert not whole.partial
    assert whole.tokens == (TOKEN,)


def test_a_merge_of_a_whole_batch_and_a_piece_is_a_piece_of_the_second_only() -> None:
    piece, _ = Batch([1, 2], tokens=(OTHER,)).split([[1], [2]])
    merged = Batch.merge([Batch([0], tokens=(TOKEN,)), piece], [0, 1])
    assert merged.tokens == (TOKEN,)
    assert merged.pieces_of == ("other",)


def test_a_split_of_several_partitions_is_a_piece_of_each() -> None:
    both = Batch.merge([Batch([1], tokens=(TOKEN,)), Batch([2], tokens=(OTHER,))], [1, 2])
    head, _ = both.split([[1], [2]])
    assert head.pieces_of == ("main", "other")


def test_pieces_of_several_partitions_may_come_in_turns() -> None:
    pieces = OpenPieces()
    left, left_end = Batch([1, 2], tokens=(TOKEN,)).split([[1], [2]])
    right, right_end = Batch([1, 2], tokens=(OTHER,)).split([[1], [2]])
    found: list[set[str]] = []
    for batch in (left, right, left_end, right_end):
        pieces.add(batch)
        found.append(set(pieces.partitions))
    assert found == [{"main"}, {"main", "other"}, {"other"}, set()]


def test_repr_shows_no_values() -> None:
    assert "secret" not in repr(Batch(["secret"], tokens=(TOKEN,)))


# -- Weights ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    name: str


class Known:
    nbytes = 1_000_000


@pytest.mark.parametrize(
    "wide",
    [
        "x" * 10_000,
        {"text": "x" * 10_000},
        ("x" * 10_000, 1),
        ["x" * 10_000],
        Person("x" * 10_000),
        Known(),
    ],
)
def test_the_weight_of_wide_rows_is_about_their_size(wide: Any) -> None:
    assert 10 * 10_000 <= weigh([wide] * 10) <= 10 * 1_100_000


def test_the_weight_of_no_rows_is_zero_and_of_any_row_at_least_one() -> None:
    assert weigh([]) == 0
    assert weigh([None] * 100) >= 100


def test_rows_that_know_their_size_are_believed() -> None:
    class Rows(list[int]):
        nbytes = 5

    assert weigh(Rows([1, 2, 3])) == 5


def test_many_rows_are_weighed_by_a_sample() -> None:
    rows = ["x" * 1000] * 100_000
    assert weigh(rows) == pytest.approx(weigh(rows[:16]) * 100_000 / 16, rel=0.01)
