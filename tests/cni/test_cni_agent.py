"""The agent as a node runs it: real pods through the real executable, and what is asked while something is away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent_node import HOUSE, NODE, Left, Site, site, until_so
from asking import descriptors, install, until

from core.health import ask, fetch
from linux import netns
from tests.conftest import served

NOTHING = Left()


@pytest.fixture(scope="module")
def the_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with served() as datastore, site(datastore, tmp_path_factory.mktemp("agent")) as made:
        yield made


@pytest.fixture
async def node(the_site: Site) -> AsyncIterator[Site]:
    """The node, with nothing on it before and after."""
    yield the_site
    await the_site.until(lambda left: left == NOTHING)


def ran(namespace: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A command in a namespace, and what came of it."""
    command = netns.command(namespace, *argv)
    return subprocess.run(command, cwd=HOUSE, capture_output=True, check=False, timeout=30, text=True)


async def test_a_pod_is_joined_and_taken_off(node: Site) -> None:
    container = node.container()
    four, six = await node.add(container)
    assert (four.rpartition(".")[0], six.partition("::")[0]) == ("10.61.0", "fd61")
    assert (await node.add(container)) == (four, six)
    assert four in ran(container.netns, "ip", "-o", "addr", "show", "eth0").stdout
    await node.remove(container)
    assert await node.left() == NOTHING
    await node.remove(container)


async def test_thirty_two_at_once_and_no_descriptor_after_two_hundred_calls(node: Site) -> None:
    assert node.cni
    containers = [node.container() for _ in range(32)]
    before = 0
    for turn in range(4):
        async with asyncio.TaskGroup() as group:
            added = [group.create_task(node.add(each)) for each in containers]
        addresses = [address for each in added for address in each.result()]
        assert len(set(addresses)) == 64
        assert len(node.interfaces()) == 32
        async with asyncio.TaskGroup() as group:
            for each in containers:
                group.create_task(node.remove(each))
        assert await node.left() == NOTHING
        if turn == 0:
            before = descriptors(node.cni.pid)  # what stays open for good is open by now
    await until_so(lambda: _as_many(node.cni, before))


async def _as_many(agent: subprocess.Popen[bytes] | None, before: int) -> bool:
    assert agent
    return descriptors(agent.pid) <= before


async def test_without_felix_it_answers_in_time_with_the_reason(node: Site) -> None:
    container = node.container()
    with node.stopped(node.felix):
        heard = await node.call("ADD", container, policy_setup_timeout_seconds=0.5)
        assert (heard.status, heard.document["code"]) == (1, 11)
        assert "felix" in heard.document["msg"]
        assert await node.left() == NOTHING
    await node.add(container)
    await node.remove(container)


async def test_a_second_agent_does_not_take_the_first_ones_place(node: Site) -> None:
    before = node.executable.socket.stat().st_ino
    argv = [sys.executable, "-m", "cni", "--node", NODE, "--datastore", node.datastore]
    argv += ["--run-dir", str(node.folder / "run")]
    done = ran(f"/run/netns/{node.namespace}", *argv)
    assert done.returncode == 1
    assert "another cni runs in this network namespace" in done.stderr
    assert node.executable.socket.stat().st_ino == before


async def test_status_and_version_are_answered(node: Site) -> None:
    assert (await node.executable.run("STATUS", node.conf(cniVersion="1.1.0"))).status == 0
    heard = await node.executable.run("VERSION", node.conf(cniVersion="0.4.0"))
    assert heard.document["cniVersion"] == "0.4.0"


async def test_what_a_runtime_forgot_is_collected_when_it_says_so(node: Site) -> None:
    stays, goes = node.container(), node.container()
    await node.add(stays)
    await node.add(goes)
    valid = [{"containerID": stays.id, "ifname": "eth0"}]
    gc = node.conf(cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid})
    heard = await node.executable.run("GC", gc, CNI_PATH="/opt/cni/bin")
    assert (heard.status, heard.out) == (0, b"")
    assert node.interfaces() == (stays.interface,)
    await node.remove(stays)


async def test_calls_under_way_end_well_when_the_agent_is_told_to_end(node: Site) -> None:
    container = node.container()
    assert node.cni
    with node.stopped(node.felix):
        async with node.begun("ADD", container) as process:
            await node.until(lambda left: bool(left.interfaces and left.endpoints))
            node.cni.send_signal(signal.SIGTERM)
            await until(lambda: not node.executable.socket.exists())
            assert node.felix
            node.felix.send_signal(signal.SIGCONT)
            out, _ = await process.communicate()
    assert process.returncode == 0, out
    assert node.cni.wait(15) == 0
    refused = await node.call("DEL", container)
    assert refused.document["code"] == 11
    node.start_cni()
    await node.serving()
    await node.remove(container)


@contextmanager
def an_agent_alone(folder: Path) -> Iterator[str]:
    """An agent without a datastore and a felix, in a namespace of its own; the name of a pod's namespace."""
    name = f"muslin-cnb{os.getpid()}"
    netns.create(name)
    netns.create(f"{name}-pod")
    argv = [sys.executable, "-m", "cli", "cni", "--node", NODE, "--datastore", f"unix:{folder}/no.sock"]
    argv += ["--run-dir", str(folder), "--health", f"unix:{folder}/health"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(netns.command(f"/run/netns/{name}", *argv), cwd=HOUSE, stderr=log)
    try:
        yield f"{name}-pod"
    finally:
        process.terminate()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            netns.delete(f"{name}-pod")
            netns.delete(name)


async def test_it_serves_at_once_though_datastore_and_felix_are_away(tmp_path: Path) -> None:
    executable = install(tmp_path)
    health = tmp_path / "health"
    with an_agent_alone(tmp_path) as pod:
        await until(executable.socket.exists)
        heard = await executable.run(
            "ADD",
            b'{"cniVersion": "1.0.0", "name": "net", "type": "muslin"}',
            CNI_CONTAINERID="c1",
            CNI_NETNS=f"/run/netns/{pod}",
            CNI_IFNAME="eth0",
        )
        assert heard.status == 1
        assert heard.document["code"] == 11, heard
        assert "datastore" in heard.document["msg"]
        told = await executable.run("STATUS", b'{"cniVersion": "1.1.0", "name": "net", "type": "muslin"}')
        assert told.document["code"] == 50
        assert "datastore" in told.document["msg"]

        expected = {"datastore": "degraded", "felix": "degraded", "server": "ok", "collector": "degraded"}

        async def known() -> bool:
            told = await ask(health)
            states = {name: each.state.value for name, each in told.items()}
            return states == expected and "datastore" in told["collector"].reason

        await until_so(known)
        measured = (await fetch(health, "/metrics")).decode()
        assert 'muslin_cni_requests_total{code="50",verb="STATUS"} 1.0' in measured
        assert "muslin_ipam_allocations_gc_candidates" in measured
