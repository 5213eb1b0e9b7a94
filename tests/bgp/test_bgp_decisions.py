"""Why routes go where they go; what becomes of those that are gone, stale or doubtful; that history does not count."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

import pytest
from bgp_paths import (
    BLOCK,
    FACTS,
    LINKS,
    NODES,
    OTHER,
    P1,
    P2,
    P3,
    Node,
    graceful,
    learnt,
    path,
    place,
    plain,
    session,
    speaker,
    update,
    via,
)
from bgp_world import block, node, pool
from hypothesis import given
from hypothesis import strategies as st

from bgp.exabgp.line import EndOfRib, PeerDown, PeerEvent, PeerOpen, PeerUp
from bgp.paths.decision import Explanation, Said, Standing
from bgp.paths.rib import END_OF_RIB_S, REMEMBERED
from core.addr import Address, Network
from core.prefix import Prefix
from linux.model import Facts, Link, Route, Via

POOL = pool("main", "10.244.0.0/16")


def story(table: Node, prefix: Network = BLOCK, now: float = 0.0) -> Explanation:
    (found,) = table.explain(now, [prefix])
    return found


def told(said: tuple[Said, ...]) -> list[tuple[Address, str, str]]:
    return [(each.peer, each.standing.value, each.why) for each in said]


class TestWhy:
    def test_best_used_not_used_refused_and_withdrawn(self) -> None:
        table = learnt(P1, P2, P3)
        table.hear(update(P1, BLOCK), 0)
        table.hear(update(P2, BLOCK), 0)
        table.hear(update(P3, BLOCK, said=path(P3, 65003, 65004)), 0)
        found = story(table)
        assert told(found.said) == [
            (P1, "best", ""),
            (P2, "used", ""),
            (P3, "not used", "shorter AS path"),
        ]
        assert (found.reason, found.route, found.why_not) == ("shorter AS path", via(P1, P2), "")
        table.hear(update(P2, BLOCK, said=path(P2, 65002, 64512)), 5.0)
        table.hear(update(P1, withdrawn=(BLOCK,)), 7.0)
        found = story(table, now=10.0)
        assert [each.standing for each in found.said] == [Standing.BEST, Standing.REFUSED, Standing.WITHDRAWN]
        assert "a loop" in found.said[1].why
        assert (found.said[2].why, found.said[2].ago_s, found.said[2].session) == ("withdrawn", 3.0, "10.9.1.1")

    def test_why_there_is_no_route(self) -> None:
        always = pool("always", "10.245.0.0/16", ipipMode="Always")
        table = learnt(P1)
        table.configure(speaker(session(P1)), place(*NODES, POOL, always))
        inside = ip_network("10.245.1.0/26")
        table.hear(update(P1, inside), 0)
        found = story(table, inside)
        assert found.said[0].standing is Standing.BEST, "it could be reflected"
        assert (found.route, "not carried by BGP" in found.why_not) == (None, True)
        assert story(table, OTHER).why_not == "nobody speaks of it"

    def test_stale_since_and_until(self) -> None:
        table = learnt(P1)
        for event in (graceful(P1), PeerUp(P1), update(P1, BLOCK), PeerDown(P1, "", False)):
            table.hear(event, 100.0)
        said = story(table, now=120.0).said[0]
        assert (said.standing, said.ago_s, said.left_s, said.last_resort) == (Standing.BEST, 20.0, 40.0, False)
        table.hear(PeerUp(P1), 130.0)
        assert story(table, now=130.0).said[0].left_s == END_OF_RIB_S
        table.hear(update(P1, BLOCK), 131.0)
        assert story(table, now=131.0).said[0].ago_s is None

    def test_the_withdrawn_are_remembered_up_to_a_bound(self) -> None:
        table = learnt(P1)
        many = list(ip_network("10.244.0.0/16").subnets(new_prefix=27))[: REMEMBERED + 5]
        table.hear(update(P1, *many), 0)
        table.hear(update(P1, withdrawn=tuple(many)), 1)
        assert len(table.rib.gone) == REMEMBERED
        assert len(list(table.explain(2))) == REMEMBERED
        assert story(table, many[0], 2).said == ()
        assert story(table, many[-1], 2).said[0].standing is Standing.WITHDRAWN

    def test_an_adopted_route_says_that_it_is_one(self) -> None:
        table = learnt(P1)
        table.adopt({Prefix.of(BLOCK): via(P1)})
        assert (story(table).adopted, story(table).route) == (True, via(P1))


class TestLastResort:
    def test_after_the_restart_time_a_path_is_only_used_where_there_is_no_other(self) -> None:
        table = learnt(P1, P2)
        table.configure(speaker(session(P1, long_lived_s=1000), session(P2)), place(*NODES, POOL))
        for event in (graceful(P1), PeerUp(P1), update(P1, BLOCK, OTHER), PeerDown(P1, "", False)):
            table.hear(event, 0.0)
        table.hear(update(P2, OTHER, said=path(P2, 65002, 65003, 65004)), 0.0)
        assert table.routes() == {BLOCK: via(P1), OTHER: via(P1)}
        assert table.rib.deadline == 60.0
        assert table.expire(60.0)
        assert table.routes() == {BLOCK: via(P1), OTHER: via(P2)}
        said = story(table, now=100.0).said[0]
        assert (said.last_resort, said.left_s) == (True, 960.0)
        assert "65535:6" in table.best[BLOCK].path.communities
        assert [each.why for each in story(table, OTHER).said] == ["", "not a last resort"]
        assert table.rib.deadline == 1060.0
        assert table.expire(1060.0)
        assert table.routes() == {OTHER: via(P2)}

    def test_the_peer_comes_back(self) -> None:
        table = learnt(P1)
        table.configure(speaker(session(P1, long_lived_s=1000)), place(*NODES, POOL))
        for event in (graceful(P1), PeerUp(P1), update(P1, BLOCK, OTHER), PeerDown(P1, "", False)):
            table.hear(event, 0.0)
        table.expire(60.0)
        for event in (PeerUp(P1), update(P1, BLOCK), EndOfRib(P1)):
            table.hear(event, 500.0)
        assert table.routes() == {BLOCK: via(P1)}
        assert table.best[BLOCK].path.communities == ()
        assert table.rib.deadline is None

    def test_no_llgr_goes_with_the_restart_time(self) -> None:
        table = learnt(P1)
        table.configure(speaker(session(P1, long_lived_s=1000)), place(*NODES, POOL))
        unwilling = update(P1, BLOCK, said=path(P1, 65001, communities=("65535:7",)))
        for event in (graceful(P1), PeerUp(P1), unwilling, update(P1, OTHER), PeerDown(P1, "", False)):
            table.hear(event, 0.0)
        table.expire(60.0)
        assert table.routes() == {OTHER: via(P1)}

    def test_a_peers_own_mark_counts(self) -> None:
        table = learnt(P1, P2)
        table.hear(update(P1, BLOCK, said=path(P1, 65001, communities=("65535:6",), local_pref=900)), 0)
        table.hear(update(P2, BLOCK), 0)
        assert table.routes() == {BLOCK: via(P2)}

    def test_a_restart_during_a_restart_does_not_lengthen_the_time(self) -> None:
        table = learnt(P1)
        for event in (graceful(P1), PeerUp(P1), update(P1, BLOCK, OTHER), PeerDown(P1, "", False)):
            table.hear(event, 0.0)
        for event in (PeerUp(P1), update(P1, OTHER), PeerDown(P1, "", False)):
            table.hear(event, 20.0)
        assert set(table.routes()) == {BLOCK, OTHER}
        table.expire(60.0)
        assert set(table.routes()) == {OTHER}
        table.expire(80.0)
        assert table.routes() == {}


class TestPathDown:
    def test_a_lost_path_is_of_no_use_until_the_session_comes_up_anew(self) -> None:
        table = learnt(P1, P2)
        for event in (PeerUp(P1), update(P1, BLOCK, OTHER), update(P2, BLOCK)):
            table.hear(event, 0)
        assert table.lose_path(P1)
        assert not table.lose_path(P1)
        assert table.routes() == {BLOCK: via(P2)}
        assert table.refused[OTHER] == "BFD says the path is down"
        table.hear(update(P1, BLOCK, OTHER, said=path(P1, 65009)), 1)
        assert table.routes() == {BLOCK: via(P2)}
        table.hear(PeerDown(P1, "", False), 2)
        table.hear(PeerUp(P1), 3)
        table.hear(update(P1, BLOCK, OTHER), 3)
        assert table.routes() == {BLOCK: via(P1, P2), OTHER: via(P1)}

    def test_a_graceful_peers_stale_paths_are_of_use_again_when_it_is_back(self) -> None:
        table = learnt(P1)
        for event in (graceful(P1), PeerUp(P1), update(P1, BLOCK)):
            table.hear(event, 0)
        table.lose_path(P1)
        table.hear(PeerDown(P1, "", False), 1)
        assert table.routes() == {}
        assert table.hear(PeerUp(P1), 2)
        assert table.routes() == {BLOCK: via(P1)}

    def test_a_path_found_again_while_the_session_stood(self) -> None:
        table = learnt(P1)
        table.hear(update(P1, BLOCK), 0)
        table.lose_path(P1)
        assert table.regain_path(P1)
        assert table.routes() == {BLOCK: via(P1)}


class TestTwoWriters:
    def test_a_block_of_ours_that_another_announces(self) -> None:
        table = learnt(P1)
        table.configure(speaker(session(P1)), place(*NODES, POOL, block(str(BLOCK), "a")))
        table.hear(update(P1, BLOCK, said=path(P1, 65001, 64999)), 0)
        (problem,) = table.problems()
        assert problem.startswith("10.244.5.0/26 is ours, and 10.9.1.1 (10.9.1.1) announces it too, from AS 64999")
        table.configure(speaker(session(P1)), place(*NODES, POOL))
        assert list(table.problems()) == []

    @pytest.mark.parametrize(
        "back", [path(P1, 65001, 64512), path(P1, 65001, originator=IPv4Address("10.9.1.2"))], ids=["AS", "originator"]
    )
    def test_our_own_announcement_come_back_is_no_clash(self, back: object) -> None:
        table = learnt(P1)
        table.configure(speaker(session(P1)), place(*NODES, POOL, block(str(BLOCK), "a")))
        table.hear(update(P1, BLOCK, said=back), 0)  # type: ignore[arg-type]
        assert table.routes() == {}
        assert list(table.problems()) == []

    def test_another_programs_route_for_a_prefix_of_ours(self) -> None:
        table = learnt(P1)
        table.hear(update(P1, BLOCK, OTHER), 0)
        theirs = Via(destination=BLOCK, gateway=ip_address("10.9.1.200"), device=1)
        held = Link(name="br0", index=9, up=True, mtu=1500, addresses=(ip_interface("10.244.6.1/26"),))
        table.learn_facts(replace(FACTS, gateways=(*FACTS.gateways, theirs), links={**LINKS, "br0": held}))
        first, second = sorted(table.problems())
        assert first.startswith("10.244.5.0/26: another program's route via 10.9.1.200 stands beside ours")
        assert second == "10.244.6.0/26: br0's own subnet stands beside ours in the kernel; the lower metric wins"


class TestWhatChanges:
    def test_only_what_goes_through_a_link_is_decided_on_again(self) -> None:
        table = learnt(P1, P2)
        table.hear(update(P1, BLOCK), 0)
        table.hear(update(P2, OTHER), 0)
        kept = table.decisions[Prefix.of(BLOCK)]
        assert not table.learn_facts(replace(FACTS, links={**LINKS, "mus1": pod_link()}))
        down = {**LINKS, "e2": replace(LINKS["e2"], up=False)}
        assert table.learn_facts(Facts(links=down))
        assert table.decisions[Prefix.of(BLOCK)] is kept
        assert table.routes() == {BLOCK: via(P1)}
        assert "no route leads to it" in table.refused[OTHER]
        assert table.learn_facts(FACTS)
        assert table.routes() == {BLOCK: via(P1), OTHER: via(P2)}

    def test_a_next_hop_that_becomes_an_address_of_ours(self) -> None:
        table = learnt(P1)
        table.hear(update(P1, BLOCK), 0)
        lo = Link(name="lo", index=7, up=True, mtu=65536, addresses=(ip_interface("10.9.1.1/32"),))
        assert table.learn_facts(replace(FACTS, links={**LINKS, "lo": lo}))
        assert table.refused[BLOCK] == "we are the next hop"

    def test_another_nodes_block_changes_nothing(self) -> None:
        table = learnt(P1)
        table.hear(update(P1, BLOCK), 0)
        kept = table.decisions[Prefix.of(BLOCK)]
        for others in ((block(str(OTHER), "b"),), (block(str(OTHER), "c"), node("d", "10.9.1.77/24"))):
            table.configure(speaker(*sessions()[:1]), place(*NODES, POOL, *others))
            assert table.decisions[Prefix.of(BLOCK)] is kept

    def test_who_follows_the_best_hears_what_may_be_another(self) -> None:
        table = learnt(P1, P2)
        table.hear(update(P1, BLOCK), 0)
        assert table.take_chosen() == []
        table.follows_best = True
        opened = PeerOpen(P2, 0, frozenset(), router_id=IPv4Address("10.0.0.2"))
        for event in (opened, PeerUp(P2), update(P2, OTHER)):
            table.hear(event, 0)
        assert list(table.take_chosen()) == [OTHER]
        assert table.best[OTHER].router_id == IPv4Address("10.0.0.2")
        assert table.take_chosen() == []
        table.hear(update(P2, withdrawn=(OTHER,)), 0)
        assert list(table.take_chosen()) == [OTHER]
        assert OTHER not in table.best
        assert set(table.best) == {BLOCK}


def pod_link() -> Link:
    return Link(name="mus1", index=50, up=True, mtu=1500, addresses=(ip_interface("fe80::1/64"),))


def sessions() -> list:
    return [session(peer, 65000 + number) for number, peer in enumerate((P1, P2, P3), 1)]


PATHS = st.builds(
    lambda hop, first, pref, communities: path(hop, first, local_pref=pref, communities=communities),
    st.sampled_from([P1, P2, P3, ip_address("10.9.1.2"), ip_address("192.0.2.1")]),
    st.sampled_from([65001, 65002, 64512]),
    st.sampled_from([100, 200]),
    st.sampled_from([(), ("65535:0",), ("65535:6",), ("65535:7",)]),
)
PREFIXES = [BLOCK, OTHER, ip_network("10.244.5.8/32"), ip_network("198.51.100.0/24")]


def events(peer: Address) -> st.SearchStrategy[PeerEvent]:
    some = st.lists(st.sampled_from(PREFIXES), unique=True)
    updates = st.builds(lambda new, gone, said: update(peer, *new, withdrawn=tuple(gone), said=said), some, some, PATHS)
    downs = st.booleans().map(lambda notified: PeerDown(peer, "", notified))
    rest = st.sampled_from([graceful(peer), plain(peer), PeerUp(peer), EndOfRib(peer)])
    return st.one_of(updates, updates, updates, downs, rest)


@given(st.data())
def test_however_peers_interleave_the_choices_are_the_same(data: st.DataObject) -> None:
    queues = {peer: data.draw(st.lists(events(peer), max_size=6)) for peer in (P1, P2, P3)}
    in_turn, mixed = learnt(P1, P2, P3), learnt(P1, P2, P3)
    for queue in queues.values():
        for event in queue:
            in_turn.hear(event, 0)
    while waiting := [queue for queue in queues.values() if queue]:
        mixed.hear(data.draw(st.sampled_from(waiting)).pop(0), 0)
        mixed.routes()
    assert mixed.routes() == in_turn.routes()
    assert choices(mixed) == choices(in_turn)


@given(st.lists(st.one_of(*map(events, (P1, P2, P3)), st.integers(0, 9))))
def test_change_by_change_comes_to_the_same_as_from_nothing(history: list[PeerEvent | int]) -> None:
    """Whatever happens to peers, links, pools and blocks: what is decided is what a new one would decide."""
    links = [FACTS, Facts(links={"e1": LINKS["e1"]}), replace(FACTS, links={**LINKS, "mus1": pod_link()})]
    scopes = [place(*NODES, POOL), place(*NODES, POOL, block(str(BLOCK), "a")), place(*NODES)]
    facts, scope = links[0], scopes[0]
    table = learnt(P1, P2, P3)
    for event in history:
        if not isinstance(event, int):
            table.hear(event, 0)
        elif event < 3:
            facts = links[event]
            table.learn_facts(facts)
        elif event < 6:
            scope = scopes[event - 3]
            table.configure(speaker(*sessions()), scope)
        elif event < 8:
            table.lose_path((P1, P2)[event - 6])
        else:
            table.regain_path((P1, P2)[event - 8])
        table.routes()
    anew = Node()
    anew.rib = table.rib
    anew.learn_facts(facts)
    anew.configure(speaker(*sessions()), scope)
    assert table.routes() == anew.routes()
    assert choices(table) == choices(anew)


def choices(table: Node) -> dict[Prefix, tuple[object, Route | None, str]]:
    return {prefix: (each.choice, each.route, each.why) for prefix, each in table.decisions.items()}
