"""What `status` and `rollout` say of a cluster without nodes, and how its page looks on a narrow terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cli.cluster import NO_NODES
from core import clock
from core.resources import FelixStatus, SpeakerStatus
from datastore import objects
from datastore.client import GrpcStore

HOUSE = Path(__file__).parents[2]
NODE = "worker-17.rack-3.example.org"
ENDPOINTS = {f"shop/{state}": {"state": state, "reason": "a reason"} for state in ("up", "pending", "error")}


def test_a_cluster_without_nodes_is_not_right(muslin: Callable[[str], Any]) -> None:
    said = muslin("status --check")
    assert said.code == 1
    assert NO_NODES in said.out
    assert muslin("status").code == 0
    page = json.loads(muslin("status -o json").out)
    assert (page["right"], page["wrong"], page["nodes"]) == (False, [NO_NODES], [])
    said = muslin("rollout status --timeout 5")
    assert (said.code, said.out, said.err) == (1, "", NO_NODES + "\n")
    assert muslin("rollout status --timeout 5 -o json").code == 1


async def test_no_heading_is_cut_on_eighty_columns(datastore: str) -> None:
    store = GrpcStore(datastore)
    try:
        heard: dict[str, Any] = {"ready": False, "since": "2026-01-01T00:00:00Z", "reported": clock.now()}
        felix = {**heard, "programmed": 123456, "routes": 12345, "endpoints": ENDPOINTS}
        peer = {"peer": "fd00:10:1::254", "name": "rack-3-upper", "asNumber": 4200000001, "state": "OpenConfirm"}
        speaker = {**heard, "asNumber": 4200065101, "sessions": [{**peer, "reason": "hold timer expired"}]}
        for cls, status in ((FelixStatus, felix), (SpeakerStatus, speaker)):
            await objects.create(store, msgspec.convert({"metadata": {"name": NODE}, "status": status}, cls))
    finally:
        await store.close()
    shown = on_a_terminal(["status", "--datastore", datastore])
    assert "…" not in shown
    for heading in ("PROGRAMMED", "ENDPOINTS", "ROUTES", "SESSIONS", "ROUTES OUT", "PEER", "STATE", "WHY", "NOT RIGHT"):
        assert re.search(rf"(^|  ){heading}( |$)", shown, re.MULTILINE), shown
    assert max(map(len, shown.splitlines())) <= 80


def on_a_terminal(words: list[str]) -> str:
    """What a terminal of 80 columns shows of a command."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    argv = [sys.executable, "-m", "cli", *words]
    with subprocess.Popen(argv, cwd=HOUSE, stdin=theirs, stdout=theirs, env=environment | {"TERM": "dumb"}) as command:
        os.close(theirs)
        found = b""
        while chunk := read(ours):
            found += chunk
        assert command.wait(30) == 0
    os.close(ours)
    return found.decode().replace("\r\n", "\n")


def read(terminal: int) -> bytes:
    """What comes next; nothing when the other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
