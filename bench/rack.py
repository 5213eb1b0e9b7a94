"""A rack to measure speakers in: namespaces joined by wires, BIRDs, a datastore's server, and bgp as it is in service.

Every process writes to one log; the namespaces have this process's id in their names. All of it goes with the stack.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.filling import fill
from core.resources import Resource, SpeakerStatus
from core.resources.status import SpeakerState
from datastore import objects
from datastore.client import GrpcStore
from linux import netns

PATIENCE_S: Final = 120.0
_POLL_S: Final = 0.04
"""Counting 100,000 prefixes takes the kernel 5 ms, of which both sides of a comparison pay their share."""
_ROOT: Final = Path(__file__).parents[1]


def until(what: str, holds: Callable[[], bool], every_s: float = _POLL_S) -> float:
    """Wait until `holds()`; when that was, by the performance counter."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(every_s)
    return time.perf_counter()


class Rack:
    """Places (network namespaces) by short names, and what runs in them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._places: set[str] = set()
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muslin-bench-")))
        self._log = stack.enter_context((self.folder / "log").open("w"))

    def place(self, name: str) -> str:
        """The namespace of that name, made when it is first spoken of."""
        full = f"muslin-bench-{os.getpid()}-{name}"
        if full not in self._places:
            netns.create(full)
            self._stack.callback(netns.delete, full)
            self._places.add(full)
        return full

    def wire(self, one: str, one_address: str, other: str, other_address: str) -> None:
        """A veth between two places, its ends named after the place at the other end."""
        there = self.place(other)
        self.ip(one, f"link add {other} type veth peer name {one} netns {there}")
        for place, device, address in ((one, other, one_address), (other, one, other_address)):
            self.ip(place, f"addr add {address} dev {device}")
            self.ip(place, f"link set {device} up")

    def ip(self, place: str, line: str) -> None:
        """Run `ip` in a place."""
        subprocess.run(["ip", "-n", self.place(place), *line.split()], check=True)

    def start(self, place: str, *argv: str) -> subprocess.Popen[bytes]:
        """A process in a place ("": in none); it is ended with everything else."""
        command = netns.command(netns.path(self.place(place)), *argv) if place else argv
        process = subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd=_ROOT)

        def end() -> None:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()

        self._stack.callback(end)
        return process

    def prefixes(self, place: str) -> int:
        """How many IPv4 prefixes the kernel of a place holds."""
        with netns.inside(self.place(place)):
            text = Path("/proc/thread-self/net/fib_triestat").read_text()
        return int(text.split("Prefixes:")[1].split()[0])

    def datastore(self, state: Sequence[Resource]) -> str:
        """A datastore's server that holds `state`; its address."""
        address = f"unix:{self.folder}/datastore.sock"
        words = ("datastore", "--backend", f"sqlite:{self.folder}/db", "--listen", address)
        self.start("", sys.executable, "-m", "cli", *words)
        asyncio.run(fill(address, state))
        return address

    def speaker(self, place: str, node: str, datastore: str) -> Speaker:
        """bgp of `node`."""
        run_dir = self.folder / f"run-{place}"
        argv = ("-m", "bgp", "--node", node, "--datastore", datastore, "--run-dir", str(run_dir))
        return Speaker(self.start(place, sys.executable, *argv), node, datastore)


class Bird:
    """A BIRD in a place of a rack."""

    def __init__(self, rack: Rack, place: str, router_id: str, body: str) -> None:
        conf = rack.folder / f"{place}.conf"
        self._control = str(rack.folder / f"{place}.ctl")
        conf.write_text(f"router id {router_id};\nprotocol device {{ scan time 1; }}\n{body}")
        self.process = rack.start(place, "bird", "-f", "-c", str(conf), "-s", self._control)
        until(f"BIRD of {place} answers", Path(self._control).exists)

    def ask(self, *words: str) -> str:
        """What `birdc` prints."""
        done = subprocess.run(["birdc", "-s", self._control, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def up(self, session: str) -> bool:
        """Whether a session is established."""
        return "Established" in self.ask("show", "protocols", session)


class Speaker:
    """A running bgp."""

    def __init__(self, process: subprocess.Popen[bytes], node: str, datastore: str) -> None:
        self.process, self._node, self._datastore = process, node, datastore

    def state(self) -> SpeakerState:
        """What it says of itself; an empty state before it has said anything."""
        return asyncio.run(_state(self._datastore, self._node))

    def resident(self) -> float:
        """MiB that it and its ExaBGP take."""
        pids = [self.process.pid]
        for pid in pids:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return sum(_resident(pid) for pid in pids) / (1 << 10)


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


async def _state(datastore: str, node: str) -> SpeakerState:
    store = GrpcStore(datastore)
    try:
        found = await objects.read(store, SpeakerStatus, node)
        return found[0].status if found else SpeakerState()
    finally:
        await store.close()
