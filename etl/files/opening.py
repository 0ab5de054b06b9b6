"""Opens a file by its name, compressed or not, tells one content from another, and compresses."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from etl.errors import ConfigError, DataError, SourceUnavailableError

COMPRESSED = (".gz", ".bz2", ".xz")
_HEAD_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16


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
        ConfigError: No such file, or it cannot be read, or read once only.
    """
    with reading(str(path)):
        # Before it is opened: that of a pipe would wait for somebody who writes into it.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(
                f"{path} is a pipe or a device, which can be read once only, and a file is looked"
                " at before its rows are read. Write what comes out of it into a file first"
            )
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
            raw = _Streams(path, bz2.BZ2Decompressor)
            return cast("IO[bytes]", io.BufferedReader(raw))
        case ".xz":
            raw = _Streams(path, lzma.LZMADecompressor, padding=b"\0")
            return cast("IO[bytes]", io.BufferedReader(raw))
        case _:
            return path.open("rb")


class _Streams(io.RawIOBase):
    """The content of compressed streams, one behind the other, to the end of their file.

    Python's own files for these forms take what is no stream behind the first one for the end:
    the rows of a later stream whose beginning is damaged would be missing without a word.

    Args:
        padding: What may stand between streams, and behind the last one.
    """

    def __init__(
        self,
        path: Path,
        make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor],
        *,
        padding: bytes = b"",
    ) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._make = make
        self._padding = padding
        self._rewind()

    def _rewind(self) -> None:
        self._stream = self._make()
        self._is_begun = False  # the stream, by a byte of it
        self._at = 0
        self._file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read some bytes; 0 at the end of the last stream.

        Raises:
            EOFError: The file ends within a stream.
            OSError: What is there is no stream of bzip2, without a number.
            lzma.LZMAError: It is none of xz.
        """
        most = memoryview(buffer).nbytes
        while most:
            data = self._compressed()
            if data is None:
                return 0
            found = self._stream.decompress(data, most)
            self._is_begun = True
            if found:
                buffer[: len(found)] = found
                self._at += len(found)
                return len(found)
        return 0

    def _compressed(self) -> bytes | None:
        """More of the stream, or the beginning of the next one; None: there is no more."""
        stream = self._stream
        if not stream.eof and not stream.needs_input:
            return b""
        data = stream.unused_data if stream.eof else b""
        if stream.eof:
            stream = self._stream = self._make()
            self._is_begun = False
        while True:
            if not self._is_begun and self._padding:
                data = data.lstrip(self._padding)
            if data:
                return data
            data = self._file.read(_PIECE_BYTES)
            if not data and self._is_begun:
                raise EOFError("the file ends within a stream")
            if not data:
                return None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place counted from the beginning; what lies before it is read."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the beginning")
        if offset < self._at:
            self._rewind()
        while self._at < offset and self.read(min(_PIECE_BYTES, offset - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()


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
        if error.errno in {errno.ELOOP, errno.ENAMETOOLONG}:
            raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
        if error.errno is None:  # not the system's: the decompressor's, or pyarrow's
            raise DataError(
                f"{where}: its data is damaged. Make the file anew; what was committed before"
                " stays",
                reason="its data is damaged",
            ) from error
        raise SourceUnavailableError(
            f"{where} cannot be read: {error.strerror or error}. Run again"
        ) from error
