"""`muslin node` as an operator runs it: its agents in a node of their own, one killed, all ended, all removed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.health import ask, fetch

HOUSE = Path(__file__).parents[2]

CLUSTER = [
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": "n1"},
        "spec": {"bgp": {"ipv4Address": "10.9.0.1/24", "asNumber": 65001}},
    },
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "pods"},
        "spec": {"cidr": "10.244.0.0/16"},
    },
]

Muslin = Callable[[str], Any]


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"muslin-cli-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in ("link set lo up", "addr add 10.9.0.1/24 dev lo"):  # the Node's: else this is not its machine
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def inside(namespace: str, *argv: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *argv]


def tables(namespace: str) -> str:
    return subprocess.run(inside(namespace, "nft", "list", "tables"), check=True, capture_output=True, text=True).stdout


def agents(parent: int) -> dict[str, int]:
    """The agents that run below a process, by name."""
    found = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "cli" in words:  # not dead, and past its exec
            found[words[words.index("cli") + 1]] = int(pid)
    return found


def components(socket: Path) -> dict[str, str]:
    """What `muslin node` says of its agents and their parts."""
    return {name: each.state.value for name, each in asyncio.run(ask(socket)).items()}


def metrics(socket: Path) -> set[str]:
    """The lines of what it tells Prometheus."""
    return set(asyncio.run(fetch(socket, "/metrics")).decode().splitlines())


@pytest.mark.kernel
def test_the_agents_are_kept_alive_and_leave_what_they_programmed(
    muslin: Muslin, datastore: str, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump_all(CLUSTER))
    assert muslin(f"apply -f {tmp_path}/cluster.yaml").code == 0
    socket = tmp_path / "node.health"
    command = [sys.executable, "-m", "cli", "node", "--node", "n1", "--datastore", datastore]
    command += ["--health", f"unix:{socket}"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            inside(namespace, *command, "--run-dir", str(tmp_path / "run")), cwd=HOUSE, stderr=log
        ) as process,
    ):
        try:
            done = muslin("rollout status --timeout 30")
            assert done.code == 0, done.err + (tmp_path / "log").read_text()
            first = agents(process.pid)
            assert set(first) == {"felix", "bgp", "cni"}
            deadline = time.monotonic() + 30
            while set(components(socket).values()) != {"ok"}:
                assert time.monotonic() < deadline, components(socket)
                time.sleep(0.1)
            assert {"felix", "felix.nft", "bgp", "bgp.exabgp", "cni", "cni.server"} <= components(socket).keys()
            told = {"muslin_felix_ready 1.0", "muslin_bgp_ready 1.0", "muslin_cni_requests_in_flight 0.0"}
            while not told <= (measured := metrics(socket)):
                assert time.monotonic() < deadline, measured
                time.sleep(0.1)
            os.kill(first["felix"], signal.SIGKILL)
            deadline = time.monotonic() + 20
            while agents(process.pid).get("felix", first["felix"]) == first["felix"]:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
            assert {name: agents(process.pid)[name] for name in ("bgp", "cni")} == {
                name: first[name] for name in ("bgp", "cni")
            }
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert code == 0, events
    assert not [event for event in events if event["event"] == "child.killed"]
    assert "table inet muslin" in tables(namespace)
    cleanup = [sys.executable, "-m", "cli", "node", "cleanup"]
    subprocess.run(inside(namespace, *cleanup), cwd=HOUSE, check=True, timeout=30)
    assert "muslin" not in tables(namespace)
