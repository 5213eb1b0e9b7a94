"""Where a node answers its own pods' BGP, and whom it lets call, by named states."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest

from core.names import Key, workload_interface
from core.reconcile import Progress
from core.resources import BGPConfiguration, BGPPeer, Profile, Resource
from core.snapshot import Snapshot
from felix.desired import desired
from felix.model import Desired
from felix.status import Outcome, state
from linux.model import Facts
from tests.felix.cluster import CONFIG, namespace, node, pod, pool, snapshot

WEB, DB = workload_interface("shop", "web"), workload_interface("shop", "db")
FOUR, SIX = "169.254.1.2", "fd44::2"


def configured(name: str = "default", **spec: Any) -> BGPConfiguration:
    return msgspec.convert({"metadata": {"name": name}, "spec": spec}, BGPConfiguration)


def asked(selector: str = "bgp == 'yes'", **spec: Any) -> BGPPeer:
    spec = {"localWorkloadSelector": selector, "asNumber": 65100, **spec}
    return msgspec.convert({"metadata": {"name": "pods"}, "spec": spec}, BGPPeer)


BOTH = configured(localWorkloadPeeringIPV4=FOUR, localWorkloadPeeringIPV6=SIX)
BASE: tuple[Resource, ...] = (
    node("a", "10.1.0.1/24", v6="fd01::1/64"),
    node("b", "10.1.0.2/24", v6="fd01::2/64"),
    namespace("shop", env="prod"),
    pool("pods", "10.0.0.0/16"),
    pool("six", "fd00::/64"),
    pod("web", "10.0.0.1", "fd00::1", bgp="yes"),
    pod("db", "10.0.0.2", "fd00::2"),
    pod("far", "10.0.0.65", on="b", bgp="yes"),
)


def wanted(*more: Resource) -> Desired:
    return made(snapshot({each.key: each for each in (*BASE, *more)}.values()))


def made(given: Snapshot) -> Desired:
    return desired(given, Facts(), CONFIG)


def on_lo(found: Desired) -> list[str]:
    return sorted(map(str, found.peering.addresses))


def elements(found: Desired) -> set[str]:
    """Who may call, as the kernel is told."""
    return {each.key for each in found.nft["peering"].elements} if "peering" in found.nft else set()


def test_selected_pods_of_this_node_may_call_and_no_others() -> None:
    for order in permutations([BOTH, asked(), BASE[0], BASE[5]]):
        found = wanted(*order)
        assert on_lo(found) == ["169.254.1.2/32", "fd44::2/128"]
        assert elements(found) == {
            f'"{WEB}" . 10.0.0.1 . 169.254.1.2 . 179',
            f'"{WEB}" . fd00::1 . fd44::2 . 179',
        }
        assert not found.problems


def test_nothing_is_asked_for_nothing_is_there() -> None:
    assert (on_lo(wanted()), elements(wanted())) == ([], set())
    nobody = wanted(BOTH)
    assert (on_lo(nobody), elements(nobody)) == (["169.254.1.2/32", "fd44::2/128"], set())
    assert nobody.nft["frame"] == wanted().nft["frame"]
    assert elements(wanted(asked())) == set()


def test_one_family_at_a_time_and_a_node_has_its_own_say() -> None:
    own = configured("node.a", localWorkloadPeeringIPV4="169.254.9.9", listenPort=1790)
    found = wanted(configured(localWorkloadPeeringIPV4=FOUR, listenPort=1779), own, asked())
    assert on_lo(found) == ["169.254.9.9/32"]
    assert elements(found) == {f'"{WEB}" . 10.0.0.1 . 169.254.9.9 . 1790'}
    others = configured("node.b", localWorkloadPeeringIPV4="169.254.9.9")
    assert on_lo(wanted(BOTH, others)) == ["169.254.1.2/32", "fd44::2/128"]


@pytest.mark.parametrize(
    ("peer", "interfaces"),
    [
        (asked("all()"), {WEB, DB}),
        (asked("pcns.env == 'prod' && !has(bgp)"), {DB}),
        (asked(node="a"), {WEB}),
        (asked(node="b"), set()),
        (asked(nodeSelector="rack == '1'"), set()),
        (asked("bgp = ="), set()),
        (asked(nodeSelector="= ="), set()),
        (asked("", peerIP="10.1.0.9"), set()),
    ],
)
def test_which_pods(peer: BGPPeer, interfaces: set[str]) -> None:
    assert {each.interface for each in wanted(BOTH, peer).peering.calls} == interfaces


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.1.0.2", "is an address of Node b"),
        ("10.0.77.1", "lies in IPPool pods"),
        ("127.0.0.2", "no address that a pod can call"),
        ("224.0.0.5", "no address that a pod can call"),
        ("0.0.0.0", "no address that a pod can call"),
        ("somewhere", "somewhere"),
        ("fe80::2", "is link-local"),
        ("fd01::2", "is an address of Node b"),
        ("fd00::77", "lies in IPPool six"),
        ("::1", "no address that a pod can call"),
    ],
)
def test_an_address_that_will_not_do_is_said_and_the_other_family_has_its_own(address: str, why: str) -> None:
    version = 6 if ":" in address else 4
    given = {"localWorkloadPeeringIPV4": FOUR, "localWorkloadPeeringIPV6": SIX}
    found = wanted(configured(**(given | {f"localWorkloadPeeringIPV{version}": address})), asked())
    (said,) = found.problems
    assert said.startswith(f"localWorkloadPeeringIPV{version} of BGPConfiguration: ")
    assert why in said
    assert on_lo(found) == ["169.254.1.2/32" if version == 6 else "fd44::2/128"]
    assert {each.source.version for each in found.peering.calls} == {10 - version}


def test_the_nodes_own_address_is_not_given_to_lo() -> None:
    found = wanted(configured(localWorkloadPeeringIPV4="10.1.0.1"), asked())
    assert (on_lo(found), elements(found)) == ([], {f'"{WEB}" . 10.0.0.1 . 10.1.0.1 . 179'})


@pytest.mark.parametrize("name", ["default", "node.a", "node.b"])
def test_a_configuration_that_cannot_be_read_takes_nothing_away(name: str) -> None:
    unread = Key(BGPConfiguration.KIND, "", name)
    found = made(snapshot((*BASE, asked())).apply(9, [(unread, "spec: no such field")]))
    assert found.peering.certain is (name == "node.b")


def test_who_might_be_selected_is_not() -> None:
    web = pod("web", "10.0.0.1", profiles=("kns.shop", "lost"))
    told = snapshot((*BASE[:5], web, BOTH, asked("!has(dangerous)")))
    assert {each.interface for each in made(told).peering.calls} == {WEB}
    assert made(told.apply(9, [(Key(Profile.KIND, "", "lost"), "bad")])).peering.calls == frozenset()


def test_a_kernel_that_refuses_the_address_keeps_no_pod_waiting() -> None:
    found, done = wanted(BOTH, asked()), Progress(revision=1, tried=1)
    refused = Progress(tried=1, errors={next(iter(found.peering.addresses)): "address 169.254.1.2/32 on lo: no"})
    outcome = Outcome(sysctls=done, tunnels=done, addresses=refused, nft=done, routes=done)
    said = state(found, outcome, found.revision, "")
    assert (outcome.done, said.ready, said.problems) == (1, True, ["address 169.254.1.2/32 on lo: no"])
