"""Links, addresses and routes as an administrator writes and reads them: `ip`, many lines to a process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any

from core.addr import Network
from core.errors import MuslinError


def batch(lines: Iterable[str], namespace: str = "") -> None:
    """Run `ip` command lines in one process, within the named `namespace` ("": ours); stops at the first that fails."""
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return
    _run(["-batch", "-"], namespace, text)


def routes(namespace: str, version: int, *selector: str) -> Mapping[Network, Mapping[str, Any]]:
    """The unicast routes of a namespace's main table but for the default, by prefix, as `ip -j` tells them."""
    shown = _run(["-j", f"-{version}", "route", "show", "type", "unicast", *selector], namespace)
    return {ip_network(each["dst"]): each for each in json.loads(shown or "[]") if each["dst"] != "default"}


def _run(arguments: list[str], namespace: str, text: str = "") -> str:
    argv = ["ip", *(["-n", namespace] if namespace else []), *arguments]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        where = f" in {namespace}" if namespace else ""
        raise MuslinError(f"ip{where} failed: {done.stderr.strip()}\n{text or ' '.join(argv)}")
    return done.stdout
