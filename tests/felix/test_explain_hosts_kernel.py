"""What explain says on a node is what becomes of a real connection, also where host endpoints judge it."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest

from core.resources import Resource
from core.resources.policy import Action, EntityRule, Rule
from tests.felix.cluster import deny, felix, pod
from tests.felix.cluster import node as named
from tests.felix.guarded import (
    ANY,
    FAR,
    FAR6,
    HOST6,
    OUTSIDE6,
    Guarded,
    Servers,
    hep,
    open_profile,
    policy,
    staged,
    tcp,
)
from tests.felix.host import HOST, OUTSIDE
from tests.felix.test_explain_kernel import outcome, told

pytestmark = pytest.mark.kernel

PORTS = (22, 80, 81, 82, 83, 84)
DENY = Rule(action=Action.DENY)
PODS = Rule(action=Action.ALLOW, source=EntityRule(selector="app == 'web'", namespace_selector="all()"))
UP, REST = "host == 'up'", "host == 'rest'"
STATES: dict[str, tuple[Resource, ...]] = {
    "one that is closed": (hep("up", "eth0"),),
    "rules, found by address, what is forwarded, and the rest": (
        hep("up", "", HOST),
        hep("rest", "*"),
        policy("in", UP, [tcp(80)], [tcp(81)]),
        policy("fw", UP, [tcp(81, 84)], [tcp(82), PODS], apply_on_forward=True),
        policy("rest", REST, [tcp(82)], [tcp(83)], apply_on_forward=True),
        deny("pods", "shop", "app == 'db'"),
        felix(default_endpoint_to_host_action="Return"),
    ),
    "early planes": (
        hep("up", "eth0"),
        policy("raw", UP, [tcp(80)], [tcp(80, source=True)], do_not_track=True, apply_on_forward=True, order=1),
        policy("raw-deny", UP, [tcp(81, action=Action.DENY)], do_not_track=True, apply_on_forward=True, order=2),
        policy(
            "early", UP, [tcp(82), tcp(83, action=Action.DENY)], pre_dnat=True, apply_on_forward=True, types=["Ingress"]
        ),
        policy("fw", UP, [tcp(84)], [ANY], apply_on_forward=True),
        staged("soon", UP, [DENY], [DENY], apply_on_forward=True, order=0),
    ),
}


@pytest.mark.parametrize("state", STATES)
async def test_explain_and_the_kernel_agree(node: Guarded, state: str) -> None:
    await node.write(
        *STATES[state],
        named("a", f"{HOST}/24", v6=f"{HOST6}/64"),
        open_profile("open"),
        pod("web", "10.0.0.1", "fd00::1", profiles=("open",), app="web"),
    )
    await node.start()
    places = {
        HOST: node.here,
        HOST6: node.here,
        OUTSIDE: node.outside,
        OUTSIDE6: node.outside,
        FAR: node.far,
        FAR6: node.far,
        "10.0.0.1": node.web,
        "fd00::1": node.web,
    }
    ways = [
        (source, to)
        for source, to in product(places, places)
        if (":" in source) == (":" in to)
        and places[source] is not places[to]
        # Neither end is the cluster's: explain knows no node on the way.
        and any(places[end] in (node.here, node.web) for end in (source, to))
    ]
    async with Servers() as servers:
        for address, place in places.items():
            for port in PORTS:
                await servers.at(place, port, address)
        asked = [(source, to, port) for source, to in ways for port in PORTS]
        made = await asyncio.gather(*(places[source].reaches(to, port) for source, to, port in asked))
        found = [await told(node, source, to, port, trace=False) for source, to, port in asked]
    wrong = [
        (*way, reached, answer.lines())
        for way, reached, answer in zip(asked, made, found, strict=True)
        if (answer.verdict == "Allow") is not reached
    ]
    assert not wrong
    assert not [answer for answer in found if answer.guards.unknown], "on the node itself all is known"
    assert len(set(made)) == 2


async def test_a_real_packet_is_told_by_the_endpoint_that_dropped_it(node: Guarded) -> None:
    await node.write(hep("up", "eth0"), policy("fw", UP, egress=[tcp(80)], apply_on_forward=True))
    await node.start()
    sent = await told(node, "node/a", OUTSIDE, 81)
    assert outcome(sent).startswith("dropped by muslin: host egress of hostendpoint/up on a: end of tier default")
    document = sent.document()
    assert document["trace"]["decision"]["policies"] == ["globalnetworkpolicy/fw"]
    assert [each["interface"] for each in document["hostEndpoints"]] == ["eth0"]
    carried = await told(node, "shop/web", OUTSIDE, 81)
    assert outcome(carried).startswith("dropped by muslin: forward egress of hostendpoint/up on a: end of tier default")
    await node.write(deny("web", "shop", "app == 'web'"))
    assert outcome(await told(node, "shop/web", OUTSIDE, 81)).startswith("dropped by muslin: egress of ")
    await node.write(hep("rest", "*"), felix(default_endpoint_to_host_action="Return"))
    await node.remove(deny("web", "shop", "app == 'web'"))
    own = await told(node, "shop/web", HOST, 81)
    assert outcome(own).startswith("dropped by muslin: host ingress of hostendpoint/rest on a: no ingress rule")


async def test_of_all_that_deny_the_one_that_dropped_it_is_named(node: Guarded) -> None:
    far = pod("far", "10.0.9.9", on="b", app="far")
    await node.write(named("b", f"{OUTSIDE}/24"), far, deny("far", "shop", "app == 'far'"))
    await node.write(hep("up", "eth0"), policy("fw", UP, egress=[tcp(80)], apply_on_forward=True))
    await node.start()
    answer = await told(node, "shop/web", "shop/far", 81)
    assert [line for line in answer.lines() if line.startswith("ingress of shop/far: Deny")]
    assert outcome(answer).startswith("dropped by muslin: forward egress of hostendpoint/up on a: ")
