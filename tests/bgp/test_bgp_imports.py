"""What is taken in of what peers say: soundness, guard rails, filters, and the marks of RFCs."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from bgp_paths import (
    BLOCK,
    FACTS,
    NODES,
    OTHER,
    P1,
    P2,
    Node,
    learnt,
    path,
    place,
    session,
    speaker,
    update,
    via,
)
from bgp_world import block, made, pool

from bgp.attributes import Path
from bgp.model import Session
from bgp.paths.filters import compiled
from core.addr import Network
from core.prefix import Prefix
from core.resources import BGPFilter, Resource

FOREIGN = ip_network("198.51.100.0/24")
DEFAULT = ip_network("0.0.0.0/0")
US, CLUSTER = IPv4Address("10.9.1.2"), IPv4Address("224.0.0.1")
INTERNAL = 64512


def node_of(peer: Session, *resources: Resource, **more: Any) -> Node:
    where = resources or (pool("main", "10.244.0.0/16"),)
    table = Node()
    table.learn_facts(FACTS)
    table.configure(speaker(peer, **more), place(*NODES, *where))
    return table


def why_not(table: Node, said: Path, prefix: Network = BLOCK) -> str:
    """What becomes of a path: "" when it is in the kernel."""
    table.hear(update(P1, prefix, said=said), 0)
    return "" if prefix in table.routes() else table.refused[prefix]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (path(P1, 65001), ""),
        (path(P1, 65001, 64512), "our AS 64512"),
        (path(P1, 65001, 0), "AS 0"),
        (path(P1), "must put its AS number"),
        (path(ip_address("0.0.0.0"), 65001), "no address"),
        (path(ip_address("224.0.0.5"), 65001), "multicast"),
        (path(ip_address("127.0.0.1"), 65001), "loopback"),
        (path(ip_address("255.255.255.255"), 65001), "in no network"),
        (path(ip_address("10.9.1.2"), 65001), "we are the next hop"),
        (path(ip_address("10.9.2.2"), 65001), "we are the next hop"),
        (path(ip_address("fd00::1"), 65001), "not of the prefix's family"),
        (path(P1, 65001, originator=US), "we are its originator"),
        (path(P1, 65001, clusters=(IPv4Address(1), CLUSTER)), "our cluster 224.0.0.1"),
        (path(P1, 65001, originator=IPv4Address("10.9.1.9"), clusters=(IPv4Address(1),)), ""),
    ],
)
def test_an_unsound_path_is_refused_by_name(said: Path, why: str) -> None:
    found = why_not(node_of(session(P1), cluster_id=CLUSTER), said)
    assert (why in found) if why else found == ""


def test_a_next_hop_that_nobody_reaches_does_not_win() -> None:
    table = learnt(P1, P2)
    table.hear(update(P1, BLOCK, said=path(P1, 65001)), 0)
    table.hear(update(P2, BLOCK, said=path(ip_address("fd00::1"), 65001, local_pref=900)), 0)
    assert table.routes() == {BLOCK: via(P1)}


def test_our_own_as_is_allowed_as_often_as_the_session_says() -> None:
    assert why_not(node_of(session(P1, own_as_allowed=1)), path(P1, 65001, 64512)) == ""
    assert "a loop" in why_not(node_of(session(P1, own_as_allowed=1)), path(P1, 65001, 64512, 64512))


def rules(*wanted: dict[str, Any]) -> Session:
    return session(P1, filters=(compiled(made(BGPFilter, "some", {"importV4": list(wanted)})),))


FROM_FOREIGN = {"action": "Accept", "cidr": str(FOREIGN), "matchOperator": "Equal"}
NO_OTHER = {"action": "Reject", "cidr": str(OTHER), "matchOperator": "Equal"}


@pytest.mark.parametrize("prefix", [FOREIGN, DEFAULT])
def test_what_lies_in_no_pool_needs_a_filter(prefix: Network) -> None:
    assert why_not(node_of(session(P1)), path(P1, 65001), prefix) == "in no IPPool"
    accept = {**FROM_FOREIGN, "cidr": str(prefix)}
    assert why_not(node_of(rules(accept)), path(P1, 65001), prefix) == ""
    assert why_not(node_of(rules(accept)), path(P1, 65001), ip_network("203.0.113.0/24")) == "in no IPPool"


def test_a_filter_rejects_and_changes() -> None:
    table = node_of(rules(NO_OTHER, {"action": "Accept", "operations": [{"setLocalPreference": {"value": 7}}]}))
    table.hear(update(P1, BLOCK, OTHER), 0)
    assert set(table.routes()) == {BLOCK}
    assert table.refused[OTHER] == "rejected by BGPFilter/some importV4[0]"
    assert table.best[BLOCK].path.local_pref == 7
    assert (table.best[BLOCK].device, len(table.best)) == ("e1", 1)
    assert table.rib.told_by(P1)[Prefix.of(BLOCK)].path.local_pref == 100, "what was heard stays as it was heard"


def test_no_filter_makes_our_own_blocks_somebody_elses() -> None:
    resources = (pool("main", "10.244.0.0/16"), block(str(BLOCK), "a"))
    assert why_not(node_of(rules({"action": "Accept"}), *resources), path(P1, 65001)) == "ours"


def test_a_session_imports_within_what_it_may() -> None:
    bounded = session(P1, within=(ip_network("10.244.5.0/24"),))
    assert why_not(node_of(bounded), path(P1, 65001), ip_network("10.244.5.8/32")) == ""
    assert "outside what" in why_not(node_of(bounded), path(P1, 65001), OTHER)


@pytest.mark.parametrize("prefixes", [(BLOCK, OTHER), (OTHER, BLOCK)])
def test_prefixes_of_one_update_are_judged_each_by_itself(prefixes: tuple[Network, ...]) -> None:
    for peer in (session(P1, within=(BLOCK,)), rules(NO_OTHER)):
        table = node_of(peer)
        table.hear(update(P1, *prefixes), 0)
        assert set(table.routes()) == {BLOCK}


def test_a_borrowed_address_leads_to_who_borrowed_it() -> None:
    ours = block(str(BLOCK), "a", borrowers={"10.244.5.7": "b"})
    theirs = block(str(OTHER), "b", borrowers={"10.244.6.7": "a"})
    table = node_of(session(P1), pool("main", "10.244.0.0/16"), ours, theirs)
    for prefix, why in (
        ("10.244.5.7/32", ""),
        ("10.244.5.8/32", "ours"),
        ("10.244.5.6/31", "ours"),
        ("10.244.6.7/32", "ours"),
        ("10.244.6.8/32", ""),
    ):
        assert why_not(table, path(P1, 65001), ip_network(prefix)) == why, prefix


def test_who_is_about_to_go_comes_last() -> None:
    leaving = path(P1, 65001, communities=("65535:0",), local_pref=900)
    table = learnt(P1, P2)
    table.hear(update(P1, BLOCK, said=leaving), 0)
    assert table.best[BLOCK].path.local_pref == 0
    table.hear(update(P2, BLOCK, said=path(P2, 65002, 65003)), 0)
    assert table.routes() == {BLOCK: via(P2)}
    internal = node_of(session(P1, INTERNAL))
    internal.hear(update(P1, BLOCK, said=path(P1, communities=("65535:0",))), 0)
    assert internal.best[BLOCK].path.local_pref == 100, "over iBGP the sender has seen to it"
