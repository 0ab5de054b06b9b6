"""Opens a file by its name, compressed or not, tells one content from another, and compresses."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from etl.errors import ConfigError, DataError, SourceUnavailableError

COMPRESSED = (".gz", ".bz2", ".xz")
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Tells one content of a file from another, as far as its size, time and beginning do."""

    size: int
    changed_ns: int
    head: str

    def __str__(self) -> str:
        return f"{self.size} {self.changed_ns} {self.head}"


def content_of(path: Path) -> Content:
    """What a file holds now.

    Raises:
        ConfigError: No such file, or it cannot be read.
    """
    with reading(str(path)):
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()[:16]
    return Content(size=status.st_size, changed_ns=status.st_mtime_ns, head=head)


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, uncompressed. ``seek`` works on each; a compressed one is read anew."""
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        case ".bz2":
            return cast("IO[bytes]", bz2.open(path, "rb"))
        case ".xz":
            return cast("IO[bytes]", lzma.open(path, "rb"))
        case _:
            return path.open("rb")


class Compressor(Protocol):
    """Compresses a stream, piece by piece."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Uncompressed:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor_for(path: Path) -> Compressor:
    """What compresses a file of this name. The same rows give the same bytes: no time is in it."""
    match path.suffix.lower():
        case ".gz":
            return zlib.compressobj(wbits=31)  # with the header and the sum of a gzip file
        case ".bz2":
            return bz2.BZ2Compressor()
        case ".xz":
            return lzma.LZMACompressor()
        case _:
            return _Uncompressed()


@contextmanager
def reading(where: str) -> Generator[None]:
    """Turn what the system says of a file into this package's errors."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{where}: the compressed data is damaged or cut off. Make the file anew; what was"
            " committed before stays",
            reason="the compressed data is damaged or cut off",
        ) from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise SourceUnavailableError(
            f"{where} cannot be read: {error.strerror or error}. Run again"
        ) from error
