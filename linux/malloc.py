"""One heap for this process's C allocations, whichever thread makes them.

As it comes, glibc gives threads heaps of their own, up to eight for each processor. What one thread frees stays in its
heap and no other takes it. An agent reads the whole cluster, and the whole of its table, in whichever worker thread is
free: each of their heaps comes to keep what the largest of these reads took. Python runs one thread at a time, so that
one heap makes none of them wait for another.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h


def share_heap() -> None:
    """Let threads that allocate for the first time from now on do it in the heap that there is.

    A C library that has no such setting (musl) is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
