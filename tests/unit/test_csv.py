"""CSV files: cut at any byte, split into fields, refused by line, and what their columns hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl import ConfigError, DataError, File
from etl.databases.texts import from_text
from etl.databases.types import encode_column
from etl.errors import RowTooLargeError
from etl.files.file import is_file
from etl.files.infer import ColumnKinds
from etl.files.records import CsvForm, RecordCutter
from etl.rows import Column, Kind, Type

Fields = tuple[str | None, ...]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(['"', "\r\n", ",", ""])


def cut(data: bytes, piece: int = 1 << 20, form: CsvForm | None = None) -> list[Fields]:
    """All records, from pieces of a size; checks what is said of them."""
    cutter = RecordCutter("f.csv", form or CsvForm(), offset=0, line=1, most_bytes=1 << 16)
    found: list[Fields] = []
    offset = 0
    for at in range(0, len(data) + 1, piece):
        records = cutter.cut(data[at : at + piece], last=at + piece > len(data))
        for fields, line, end in zip(records.fields, records.lines, records.ends, strict=True):
            assert line == data.count(b"\n", 0, offset) + 1
            assert end > offset
            assert data[end - 1 : end] == b"\n" or end == len(data)
            offset = end
            found.append(fields)
    assert offset == len(data)
    return found


@given(rows=st.lists(st.lists(TEXTS, min_size=2, max_size=3), max_size=5), piece=st.integers(1, 9))
def test_what_another_program_writes_is_read_as_it_was(rows: list[list[str]], piece: int) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    assert cut(text.getvalue().encode(), piece) == [tuple(row) for row in rows]


def test_null_and_the_empty_text_are_two_things() -> None:
    assert cut(b'a,,""\n') == [("a", None, "")]
    assert cut(b'\\N,"\\N",\n', form=CsvForm(null="\\N")) == [(None, "\\N", "")]


def test_the_last_line_needs_no_end_and_lines_may_end_as_in_windows() -> None:
    assert cut(b'a,b\r\n"c\r\n",d\r\ne,f') == [("a", "b"), ("c\r\n", "d"), ("e", "f")]
    assert cut(b'a,"b"\n"c",') == [("a", "b"), ("c", None)]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'a\nb"c\n', 2),
        (b'a\n"b"c\n', 2),
        (b'a\n"b""\nc\n', 2),
        (b'a\n"b\nc" d,e\n', 2),
        (b"a\rb\n", 1),
        (b"a\nb\xff\n", 2),
        (b'"a\n\xff"\n', 2),
    ],
)
def test_what_is_no_csv_is_refused_by_its_line(data: bytes, line: int) -> None:
    for piece in (1, 3, 100):
        with pytest.raises(DataError, match=rf"f\.csv, line {line}: ") as caught:
            cut(data, piece)
        assert "b" not in str(caught.value).split()  # nothing of the row


def test_a_quote_that_is_never_closed_ends_at_the_limit() -> None:
    with pytest.raises(RowTooLargeError, match="line 2"):
        cut(b'a\n"' + b"x\n" * (1 << 16), 1 << 12)


def test_other_encodings_and_delimiters() -> None:
    assert cut("ä;b\n".encode("cp1252"), form=CsvForm(delimiter=";", encoding="cp1252")) == [
        ("ä", "b")
    ]
    for form in ({"encoding": "utf-16"}, {"encoding": "no"}, {"delimiter": '"'}, {"null": ","}):
        with pytest.raises(ConfigError):
            CsvForm(**form)
    for escaped in ("unicode_escape", "raw_unicode_escape", "utf-7", "iso2022_jp", "iso2022_kr"):
        with pytest.raises(ConfigError):
            CsvForm(encoding=escaped)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF_8", "U8", "utf", "cp65001", "utf-8-sig"])
def test_a_mark_within_the_file_is_a_character(encoding: str) -> None:
    """By whatever name of UTF-8: that at the beginning of the file is taken off before."""
    form = CsvForm(encoding=encoding)
    assert form.is_utf8
    assert cut("\ufeffa\n\ufeffb\n".encode(), form=form) == [("\ufeffa",), ("\ufeffb",)]


def test_a_file_is_known_by_its_suffix() -> None:
    assert all(map(is_file, ["a.csv", "dir/A.CSV.gz", "/x/y.tsv.xz"]))
    assert not any(map(is_file, ["postgresql://h/a.csv", "env:A.csv", "a.db", "csv"]))
    assert File("x/a.b.csv.gz").stem == "a.b"
    assert File("a.tsv").form.delimiter == "\t"
    with pytest.raises(ConfigError):
        File("a.txt")


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["0", "-12", "9223372036854775807", None], "int64"),
        (["9223372036854775808"], "numeric"),
        (["1", "1.50"], "numeric"),
        (["007"], "text"),
        (["-0"], "float64"),
        (["-0.0", "1"], "float64"),
        (["1e5"], "float64"),
        (["1e400"], "text"),
        (["1e5", "0.12345678901234567890"], "text"),
        (["+1"], "text"),
        (["true", "false"], "bool"),
        (["t", "f"], "text"),
        (["2024-02-29"], "date"),
        (["2023-02-29"], "text"),
        (["2024-01-01 10:00:00.5"], "timestamp"),
        (["2024-01-01 10:00:00+00"], "timestamptz"),
        (["2024-01-01 10:00:00+02"], "text"),
        (["2024-01-01 25:00:00"], "text"),
        (["0aa0bb0c-0000-0000-0000-00000000000f"], "uuid"),
        (["0AA0bb0c-0000-0000-0000-00000000000f"], "text"),
        (["1", ""], "text"),
        ([None, None], "text"),
    ],
)
def test_a_column_gets_the_kind_that_keeps_each_text(
    texts: Sequence[str | None], kind: Kind
) -> None:
    found = ColumnKinds(1)
    for text in texts:  # a page each
        found.look_at([(text,)])
    assert found.kinds == [kind]


def encoded(kind: Kind, text: str) -> str:
    type_ = Type(kind=kind, name=kind, dialect="postgresql")
    meant = from_text(type_)
    values = [text] if meant is None else meant([text])
    return encode_column(values, Column(name="c", type=type_))[0]


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        ("bool", "TRUE", "t"),
        ("int16", "-7", "-7"),
        ("float64", "0.1", "0.1"),
        ("float64", "-Infinity", "-inf"),
        ("numeric", "1e3", "1e3"),
        ("bytes", "\\x00ff", "\\\\x00ff"),
        ("date", "infinity", "infinity"),
        ("date", "0044-03-15 BC", "0044-03-15 BC"),
        ("time", "24:00:00", "24:00:00"),
        ("interval", "1 mon -1 days +02:03:04.5", "1 mon -1 days +02:03:04.5"),
        ("json", '{"a": 1.0}', '{"a": 1.0}'),
    ],
)
def test_a_text_goes_into_a_column_as_the_value_that_it_means(
    kind: Kind, text: str, field: str
) -> None:
    assert encoded(kind, text) == field


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bool", "yes!"),
        ("int16", "40000"),
        ("int32", "1.5"),
        ("float64", "0.12345678901234567890"),
        ("numeric", "1,5"),
        ("bytes", "abc"),
        ("date", "01/02/2024"),
        ("date", "now"),
        ("timestamptz", "2024-01-01 10:00:00"),
        ("interval", ""),
        ("interval", "3"),
        ("uuid", "x"),
    ],
)
def test_a_text_that_is_no_value_of_the_column_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(DataError, match="column 'c'"):
        encoded(kind, text)
