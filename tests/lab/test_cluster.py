"""A whole cluster, small: up, asked, attached to, taken down without a trace, also after a crash."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from core.errors import MuslinError, NotFound
from lab import cluster as clusters
from lab import processes, state, topology, underlay
from lab import status as overview
from lab.cluster import Cluster
from lab.state import Record, Started
from lab.wiring import wire
from linux import netns

pytestmark = pytest.mark.lab

IPIP = Path(__file__).parents[2] / "examples" / "ipip" / "topology.yaml"


@pytest.fixture
async def name() -> AsyncIterator[str]:
    """A name for a lab, which is down at the end."""
    name = f"c{os.getpid()}"
    yield name
    await clusters.down(name)
    assert not netns.names(underlay.prefix(name))
    assert not state.directory(name).exists()


async def test_a_cluster_comes_up_answers_and_goes(name: str) -> None:
    said: list[str] = []
    built = await clusters.up(IPIP, said.append, name=name)
    started = [each.process for each in built.record.processes.values()]
    assert said[-1] == f"lab {name} is up"
    assert all(process.alive() for process in started)

    await built.until_routed()

    # what another process sees is the same lab, and packets say that it works
    again = clusters.attach(name)
    assert again.record == built.record
    found = await again.matrix()
    assert all(found.values())
    assert all(answer.seen == again.address(source) for (source, _), answer in found.items())
    assert again.routers["tor"].pod_routes().keys() == {*built.routers["tor"].pod_routes()}
    assert len(again.routers["tor"].pod_routes()) == 2
    hosts = {host.name: host for host in overview.status(name)}
    assert hosts["tor"].sessions == {"node1": "Established", "node2": "Established"}
    assert all(alive for host in hosts.values() for alive in host.processes.values())

    with pytest.raises(MuslinError, match="is up already"):
        await clusters.up(IPIP, said.append, name=name)
    with pytest.raises(NotFound, match="has no 'node9'"):
        again.namespace("node9")

    # an agent and the datastore are killed and started again by their labels
    for label in ("datastore", "felix@node1"):
        again.kill(label)
        assert not again.process(label).alive()
        again.start(label)
    await again.until_programmed(1)
    started += [again.process("datastore"), again.process("felix@node1")]

    inhabitants = processes.known(netns.inhabitants(netns.names(underlay.prefix(name))))
    assert inhabitants
    await clusters.down(name)
    assert not any(process.alive() for process in (*started, *inhabitants))


async def test_what_a_crash_left_is_removed_and_no_stranger_is_killed(
    name: str, tmp_path: Path, wait: Callable[[Callable[[], object]], None]
) -> None:
    wiring = wire(topology.load(IPIP))
    stranger = processes.start(["sleep", "60"], log=tmp_path / "log")
    state.write(
        Record(
            name=name,
            topology=str(IPIP),
            processes={"felix@node1": Started(pid=stranger.pid, started=stranger.started - 1)},
        )
    )
    underlay.build(name, wiring)
    namespace = underlay.namespace(name, "node1")
    left = processes.start(["sleep", "60"], log=tmp_path / "log", namespace=namespace)
    wait(lambda: left.pid in netns.inhabitants([namespace]))
    await clusters.down(name)
    assert not left.alive()
    assert stranger.alive()
    processes.stop([stranger])
    await clusters.down(name)


async def test_a_lab_that_cannot_come_up_says_why_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    text = IPIP.read_text().replace("[pool-never.yaml, bgp.yaml]", "[broken.yaml]")
    (tmp_path / "topology.yaml").write_text(text)
    (tmp_path / "broken.yaml").write_text("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\n")
    with pytest.raises(MuslinError, match=r"broken.yaml.*IPPool/p"):
        await clusters.up(tmp_path / "topology.yaml", lambda _: None, name=name)
    assert not netns.names(underlay.prefix(name))
    assert not state.directory(name).exists()


def test_a_lab_that_is_not_up_is_named_with_those_that_are() -> None:
    with pytest.raises(NotFound, match=r"no lab nowhere is up .*muslin lab up FILE"):
        clusters.attach("nowhere")


def test_a_command_in_a_host_runs_in_its_namespace(tmp_path: Path) -> None:
    plan = topology.load(IPIP)
    lab = Cluster(plan, Record(name=f"x{os.getpid()}", topology=str(IPIP)))
    namespace = lab.namespace("node1")
    netns.create(namespace)
    try:
        argv = lab.command("node1", ["readlink", "/proc/self/ns/net"])
        inside = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert inside.strip() == f"net:[{os.stat(netns.path(namespace)).st_ino}]"
    finally:
        netns.delete(namespace)
