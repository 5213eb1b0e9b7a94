"""A block or an address more, or less, that is ours: what lies in it is decided anew, and nothing else is touched."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import permutations

import pytest
from bgp_paths import FACTS, NODES, P1, P2, Node, path, place, session, speaker, update, via
from bgp_world import block, pool

from bgp.exabgp.line import Update
from core.prefix import Prefix
from core.resources import Resource

NETS = ("10.244.5.0/26", "10.244.5.9/32", "10.244.6.0/26", "10.244.6.7/32", "10.244.0.0/16", "fd00::40/122")
SPOKEN = tuple(map(ip_network, NETS))
POOLS = (pool("main", "10.244.0.0/16"), pool("six", "fd00::/48"))
OURS = block("10.244.5.0/26", "a")
SIX = block("fd00::40/122", "a")
LENT = block("10.244.6.0/26", "b", borrowers={"10.244.6.7": "a"})
STEPS: dict[str, tuple[Resource, ...]] = {
    "nothing": (),
    "a block": (OURS,),
    "another family's": (OURS, SIX),
    "a borrowed address": (OURS, LENT),
    "a pool more": (OURS, pool("more", "10.99.0.0/16")),
}


def fed(*steps: tuple[Resource, ...], adopted: bool) -> Node:
    node = Node()
    if adopted:
        node.adopt({Prefix.of(net): via(P1) for net in SPOKEN[:4]})
    node.learn_facts(FACTS)
    for resources in steps[:1]:
        node.configure(speaker(session(P1, 65001), session(P2, 65002)), place(*NODES, *POOLS, *resources))
    for peer, number in ((P1, 65001), (P2, 65002)):
        node.hear(update(peer, *SPOKEN, said=path(peer, number)), 0)
    for resources in steps[1:]:
        node.configure(speaker(session(P1, 65001), session(P2, 65002)), place(*NODES, *POOLS, *resources))
    return node


@pytest.mark.parametrize("adopted", [False, True])
def test_any_way_to_a_state_leads_to_the_same_routes(adopted: bool) -> None:
    for names in permutations(STEPS, 3):
        walked, at_once = fed(*(STEPS[name] for name in names), adopted=adopted), fed(STEPS[names[-1]], adopted=adopted)
        assert walked.routes() == at_once.routes(), names
        assert dict(walked.refused) == dict(at_once.refused), names


def test_what_lies_elsewhere_keeps_its_decision() -> None:
    node = fed((), adopted=False)
    before = dict(node.decisions)
    node.take_changes()
    node.configure(speaker(session(P1, 65001), session(P2, 65002)), place(*NODES, *POOLS, OURS))
    other = {prefix.network for prefix, decision in node.decisions.items() if decision is not before[prefix]}
    assert other == {SPOKEN[0], SPOKEN[1]}
    assert {prefix.network for prefix in node.take_changes()} == other


def test_what_is_said_again_after_a_block_has_come_and_gone_is_known_still() -> None:
    """Or each block of ours that flaps would leave decisions behind."""
    node = fed((), adopted=False)
    elsewhere = Prefix.of(SPOKEN[2])
    before = node.decisions[elsewhere]
    for resources in ((OURS,), ()):
        node.configure(speaker(session(P1, 65001), session(P2, 65002)), place(*NODES, *POOLS, *resources))
        for peer in (P1, P2):
            node.hear(Update(peer, withdrawn=(elsewhere,)), 0)
        assert elsewhere not in node.decisions
        for peer, number in ((P1, 65001), (P2, 65002)):
            node.hear(update(peer, SPOKEN[2], said=path(peer, number)), 0)
        assert node.decisions[elsewhere] is before
