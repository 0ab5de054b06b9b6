"""The side file that a new file is written into, until it is whole and takes the old one's place.

It stands in the same folder under a name of its own, ``.NAME.etl-part``, so that the last step is
one rename: whoever opens the file sees the old content or the new one, never a part. A lock on it
keeps two runs apart, and the kernel drops that with its process; what a killed run left is
overwritten by the next one.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from etl.errors import (
    AlreadyRunningError,
    ConfigError,
    EtlError,
    FencedError,
    ResourceError,
)

if sys.platform != "win32":
    import fcntl

_PATIENCE_S = 2.0
"""How long a lock is tried: a killed process ends in a moment."""
_POLL_S = 0.05
_BUFFER = 1 << 18


_RESOURCES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


@contextmanager
def writing(where: str) -> Generator[None]:
    """Turn what the system says of a file that is written into this package's errors.

    Raises:
        ResourceError: The disk is full, say. A part may be in the file, so nothing is tried again.
        EtlError: Whatever else it is.
    """
    try:
        yield
    except OSError as error:
        is_passing = error.errno in _RESOURCES
        found = (ResourceError if is_passing else EtlError)(
            f"{where} cannot be written: {error.strerror or error}. Nothing was put in its place:"
            " an older file is as it was. Make room, or mend the folder, and run again"
        )
        if isinstance(found, ResourceError):
            found.is_final = True
        raise found from error


class PartFile:
    """One side file, from its making to the rename. Its methods block."""

    def __init__(self, path: Path, *, take_over: bool) -> None:
        self._where = str(path)
        self._path = path
        self._take_over = take_over
        self._part = path
        self._mode: int | None = None
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Make the side file, empty, and lock it.

        Raises:
            AlreadyRunningError: Another run writes the same file.
            ConfigError: It cannot be made, or what is there is no file to be replaced.
            ResourceError: It cannot be made now: the disk is full, say.
        """
        try:
            # A link stays, and what it names is replaced.
            self._path = Path(os.path.realpath(self._path))
            self._part = self._path.with_name(f".{self._path.name}.etl-part")
            self._look_at_old()
            self._file = os.fdopen(self._claimed(), "wb", _BUFFER)
        except OSError as error:
            is_passing = error.errno in _RESOURCES
            raise (ResourceError if is_passing else ConfigError)(
                f"{self._where} cannot be written: {error.strerror}. Nothing was moved"
            ) from error

    @property
    def file(self) -> IO[bytes]:
        """What is written into."""
        assert self._file is not None, "it is not open"
        return self._file

    def publish(self) -> None:
        """Bring it to the disk, and put it in place.

        Raises:
            FencedError: A newer run took over.
        """
        with writing(self._where):
            file = self.file
            file.flush()
            if self._mode is not None and sys.platform != "win32":
                os.fchmod(file.fileno(), self._mode)
            os.fsync(file.fileno())
            if not self._is_mine():
                raise FencedError(
                    f"{self._where}: another run has taken over; this one put nothing in place"
                )
            if sys.platform == "win32":
                file.close()  # there an open file cannot be renamed
            os.replace(self._part, self._path)
            _sync_folder(self._path.parent)
            self._close()

    def discard(self) -> None:
        """Remove it, unless it is in place."""
        if self._file is None:
            return
        with suppress(OSError):
            if self._is_mine():
                self._part.unlink()
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what could not be written is not needed any more
                file.close()

    def _look_at_old(self) -> None:
        try:
            old = self._path.stat()
        except FileNotFoundError:
            return
        if not stat.S_ISREG(old.st_mode):
            raise ConfigError(f"{self._where} is not a file, so it is not replaced")
        if not os.access(self._path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._mode = stat.S_IMODE(old.st_mode)

    def _claimed(self) -> int:
        """The descriptor of the side file, locked and empty."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        deadline = monotonic() + _PATIENCE_S
        while True:
            descriptor = os.open(self._part, flags, 0o666)
            kept = False
            try:
                if self._locked(descriptor):
                    os.ftruncate(descriptor, 0)
                    kept = True
                    return descriptor
            finally:
                if not kept:
                    os.close(descriptor)
            if self._take_over:
                # Its run notices at its end that the name is not its own any more.
                with suppress(FileNotFoundError):
                    self._part.unlink()
            elif monotonic() > deadline:
                raise AlreadyRunningError.told(
                    f"another run writes {self._where}: it has locked {str(self._part)!r}"
                )
            else:
                sleep(_POLL_S)

    def _locked(self, descriptor: int) -> bool:
        if sys.platform == "win32":
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._is_still(descriptor)

    def _is_still(self, descriptor: int) -> bool:
        """Whether the name is still that of this file."""
        try:
            return os.path.samestat(self._part.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _is_mine(self) -> bool:
        return self._is_still(self.file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring the rename to the disk, where a folder can be opened for that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
