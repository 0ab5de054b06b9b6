"""Tables to make in MySQL: what columns are declared as, and their defaults."""

from __future__ import annotations

import re

from etl.databases.definition import ColumnDefinition
from etl.databases.generic.mysql import types
from etl.databases.generic.mysql.base import Base
from etl.databases.generic.table import ROW, Table
from etl.errors import SchemaMismatchError
from etl.rows import Column, Kind

_INDEX_BYTES = 3072


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

    def prefix_of(self, column: str) -> str:
        """See the class."""
        return f"{self.quote(column)}(191)"

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


_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
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
    if quoted is not None and kind in {"date", "uuid"}:
        return plain
    return None
