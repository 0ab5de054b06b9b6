"""What a process does that runs etl and nothing else: the command, and its worker processes."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

from etl.policy import MIB

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of malloc.h


def own_this_process() -> None:
    """Set the garbage collector and the C library for rows: called when all modules are loaded.

    With the usual threshold the collector would go through all objects of the program every few
    thousand rows; rows form no cycles.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    _give_large_memory_back()


def _give_large_memory_back() -> None:
    """Let glibc map each large block by itself, so that a freed row is free again.

    Else it keeps blocks of up to 32 MiB for later, in a heap for each thread: twice the memory
    for rows of such sizes. And one heap for all threads: each more would take 64 MiB of a limit
    on the address space (``ulimit -v``). Other C libraries have no such function.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, MIB)
        library.mallopt(_M_ARENA_MAX, 1)
