"""At most so many prefixes from a peer: the surplus is refused, the session stays, and room is made use of."""

from __future__ import annotations

from ipaddress import ip_network

from bgp_paths import FACTS, NODES, P1, P2, Node, networks, place, session, speaker, update
from bgp_world import pool
from hypothesis import given
from hypothesis import strategies as st

from bgp.exabgp.line import PeerOpen, PeerUp
from bgp.model import Session
from bgp.paths.limits import ASK_EVERY_S, warning
from core.addr import Network

BLOCKS = [ip_network(f"10.244.{number}.0/26") for number in range(12)]


def node_of(*peers: Session, route_refresh: bool = True) -> Node:
    table = Node()
    table.learn_facts(FACTS)
    table.configure(speaker(*peers), place(*NODES, pool("main", "10.244.0.0/16")))
    for peer in peers:
        table.hear(PeerOpen(peer.peer, 120, frozenset(), route_refresh=route_refresh), 0)
        table.hear(PeerUp(peer.peer), 0)
    return table


def test_the_surplus_is_refused_and_what_was_there_is_used_on() -> None:
    table = node_of(session(P1, most_in=5))
    table.hear(update(P1, *BLOCKS[:3]), 0)
    assert list(table.problems()) == []
    table.hear(update(P1, BLOCKS[3]), 0)
    assert list(table.problems()) == ["10.9.1.1 (10.9.1.1): 4 prefixes, of at most 5: more will be refused"]
    table.hear(update(P1, *BLOCKS[3:]), 0)
    assert table.routes().keys() == set(BLOCKS[:5])
    assert list(table.problems()) == ["10.9.1.1 (10.9.1.1): 5 prefixes, of at most 5: 7 more were refused"]
    assert table.rib.intake(P1).refused == 7


def test_a_full_table_still_changes() -> None:
    table = node_of(session(P1, most_in=2), session(P2))
    table.hear(update(P1, *BLOCKS[:2]), 0)
    table.hear(update(P1, BLOCKS[2], BLOCKS[1], withdrawn=(BLOCKS[0],)), 0)
    assert networks(table.rib.told_by(P1)) == {BLOCKS[1], BLOCKS[2]}
    table.hear(update(P2, *BLOCKS), 0)
    assert table.rib.count(P2) == len(BLOCKS), "another session has its own maximum, or none"


def test_where_there_is_room_again_the_peer_is_asked_for_everything_once() -> None:
    table = node_of(session(P1, most_in=2))
    table.hear(update(P1, *BLOCKS[:3]), 0)
    assert (table.rib.refreshes(1), table.rib.deadline) == ([], None)
    table.hear(update(P1, withdrawn=(BLOCKS[0],)), 2)
    assert table.rib.deadline == 0.0
    assert table.rib.refreshes(2) == [P1]
    assert table.rib.refreshes(2) == []
    table.hear(update(P1, *BLOCKS[1:4]), 3)
    table.hear(update(P1, withdrawn=(BLOCKS[1],)), 3)
    assert table.rib.refreshes(4) == []
    assert table.rib.deadline == 2 + ASK_EVERY_S
    assert table.rib.refreshes(2 + ASK_EVERY_S) == [P1]


def test_a_peer_that_has_not_offered_it_is_not_asked() -> None:
    table = node_of(session(P1, most_in=2), route_refresh=False)
    table.hear(update(P1, *BLOCKS[:3]), 0)
    table.hear(update(P1, withdrawn=(BLOCKS[0],)), 2)
    assert (table.rib.refreshes(2), table.rib.deadline) == ([], None)


def test_a_raised_maximum_asks_and_a_lowered_one_keeps_the_lowest() -> None:
    table = node_of(session(P1, most_in=2))
    where = place(*NODES, pool("main", "10.244.0.0/16"))
    table.hear(update(P1, *reversed(BLOCKS[:4])), 0)
    assert networks(table.rib.told_by(P1)) == {BLOCKS[3], BLOCKS[2]}
    table.configure(speaker(session(P1)), where)
    assert table.rib.refreshes(0) == [P1]
    table.hear(update(P1, *reversed(BLOCKS[:4])), 0)
    table.configure(speaker(session(P1, most_in=1)), where)
    assert table.routes().keys() == {BLOCKS[0]}
    assert table.rib.gone[0].why == "over maxPrefixesIn"


@given(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from(BLOCKS), min_size=1))), st.integers(0, 6))
def test_never_more_than_the_maximum_and_never_less_than_there_is_room_for(
    told: list[tuple[bool, set[Network]]], most: int
) -> None:
    table, meant = node_of(session(P1, most_in=most)), set()
    for announced, prefixes in told:
        if announced:
            table.hear(update(P1, *prefixes), 0)
            meant |= prefixes
        else:
            table.hear(update(P1, withdrawn=tuple(prefixes)), 0)
            meant -= prefixes
        held = networks(table.rib.told_by(P1))
        assert held <= meant
        assert len(held) <= most
        assert held == meant or table.rib.intake(P1).refused


def test_the_warning_begins_at_four_fifths() -> None:
    assert [warning(count, 10) != "" for count in (7, 8, 10)] == [False, True, True]
    assert warning(10_000, None) == ""
