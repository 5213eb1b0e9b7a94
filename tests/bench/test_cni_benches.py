"""What the CNI benchmarks measure: pods that are joined and gone again, by muslin's plugin and by the CNI project's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from bench import cni_add, cni_density, cni_ready
from bench.cni_node import POOL, CniNode, Pods, Runtime, cluster, pods, ptp, wire
from bench.rack import Rack
from linux import netns

FEW = 3


@dataclass(frozen=True, slots=True)
class Site:
    """A node of ours, one of the peer's, and the other node that asks whether pods of theirs are there."""

    ours: CniNode
    peer: Runtime
    waiting: Pods
    asking: cni_ready.Asking


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        rack = Rack(stack)
        wire(rack, "ours", "peer", 1)
        peer = ptp(rack, "peer")
        ours = CniNode(rack, "ours", rack.datastore(list(cluster("192.168.1.1/24"))))
        asking = stack.enter_context(cni_ready.Asking(netns.path(rack.place("peer"))))
        yield Site(ours, peer, pods(rack, "pod", FEW), asking)


def test_pods_come_up_and_nothing_of_them_is_left(site: Site) -> None:
    before = site.ours.left()
    assert (before.endpoints, before.handles, before.addresses, before.interfaces, before.routes) == (0, 0, 0, 0, 0)
    containers = site.waiting.containers(1)
    site.ours.runtime.at_once("ADD", containers, FEW)
    up = site.ours.left()
    assert (up.endpoints, up.handles, up.addresses, up.interfaces, up.routes) == (FEW, FEW, FEW, FEW, FEW)
    assert up.table != before.table
    site.ours.runtime.at_once("DEL", containers, FEW)
    figures = cni_density.our_turn(site.ours, site.waiting, 2)
    assert site.ours.left() == before
    assert figures.figure > 0 < figures.others[cni_density.DOWN]


def test_what_is_left_fails_the_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.rack.PATIENCE_S", 0.5)
    kept = site.waiting.containers(3, count=1)

    def turn(runtime: Runtime, waiting: Pods, number: int) -> cni_density.Figures:
        runtime.at_once("ADD", kept, 1)
        return cni_density.Figures(1.0, {cni_density.DOWN: 1.0})

    monkeypatch.setattr(cni_density, "turn", turn)
    with pytest.raises(TimeoutError, match="nothing of the pods is left"):
        cni_density.our_turn(site.ours, site.waiting, 3)
    site.ours.runtime.at_once("DEL", kept, 1)


def test_the_peer_joins_the_same_pods(site: Site) -> None:
    figures = cni_add.turn(site.peer, site.waiting, 4)
    assert figures.figure > 0 < figures.others[cni_add.PODS]


def test_a_call_that_fails_fails_the_run(site: Site) -> None:
    (nowhere,) = site.waiting.containers(5, count=1)
    with pytest.raises(RuntimeError, match="muslin ADD"):
        site.ours.runtime.alone("ADD", [type(nowhere)(nowhere.id, nowhere.pod, "/run/netns/none")])


def test_the_first_reply_is_timed_from_the_start_of_add(site: Site) -> None:
    (container,) = site.waiting.containers(6, count=1)
    address = str(ip_network(POOL)[77])
    with netns.inside(site.ours.runtime.place), site.asking.ask(address) as heard:
        assert not heard
        site.ours.runtime.call("ADD", container, runtimeConfig={"ips": [address]})
    assert len(heard) == 1
    site.ours.runtime.at_once("DEL", [container], 1)
