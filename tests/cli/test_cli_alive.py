"""Agents alone: without a datastore, without rights, told to end as the datastore dies. Real processes and signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core import health
from core.resources import FelixStatus, Node, SpeakerStatus
from core.supervise import CANNOT_RUN
from datastore import objects
from datastore.client import GrpcStore

HOUSE = Path(__file__).parents[2]
NODE = msgspec.convert(
    {"metadata": {"name": "n1"}, "spec": {"bgp": {"ipv4Address": "10.9.0.1/24", "asNumber": 65001}}}, Node
)


class World:
    """Processes in a node of their own; `muslin` and what it logs."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.address = folder, f"unix:{folder}/datastore.sock"
        self._stack = stack
        self._namespace = f"muslin-alone-{os.getpid()}"
        subprocess.run(["ip", "netns", "add", self._namespace], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", self._namespace], check=True)
        subprocess.run(["ip", "-n", self._namespace, "link", "set", "lo", "up"], check=True)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{words[0]}.log").open("w") as log:
            argv = ["ip", "netns", "exec", self._namespace, sys.executable, "-m", "cli", *words]
            process = subprocess.Popen(argv, cwd=HOUSE, stderr=log)
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.kill)
        return process

    def log(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.log").read_text().splitlines()]

    def events(self, name: str, *wanted: str) -> list[str]:
        return [line["event"] for line in self.log(name) if line["event"].startswith(wanted)]

    def health(self, name: str) -> dict[str, str]:
        components = asyncio.run(health.ask(self.folder / f"{name}.health"))
        return {component: each.state.value for component, each in components.items()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def until(what: str, holds: Callable[[], object]) -> None:
    """Wait for something that gives no event, 20 s at most."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


async def put_node(address: str) -> None:
    store = GrpcStore(address)
    try:
        await objects.create(store, NODE)
    finally:
        await store.close()


async def ready(address: str, kind: type[FelixStatus] | type[SpeakerStatus]) -> bool:
    store = GrpcStore(address)
    try:
        found = await objects.read(store, kind, "n1")
        return found is not None and found[0].status.ready and bool(found[0].status.reported)
    finally:
        await store.close()


@pytest.mark.kernel
@pytest.mark.parametrize(("agent", "kind"), [("felix", FelixStatus), ("bgp", SpeakerStatus)])
def test_without_a_datastore_an_agent_says_so_once_and_works_when_it_comes(
    world: World, agent: str, kind: type[FelixStatus] | type[SpeakerStatus]
) -> None:
    at = ("--datastore", world.address, "--run-dir", str(world.folder / "run"))
    process = world.start(agent, "--node", "n1", *at, "--health", f"unix:{world.folder}/{agent}.health")
    until("it says that the datastore is away", lambda: world.events(agent, "datastore."))
    assert set(world.health(agent).values()) == {"starting"}
    where = ("--listen", world.address, "--health", f"unix:{world.folder}/datastore.health")
    server = world.start("datastore", "--backend", f"sqlite:{world.folder}/db", *where)
    until("the datastore listens", lambda: world.events("datastore", "datastore.listening"))
    asyncio.run(put_node(world.address))
    until("its status is ready", lambda: asyncio.run(ready(world.address, kind)))
    assert set(world.health(agent).values()) == {"ok"}
    until("the datastore has asked itself", lambda: world.health("datastore") == {"datastore": "ok"})
    assert world.events(agent, "datastore.away", "datastore.back", "status.") == ["datastore.away", "datastore.back"]

    server.kill()
    process.terminate()
    assert process.wait(3) == 0
    assert not (world.folder / f"{agent}.health").exists()


@pytest.mark.kernel
def test_a_datastore_that_goes_away_is_said_once_and_makes_nobody_ready(world: World) -> None:
    where = ("--listen", world.address)
    server = world.start("datastore", "--backend", f"sqlite:{world.folder}/db", *where)
    until("the datastore listens", lambda: world.events("datastore", "datastore.listening"))
    asyncio.run(put_node(world.address))
    at = ("--datastore", world.address, "--run-dir", str(world.folder / "run"))
    process = world.start("bgp", "--node", "n1", *at, "--health", f"unix:{world.folder}/bgp.health")
    until("it is ready", lambda: asyncio.run(ready(world.address, SpeakerStatus)))
    server.kill()
    until("it says so", lambda: world.health("bgp")["datastore"] == "degraded")
    process.send_signal(signal.SIGINT)
    assert process.wait(3) == 0
    assert world.events("bgp", "datastore.", "status.") == ["datastore.away"]


@pytest.mark.parametrize("agent", ["felix", "bgp", "node"])
def test_without_rights_an_agent_ends_with_one_sentence_and_is_not_tried_again(agent: str, tmp_path: Path) -> None:
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "cli", agent]
    at = ["--node", "n1", "--datastore", f"unix:{tmp_path}/s", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*powerless, *at], cwd=HOUSE, check=False, capture_output=True, text=True, timeout=30)
    sentences = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == CANNOT_RUN
    assert "run it as root" in sentences[0]
    if agent == "node":
        assert "is not tried again" in sentences[-1]
    else:
        assert done.stderr.count("\n") == 1
