"""Many network namespaces at once, by name: make them, write in them, find who lives in them, remove them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from core.errors import MuslinError, Unsupported
from linux.netns import inside

HOME = Path("/run/netns")


def require_root() -> None:
    """Raise `Unsupported` when this process may not make namespaces."""
    if os.geteuid() != 0:
        raise Unsupported("a lab needs root, to make network namespaces: run the same command with sudo")


def batch(lines: Iterable[str], namespace: str = "") -> None:
    """Run `ip` command lines in one process, within `namespace` ("": ours); stops at the first that fails."""
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return
    argv = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        where = f" in {namespace}" if namespace else ""
        raise MuslinError(f"ip{where} failed: {done.stderr.strip()}\n{text}")


def create(names: Iterable[str]) -> None:
    """Make namespaces, with their loopback up."""
    names = list(names)
    batch(f"netns add {name}" for name in names)
    for name in names:
        batch(["link set lo up"], name)


def existing(prefix: str) -> tuple[str, ...]:
    """The namespaces whose name begins with `prefix`."""
    return tuple(sorted(path.name for path in HOME.glob(f"{prefix}*"))) if HOME.is_dir() else ()


def remove(names: Iterable[str]) -> None:
    """Remove namespaces, with every device in them; one that is not there is no error."""
    batch(f"netns del {name}" for name in names if (HOME / name).exists())


def open_socket(name: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in the namespace `name`, non-blocking."""
    with inside(name):
        opened = socket.socket(family, kind, protocol)
    opened.setblocking(False)
    return opened


def sysctl(name: str, values: Mapping[str, str]) -> None:
    """Write sysctls (`net/ipv4/ip_forward`) within a namespace."""
    with inside(name):
        for key, value in values.items():
            Path("/proc/sys", key).write_text(value)


def inhabitants(names: Iterable[str]) -> tuple[int, ...]:
    """The processes that live in any of the namespaces, ourselves left out."""
    homes = {(found.st_dev, found.st_ino) for name in names if (found := _stat(HOME / name))}
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())
    return tuple(pid for pid in pids if (at := _stat(Path(f"/proc/{pid}/ns/net"))) and (at.st_dev, at.st_ino) in homes)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
