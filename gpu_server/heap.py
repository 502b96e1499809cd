"""Freed memory stays with the process, for the next message, instead of going back to the system in between."""

from __future__ import annotations

import ctypes
import os

MAPPED_FROM = 32 << 20
"""Bytes from which on a block is mapped by itself and unmapped when it is freed: the most that glibc takes."""
KEPT = 64 << 20
"""Bytes that may be free at a heap's end before the system has them back: glibc's own proportion to `MAPPED_FROM`."""
SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep() -> None:
    """Set where glibc itself ends up after it has freed a block of `MAPPED_FROM` bytes (mallopt(3)).

    Until then a batch's answer of half a MiB is unmapped, or cut off the heap's end, when it has been shared out, and each
    of its pages is asked for and cleared again for the next (docs/performance.md). Does nothing under another C library, or
    where the environment has such a setting.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
