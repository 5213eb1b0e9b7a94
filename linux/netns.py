"""Network namespaces: made, entered, left, found, removed. Everything in the project that does so does it here.

A namespace belongs to a thread, not to a process. `inside` and `scratch_namespace` move the calling thread and bring
it back; sockets that it opens meanwhile stay in the namespace for good, and threads that it starts begin there,
but an asyncio task that awaits in between, or a pool thread started earlier, does not move with it.

Named ones lie in /run/netns, where `ip netns` keeps them. A path (/proc/PID/ns/net, /var/run/netns/x) does as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from core.errors import MuslinError, Unsupported
from linux import interfaces
from linux.netlink import Netlink

_NAMED: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000
_OWN: Final = "/proc/thread-self/ns/net"
_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)
_LOOPBACK: Final = 1
"""The index of `lo` in every namespace."""


def path(namespace: str) -> str:
    """The file that stands for a namespace, given by name or by path."""
    return namespace if "/" in namespace else str(_NAMED / namespace)


def exists(namespace: str) -> bool:
    """Whether there is such a namespace."""
    return os.path.exists(path(namespace))


def names(prefix: str = "") -> tuple[str, ...]:
    """The named namespaces whose name begins with `prefix`."""
    return tuple(sorted(found.name for found in _NAMED.glob("*") if found.name.startswith(prefix)))


def create(name: str) -> None:
    """Make a named namespace with its loopback up; raises MuslinError if there is one already."""
    _ip("netns", "add", name)
    with inside(name):
        _loopback_up()


def delete(name: str) -> None:
    """Remove a named namespace; one that is gone already is success. Processes inside keep it alive, nameless."""
    if exists(name):
        _ip("netns", "delete", name)


def command(namespace: str, *argv: str) -> list[str]:
    """The argument vector that runs `argv` inside `namespace`.

    In a named one it also sees a /sys that shows the namespace's own devices, and /etc/netns/NAME over /etc.
    """
    if "/" in namespace:
        return ["nsenter", f"--net={namespace}", "--", *argv]
    return ["ip", "netns", "exec", namespace, *argv]


def open_socket(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A non-blocking socket that lives in `namespace`, whatever thread uses it. Raises OSError if there can be none."""
    with inside(namespace):
        opened = socket.socket(family, kind, protocol)
    opened.setblocking(False)
    return opened


def inhabitants(namespaces: Iterable[str]) -> tuple[int, ...]:
    """The processes that live in any of the namespaces, ourselves left out; a namespace that is gone has none."""
    homes = {(found.st_dev, found.st_ino) for each in namespaces if (found := _stat(path(each)))}
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())
    return tuple(pid for pid in pids if (at := _stat(f"/proc/{pid}/ns/net")) and (at.st_dev, at.st_ino) in homes)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Move the calling thread into `namespace` and back. Raises OSError if it cannot."""
    with open(path(namespace)) as there, _return():
        _call("setns", there.fileno(), _CLONE_NEWNET)
        yield


class Home:
    """The network namespace in which this is made: where threads belong that `inside` moves."""

    def __init__(self) -> None:
        self._file = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def come(self) -> None:
        """Bring the calling thread back, if it is elsewhere: the kernel may have refused to when it should have come.

        Raises OSError if it still does.
        """
        here, home = os.stat(_OWN), os.fstat(self._file)
        if (here.st_dev, here.st_ino) != (home.st_dev, home.st_ino):
            _call("setns", self._file, _CLONE_NEWNET)


@contextlib.contextmanager
def scratch_namespace() -> Iterator[None]:
    """Move the calling thread into a new, nameless namespace with its loopback up, and back.

    The namespace goes when the last socket opened in it is closed.
    """
    with _return():
        _call("unshare", _CLONE_NEWNET)
        _loopback_up()
        yield


@contextlib.contextmanager
def _return() -> Iterator[None]:
    with open(_OWN) as home:
        try:
            yield
        finally:
            _call("setns", home.fileno(), _CLONE_NEWNET)


def _loopback_up() -> None:
    with Netlink() as netlink:
        interfaces.set_link(netlink, _LOOPBACK, up=True)


def _stat(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)
    except OSError:
        return None


def _call(function: str, *arguments: int) -> None:
    if getattr(_LIBRARY, function)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _ip(*argv: str) -> None:
    try:
        done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise Unsupported("there is no `ip` command on this machine; install the package iproute2") from missing
    if done.returncode:
        raise MuslinError(f"ip {' '.join(argv)}: {done.stderr.strip()}")
