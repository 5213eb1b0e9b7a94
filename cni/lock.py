"""Who works on what on this host: one file, a byte of it for each thing that only one process may touch at a time.

The kernel lets go of a lock when its holder dies, however it dies, and nothing is left to be cleaned up.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from core.errors import Unavailable
from core.names import WORKLOAD_PREFIX

FILE: Final = Path("/run/muslin/cni.lock")

ADDRESSES: Final = 0
"""Taking addresses: one at a time on a host, which is faster than losing races for its block."""

PATIENCE_S: Final = 60.0
"""Seconds after which another is waited for no longer; longer than an ADD may take."""

_POLL_S: Final = 0.01
_FLOCK: Final = struct.Struct("hhqqi0q")  # type, whence, start, length, pid


def of_pod(interface: str) -> int:
    """The byte of the pod whose host interface (`core.names.workload_interface`) this is."""
    return 1 + int(interface.removeprefix(WORKLOAD_PREFIX), 16)


@asynccontextmanager
async def held(byte: int, file: Path = FILE, patience_s: float = PATIENCE_S) -> AsyncIterator[None]:
    """Hold a byte of the file. Raises `Unavailable` when another process holds it all that time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while not _taken(descriptor, byte):
            if time.monotonic() > deadline:
                raise Unavailable(f"another muslin-cni has held {file} for {patience_s:g} s; try again")
            await asyncio.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int, byte: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
