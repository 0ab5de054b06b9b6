"""Types: what goes into what, and COPY text both ways without bending a value."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.databases.types import (
    NULL,
    EnumType,
    declare_postgres,
    encode_column,
    escape,
    postgres_type,
    text_decoder,
    unescape,
)
from etl.databases.ways import Way, way
from etl.errors import DataError
from etl.rows import Column, Kind, Type

_BASES = {
    "boolean": "bool",
    "smallint": "int2",
    "integer": "int4",
    "bigint": "int8",
    "real": "float4",
    "double precision": "float8",
    "text": "text",
    "bytea": "bytea",
    "date": "date",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "interval": "interval",
    "uuid": "uuid",
    "json": "json",
    "jsonb": "jsonb",
}


def pg(name: str) -> Type:
    """A PostgreSQL type from a short spelling."""
    head, _, rest = name.partition("(")
    if rest:
        numbers = [int(part) for part in rest.rstrip(")").split(",")]
        match head:
            case "numeric":
                typmod = (numbers[0] << 16 | (numbers[1] & 0x7FF)) + 4
                return postgres_type(name=name, base="numeric", typmod=typmod)
            case "varchar":
                full = f"character varying({numbers[0]})"
                return postgres_type(name=full, base="varchar", typmod=numbers[0] + 4)
            case "char":
                full = f"character({numbers[0]})"
                return postgres_type(name=full, base="bpchar", typmod=numbers[0] + 4)
            case _:
                return postgres_type(name=name, base=head, typmod=numbers[0])
    if name == "numeric":
        return postgres_type(name=name, base="numeric")
    return postgres_type(name=name, base=_BASES.get(name))


MOOD = EnumType(kind="other", name="public.mood", dialect="postgresql", labels=("a", "b"))


def test_modifiers_are_read() -> None:
    money = pg("numeric(15,2)")
    assert (money.precision, money.scale) == (15, 2)
    rough = postgres_type(name="numeric(3,-2)", base="numeric", typmod=(3 << 16 | 0x7FE) + 4)
    assert rough.scale == -2
    assert pg("varchar(10)").length == 10
    assert pg("timestamp(3)").scale == 3


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("integer", "bigint", "pass"),
        ("bigint", "integer", "pass"),  # the server refuses what is out of range
        ("bigint", "numeric", "pass"),
        ("bigint", "numeric(10,2)", "pass"),
        ("bigint", "numeric(10,-2)", "convert"),
        ("integer", "double precision", "pass"),
        ("bigint", "double precision", "convert"),
        ("bigint", "text", "refuse"),
        ("bigint", "boolean", "refuse"),
        ("boolean", "integer", "refuse"),
        ("numeric(15,2)", "numeric", "pass"),
        ("numeric(15,2)", "numeric(15,4)", "pass"),
        ("numeric(15,4)", "numeric(15,2)", "convert"),
        ("numeric", "numeric(15,2)", "convert"),
        ("numeric(10,0)", "bigint", "pass"),
        ("numeric(10,2)", "bigint", "convert"),
        ("numeric", "double precision", "convert"),
        ("numeric", "real", "convert"),
        ("real", "double precision", "convert"),
        ("double precision", "real", "convert"),
        ("double precision", "numeric", "convert"),
        ("varchar(10)", "text", "pass"),
        ("varchar(10)", "varchar(20)", "pass"),
        ("varchar(20)", "varchar(10)", "convert"),
        ("text", "jsonb", "convert"),
        ("text", "integer", "pass"),
        ("date", "timestamp", "pass"),
        ("date", "timestamptz", "refuse"),
        ("timestamp", "timestamptz", "refuse"),
        ("timestamptz", "timestamp", "refuse"),
        ("timestamp", "date", "refuse"),
        ("timestamp", "timestamp(3)", "convert"),
        ("timestamp(3)", "timestamp", "pass"),
        ("json", "jsonb", "convert"),
        ("uuid", "text", "pass"),
        ("uuid", "varchar(10)", "convert"),
        ("inet", "inet", "pass"),
        ("inet", "cidr", "pass"),
        ("inet", "text", "pass"),
    ],
)
def test_each_way_is_known_before_the_first_row(source: str, target: str, expected: Way) -> None:
    assert way(pg(source), pg(target)) == expected


def test_enums_take_texts_whose_labels_the_server_checks() -> None:
    assert way(pg("text"), MOOD) == "pass"
    assert way(MOOD, pg("text")) == "pass"
    assert way(MOOD, pg("inet")) == "pass"


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("int64", "integer", "convert"),
        ("timestamptz", "timestamp", "convert"),
        ("text", "jsonb", "convert"),
        ("text", "integer", "refuse"),
        ("float64", "bigint", "refuse"),
        ("dynamic", "bytea", "convert"),
    ],
)
def test_python_kinds_are_checked_by_column(kind: Kind, target: str, expected: Way) -> None:
    assert way(Type(kind=kind, name="x", dialect="python"), pg(target)) == expected


def test_types_of_other_dialects_are_declared_without_bounds() -> None:
    bounded = Type(kind="text", name="VARCHAR(10)", dialect="sqlite", length=10)
    assert declare_postgres(bounded) == "text"
    assert declare_postgres(pg("numeric(15,2)")) == "numeric(15,2)"


# --- decoding ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("bigint", "-9223372036854775808", -(2**63)),
        ("boolean", "t", True),
        ("boolean", "f", False),
        ("numeric", "0.00", Decimal("0.00")),
        ("double precision", "0.1", 0.1),
        ("real", "0.1", 0.10000000149011612),
        ("text", "a\\tb\\\\c\\n", "a\tb\\c\n"),
        ("text", "\\\\N", "\\N"),
        ("text", "", ""),
        ("bytea", "\\\\x00ff", b"\x00\xff"),
        ("date", "2024-02-29", date(2024, 2, 29)),
        ("time", "23:59:59.5", time(23, 59, 59, 500000)),
        ("timestamp", "2024-01-01 00:00:00.123456", datetime(2024, 1, 1, 0, 0, 0, 123456)),  # noqa: DTZ001
        ("timestamptz", "2024-01-01 00:00:00+00", datetime(2024, 1, 1, tzinfo=UTC)),
        ("interval", "-1 days +02:03:04.5", timedelta(days=-1, hours=2, minutes=3, seconds=4.5)),
        ("interval", "-00:00:01", timedelta(seconds=-1)),
        ("interval", "100:00:00", timedelta(hours=100)),
        ("interval", "3 days", timedelta(days=3)),
        ("uuid", "00000000-0000-0000-0000-000000000001", UUID(int=1)),
        ("jsonb", '{"a": [1.10, null, "x\\\\n"]}', {"a": [Decimal("1.10"), None, "x\n"]}),
        ("inet", "10.0.0.1/8", "10.0.0.1/8"),
    ],
)
def test_fields_become_python_values(name: str, field: str, value: Any) -> None:
    for nullable in (False, True):
        found = text_decoder(pg(name), nullable=nullable)(field)
        assert (found, type(found)) == (value, type(value))
    assert text_decoder(pg(name), nullable=True)(NULL) is None


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("date", "infinity"),
        ("date", "0044-03-15 BC"),
        ("date", "10000-01-01"),
        ("time", "24:00:00"),
        ("timestamp", "-infinity"),
        ("timestamptz", "12024-01-01 00:00:00+00"),
        ("timestamptz", "0044-03-15 00:00:00+00 BC"),
        ("interval", "1 mon"),
        ("interval", "1 year 2 mons 3 days"),
        ("interval", "infinity"),
    ],
)
def test_what_python_cannot_hold_is_refused_by_name(name: str, field: str) -> None:
    with pytest.raises(DataError, match="column 'when'") as caught:
        text_decoder(pg(name), nullable=True, column="when")(field)
    assert caught.value.column == "when"
    assert field not in str(caught.value)


# --- encoding ------------------------------------------------------------------------------


def encode(name: str | Type, *values: Any) -> list[str]:
    target = pg(name) if isinstance(name, str) else name
    return encode_column(values, Column(name="c", type=target))


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("boolean", True, "t"),
        ("bigint", -(2**63), "-9223372036854775808"),
        ("bigint", Decimal("5.0"), "5"),
        ("numeric", Decimal("0.00"), "0.00"),
        ("numeric", 0.1, "0.1"),
        ("numeric", 7, "7"),
        ("numeric", Decimal("-NaN"), "NaN"),
        ("numeric(5,2)", Decimal("1.500"), "1.500"),
        ("numeric(5,2)", Decimal("1E+1"), "1E+1"),
        ("double precision", 1, "1.0"),
        ("double precision", Decimal("0.1"), "0.1"),
        ("double precision", float("nan"), "nan"),
        ("text", "a\tb\\c\n\r", "a\\tb\\\\c\\n\\r"),
        ("text", "\\N", "\\\\N"),
        ("char(3)", "ab", "ab"),
        ("bytea", b"\x00\xff", "\\\\x00ff"),
        ("date", date(44, 3, 15), "0044-03-15"),
        ("date", "2024-02-29", "2024-02-29"),
        ("time", time(1, 2, 3), "01:02:03"),
        ("timestamp", datetime(2024, 1, 1), "2024-01-01 00:00:00"),  # noqa: DTZ001
        ("timestamp", date(2024, 1, 1), "2024-01-01"),
        ("timestamptz", datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01 00:00:00+00:00"),
        ("timestamptz", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("interval", timedelta(days=-1, microseconds=5), "-1 days 0.000005 seconds"),
        ("interval", "1 year -2 mons +3 days -04:05:06.7", "1 year -2 mons +3 days -04:05:06.7"),
        ("interval", "100:00:00", "100:00:00"),
        ("interval", "-infinity", "-infinity"),
        ("uuid", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("jsonb", {"a": [Decimal("1.10"), None]}, '{"a": [1.10, null]}'),
        ("jsonb", "x", '"x"'),
        ("inet", "10.0.0.1", "10.0.0.1"),
    ],
)
def test_values_become_fields(name: str, value: Any, field: str) -> None:
    assert encode(name, value) == [field]
    assert encode(name, None, value, None) == [NULL, field, NULL]


class Colour(Enum):
    RED = "red"


class Number(Enum):
    ONE = 1


def test_enums_of_text_are_their_value() -> None:
    assert encode("text", Colour.RED) == ["red"]
    assert encode(MOOD, Colour.RED) == ["red"]
    with pytest.raises(DataError, match="not text"):
        encode("text", Number.ONE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boolean", 1),
        ("bigint", True),
        ("bigint", 1.5),
        ("bigint", 1.0),
        ("bigint", "1"),
        ("interval", ""),
        ("interval", "1.5 days"),
        ("interval", "00:00:01.0000001"),
        ("interval", "\u0663 days"),
        ("interval(0)", timedelta(seconds=1)),
        ("bigint", 2**63),
        ("bigint", Decimal("1.5")),
        ("bigint", Decimal("NaN")),
        ("smallint", 32768),
        ("numeric", True),
        ("numeric", "1"),
        ("numeric(5,2)", Decimal("1.005")),
        ("numeric(5,2)", Decimal("1E-3")),
        ("numeric(5,2)", 0.30000000000000004),
        ("double precision", 2**53 + 1),
        ("double precision", Decimal("0.12345678901234567890")),
        ("double precision", 10**400),
        ("real", 1e-60),
        ("real", 1e60),
        ("text", 5),
        ("text", "a\x00b"),
        ("text", b"x"),
        ("varchar(3)", "abcd"),
        ("varchar(3)", "abc "),
        ("char(3)", "abcd"),
        ("char(3)", "a "),
        ("bytea", "x"),
        ("date", datetime(2024, 1, 1)),  # noqa: DTZ001
        ("date", datetime(2024, 1, 1, tzinfo=UTC)),
        ("date", "1/2/2024"),
        ("time", time(1, tzinfo=UTC)),
        ("timestamp", datetime(2024, 1, 1, tzinfo=UTC)),
        ("timestamp", "2024-01-01T00:00:00Z"),
        ("timestamp(0)", datetime(2024, 1, 1, 0, 0, 0, 5)),  # noqa: DTZ001
        ("timestamptz", datetime(2024, 1, 1)),  # noqa: DTZ001
        ("timestamptz", date(2024, 1, 1)),
        ("timestamptz", "2024-01-01 00:00:00"),
        ("timestamptz", 0),
        ("interval", 5),
        ("uuid", "x"),
        ("jsonb", float("nan")),
        ("jsonb", {"a": object()}),
        ("inet", 5),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_a_lossy_value_is_refused_by_column_and_row(name: str, value: Any, before: int) -> None:
    with pytest.raises(DataError, match="column 'c'") as caught:
        encode(name, *[None] * before, value)
    assert caught.value.column == "c"
    assert caught.value.row == before
    assert f"row {before + 1} " in str(caught.value)
    assert len(repr(value)) < 5 or repr(value) not in str(caught.value)


def test_none_is_refused_where_the_column_allows_none() -> None:
    with pytest.raises(DataError, match="row 2 of the batch has None"):
        encode_column([1, None], Column(name="c", type=pg("bigint"), nullable=False))


def test_aware_times_keep_their_instant() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert encode("timestamptz", datetime(2024, 1, 1, 9, tzinfo=tokyo)) == [
        "2024-01-01 09:00:00+09:00"
    ]


# --- round trips ---------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


@given(_texts)
def test_text_survives_escaping(text: str) -> None:
    field = escape(text)
    assert not set("\t\n\r") & set(field)
    assert unescape(field) == text
    assert field != NULL


_json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=10,
)
_values: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double precision": st.floats(allow_nan=False),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False),
    "text": _texts,
    "bytea": st.binary(),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": st.datetimes(),
    "timestamptz": st.datetimes(timezones=st.just(UTC)),
    "uuid": st.uuids(),
    "json": _json_values,
    "inet": _texts,
}


@pytest.mark.parametrize("name", list(_values))
@given(data=st.data())
def test_a_column_survives_encoding_and_decoding(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | _values[name], max_size=20))
    if name == "json":
        values = [value for value in values if value is not None]
    fields = encode(name, *values)
    decode = text_decoder(pg(name), nullable=True, column="c")
    assert len(fields) == len(values)
    assert [decode(field) for field in fields] == values


@given(st.lists(_json_values | st.decimals(allow_nan=False, allow_infinity=False)))
def test_json_with_decimals_is_json(values: list[Any]) -> None:
    (field,) = encode("json", [values])  # a jsonb would not keep the sign of a zero
    json.loads(unescape(field))
