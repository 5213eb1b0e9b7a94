"""Sysctls of the calling thread's namespace, by their path under /proc/sys: `net/ipv4/conf/mus1/proxy_arp`."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from core.errors import MuslinError
from core.reconcile import Plan

_ROOT: Final = Path("/proc/sys")


def write(key: str, value: str) -> None:
    """Set one sysctl. Raises `MuslinError` that says why it cannot be."""
    try:
        _path(key).write_text(value)
    except OSError as error:
        raise MuslinError(_sentence(key, value, error)) from error


class SysctlDriver:
    """Keeps the sysctls it is told to watch (a `core.reconcile.Driver`); no other is read or written.

    A sysctl that is no longer desired keeps its value: most belong to a device and go with it.
    """

    name = "sysctls"

    def __init__(self) -> None:
        self._watched: Collection[str] = ()

    def watch(self, keys: Collection[str]) -> None:
        """Which keys `read` looks at: those of the desired state, given together with it."""
        self._watched = keys

    async def read(self) -> Mapping[str, str]:
        """The watched keys that exist, white space folded to single blanks."""
        found = {}
        for key in self._watched:
            try:
                found[key] = " ".join(_path(key).read_text().split())
            except (FileNotFoundError, MuslinError):  # told by `apply`, which the difference leads to
                continue
        return found

    async def apply(self, plan: Plan[str, str]) -> Mapping[str, Exception]:
        """Write what differs. A key that the kernel does not have is an error of that key."""
        failed: dict[str, Exception] = {}
        for key, value in plan.upsert.items():
            try:
                write(key, value)
            except MuslinError as error:
                failed[key] = error
        return failed


def _path(key: str) -> Path:
    if not key or key.startswith("/") or {"", ".", ".."} & set(key.split("/")):
        raise MuslinError(f"sysctl {key!r}: not a path under {_ROOT}")
    return _ROOT / key


def _sentence(key: str, value: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"sysctl {key}: there is none; its device is gone, or the kernel lacks the feature"
    return f"sysctl {key}: cannot be set to {value!r}: {error.strerror}"
