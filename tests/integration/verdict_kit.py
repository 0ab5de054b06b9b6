"""Holds verdicts against what happens: types, awkward values, and what counts as equal."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

POSTGRES: Mapping[str, Sequence[str]] = {
    "boolean": ("true", "false"),
    "smallint": ("-32768", "32767", "0", "7"),
    "integer": ("-2147483648", "2147483647", "0", "16777217", "7"),
    "bigint": ("-9223372036854775808", "9223372036854775807", "9007199254740993", "0", "7"),
    "real": ("1e-45", "3.4028235e38", "-0", "0.1", "16777216", "NaN", "Infinity", "7", "1.5"),
    "double precision": (
        *("5e-324", "1.7976931348623157e308", "-0", "0.1", "0.123456789", "1e15", "1e16", "NaN"),
        *("-Infinity", "16777217", "7", "1.5", "0.10000000149011612"),
    ),
    "numeric": (
        *("0", "1.10", "-0.000", "1e40", "NaN", "Infinity", "1e-40", "7", "7.00", "1.005"),
        *("0.1", "12345678901234567890.123456789", "16777217"),
    ),
    "numeric(6,2)": ("1.1", "-9999.99", "NaN", "7", "0.30"),
    "numeric(5,-2)": ("12300", "-99900", "0"),
    "numeric(18,0)": ("7", "999999999999999999", "-1"),
    "text": (
        *("", " ", "a", "a ", " a", "007", "1e5", "0x10", "1.50", "-0", "+7", "7", "NaN", "t"),
        *("2024-05-06", "2024-05-06 12:30:00", "2024-05-06 12:30:00+02", "12:30:00", "24:00:00"),
        *(
            "a\tb\\n\n",
            "abcdefghij",
            "{1,2}",
            '{"a": 1, "a": 2}',
            '{"b": 1, "a": 1.0}',
            "é\U0001f600",
        ),
        *("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        *("$1.25", "1.239", "1 day", "192.168.0.1/24", "101", "\\N", "\\x00", "infinity"),
    ),
    "varchar(4)": ("", "a", "a ", "abcd", "007", " 1"),
    "char(4)": ("a", "abcd", "", "ab"),
    "name": ("a", "abcdefgh"),
    '"char"': ("a", "b"),
    "bytea": ("\\x", "\\x00ff", "\\x616263"),
    "date": (
        "0001-01-01",
        "4713-01-01 BC",
        "5874897-12-31",
        "infinity",
        "10000-01-01",
        "2024-05-06",
    ),
    "time": ("24:00", "00:00", "23:59:59.999999", "12:30:00", "12:30:00.5"),
    "time(0)": ("24:00", "12:30:00"),
    "timetz": ("24:00-15:59", "12:30:00.5+05:30", "12:30:00+00"),
    "timestamp": (
        *("4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999", "infinity", "-infinity"),
        *("2020-02-29 12:34:56.7", "2024-05-06 00:00:00", "10000-01-01 00:00:00"),
    ),
    "timestamp(3)": ("2020-02-29 12:34:56.789", "2024-05-06 00:00:00"),
    "timestamptz": (
        *("4713-01-02 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "infinity"),
        *("2020-02-29 12:34:56.7+05:30", "1800-01-01 00:00:00+00", "2024-05-06 00:00:00+00"),
    ),
    "interval": ("1 year 2 mons -3 days 04:05:06.7", "-1 mons", "0", "1 day", "25:00:00"),
    "interval day to second(0)": ("1 day 02:03:04", "0"),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
    "json": (
        *('{"b":1,"a":2}', '{"a": 1, "a": 2}', "1e400", "-0", "-0.0", '" "', "null", '"\\u00e9"'),
        *("[1.0, 1.50]", '{"\\u0061": 1, "a": 2}', "12345678901234567890123"),
    ),
    "jsonb": ('{"b":1,"a":2}', "1.50", "null", "[]"),
    "inet": ("192.168.0.1/24", "::1"),
    "cidr": ("10.0.0.0/8",),
    "macaddr": ("08:00:2b:01:02:03",),
    "money": ("1.25", "-1234567.89"),
    "bit(3)": ("101",),
    "bit varying(5)": ("1", "10101", ""),
    "point": ("(1.5,2)",),
    "int4range": ("[1,5)", "empty"),
    "tsvector": ("'a':1 'b':2",),
    "oid": ("0", "4294967295"),
    "pg_lsn": ("16/B374D848",),
    "integer[]": ("{1,2}", "[0:1]={3,4}", "{}", "{NULL}", "{{1},{2}}"),
    "text[]": ('{a,"b c","",NULL}', "{}"),
    "numeric(4,1)[]": ("{1.5,2}",),
    "numeric[]": ("{1.55}", "{1.5}"),
    "double precision[]": ("{0.1,NaN}",),
    "timestamp[]": ('{"2024-05-06 12:30:00"}',),
    "regclass": ("pg_class",),
    "box": ("(1,1),(0,0)",),
}
"""Built-in types of PostgreSQL, and awkward values of each."""

FEW: Sequence[str] = (
    *("integer", "real", "double precision", "numeric", "numeric(6,2)", "text"),
    *("varchar(4)", "char(4)", "timestamp", "timestamp(0)", "timestamptz", "jsonb"),
    *("name", '"char"', "money", "numeric(4,1)[]", "interval day to second(0)"),
)
"""Types that the values of each other type are copied into, in a short run."""

SQLITE: Mapping[str, Sequence[Any]] = {
    "INTEGER": (0, 1, -1, 2**63 - 1, -(2**63), 1.5, "a", "007", b"\x00", 2**53 + 1, 16777217),
    "REAL": (0.1, 1e308, 5e-324, 1.0, float("inf"), 0.123456789, 2.0**60, "a", b"x", 16777217.0),
    "TEXT": (
        *("", "a", "a ", "007", "1e5", "0x10", "-0", "+7", "1.50", "5.", "NaN", "t", "1", b"\x00"),
        *("2024-05-06", "2024-05-06 12:30:00", "2024-05-06T12:30:00Z", "23:59:60", "24:00:00"),
        *("2024-05-06 24:00:00+00", "2024-05-06 12:30:60", "a\x00b", "abcdefghij", "\\N", "a\tb"),
        *(
            '{"a": 1, "a": 2}',
            '{"b": 1}',
            "$1.239",
            "{1.55}",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        ),
        *("-0.00", "0.5", "-0.5", ".5", "1 day", "\r\n"),
    ),
    "BLOB": (b"", b"\x00\xff", 1, -0.0, 0.0, 1.5, "a", "1.50", float("inf")),
    "NUMERIC": (1, 1.5, "a", 10**15, 0.1, 1e300),
    "BOOLEAN": (0, 1, 2, "t"),
    "DATE": ("2024-05-06", "06.05.2024", 5),
    "DATETIME": ("2024-05-06 12:30:00", "2024-05-06 12:30:00.123", "2024-05-06T12:30:00+02:00"),
    "DECIMAL(6,2)": (1.25, 7, "x", 123456.789),
}
"""Declared types of SQLite, and values of every class in columns of each."""

SQLITE_TARGETS: Sequence[str] = ("INTEGER", "REAL", "TEXT", "BLOB", "NUMERIC", "")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one value."""

    column: str
    value: Any
    before: Any
    after: Any


