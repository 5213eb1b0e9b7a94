"""What explain says of the way between two ends, and of what is staged. States as the datastore holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from cli.explain import Answer, ask, end
from core.errors import MuslinError
from core.names import Key
from core.resources import EncapMode, GlobalNetworkPolicy, HostEndpoint, Resource, StagedNetworkPolicy
from core.resources.base import Metadata
from core.resources.network import HostEndpointSpec
from core.resources.policy import Direction, GlobalNetworkPolicySpec
from linux.netns import scratch_namespace
from policy.model import Cause, Decision, Reason, Verdict
from tests.felix.cluster import block, deny, felix, namespace, node, pod, pool, snapshot
from tests.felix.test_peering_address import BOTH, FOUR, SIX, asked

pytestmark = pytest.mark.kernel

BASE: tuple[Resource, ...] = (
    node("a", "10.1.0.1/24", v6="fd01::1/64"),
    node("b", "10.1.0.2/24", v6="fd01::2/64"),
    node("c", "10.2.0.1/24"),
    namespace("shop"),
    pool("pods", "10.0.0.0/16", nat_outgoing=True),
    pool("six", "fd00::/64"),
    block("10.0.0.0/26", "a"),
    block("10.0.0.64/26", "b"),
    block("10.0.0.128/26", "c"),
    block("fd00::/122", "a"),
    block("fd00::40/122", "b"),
    pod("web", "10.0.0.1", "fd00::1", app="web"),
    pod("db", "10.0.0.2", app="db"),
    pod("far", "10.0.0.65", "fd00::41", on="b"),
    pod("farther", "10.0.0.129", on="c"),
)


@pytest.fixture(autouse=True)
def elsewhere() -> Iterator[None]:
    """A host that is none of the nodes, whatever addresses this machine has."""
    with scratch_namespace():
        yield


def told(source: str, destination: str, *changes: Resource, port: int = 80) -> Answer:
    state = snapshot({each.key: each for each in (*BASE, *changes)}.values())
    ends = end(state, source, "--from"), end(state, destination, "--to")
    meant = tuple(ip_address(each) if "/" not in each else None for each in (source, destination))
    return ask(state, ends, 6, port, (meant[0], meant[1]))


def ways(answer: Answer) -> list[str]:
    return [line for line in answer.lines() if line.startswith(("there: ", "back: "))]


def encapsulations(hops: Iterable[object]) -> list[str]:
    return [getattr(hop, "encapsulation", "") for hop in hops]


def test_on_one_node_there_is_one_hop_each_way() -> None:
    answer = told("shop/web", "shop/db")
    web, db = (answer.back[0].interface, answer.hops[0].interface)
    assert ways(answer) == [
        f"there: a: to the pod's interface {db} (metric 100)",
        f"back: a: to the pod's interface {web} (metric 100)",
    ]
    assert "connections: each node knows its own; run this on a to see them" in answer.lines()


@pytest.mark.parametrize(
    ("mode", "words", "wrapped", "farther"),
    [
        (EncapMode.NEVER, "natively, by what BGP learns (metric 200)", "", ""),
        (EncapMode.ALWAYS, "in IP-in-IP through muslin.ipip (metric 400)", "ipip", "ipip"),
        (EncapMode.CROSS_SUBNET, "directly on the nodes' subnet (metric 300)", "", "ipip"),
        (
            EncapMode.FALLBACK,
            "natively, by what BGP learns (metric 200), else in IP-in-IP through muslin.ipip (metric 400)",
            "ipip while BGP has no route",
            "ipip while BGP has no route",
        ),
    ],
)
def test_between_nodes_as_the_pool_says(mode: EncapMode, words: str, wrapped: str, farther: str) -> None:
    pods = pool("pods", "10.0.0.0/16", ipip_mode=mode)
    answer = told("shop/web", "shop/far", pods)
    at = "" if mode is EncapMode.NEVER else " at 10.1.0.2"
    assert ways(answer)[0] == f"there: a: block 10.0.0.64/26 of pool pods to b{at}: {words}"
    assert [hop.node for hop in (*answer.hops, *answer.back)] == ["a", "b", "b", "a"]
    assert encapsulations(answer.hops) == [wrapped, ""]
    assert encapsulations(told("shop/web", "shop/farther", pods).hops) == [farther, ""]
    assert answer.document()["route"][0]["encapsulation"] == wrapped
    six = told("shop/web", "fd00::41", pods)
    assert ways(six)[0] == ("there: a: block fd00::40/122 of pool six to b: natively, by what BGP learns (metric 200)")
    assert "connections: each node knows its own; run this on a or b to see them" in six.lines()


def test_to_the_outside_and_from_there() -> None:
    out = told("shop/web", "192.0.2.7")
    assert ways(out) == [
        "there: a: by the host's own routes, as the node's own address (natOutgoing)",
        f"back: a: to the pod's interface {out.back[0].interface} (metric 100)",
    ]
    assert "natOutgoing" not in ways(told("fd00::1", "2001:db8::1"))[0]
    assert [hop.node for hop in told("192.0.2.7", "shop/far").hops] == ["b"]


def test_answers_to_the_outside_keep_the_address_that_was_asked() -> None:
    (way,) = (line for line in ways(told("192.0.2.7", "shop/web")) if line.startswith("back: "))
    assert way == "back: a: by the host's own routes"


def test_host_endpoints_that_may_have_a_say_are_named() -> None:
    def asked(source: str, destination: str, *changes: Resource) -> list[str]:
        answer = told(source, destination, *hosts, *changes)
        assert len(answer.document()["notAsked"]) == sum("not asked: " in line for line in answer.lines())
        return list(answer.document()["notAsked"])

    spec = HostEndpointSpec(node="b", interface_name="eth0")
    hosts = (HostEndpoint(metadata=Metadata(name="b-eth0"), spec=spec),)
    assert asked("node/a", "node/b") == asked("shop/web", "node/b") == ["hostendpoint/b-eth0"]
    assert asked("shop/web", "shop/far") == asked("shop/web", "node/a") == asked("node/b", "shop/far") == []
    forward = GlobalNetworkPolicy(
        metadata=Metadata(name="forward"), spec=GlobalNetworkPolicySpec(apply_on_forward=True)
    )
    assert asked("shop/web", "shop/far", forward) == ["hostendpoint/b-eth0"]
    assert asked("shop/web", "shop/db", forward) == []


def test_nodes_are_ends_too() -> None:
    for name in ("node/a", "10.1.0.1"):
        answer = told(name, "shop/db", deny("all", "shop"))
        assert answer.lines()[-1] == "Allow"
        assert "what node a itself sends to its own pods is not policed" in answer.lines()
        assert answer.document()["from"] == "node/a"
    answer = told("node/a", "shop/far", deny("all", "shop"))
    assert (answer.found.egress, answer.lines()[-1]) == (None, "Deny")
    assert "there: a: the node itself takes it" in ways(told("shop/far", "node/a"))
    with pytest.raises(MuslinError, match="there is no pod node/z; nor a node of that name"):
        told("node/z", "shop/db")


def test_a_pod_to_its_own_node_meets_what_the_node_says() -> None:
    dropped = told("shop/web", "node/a")
    assert dropped.lines()[-1] == dropped.document()["verdict"] == "Deny"
    assert "to its own node: Drop: defaultEndpointToHostAction" in dropped.lines()
    accept = felix(default_endpoint_to_host_action="Accept")
    assert told("shop/web", "node/a", accept).lines()[-1] == "Allow"
    assert told("shop/web", "node/a", accept, deny("all", "shop")).lines()[-1] == "Deny"
    assert told("shop/web", "node/a", accept, felix("node.a", default_endpoint_to_host_action="Drop")).to_host == "Drop"
    assert told("shop/web", "node/b").to_host == ""


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_a_pod_that_peers_with_its_node_may_call_it_and_no_other_may(address: str) -> None:
    state = BOTH, pod("db", "10.0.0.2", "fd00::2", app="db"), asked("app == 'web'")
    answer = told("shop/web", address, *state, port=179)
    assert "to its own node: Accept: BGP with its node, which a BGPPeer asks for" in answer.lines()
    assert answer.lines()[-1] == "Allow"
    assert told("shop/web", address, *state, felix(default_endpoint_to_host_action="Return"), port=179).called
    closed = told("shop/web", address, *state, deny("all", "shop"), port=179)
    assert (closed.lines()[-1], closed.to_host) == ("Deny", "Accept")
    for source, port, changes in (("shop/db", 179, state), ("shop/web", 80, state), ("shop/web", 179, state[:2])):
        answer = told(source, address, *changes, port=port)
        assert "to its own node: Drop: defaultEndpointToHostAction" in answer.lines()
        assert answer.lines()[-1] == "Deny"
    assert told(address, "shop/db", *state, deny("all", "shop")).lines()[-1] == "Allow"


def test_what_is_staged_would_be_said_and_is_not_done() -> None:
    answer = told("shop/web", "shop/db")
    assert answer.document()["pending"] is None
    soon = Key(StagedNetworkPolicy.KIND, "shop", "soon")
    reason = Reason(cause=Cause.RULE, direction=Direction.INGRESS, tier="default", policy=soon, rule=0)
    found = replace(answer.found, pending_ingress=Decision(Verdict.DENY, reason))
    answer = replace(answer, found=found)
    assert answer.lines()[-1] == "Allow"
    (line,) = (line for line in answer.lines() if "staged" in line)
    assert line.startswith("ingress of shop/db would be, with what is staged: Deny: StagedNetworkPolicy shop/soon")
    pending = answer.document()["pending"]
    assert (pending["verdict"], pending["egress"], pending["ingress"]["verdict"]) == ("Deny", None, "Deny")
