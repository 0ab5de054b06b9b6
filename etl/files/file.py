"""``File``: a file by its path, from which sources and sinks are made. Opens nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from os import PathLike, fspath
from os.path import realpath
from pathlib import Path
from typing import Any, Literal, TypeAlias

from etl.connector import OpenTarget, Reader, RunInfo, Sink
from etl.errors import ConfigError
from etl.files.opening import COMPRESSED, content_of
from etl.files.records import CsvForm
from etl.flow import Source
from etl.rows import Row

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]

_FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def is_file(name: str) -> bool:
    """Whether a name is that of a file which :class:`File` takes, by its suffix."""
    return "://" not in name and not name.startswith("env:") and format_of(name) is not None


def format_of(name: str) -> Format | None:
    """What a file of this name holds; None: not for :class:`File`."""
    path = Path(name.lower())
    if path.suffix not in COMPRESSED:
        return _FORMATS.get(path.suffix)
    found = _FORMATS.get(path.with_suffix("").suffix)
    return None if found == "parquet" else found  # it is compressed in itself


class File:
    """A file of rows: CSV (``.csv``, ``.tsv``), JSON lines (``.jsonl``, ``.ndjson``), Parquet.

    CSV and JSON lines may be compressed (``.gz``, ``.bz2``, ``.xz``). Parquet (``.parquet``) needs
    the extra ``etl[arrow]``.

    Args:
        delimiter: Of CSV. Default: a comma, in ``.tsv`` a tab.
        encoding: Of CSV: UTF-8 (with or without byte order mark), or a code of one byte a
            character. A new file begins with a mark where it is ``utf-8-sig``.
        null: Of CSV: what NULL is written as, without quotes. ``""`` in quotes is an empty text.
        columns: Of CSV: the names of the columns, where the first line does not hold them.
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
        found = format_of(name) if "://" not in name else None
        if found is None:
            raise ConfigError(
                f"{name!r} is not a file that etl knows; its name ends with .csv, .tsv, .jsonl or"
                " .ndjson, and may end with .gz, .bz2 or .xz after that, or with .parquet"
            )
        if isinstance(columns, str) or len(set(columns)) < len(columns) or not all(columns):
            raise ConfigError("columns= takes names that are not empty, each once")
        self.path = Path(name)
        self.format: Format = found
        self.columns = tuple(columns)
        own = {
            "delimiter": delimiter is not None,
            "encoding": encoding != "utf-8",
            "null": bool(null),
            "columns": bool(columns),
        }
        for option, given in own.items():
            if given and found != "csv":
                raise ConfigError(f"{option}= tells how a CSV file is written; {name!r} is none")
        tabs = self._suffixes[0] == ".tsv"
        self.form = CsvForm(
            delimiter=("\t" if tabs else ",") if delimiter is None else delimiter,
            encoding=encoding,
            null=null,
        )

    @property
    def _suffixes(self) -> list[str]:
        """That of the format, and that of a compression."""
        return Path(self.path.name.lower()).suffixes[-2 if self.is_compressed else -1 :]

    @property
    def is_compressed(self) -> bool:
        """Whether its name ends with that of a compression."""
        return self.path.suffix.lower() in COMPRESSED

    @property
    def stem(self) -> str:
        """The file's name without its suffixes: what a table is called after it."""
        name = self.path.name
        for _ in self._suffixes:
            name = Path(name).stem
        return name

    def rows(self) -> FileSource:
        """Read the rows: mappings, with None for NULL. In a CSV file every value is a text."""
        return FileSource(self)

    def replace(self) -> Sink[Any]:
        """Write all rows into a new file, and put it in place when the whole run ended well."""
        if self.columns:
            raise ConfigError(
                f"columns= is for reading; {self.name!r} gets the columns of its rows"
            )
        return Sink(target=self, table=self.path.name, mode="replace")

    # -- as a target, see :class:`etl.connector.Target` ------------------------------------------

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def has_one_writer(self) -> bool:
        """Groups are written one after the other."""
        return True

    @property
    def takes_workers(self) -> bool:
        """One file, one writer."""
        return False

    @property
    def keeps_rejects(self) -> bool:
        """Never: it is a file."""
        return False

    def open(self, info: RunInfo, *, sessions: int) -> AbstractAsyncContextManager[OpenTarget]:
        """Begin a new file."""
        from etl.files.formats import open_new

        return open_new(self, info)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        return (self.path, self.form, self.columns)

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
            "file": realpath(self.file.path),
            "form": [form.delimiter, form.encoding, form.null, *self.file.columns],
            "content": str(content_of(self.file.path)),
        }

    @property
    def summary(self) -> str:
        return f"{self.file.path}, in the order of its rows"

    def build(self, row: Row) -> Row:
        """See :meth:`etl.flow.Source.build`."""
        return row

    def connect(self, info: RunInfo) -> AbstractAsyncContextManager[Reader[Row]]:
        from etl.files.formats import open_old

        return open_old(self.file, info)
