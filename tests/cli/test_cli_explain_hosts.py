"""What explain says of host endpoints where it does not run on their node: by the datastore alone, or that it is not
known."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from cli.explain import Answer, ask, end
from core.resources import EncapMode, Resource
from core.resources.network import ProtoPort
from core.resources.policy import Action, EntityRule, Rule
from linux.netns import scratch_namespace
from tests.felix.cluster import block, felix, namespace, node, pod, pool, snapshot
from tests.felix.guarded import ANY, hep, open_profile, policy, staged, tcp

pytestmark = pytest.mark.kernel

BASE: tuple[Resource, ...] = (
    node("a", "10.1.0.1/24"),
    node("b", "10.1.0.2/24"),
    namespace("shop"),
    open_profile("open"),
    pool("pods", "10.0.0.0/16", nat_outgoing=True),
    block("10.0.0.0/26", "a"),
    block("10.0.0.64/26", "b"),
    pod("web", "10.0.0.1", profiles=("open",)),
    pod("far", "10.0.0.65", on="b", profiles=("open",)),
)
UP = hep("up", "eth0", "10.1.0.2", "10.2.0.2", node="b")
FORWARD = policy("fw", "all()", [tcp(81)], [tcp(82)], apply_on_forward=True)
OUTSIDE = "192.0.2.9"


@pytest.fixture(autouse=True)
def elsewhere() -> Iterator[None]:
    """A host that is none of the nodes, whatever addresses this machine has."""
    with scratch_namespace():
        yield


def told(source: str, destination: str, *changes: Resource, port: int = 80, protocol: int = 6) -> Answer:
    state = snapshot({each.key: each for each in (*BASE, *changes)}.values())
    ends = end(state, source, "--from"), end(state, destination, "--to")
    meant = tuple(ip_address(each) if "/" not in each else None for each in (source, destination))
    return ask(state, ends, protocol, port, (meant[0], meant[1]))


def met(answer: Answer) -> list[str]:
    """Which, by which plane, how it is known, and what it says."""
    documents: list[dict[str, Any]] = answer.document()["hostEndpoints"]
    lines = [line for line in answer.lines() if " of hostendpoint/" in line and "staged" not in line]
    assert len(lines) == len(documents)
    return [
        f"{each['node']} {each['plane']} {each['direction']} {each['endpoint']} {each['knownBy']}: {each['verdict']}"
        for each in documents
    ]


def unknown(answer: Answer) -> list[str]:
    found: list[str] = answer.document()["notAsked"]
    assert bool(found) is any(line.startswith("not asked: ") for line in answer.lines())
    return found


@pytest.mark.parametrize("source", ["node/a", OUTSIDE])
def test_what_a_node_takes_at_an_address_that_an_endpoint_expects(source: str) -> None:
    for to in ("node/b", "10.1.0.2", "10.2.0.2"):
        answer = told(source, to, UP)
        assert met(answer) == ["b host Ingress hostendpoint/up expectedIPs: Deny"]
        assert (answer.verdict, unknown(answer)) == ("Deny", [])
        assert answer.lines()[0] == (
            "host ingress of hostendpoint/up on b (eth0, by expectedIPs): Deny: "
            "no ingress rule of any profile of the endpoint matched"
        )
    assert told(source, "node/b", UP, policy("in", "host == 'up'", [tcp(80)])).verdict == "Allow"
    failsafe = told(source, "node/b", UP, port=22)
    assert (failsafe.verdict, failsafe.document()["hostEndpoints"][0]["failsafe"]) == ("Allow", True)
    assert "by expectedIPs): Allow: a failsafe port, which no policy closes" in failsafe.lines()[0]
    only = felix("node.b", failsafe_inbound_host_ports=[ProtoPort(port=22, net="198.51.100.0/24")])
    assert told(source, "node/b", UP, only, port=22).verdict == "Deny"


def test_what_a_node_sends_and_the_other_takes() -> None:
    own = hep("own", "", "10.1.0.1")
    rest = hep("rest", "*", node="b", profiles=("open",))
    answer = told("node/a", "node/b", own, rest)
    assert met(answer) == [
        "a host Egress hostendpoint/own expectedIPs: Deny",
        "b host Ingress hostendpoint/rest interfaceName '*': Allow",
    ]
    assert answer.document()["hostEndpoints"][0]["interface"] == "the one with 10.1.0.1"
    assert answer.verdict == "Deny"


def test_what_is_forwarded_and_in_which_order() -> None:
    rest = hep("rest", "*", node="b", profiles=("open",))
    answer = told("shop/web", "shop/far", hep("own", "*"), rest, FORWARD, port=82)
    assert met(answer) == [
        "a forward Egress hostendpoint/own interfaceName '*': Allow",
        "b forward Ingress hostendpoint/rest interfaceName '*': Deny",
    ]
    planes = [line.partition(" of ")[0] for line in answer.lines()]
    assert planes[:4] == ["egress", "forward egress", "forward ingress", "ingress"]
    assert not met(told("shop/web", "shop/far", hep("own", "*"), rest)), "no policy asks for what is forwarded"
    assert met(told(OUTSIDE, "shop/far", rest, FORWARD)) == [
        "b forward Ingress hostendpoint/rest interfaceName '*': Deny"
    ]
    assert met(told("shop/web", OUTSIDE, hep("own", "*"), FORWARD)) == [
        "a forward Egress hostendpoint/own interfaceName '*': Deny"
    ]
    assert met(told("shop/web", "shop/far", UP, FORWARD)) == ["b forward Ingress hostendpoint/up expectedIPs: Deny"]


def test_what_cannot_be_known_is_said_and_does_not_decide() -> None:
    nameless = hep("up", "eth0", node="b")
    answer = told("node/a", "node/b", nameless)
    assert (met(answer), unknown(answer), answer.verdict) == ([], ["hostendpoint/up"], "Allow")
    both = told("node/a", "node/b", nameless, hep("rest", "*", node="b"))
    assert (met(both), unknown(both)) == ([], ["hostendpoint/rest", "hostendpoint/up"])
    assert unknown(told(OUTSIDE, "shop/far", UP, FORWARD)) == ["hostendpoint/up"], "it may come by another interface"
    assert unknown(told(OUTSIDE, "shop/far", UP)) == []


def test_what_comes_out_of_the_tunnel_is_the_tunnels() -> None:
    pods = pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS)
    assert not met(told("shop/web", "shop/far", UP, FORWARD, pods)), (
        "eth0 carries the wrapping, which is always allowed"
    )
    inside = hep("inside", "muslin.ipip", node="b")
    assert met(told("shop/web", "shop/far", UP, inside, FORWARD, pods)) == [
        "b forward Ingress hostendpoint/inside the tunnel: Deny"
    ]
    perhaps = pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.FALLBACK)
    assert unknown(told("shop/web", "shop/far", UP, FORWARD, perhaps)) == ["hostendpoint/up"]
    assert not unknown(told("shop/web", "shop/far", hep("rest", "*", node="b"), FORWARD, perhaps))


def test_early_planes_come_first_and_what_is_untracked_needs_answers() -> None:
    early = policy("early", "host == 'up'", [tcp(80)], pre_dnat=True, apply_on_forward=True, types=["Ingress"])
    assert met(told(OUTSIDE, "node/b", UP, early)) == ["b preDNAT Ingress hostendpoint/up expectedIPs: Allow"]
    assert met(told(OUTSIDE, "node/b", UP, early, port=81)) == [
        "b preDNAT Ingress hostendpoint/up expectedIPs: Continue",
        "b host Ingress hostendpoint/up expectedIPs: Deny",
    ]
    raw = policy("raw", "host == 'up'", [tcp(80)], do_not_track=True, apply_on_forward=True)
    unanswered = told(OUTSIDE, "node/b", UP, raw)
    assert met(unanswered) == ["b untracked Ingress hostendpoint/up expectedIPs: Allow"]
    assert unanswered.verdict == "Deny"
    assert len(unanswered.document()["unanswered"]) == 1
    assert told(OUTSIDE, "node/b", UP, policy("raw", "all()", [ANY], do_not_track=True), protocol=17).verdict == "Allow"
    back = policy("raw", "host == 'up'", [tcp(80)], [tcp(80, source=True)], do_not_track=True, apply_on_forward=True)
    assert told(OUTSIDE, "node/b", UP, back).verdict == "Allow"


def test_the_node_sees_a_masked_pod_as_its_node() -> None:
    from_node = Rule(action=Action.ALLOW, source=EntityRule(nets=["10.1.0.1/32"]))
    from_pods = Rule(action=Action.ALLOW, source=EntityRule(nets=["10.0.0.0/16"]))
    assert told("shop/web", "node/b", UP, policy("in", "all()", [from_node], order=1)).verdict == "Allow"
    assert told("shop/web", "node/b", UP, policy("in", "host == 'up'", [from_pods])).verdict == "Deny"
    tunnelled = pool("pods", "10.0.0.0/16", nat_outgoing=True, ipip_mode=EncapMode.ALWAYS)
    (known,) = told("shop/web", "node/b", UP, tunnelled).document()["hostEndpoints"]
    assert known["knownBy"] == "expectedIPs", "as its node it comes unwrapped"
    bare = felix(nat_outgoing_exclusions="IPPoolsAndHostIPs")
    assert told("shop/web", "node/b", UP, bare, policy("in", "host == 'up'", [from_pods])).verdict == "Allow"


def test_on_one_node_only_what_a_pod_sends_it_is_asked() -> None:
    rest = hep("rest", "*")
    assert not met(told("node/a", "shop/web", rest))
    assert not met(told("shop/web", "node/a", rest, felix(default_endpoint_to_host_action="Accept")))
    answer = told("shop/web", "node/a", rest, felix(default_endpoint_to_host_action="Return"))
    assert met(answer) == ["a host Ingress hostendpoint/rest defaultEndpointToHostAction: Deny"]
    assert answer.verdict == "Deny"


def test_what_is_staged_for_an_endpoint() -> None:
    soon = staged("soon", "host == 'up'", [Rule(action=Action.DENY)], order=1)
    allowed = policy("in", "host == 'up'", [ANY], order=10)
    answer = told("node/a", "node/b", UP, allowed, soon)
    assert (answer.verdict, answer.document()["pending"]["verdict"]) == ("Allow", "Deny")
    (line,) = (line for line in answer.lines() if "staged" in line)
    assert line.startswith("host ingress of hostendpoint/up on b would be, with what is staged: Deny: StagedGlobal")
    assert told("node/a", "node/b", UP, allowed).document()["pending"] is None
