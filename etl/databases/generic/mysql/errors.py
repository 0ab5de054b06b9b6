"""What MySQL's errors mean, and what they say without a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from etl.errors import ErrorClass, classify

_CODES: Mapping[ErrorClass, frozenset[int]] = {
    "lost": frozenset({2006, 2013, 2014, 2055, 1053, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1927,
                       4031}),
    "not_ready": frozenset({2002, 2003, 1040, 1203, 1226, 1129}),
    "transient": frozenset({1205, 1213, 1317, 1412, 1969, 3024, 1637, 1180, 1836}),
    "resources": frozenset({1021, 1114, 1037, 1038, 1041, 1206, 3, 28, 1030}),
    "data": frozenset({1048, 1062, 1169, 1216, 1217, 1264, 1265, 1292, 1366, 1367, 1406, 1411, 1416,
                       1441, 1451, 1452, 1526, 1557, 1586, 1644, 1690, 1761, 1762, 3140, 3156, 3157,
                       3819, 4025, 1153, 1301, 3988, 1977}),
    "rights": frozenset({1044, 1045, 1142, 1143, 1227, 1290, 1698, 1251, 1275, 1370, 1410, 1820,
                         1862, 3118, 4151}),
    "schema": frozenset({1049, 1050, 1051, 1054, 1060, 1061, 1064, 1067, 1068, 1069, 1070, 1071,
                         1072, 1074, 1075, 1091, 1101, 1103, 1110, 1113, 1117, 1118, 1136, 1146,
                         1149, 1166, 1170, 1171, 1178, 1273, 1286, 1347, 1356, 1364, 1115, 1253,
                         1293, 1294, 1426, 1427, 1439, 1005, 3780, 4161, 1901, 1906, 3105}),
}  # fmt: skip

_BROKEN = ("not connected", "network operation failed", "packet sequence", "protocol error")
"""What the driver says of a connection of which it has lost track."""

_COLUMN = re.compile(
    r"column (?:[`'\"]?[^`'\".]*[`'\"]?\.){0,2}[`'\"]([^`'\"]*)[`'\"]", re.IGNORECASE
)
_KEY = re.compile(r"for key '([^']*)'\s*$")
_CONSTRAINT = re.compile(r"CONSTRAINT `([^`]*)`(?:\.`([^`]*)`)?")


def _safe(code: int, text: str) -> str:
    """What the server says, without a value that it may quote."""
    text = text.strip().partition("\n")[0]
    column = _COLUMN.search(text)
    named = f" for column '{column[1]}'" if column else ""
    match code:
        case 1062 | 1586 | 1557 | 1169 | 1761 | 1762:
            key = _KEY.search(text)
            return "a value is there already, in the unique key" + (f" {key[1]!r}" if key else "")
        case 1366 | 1292 | 1411 | 1525 | 1416 | 1367:
            return f"incorrect value{named}"
        case 1264 | 1690:
            return f"a value is out of range{named}"
        case 1406:
            return f"data too long{named}"
        case 1265:
            return f"a value does not fit{named}"
        case 1048:
            return f"NULL is not allowed{named}"
        case 1452 | 1216 | 1451 | 1217:
            key = _CONSTRAINT.search(text)
            name = f" {key[1]!r}" if key else ""
            if code in {1452, 1216}:
                return f"the row that the foreign key{name} names is not there"
            return f"another row names this one by the foreign key{name}"
        case 1153:
            return "a row is larger than the server's max_allowed_packet"
        case 3140 | 3156 | 3157:
            return f"it is not JSON{named}"
        case 1644:
            return "a trigger refuses the row"
        case 1045 | 1698 | 1251:
            return "access denied: the user or the password is wrong"
        case 1044 | 1142 | 1143 | 1227 | 1370 | 1410:
            return f"the user has no right to that: {text}"
        case 1290:
            return "the server is read-only"
        case _:
            return text


def classified(error: BaseException) -> tuple[ErrorClass, str]:
    """The class of a driver's error, and what it says without a value."""
    args: tuple[Any, ...] = getattr(error, "args", ())
    code = args[0] if args and isinstance(args[0], int) else 0
    text = str(args[1]) if len(args) > 1 else str(error)
    kinds: list[ErrorClass] = [kind for kind, codes in _CODES.items() if code in codes]
    kind = kinds[0] if kinds else None
    if kind is None:
        found = classify(error)
        if any(word in text.lower() for word in _BROKEN):
            found = "lost"
        return found, _safe(code, text)
    return kind, _safe(code, text)
