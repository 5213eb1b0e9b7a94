"""Sessions with pods, by named states."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from itertools import permutations
from typing import Any

import msgspec
import pytest
from bgp_world import defaults, made, node, peer

from bgp.desired import absent, desired
from bgp.model import PeerType, Speaker
from core.resources import BGPConfiguration, BGPPeer, Namespace, Resource, WorkloadEndpoint
from core.snapshot import Snapshot
from linux.model import Facts, Link

A = node("a", "10.1.0.1/24", "fd01::1/64")
VIRTUAL = defaults(
    nodeToNodeMeshEnabled=False, localWorkloadPeeringIPV4="169.254.1.2", localWorkloadPeeringIPV6="fd00::2"
)


def pod(name: str, *addresses: str, on: str = "a", namespace: str = "shop", **labels: str) -> WorkloadEndpoint:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"node": on, "pod": name, "ipNetworks": list(addresses), "interfaceName": f"mus{name}"}
    return msgspec.convert({"metadata": metadata, "spec": spec}, WorkloadEndpoint)


def selected(**spec: Any) -> BGPPeer:
    return peer("pods", "", **{"localWorkloadSelector": "bgp == 'yes'", "asNumber": 65100, **spec})


def speaker(*resources: Resource, on: str = "a") -> Speaker:
    return desired(Snapshot().apply(1, [(each.key, each) for each in resources]), on)


ROUTER = pod("router", "10.244.1.7/32", "10.244.1.8/32", "fd44::7/128", bgp="yes")


def test_a_session_with_each_address_of_each_selected_pod_of_ours() -> None:
    others = [pod("plain", "10.244.1.9/32"), pod("far", "10.244.2.7/32", on="b", bgp="yes")]
    for order in permutations([A, VIRTUAL, selected(), ROUTER, *others[:1]]):
        found = speaker(*order, *others[1:])
        assert {(str(each.peer), str(each.local), each.remote_as, each.name) for each in found.sessions} == {
            ("10.244.1.7", "169.254.1.2", 65100, "BGPPeer/pods/shop/router"),
            ("10.244.1.8", "169.254.1.2", 65100, "BGPPeer/pods/shop/router"),
            ("fd44::7", "fd00::2", 65100, "BGPPeer/pods/shop/router"),
        }
        assert found.blocked == ()


def test_a_pod_speaks_for_its_own_addresses_only() -> None:
    within = {str(each.peer): set(map(str, each.within)) for each in speaker(A, VIRTUAL, selected(), ROUTER).sessions}
    assert within == {
        "10.244.1.7": {"10.244.1.7/32", "10.244.1.8/32"},
        "10.244.1.8": {"10.244.1.7/32", "10.244.1.8/32"},
        "fd44::7": {"fd44::7/128"},
    }
    assert {each.within for each in speaker(A, VIRTUAL, peer("p", "10.1.0.9", asNumber=1)).sessions} == {()}


SHOP = made(Namespace, "shop", {}, {"env": "prod"})


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("pcns.env == 'prod'", {"router"}),
        ("all()", {"router", "web"}),
        ("projectcalico.org/namespace == 'lab'", {"web"}),
        ("bgp == 'no'", set()),
    ],
)
def test_which_pods(selector: str, names: set[str]) -> None:
    web = pod("web", "10.244.1.20/32", namespace="lab")
    found = speaker(A, VIRTUAL, selected(localWorkloadSelector=selector), ROUTER, web, SHOP)
    assert {each.name.rpartition("/")[2] for each in found.sessions} == names


def test_which_nodes() -> None:
    assert speaker(A, VIRTUAL, selected(node="b"), ROUTER).sessions == ()
    assert {each.type for each in speaker(A, VIRTUAL, selected(node="a"), ROUTER).sessions} == {PeerType.NODE}
    assert {each.type for each in speaker(A, VIRTUAL, selected(), ROUTER).sessions} == {PeerType.GLOBAL}


def test_without_an_address_to_call_the_session_is_blocked() -> None:
    four = defaults(nodeToNodeMeshEnabled=False, localWorkloadPeeringIPV4="169.254.1.2")
    found = speaker(A, four, selected(), ROUTER)
    assert {str(each.peer) for each in found.sessions} == {"10.244.1.7", "10.244.1.8"}
    (blocked,) = found.blocked
    assert (blocked.name, blocked.peer) == ("BGPPeer/pods/shop/router", "fd44::7")
    assert blocked.reason.startswith("BGPConfiguration has no localWorkloadPeeringIPV6")
    own = made(BGPConfiguration, "node.a", {"localWorkloadPeeringIPV6": "fd00::3"})
    assert {str(each.local) for each in speaker(A, four, own, selected(), ROUTER).sessions} == {
        "169.254.1.2",
        "fd00::3",
    }


def test_terms_hold_for_pods_as_for_routers() -> None:
    found = speaker(A, VIRTUAL, selected(holdTime="9s", sourceAddress="None", maxPrefixesIn=1), ROUTER)
    assert {(each.hold_s, each.most_in) for each in found.sessions} == {(9, 1)}
    assert None not in {each.local for each in found.sessions}  # pods know their node by this address only
    held = speaker(A, VIRTUAL, selected(filters=["none"]), ROUTER)
    assert (held.sessions, len(held.blocked)) == ((), 3)


def test_a_bound_speaker_answers_its_pods_too() -> None:
    bound = defaults(nodeToNodeMeshEnabled=False, bindMode="NodeIP", localWorkloadPeeringIPV4="169.254.1.2")
    assert [str(each) for each in speaker(A, bound, selected(), ROUTER).listen] == [
        "10.1.0.1",
        "fd01::1",
        "169.254.1.2",
    ]
    assert [str(each) for each in speaker(A, bound, ROUTER).listen] == ["10.1.0.1", "fd01::1"]
    assert [str(each) for each in speaker(A, VIRTUAL, selected(), ROUTER).listen] == ["0.0.0.0", "::"]


def test_an_address_for_pods_that_the_host_lacks_is_said() -> None:
    found = speaker(A, VIRTUAL, selected(), ROUTER)
    addresses = tuple(map(ip_interface, ("10.1.0.1/24", "fd01::1/64", "169.254.1.2/32")))
    facts = Facts(links={"lo": Link(name="lo", index=1, up=True, mtu=65536, addresses=addresses)})
    assert absent(found, facts) == (
        "this host has no address fd00::2 (BGPConfiguration spec.localWorkloadPeeringIPV6; felix gives it to lo)",
    )
    assert ip_address("169.254.1.2") not in found.addresses
