"""How MySQL and MariaDB spell constants, and read and order values."""

from __future__ import annotations

from typing import Any

from etl.databases.generic.dialect import Dialect
from etl.databases.generic.mysql import types
from etl.databases.generic.table import TableColumn
from etl.databases.sql import literal


class Base(Dialect):
    """See :class:`etl.databases.generic.dialect.Dialect`."""

    name = types.DIALECT
    shows_late = True
    has_limit = True
    most_indexes = 64

    @property
    def is_mariadb(self) -> bool:
        return bool(getattr(self.sqlalchemy, "is_mariadb", False))

    @property
    def has_long_unique(self) -> bool:
        """See the class: MariaDB hashes them."""
        return self.is_mariadb

    # -- SQL ---------------------------------------------------------------------------------

    def literal(self, value: object) -> str:
        """See the class. A backslash escapes in this dialect."""
        return literal(value).replace("\\", "\\\\")

    def read_as(self, column: TableColumn) -> str:
        """See the class."""
        return types.read_as(column, self.quote(column.name))

    def order_by(self, column: TableColumn, *, is_unique: bool) -> str:
        """See the class. An enum sorts by its numbers, and compares with a text as a text."""
        name = self.quote(column.name)
        if self._is_by_bytes(column, is_unique=is_unique):
            return f"CAST(CONVERT({name} USING utf8mb4) AS BINARY)"
        return f"({name} + 0)" if column.base == "bit" else name

    def bound_key(self, column: TableColumn, value: Any, *, is_unique: bool) -> Any:
        """See the class."""
        if self._is_by_bytes(column, is_unique=is_unique) and isinstance(value, str):
            return value.encode()
        if column.base == "timestamp" and isinstance(value, str):
            return value.removesuffix("+00:00")
        return value

    @staticmethod
    def _is_by_bytes(column: TableColumn, *, is_unique: bool) -> bool:
        return column.base in {"enum", "set"} or (not is_unique and column.base in types.TEXTS)

    def sorts(self, column: TableColumn, mark: str, *, is_unique: bool) -> str:
        """See the class: by the column's own collation."""
        if self._is_by_bytes(column, is_unique=is_unique):
            return f"CAST({mark} AS BINARY)"
        if column.base in types.TEXTS and column.charset and column.collation:
            return f"CONVERT({mark} USING {column.charset}) COLLATE {column.collation}"
        return f"CAST({mark} AS TIME(6))" if column.base == "time" else mark
