"""Tables to make in MySQL: what columns are declared as, and their defaults."""

from __future__ import annotations

import re
from collections.abc import Sequence

from etl.databases.definition import ColumnDefinition
from etl.databases.generic.dialect import PREFIX
from etl.databases.generic.mysql import types
from etl.databases.generic.mysql.base import Base
from etl.databases.generic.table import ROW, Table
from etl.errors import SchemaMismatchError
from etl.rows import Column, Kind

_INDEX_BYTES = 3072
_MOST_COLUMNS = 1_016
"""InnoDB's 1,017, without the number of a staged row."""


class Making(Base):
    """See :class:`etl.databases.generic.dialect.Dialect`."""

    def declare(self, column: Column, *, room: int | None) -> str:
        """See the class."""
        return types.declare(column, room=room, is_mariadb=self.is_mariadb)

    def table_options(self) -> str:
        """See the class. Texts differ where they differ in the source: by their bytes."""
        collation = "utf8mb4_nopad_bin" if self.is_mariadb else "utf8mb4_0900_bin"
        return (
            f" ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}"
        )

    def index_bytes(self) -> int | None:
        """See the class."""
        return _INDEX_BYTES

    def clause(
        self, column: ColumnDefinition, declared: str, kind: Kind, *, is_own: bool
    ) -> tuple[str, str | None]:
        """See the class."""
        words: list[str] = ["NOT NULL" if column.required else "NULL"]
        lost: str | None = None
        if column.identity is not None and kind in {"int16", "int32", "int64", "dynamic"}:
            words.append("AUTO_INCREMENT")
        elif column.default is not None:
            default = _own_default(column.default) if is_own else _default(column.default, kind)
            if default is None:
                lost = f"the default of {column.name!r}: {column.default}"
            else:
                words.append(f"DEFAULT {default}")
        if declared.upper().startswith("TIMESTAMP") and column.required and len(words) == 1:
            # Without a default of its own, some servers give it the present.
            words.append("DEFAULT '1970-01-01 00:00:01'")
        if column.comment is not None:
            words.append(f"COMMENT {self.literal(column.comment[:1024])}")
        return " ".join(words), lost

    def is_name(self, text: str) -> bool:
        """See the class."""
        return odd_name(text) is None and text.upper() != "PRIMARY"

    def check_names(self, table: str, columns: Sequence[str], label: str) -> None:
        """See the class."""
        why = odd_name(table)
        if why is not None:
            raise SchemaMismatchError(f"{label}: the name of the table {why}. {_RENAME}")
        there = {ROW: ROW}
        for name in columns:
            why = odd_name(name)
            other = there.setdefault(name.lower(), name)
            if why is None and name.lower() == ROW:
                why = "is that of etl's own column, in which it numbers staged rows"
            elif why is None and other is not name:
                why = f"differs from {other!r} in upper and lower case only, which MySQL ignores"
            if why is not None:
                raise SchemaMismatchError(f"{label}: the name of column {name!r} {why}. {_RENAME}")
        if len(columns) > _MOST_COLUMNS:
            raise SchemaMismatchError(
                f"{label}: the rows have {len(columns):,} columns, and a table of MySQL holds at"
                f" most {_MOST_COLUMNS:,}. Nothing was written; choose some with select(...)"
            )

    def prefix_of(self, column: str) -> str:
        """See the class."""
        return f"{self.quote(column)}({PREFIX})"

    def numbered(self) -> str:
        """See the class."""
        return f"{self.quote(ROW)} BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"

    def check_target(self, table: Table, label: str) -> None:
        """See the class."""
        super().check_target(table, label)
        if not table.is_transactional:
            raise SchemaMismatchError(
                f"{label}: the table {table.name!r} has the engine {table.engine}, which cannot"
                " roll back, so rows and position could not be kept together. Nothing was written;"
                f" ALTER TABLE {self.quote(table.name)} ENGINE=InnoDB"
            )


_RENAME = "Nothing was written; rename it: --as for a table, rename(...) for a column"


def odd_name(name: str) -> str | None:
    """Why MySQL takes a text for the name of no table, column or index; None: it does."""
    if len(name) > 64:
        return "is longer than the 64 characters that MySQL keeps"
    if any(ord(one) > 0xFFFF for one in name):
        return "has a character beyond U+FFFF, which names in MySQL cannot have"
    return "ends in a space, which names in MySQL must not" if name[-1:].isspace() else None


_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
_DAY = re.compile(r"'\d{4}-\d\d-\d\d'", re.ASCII)
_OF_SEQUENCE = re.compile(r"\b(?:nextval|lastval|setval)\s*\(", re.IGNORECASE)
_QUOTED = re.compile(r"('(?:[^'\\]|'')*')(?:::.*)?", re.DOTALL)


def _own_default(text: str) -> str | None:
    """A default of the same dialect; None where it would draw on a sequence of the source's."""
    return None if not text.startswith("'") and _OF_SEQUENCE.search(text) else text


def _default(text: str, kind: Kind) -> str | None:
    """A constant of another dialect's, where MySQL means the same by it; texts have none there
    that every version of the server takes."""
    plain = text.strip()
    while plain.startswith("(") and plain.endswith(")"):
        plain = plain[1:-1].strip()
    quoted = _QUOTED.fullmatch(plain)
    if quoted is not None:
        plain = quoted[1]
    if kind == "bool":
        return {"true": "1", "false": "0", "1": "1", "0": "0"}.get(plain.lower())
    if kind in {"int16", "int32", "int64", "float32", "float64", "numeric"}:
        inner = plain.strip("'")
        return inner if _NUMBER.fullmatch(inner) else None
    if quoted is not None and (kind == "uuid" or (kind == "date" and _DAY.fullmatch(plain))):
        return plain
    return None
