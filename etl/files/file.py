"""``File``: a file by its path, from which a source is made. Opens nothing itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from etl.batch import Batch, Position
from etl.connector import Reader, RunInfo
from etl.errors import ConfigError
from etl.files.opening import COMPRESSED, content_of
from etl.files.reader import open_csv
from etl.files.records import CsvForm
from etl.flow import Source
from etl.rows import Row

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_file(name: str) -> bool:
    """Whether a name is that of a file which :class:`File` takes, by its suffix."""
    return "://" not in name and not name.startswith("env:") and _suffix(name) in _DELIMITERS


def _suffix(name: str) -> str:
    """What a name ends with, apart from that of a compression."""
    path = Path(name.lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


class File:
    """A CSV file (``.csv``, ``.tsv``), also compressed (``.gz``, ``.bz2``, ``.xz``).

    Args:
        delimiter: Default: a comma, in ``.tsv`` a tab.
        encoding: UTF-8 (with or without byte order mark), or a code of one byte a character.
        null: What NULL is written as, without quotes. ``""`` in quotes is an empty text.
        columns: The names of the columns, where the first line does not hold them.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        null: str = "",
        columns: Sequence[str] = (),
    ) -> None:
        name = fspath(path)
        if not is_file(name):
            raise ConfigError(
                f"{name!r} is not a file that etl reads; its name ends with .csv or .tsv, and may"
                " end with .gz, .bz2 or .xz after that"
            )
        if isinstance(columns, str) or len(set(columns)) < len(columns) or not all(columns):
            raise ConfigError("columns= takes names that are not empty, each once")
        self.path = Path(name)
        self.columns = tuple(columns)
        self.form = CsvForm(
            delimiter=_DELIMITERS[_suffix(name)] if delimiter is None else delimiter,
            encoding=encoding,
            null=null,
        )

    @property
    def stem(self) -> str:
        """The file's name without its suffixes: what a table is called after it."""
        name = self.path.name
        for _ in range(2 if self.path.suffix.lower() in COMPRESSED else 1):
            name = Path(name).stem
        return name

    def rows(self) -> FileSource:
        """Read the rows: mappings of texts, with None for NULL."""
        return FileSource(self)

    def __repr__(self) -> str:
        return f"File({str(self.path)!r})"


class FileSource(Source[Row]):
    """The rows of a file, in their order.

    A read that was stopped goes on after the last committed row, if the file is still the same.
    """

    incremental = False

    def __init__(self, file: File) -> None:
        self.name = file.stem
        self.file = file

    @property
    def row_type(self) -> type[Any]:
        return Row

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """See :class:`etl.flow.Source`. Looks at the file."""
        form = self.file.form
        return {
            "file": str(self.file.path.resolve()),
            "form": [form.delimiter, form.encoding, form.null, *self.file.columns],
            "content": str(content_of(self.file.path)),
        }

    @property
    def summary(self) -> str:
        return f"{self.file.path}, in the order of its rows"

    def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[Row], None]:
        raise NotImplementedError("a file is read by its reader")

    def build(self, row: Row) -> Row:
        """See :meth:`etl.flow.Source.build`."""
        return row

    def connect(self, info: RunInfo) -> AbstractAsyncContextManager[Reader[Row]]:
        return open_csv(self.file.path, self.file.form, self.file.columns, info)
