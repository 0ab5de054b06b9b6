"""Rows that decode a field when a function looks at it, and the shape of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from itertools import permutations
from typing import Any, Final, NewType, Optional
from uuid import UUID

import pytest

from etl import ConfigError, DataError
from etl.rows import (
    Column,
    Layout,
    Shape,
    TextRows,
    Type,
    ValueRows,
    joined,
    shape_of,
    strip_optional,
)

INT = Type(kind="int64", name="bigint", dialect="postgresql")
TEXT = Type(kind="text", name="text", dialect="postgresql")

UserId = NewType("UserId", int)


class Decoder:
    """Counts how often it is asked."""

    def __init__(self, decode: Any) -> None:
        self.calls = 0
        self._decode = decode

    def __call__(self, raw: Any) -> Any:
        self.calls += 1
        return self._decode(raw)


def layout_of(*decoders: Any, is_text: bool = True) -> Layout:
    columns = [Column(name="id", type=INT), Column(name="name", type=TEXT)]
    return Layout(columns, decoders or (int, str), is_text=is_text)


def test_a_row_is_a_mapping_of_its_columns() -> None:
    row = layout_of().row(["7", "Ada"])
    assert row["id"] == 7
    assert dict(row) == {"id": 7, "name": "Ada"}
    assert list(row) == ["id", "name"]
    assert len(row) == 2
    assert "id" in row
    assert "other" not in row
    assert row.get("other", "?") == "?"
    with pytest.raises(KeyError):
        row["other"]


def test_a_field_is_decoded_only_when_it_is_looked_at() -> None:
    number, text = Decoder(int), Decoder(str)
    row = layout_of(number, text).row(["7", "Ada"])
    assert "name" in row
    assert len(row) == 2
    assert repr(row)
    assert number.calls == text.calls == 0
    assert row["id"] == 7
    assert (number.calls, text.calls) == (1, 0)


def test_a_quick_decoder_gets_plain_fields_only() -> None:
    quick = Decoder(int)
    columns = [Column(name="id", type=INT)]
    layout = Layout(columns, [lambda field: f"slow {field}"], quick=[quick], is_text=True)
    assert layout.row(["7"])["id"] == 7
    assert layout.row(["\\N"])["id"] == "slow \\N"
    assert quick.calls == 1


def test_where_a_quick_decoder_fails_the_other_tells_why() -> None:
    def refuse(field: str) -> int:
        raise DataError("an infinite date", column="id")

    layout = Layout([Column(name="id", type=INT)], [refuse], quick=[int], is_text=True)
    with pytest.raises(DataError, match="an infinite date") as failed:
        layout.row(["infinity"])["id"]
    assert failed.value.__context__ is None


def test_a_column_may_be_called_like_an_argument() -> None:
    layout = Layout([Column(name="self", type=INT)], [int], is_text=True)
    row = layout.row(["7"]).replace(**{"self": 8})
    assert dict(row) == dict(row.replace(**{"self": 8})) == {"self": 8}


def test_replace_makes_a_changed_copy_and_leaves_the_row() -> None:
    row = layout_of().row(["7", "Ada"])
    other = row.replace(name="Bob").replace(id=8)
    assert dict(other) == {"id": 8, "name": "Bob"}
    assert dict(row) == {"id": 7, "name": "Ada"}
    assert other.fields is row.fields  # what nobody touched goes out as it came in
    assert row.changes is None


def test_replace_with_none_is_a_change_and_not_a_missing_value() -> None:
    assert layout_of().row(["7", "Ada"]).replace(name=None)["name"] is None


def test_replace_of_an_unknown_column_names_those_that_there_are() -> None:
    row = layout_of().row(["7", "Ada"])
    for one in (row, row.replace(id=1)):
        with pytest.raises(KeyError, match="no column 'nam'.*id, name"):
            one.replace(nam="Bob")


def test_repr_shows_names_and_no_values() -> None:
    assert repr(layout_of().row(["7", "secret"])) == "<Row of id, name>"


def test_the_weight_of_a_row_grows_with_its_fields_and_changes() -> None:
    row = layout_of().row(["7", "x" * 1000])
    assert row.nbytes > 1000
    assert row.replace(name="y" * 5000).nbytes > 6000


def test_text_rows_split_lines_when_looked_at() -> None:
    rows = TextRows(layout_of(), ["1\tA", "2\t", "3\tC"], nbytes=9)
    assert [dict(row) for row in rows] == [
        {"id": 1, "name": "A"},
        {"id": 2, "name": ""},
        {"id": 3, "name": "C"},
    ]
    assert rows[-1]["id"] == 3
    assert len(rows) == 3
    assert rows.nbytes > 9


def folded(*lines: str) -> tuple[TextRows, tuple[Decoder, ...]]:
    """Rows of c, a, b, d, of which the functions probably look at c."""
    decoders = tuple(Decoder(lambda field: None if field == "\\N" else field) for _ in "cabd")
    columns = {name: Column(name=name, type=INT) for name in "abcd"}
    layout = Layout(
        [columns[name] for name in "cabd"],
        decoders,
        is_text=True,
        shown=list(columns.values()),
        ahead=1,
    )
    return TextRows(layout, list(lines)), decoders


def test_fields_behind_those_looked_at_are_one_text_until_somebody_asks() -> None:
    rows, decoders = folded("C\tA\tB\tD")
    row = next(iter(rows))
    changed = row.replace(d="E")
    assert row["c"] == "C"
    assert (row.parts, changed.parts) == (["C", "A\tB\tD"], ["C", "A\tB\tD"])
    assert [decoder.calls for decoder in decoders] == [1, 0, 0, 0]
    assert row["b"] == "B"
    assert row.fields == changed.fields == ["C", "A", "B", "D"]
    assert (changed["a"], changed["d"], row["d"]) == ("A", "E", "D")


def test_a_row_shows_its_columns_in_the_order_of_the_table() -> None:
    rows, _ = folded("C\tA\tB\tD")
    row = rows[0]
    for one in (row, next(iter(rows)), row.replace(b="x")):
        assert list(one) == ["a", "b", "c", "d"]
        assert repr(one) == "<Row of a, b, c, d>"
    assert list(dict(row).values()) == ["A", "B", "C", "D"]


@pytest.mark.parametrize("line", ["1\t2\t3\t4", "\\N\t2\t\\N\t4", "\t\t\t", "1\t2\ta\\tb\t\\N"])
def test_fields_are_the_same_in_whatever_order_they_are_asked_for(line: str) -> None:
    (whole,) = [dict(zip("cabd", line.split("\t"), strict=True))]
    for order in permutations("abcd"):
        row = next(iter(folded(line)[0]))
        for name in order:
            assert row[name] == (None if whole[name] == "\\N" else whole[name])
            assert "\t".join(row.parts) == line
        with pytest.raises(KeyError):
            row["e"]


def test_a_slice_of_text_rows_is_text_rows_of_those_lines() -> None:
    rows = TextRows(layout_of(), ["1\tA", "2\tB", "3\tC"], nbytes=9)
    part = rows[1:]
    assert isinstance(part, TextRows)
    assert part.lines == ["2\tB", "3\tC"]
    assert 0 < part.nbytes < rows.nbytes


def test_lines_of_one_layout_that_are_joined_stay_lines() -> None:
    layout = layout_of()
    first, second = (TextRows(layout, lines, nbytes=6) for lines in (["1\tA", "2\tB"], ["3\tC"]))
    found = joined([first, [], second])
    assert isinstance(found, TextRows)
    assert found.lines == ["1\tA", "2\tB", "3\tC"]
    other = TextRows(layout_of(), ["4\tD"], nbytes=3)
    mixed = joined([first, other, [{"id": 5}]])
    assert [row["id"] for row in mixed] == [1, 2, 4, 5]
    assert joined([[], []]) == []


def test_value_rows_hold_the_drivers_values() -> None:
    rows = ValueRows(layout_of(is_text=False), [(1, "A"), (2, "B")], nbytes=100)
    assert [row["name"] for row in rows] == ["A", "B"]
    assert rows[1]["id"] == 2
    part = rows[:1]
    assert isinstance(part, ValueRows)
    assert (part.tuples, part.nbytes) == ([(1, "A")], 50)
    assert ValueRows(layout_of(), [], nbytes=0)[:1] == [] or len(rows[:0]) == 0


class Colour(Enum):
    RED = "red"


@dataclass
class Everything:
    a: int
    b: str | None
    c: Optional[Decimal]  # noqa: UP045  the old spelling is allowed too
    d: datetime
    e: date
    f: UUID
    g: dict[str, Any]
    h: list[int]
    i: Colour
    j: bool
    k: float
    m: bytes


def test_the_shape_of_a_dataclass() -> None:
    shape = shape_of(Everything, key=["a"])
    assert shape.key == ("a",)
    assert {column.name: column.type.kind for column in shape.columns} == {
        "a": "int64",
        "b": "text",
        "c": "numeric",
        "d": "timestamptz",
        "e": "date",
        "f": "uuid",
        "g": "json",
        "h": "json",
        "i": "text",
        "j": "bool",
        "k": "float64",
        "m": "bytes",
    }
    assert {column.name for column in shape.columns if column.nullable} == {"b", "c"}
    assert shape.names == tuple("abcdefghijkm")


@dataclass
class Ambiguous:
    value: int | str


@dataclass
class Complex:
    value: complex


@pytest.mark.parametrize("row", [Ambiguous, Complex])
def test_a_field_that_no_column_can_hold_is_named(row: type[Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{row.__name__}\.value"):
        shape_of(row)


def test_a_new_type_and_a_final_are_what_they_stand_for() -> None:
    @dataclass
    class User:
        id: UserId
        boss: UserId | None
        name: Final[str]

    assert [(one.type.kind, one.nullable) for one in shape_of(User).columns] == [
        ("int64", False),
        ("int64", True),
        ("text", False),
    ]


def test_a_dataclass_that_names_no_columns_or_unknown_types_is_refused() -> None:
    @dataclass
    class Empty:
        pass

    @dataclass
    class Unknown:
        id: Missing  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigError, match="Empty has no fields"):
        shape_of(Empty)
    with pytest.raises(ConfigError, match=r"annotations of Unknown .* 'Missing' is not defined"):
        shape_of(Unknown)


def test_the_shape_of_what_is_not_a_dataclass_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a dataclass"):
        shape_of(int)


def test_strip_optional() -> None:
    assert strip_optional(int | None) == (int, True)
    assert strip_optional(int) == (int, False)
    assert strip_optional(int | str | None) == (int | str | None, False)


def test_an_empty_shape_has_no_names() -> None:
    assert Shape(columns=()).names == ()