def same(source: str, target: str, before: Any, after: Any) -> Any:
    """Whether a PostgreSQL value, as the server's text of it, arrived."""
    if before == after:
        return True
    if before is None or after is None:
        return False
    if source == "char(4)":
        return str(before).rstrip(" ") == str(after).rstrip(" ")
    if target == "char(4)":
        return before == str(after).rstrip(" ")
    if target == "jsonb":
        return _pairs(before) == _pairs(after)
    if source == "date":
        return after == (before if before == "infinity" else _midnight(before))
    return same_number(before, after, single="real" in {source, target})


def _midnight(day: str) -> str:
    return day.replace(" BC", " 00:00:00 BC") if day.endswith("BC") else f"{day} 00:00:00"


def _pairs(text: str) -> Any:
    """JSON with every pair of every object, doubles too, and the digits of its numbers."""

    def pairs(found: list[tuple[str, Any]]) -> Any:
        return sorted(found, key=repr)

    return json.loads(text, object_pairs_hook=pairs, parse_int=Decimal, parse_float=Decimal)


def same_number(before: Any, after: Any, *, single: bool = False) -> bool:
    """The same number, and the same sign of a zero where there is one."""
    try:
        one, other = Decimal(str(before)), Decimal(str(after))
    except InvalidOperation:
        return False
    if one.is_nan() or other.is_nan():
        return one.is_nan() and other.is_nan()
    if one.is_zero() and other.is_zero():
        return one.is_signed() == other.is_signed()
    if one == other:
        return True
    if not (one.is_finite() and other.is_finite()):
        return False
    # A floating-point number may be written with fewer digits than it has.
    if one == Decimal(float(other)) or other == Decimal(float(one)):
        return True
    # And a real with those that mean it: the other number is these digits, or the real itself.
    return single and any(
        kept in {float(one), float(other)} and _fewest(kept) in {one, other}
        for kept in (_single(one), _single(other))
    )


