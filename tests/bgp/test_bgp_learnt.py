"""From what peers say to kernel routes: the fold, the choice, the import, the next hops, the adoption."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations

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
    graceful,
    learnt,
    networks,
    path,
    place,
    plain,
    session,
    speaker,
    update,
    via,
)
from bgp_world import block, pool
from hypothesis import given
from hypothesis import strategies as st

from bgp.attributes import Origin, Path
from bgp.exabgp.line import EndOfRib, PeerDown, PeerEvent, PeerUp, Update
from bgp.paths.bestpath import Candidate, choose
from bgp.paths.fib import Reach, Ways
from bgp.paths.rib import END_OF_RIB_S, RELEARN_S, SELECTION_S, AdjRibIn
from core.addr import Address, Family, Network
from core.prefix import Prefix
from linux.model import Facts, NextHop


def fold(*events: PeerEvent, at: float = 0.0) -> AdjRibIn:
    rib = AdjRibIn()
    for event in events:
        rib.fold(event, at)
    return rib


def told(rib: AdjRibIn) -> dict[tuple[Address, Network], Path]:
    return {(each.peer, p.network): each.path for table in rib.tables() for p, each in table.items()}


class TestRib:
    def test_announced_replaced_withdrawn(self) -> None:
        rib = fold(PeerUp(P1), update(P1, BLOCK, OTHER))
        assert not rib.fold(update(P1, BLOCK), 0)
        newer = Update(P1, ((path(P1, 65001, 65002), (Prefix.of(BLOCK),)),))
        assert networks(rib.fold(newer, 0)) == {BLOCK}
        assert networks(rib.fold(update(P1, withdrawn=(BLOCK, BLOCK)), 0)) == {BLOCK}
        assert not rib.fold(update(P1, withdrawn=(BLOCK,)), 0)
        assert networks(rib.prefixes()) == {OTHER}

    def test_withdrawn_and_announced_in_one_update_stands(self) -> None:
        rib = fold(PeerUp(P1), update(P1, BLOCK), update(P1, BLOCK, withdrawn=(BLOCK,)))
        assert networks(rib.prefixes()) == {BLOCK}

    def test_a_peer_that_restarted_without_its_routes_loses_them_when_it_is_back(self) -> None:
        rib = fold(graceful(P1), PeerUp(P1), update(P1, BLOCK), PeerDown(P1, "lost", notified=False))
        assert not rib.fold(replace(graceful(P1), restarting=True), 5)
        assert networks(rib.fold(PeerUp(P1), 5)) == {BLOCK}
        assert not rib.prefixes()

    def test_a_peer_that_restarted_with_its_routes_may_take_its_time(self) -> None:
        back = replace(graceful(P1), restarting=True, kept=frozenset({Family.V4}))
        rib = fold(graceful(P1), PeerUp(P1), update(P1, BLOCK), PeerDown(P1, "lost", notified=False))
        assert not rib.fold(back, 5)
        assert not rib.fold(PeerUp(P1), 5)
        assert rib.deadline == 5 + SELECTION_S
        assert not rib.expire(5 + END_OF_RIB_S)
        assert networks(rib.expire(5 + SELECTION_S)) == {BLOCK}

    def test_a_peer_without_graceful_restart_loses_everything_at_once(self) -> None:
        rib = fold(plain(P1), PeerUp(P1), update(P1, BLOCK))
        assert networks(rib.fold(PeerDown(P1, "closing connection", False), 0)) == {BLOCK}
        assert rib.deadline is None

    def test_a_notification_ends_graceful_restart(self) -> None:
        rib = fold(graceful(P1), PeerUp(P1), update(P1, BLOCK))
        assert networks(rib.fold(PeerDown(P1, "notification received (6,2)", True), 0)) == {BLOCK}

    def test_a_graceful_peer_keeps_its_paths_for_its_time(self) -> None:
        rib = fold(graceful(P1), PeerUp(P1), update(P1, BLOCK))
        assert not rib.fold(PeerDown(P1, "closing connection", False), 100.0)
        assert rib.deadline == 160.0
        rib.fold(PeerDown(P1, "closing connection", False), 150.0)  # it tried to come back
        assert rib.deadline == 160.0
        assert not rib.expire(159.0)
        assert networks(rib.expire(160.0)) == {BLOCK}

    def test_end_of_rib_sweeps_what_was_not_told_again(self) -> None:
        rib = fold(graceful(P1), PeerUp(P1), update(P1, BLOCK, OTHER), PeerDown(P1, "", False), PeerUp(P1))
        assert not rib.fold(update(P1, OTHER), 0)
        assert not rib.told_all(P1)
        assert networks(rib.fold(EndOfRib(P1), 0)) == {BLOCK}
        assert rib.told_all(P1)
        assert rib.deadline is None

    def test_a_lost_speaker_keeps_every_peers_paths_until_they_spoke(self) -> None:
        rib = fold(graceful(P1), PeerUp(P1), update(P1, BLOCK), plain(P2), PeerUp(P2), update(P2, BLOCK, OTHER))
        rib.lose_speaker(100.0)
        assert len(told(rib)) == 3
        assert rib.deadline == 100.0 + RELEARN_S
        rib.fold(PeerUp(P2), 110.0)
        rib.fold(update(P2, BLOCK), 110.0)
        assert networks(rib.expire(110.0 + END_OF_RIB_S)) == {OTHER}  # P2 sends no End-of-RIB
        assert networks(rib.expire(100.0 + RELEARN_S)) == {BLOCK}  # P1 never came back
        assert set(told(rib)) == {(P2, BLOCK)}

    @given(st.data())
    def test_events_of_different_peers_commute(self, data: st.DataObject) -> None:
        events = [data.draw(st.lists(_events(peer), max_size=8)) for peer in (P1, P2, P3)]
        alone = {}
        for part in events:
            alone.update(told(fold(*part)))
        queues = [list(part) for part in events]
        mixed = []
        while any(queues):
            queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
            mixed.append(queue.pop(0))
        assert told(fold(*mixed)) == alone


def _events(peer: Address) -> st.SearchStrategy[PeerEvent]:
    prefixes = st.lists(st.sampled_from([BLOCK, OTHER]), unique=True).map(tuple)
    updates = st.builds(lambda new, gone: update(peer, *new, withdrawn=gone), prefixes, prefixes)
    downs = st.booleans().map(lambda notified: PeerDown(peer, "", notified))
    rest = st.sampled_from([graceful(peer), plain(peer), PeerUp(peer), EndOfRib(peer)])
    return st.one_of(updates, updates, downs, rest)


class TestChoice:
    A, B = Candidate(session(P1), path(P1, 65001)), Candidate(session(P2, 65002), path(P2, 65002))

    @pytest.mark.parametrize(
        ("worse", "reason"),
        [
            ({"local_pref": 50}, "higher local preference"),
            ({"as_path": (65002, 65003), "as_path_length": 2}, "shorter AS path"),
            ({"origin": Origin.INCOMPLETE}, "lower origin"),
        ],
    )
    def test_each_comparison_decides(self, worse: dict[str, object], reason: str) -> None:
        beaten = replace(self.B, path=replace(self.B.path, **worse))
        for order in permutations((self.A, beaten)):
            choice = choose(order)
            assert (choice.used, choice.reason) == ((self.A,), reason)

    def test_equal_paths_are_used_together_lowest_peer_first(self) -> None:
        for order in permutations((self.A, self.B)):
            assert (choose(order).used, choose(order).reason) == ((self.A, self.B), "equal paths")

    def test_med_compares_only_within_one_neighbouring_as(self) -> None:
        dearer = replace(self.A, session=session(P3), path=path(P3, 65001, med=10))
        assert choose([dearer, self.A, self.B]).used == (self.A, self.B)
        assert choose([dearer, self.B]).used == (self.B, dearer)
        assert choose([dearer, self.A]).reason == "lower MED"

    def test_external_before_internal(self) -> None:
        internal = Candidate(session(P3, 64512), path(P3, 65001))
        assert (choose([internal, self.A]).used, choose([internal, self.A]).reason) == (
            (self.A,),
            "external over internal",
        )

    @given(st.data())
    def test_the_order_of_candidates_does_not_matter(self, data: st.DataObject) -> None:
        paths = st.builds(
            lambda first, length, med, pref, origin: Path(
                next_hop=P1, as_path=(first,) * length, as_path_length=length, med=med, local_pref=pref, origin=origin
            ),
            st.sampled_from([64512, 65001, 65002]),
            st.integers(0, 2),
            st.integers(0, 1),
            st.sampled_from([100, 200]),
            st.sampled_from(Origin),
        )
        candidates = [Candidate(session(peer), data.draw(paths)) for peer in (P1, P2, P3)]
        assert len({choose(order) for order in permutations(candidates)}) == 1


class TestNextHops:
    def test_on_link_then_the_longest_gateway(self) -> None:
        ways = Ways(FACTS)
        assert ways.to(P1) == Reach((NextHop(1, P1),), "e1")
        both = (NextHop(1, ip_address("10.9.1.253")), NextHop(2, ip_address("10.9.2.253")))
        assert ways.to(ip_address("10.50.1.1")) == Reach(both, "e1")
        assert ways.to(ip_address("10.60.1.1")) == Reach((NextHop(1, ip_address("10.9.1.254")),), "e1")

    def test_what_cannot_be_reached_says_why(self) -> None:
        assert "no route leads to it" in str(Ways(FACTS).to(ip_address("fd00::1")))
        assert "link-local" in str(Ways(FACTS).to(ip_address("fe80::1")))
        down = {name: replace(link, up=False) for name, link in LINKS.items()}
        assert "no route leads to it" in str(Ways(Facts(links=down)).to(P1))


class TestImport:
    @pytest.mark.parametrize(
        ("mode", "prefix", "refused"),
        [
            ("Never", "10.244.5.0/26", ""),
            ("Never", "10.244.6.0/26", ""),
            ("Never", "10.244.5.8/32", ""),
            ("Never", "10.244.77.0/26", ""),
            ("Never", "10.244.1.0/26", "ours"),
            ("Never", "10.244.1.7/32", "ours"),
            ("Never", "10.99.0.0/26", "in no IPPool"),
            ("Never", "0.0.0.0/0", "in no IPPool"),
            ("Never", "fd00::/64", "in no IPPool"),
            ("Fallback", "10.244.5.0/26", ""),
            ("Fallback", "10.244.77.0/26", ""),
            ("Always", "10.244.5.0/26", "not carried by BGP"),
            ("Always", "10.244.77.0/26", "not carried by BGP"),
            ("CrossSubnet", "10.244.5.0/26", "not carried by BGP"),
            ("CrossSubnet", "10.244.6.0/26", "not carried by BGP"),
        ],
    )
    def test_by_pool_and_owner(self, mode: str, prefix: str, refused: str) -> None:
        blocks = [block("10.244.1.0/26", "a"), block("10.244.5.0/26", "b"), block("10.244.6.0/26", "c")]
        where = place(*NODES, pool("main", "10.244.0.0/16", ipipMode=mode), *blocks)
        at = where.place(Prefix.of(ip_network(prefix)))
        said = "ours" if at.ours else at.unprogrammed if at.pool else "in no IPPool"
        assert (refused in said) if refused else said == ""

    def test_ipv6_is_always_native(self) -> None:
        found = place(*NODES, pool("six", "fd44::/48", ipipMode="Never")).place(Prefix.of(ip_network("fd44::40/122")))
        assert (found.pool, found.unprogrammed) == ("six", "")


class TestLearnt:
    def test_two_peers_one_route(self) -> None:
        table = learnt(P1, P2)
        assert table.hear(update(P1, BLOCK), 0)
        assert table.hear(update(P2, BLOCK), 0)
        assert table.routes() == {BLOCK: via(P1, P2)}
        assert table.hear(PeerDown(P2, "", True), 0)
        assert table.routes() == {BLOCK: via(P1)}

    def test_pool_and_facts_decide_again(self) -> None:
        table = learnt(P1)
        table.hear(update(P1, BLOCK), 0)
        table.configure(speaker(session(P1)), place(*NODES, pool("main", "10.244.0.0/16", ipipMode="Always")))
        assert table.routes() == {}
        assert "not carried by BGP" in table.refused[BLOCK]
        table.configure(speaker(session(P1)), place(*NODES, pool("main", "10.244.0.0/16", ipipMode="Fallback")))
        assert set(table.routes()) == {BLOCK}
        table.learn_facts(Facts())
        assert "no route leads to it" in table.refused[BLOCK]

    def test_a_session_taken_away_takes_its_paths(self) -> None:
        table = learnt(P1, P2)
        table.hear(update(P1, BLOCK), 0)
        table.configure(speaker(session(P2)), place(*NODES, pool("main", "10.244.0.0/16")))
        assert table.routes() == {}
        assert not table.hear(update(P1, BLOCK), 0)

    def test_adopted_routes_stand_until_everyone_spoke(self) -> None:
        table = learnt(P1, P2)
        table.adopt({Prefix.of(BLOCK): via(P1, P2), Prefix.of(OTHER): via(P1)})
        assert set(table.routes()) == {BLOCK, OTHER}
        table.hear(update(P1, BLOCK), 0)
        assert table.routes()[BLOCK] == via(P1, P2)  # half of it said again is no change
        table.hear(EndOfRib(P1), 0)
        assert not table.all_told()
        table.hear(update(P2, BLOCK), 0)
        table.hear(EndOfRib(P2), 0)
        assert table.all_told()
        table.settle()
        assert table.routes() == {BLOCK: via(P1, P2)}

    def test_who_has_just_restarted_is_not_waited_for_before_our_own_end_of_rib(self) -> None:
        table = learnt(P1, P2)
        table.hear(PeerUp(P1), 0)
        table.hear(EndOfRib(P1), 0)
        assert not table.may_conclude()  # P2 may know something
        table.hear(replace(graceful(P2), restarting=True), 0)
        assert not table.may_conclude()  # it is not up yet
        table.hear(PeerUp(P2), 0)
        assert table.may_conclude()
        assert not table.all_told()
        table.hear(PeerDown(P2, "closing connection", False), 0)
        table.hear(graceful(P2), 0)
        table.hear(PeerUp(P2), 0)
        assert not table.may_conclude()

    def test_a_withdrawal_ends_an_adoption_at_once(self) -> None:
        table = learnt(P1, P2)
        table.adopt({Prefix.of(BLOCK): via(P1)})
        table.hear(update(P1, BLOCK), 0)
        assert table.hear(update(P1, withdrawn=(BLOCK,)), 0)
        assert table.routes() == {}

    def test_a_lost_path_ends_an_adoption_as_far_as_it_goes_that_way(self) -> None:
        table = learnt(P1, P2)
        table.adopt({Prefix.of(BLOCK): via(P1, P2), Prefix.of(OTHER): via(P2)})
        table.hear(update(P1, BLOCK), 0)
        assert table.lose_path(P2)
        assert table.routes() == {BLOCK: via(P1)}
        table.regain_path(P2)
        table.hear(update(P2, BLOCK), 0)
        assert table.routes() == {BLOCK: via(P1, P2)}

    def test_a_peer_that_says_goodbye_ends_an_adoption_too(self) -> None:
        table = learnt(P1, P2)
        table.adopt({Prefix.of(BLOCK): via(P1, P2)})
        table.hear(update(P1, BLOCK), 0)
        table.hear(update(P2, BLOCK), 0)
        assert table.hear(PeerDown(P2, "Cease", notified=True), 0)
        assert table.routes() == {BLOCK: via(P1)}

    def test_a_better_way_replaces_an_adopted_one(self) -> None:
        table = learnt(P1, P2)
        table.adopt({Prefix.of(BLOCK): via(P1)})
        table.hear(update(P2, BLOCK), 0)
        assert table.routes() == {BLOCK: via(P2)}

    def test_adoption_respects_the_pool(self) -> None:
        table = learnt(P1, mode="Always")
        table.adopt({Prefix.of(BLOCK): via(P1)})
        assert table.routes() == {}
