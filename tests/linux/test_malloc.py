"""One heap, whichever thread allocates: counted by glibc itself, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes, sys, threading
from linux import malloc

if sys.argv[1] == "shared":
    malloc.share_heap()
threads = [threading.Thread(target=bytes, args=(100_000,)) for _ in range(4)]
for each in threads:
    each.start()
for each in threads:
    each.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


def heaps(how: str) -> int:
    argv = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(argv, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return done.stdout.count(b"<heap nr=")


def test_threads_allocate_in_the_heap_that_there_is() -> None:
    assert heaps("own") > 1
    assert heaps("shared") == 1