def _fewest(number: float) -> Decimal:
    """The digits with which the server writes a real."""
    found = (f"{number:.{digits}g}" for digits in range(1, 10))
    return Decimal(next(text for text in found if _single(Decimal(text)) == number))


def _single(number: Decimal) -> float:
    try:
        found: float = struct.unpack("<f", struct.pack("<f", float(number)))[0]
    except OverflowError:
        return float(number)
    return found


def same_in_sqlite(source: str, before: Any, after: Any) -> Any:
    """Whether a value, as PostgreSQL's text or SQLite's own, arrived in SQLite."""
    if isinstance(after, bytes) or isinstance(before, bytes):
        return after == before or (
            isinstance(before, str) and isinstance(after, bytes) and before == "\\x" + after.hex()
        )
    if before == after and type(before) is type(after):
        return not isinstance(before, float) or str(before) == str(after)
    if source == "boolean":
        return after in {"t": (1, "t"), "f": (0, "f")}[before]
    if source == "timestamptz":
        return str(after).replace("+00:00", "+00") == before
    if source == "char(4)":
        return str(after).rstrip(" ") == str(before).rstrip(" ")
    if isinstance(before, str) and isinstance(after, str):
        return before == after
    return same_number(before, after)


def same_from_sqlite(target: str, before: Any, after: Any) -> Any:
    """Whether a value of SQLite arrived, seen as PostgreSQL's text of it."""
    if isinstance(before, bytes):
        return bool(after == "\\x" + before.hex())
    if target == "boolean":
        return {0: "f", 1: "t"}.get(before) == after
    if isinstance(before, str):
        if before == after:
            return True
        if target == "uuid":
            return before.lower() == after
        if target.startswith(("timestamp", "time")):
            return _instant(before) == _instant(after)
        if target in {"json", "jsonb"}:
            return _pairs(before) == _pairs(after)
        if target == "char(4)":
            return before == after.rstrip(" ")
    text = repr(before) if isinstance(before, float) else str(before)
    if isinstance(before, str) and re.match(r"-?0\d", before):
        return False  # the zero that a number loses may be part of a code
    return same_number(text, after, single=target == "real")


def _instant(text: str) -> Any:
    found = datetime.fromisoformat(f"2000-01-01 {text}" if "-" not in text else text)
    return found.astimezone(UTC) if found.tzinfo is not None else found
