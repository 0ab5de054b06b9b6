"""Files of JSON lines: cut at any byte, every value kept, refused by line, and their columns."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl import ConfigError, DataError, File
from etl.databases.types import JsonText
from etl.errors import RowTooLargeError
from etl.files.infer import JsonKinds
from etl.files.objects import ObjectCutter, value_of

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(codec="utf-8"), max_size=6)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)


def cut(data: bytes, piece: int = 1 << 20) -> list[dict[str, Any]]:
    """All objects, from pieces of a size; checks what is said of them."""
    cutter = ObjectCutter("f.jsonl", offset=0, line=1, most_bytes=1 << 16)
    found: list[dict[str, Any]] = []
    for at in range(0, len(data) + 1, piece):
        records = cutter.cut(data[at : at + piece], last=at + piece > len(data))
        for line, end in zip(records.lines, records.ends, strict=True):
            assert data.count(b"\n", 0, end) == line or end == len(data)
        found += records.fields
    return found


# Making the values takes long on a busy machine, which says nothing of the code.
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=5),
    piece=st.integers(1, 9),
    ascii_only=st.booleans(),
)
def test_what_another_program_writes_is_read_as_it_was(
    rows: list[dict[str, Any]], piece: int, ascii_only: bool
) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    found = [
        {name: value_of(one) for name, one in row.items()} for row in cut(text.encode(), piece)
    ]
    exact = [json.loads(line, parse_float=Decimal) for line in text.split("\n") if line]
    assert found == exact


def test_numbers_keep_their_digits_and_documents_their_text() -> None:
    digits = "9" * 5000
    line = (
        f'{{"a": 0.10, "b": 1e400, "c": {digits}, "d": -0, "e": {{"x": 1.10, "x": 2}}, "f": NaN}}'
    )
    (row,) = cut(line.encode())
    assert str(row["a"]) == "0.10"
    assert row["b"] == Decimal("1e400")
    assert row["c"] == Decimal(digits)
    assert row["d"].is_signed()
    assert row["e"] == '{"x": 1.10, "x": 2}'
    assert type(row["e"]) is JsonText
    assert row["f"] != row["f"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n[1]\n', "line 2: it is not an object"),
        ('{"a": 1}\n\n{"a": 1, "a": 2}', "line 3: it has two values for the key 'a'"),
        ('{"a": "x}\n', "line 1: Unterminated string"),
        ('{"a": 1} x\n', "line 1: Extra data"),
        ('{"a": [1, NaN]}\n', "line 1: NaN is not JSON"),
        ('{"": 1}\n', "line 1: a key is empty"),
        ('{"a": "\\ud800"}\n', "line 1: the value of 'a' holds a lone surrogate"),
        ('{"a": ' + "[" * 100_000 + "\n", "nested too deeply"),
        ('{"a": 1e99999999999999999999}', "a number is out of all bounds"),
    ],
)
def test_what_is_no_row_is_refused_by_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match="f.jsonl, line") as caught:
        cut(text.encode())
    assert said in str(caught.value)


def test_bytes_that_are_not_utf8_and_endless_lines_are_refused() -> None:
    with pytest.raises(DataError, match="line 2: it holds bytes that are not UTF-8"):
        cut(b'{"a": "x"}\n{"a": "\xff"}\n')
    with pytest.raises(RowTooLargeError, match="line 1: a line of more than"):
        cut(b'{"a": "' + b"x" * (1 << 17), piece=1 << 15)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None], "text"),
        ([1, -(1 << 63)], "int64"),
        ([1 << 63], "numeric"),
        ([1, Decimal("0.5")], "numeric"),
        ([1, "NaN"], "numeric"),
        ([True, None], "bool"),
        ([True, 1], "json"),
        ([1, "1"], "json"),
        ([JsonText("[]")], "json"),
        (["2024-02-29"], "date"),
        (["2024-02-30"], "text"),
        (["1"], "text"),
    ],
)
def test_a_column_gets_the_kind_that_holds_all_its_values(values: list[Any], kind: str) -> None:
    for size in (1, len(values)):
        found = JsonKinds()
        for at in range(0, len(values), size):
            found.look_at([{"a": value} for value in values[at : at + size]])
        assert found.kinds == [kind]


def test_options_of_csv_are_refused() -> None:
    for options in ({"delimiter": ";"}, {"null": "-"}, {"columns": ("a",)}, {"encoding": "cp1252"}):
        with pytest.raises(ConfigError, match="how a CSV file is written"):
            File("x.jsonl.gz", **options)
