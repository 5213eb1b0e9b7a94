"""Sessions: how they come about, with whom, and why not. As the router sees them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bgp_world import node, until

from tests.interop.rack import FAR4, FAR6, OWN4, OWN6, Rack, to_tor, to_tor6
from tests.interop.tor import FOUR, NODE4, NODE6, NODE_AS, SIX, TOR4, TOR6, Said

pytestmark = pytest.mark.kernel


def test_ebgp_over_both_families(rack: Rack) -> None:
    rack.tor.configure(FOUR, SIX)
    rack.apply(to_tor(), to_tor6())
    rack.await_up(NODE4, TOR4)
    rack.await_up(NODE6, TOR6)
    four, six = rack.await_heard(OWN4), rack.await_heard(OWN6, node=NODE6)
    assert (four[OWN4].path, four[OWN4].next_hop) == ((NODE_AS,), NODE4)
    assert (six[OWN6].path, six[OWN6].next_hop) == ((NODE_AS,), NODE6)
    assert rack.tor.session(NODE4).node_as == NODE_AS
    rack.tor.announce(FAR4)
    rack.tor.announce(FAR6)
    assert rack.await_learnt(FAR4)[FAR4]["gateway"] == TOR4
    assert rack.await_learnt(FAR6, version=6)[FAR6]["gateway"] == TOR6


def test_ibgp_is_told_a_local_preference_and_an_empty_path(rack: Rack) -> None:
    rack.tor.configure(FOUR, as_number=NODE_AS)
    rack.apply(to_tor(asNumber=NODE_AS))
    rack.await_up()
    heard = rack.await_heard(OWN4)[OWN4]
    assert heard.path == ()
    assert heard.local_pref is not None
    rack.tor.announce(FAR4)
    rack.await_learnt(FAR4)


def test_as_numbers_of_four_bytes(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, node_as=4_200_000_002), as_number=4_200_000_001)
    rack.apply(node("n1", f"{NODE4}/24", f"{NODE6}/64", asNumber="64086.59906"), to_tor(asNumber="4200000001"))
    rack.await_up()
    assert rack.await_heard(OWN4)[OWN4].path == (4_200_000_002,)
    rack.tor.announce(FAR4, Said(path=(4_200_000_009,)))
    rack.await_learnt(FAR4)


def test_the_shorter_hold_time_holds(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, hold_s=9))
    rack.apply(to_tor())
    rack.await_up()
    assert rack.tor.session().hold_s == 9
    rack.tor.configure(replace(FOUR, hold_s=60))
    rack.apply(to_tor(keepaliveTime="4s"))
    rack.await_up()
    until("the node's keepalives ask for 12 s", lambda: rack.tor.session().hold_s == 12)


def test_a_router_that_waits_to_be_called(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, passive=True))
    rack.apply(to_tor())
    rack.await_up()


def test_another_as_number_for_one_session(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, node_as=65100), SIX)
    rack.apply(to_tor(localASNumber=65100), to_tor6())
    rack.await_up()
    rack.await_up(NODE6, TOR6)
    assert rack.await_heard(OWN4)[OWN4].path == (65100,)
    assert rack.await_heard(OWN6, node=NODE6)[OWN6].path == (NODE_AS,)


def test_the_kernel_picks_the_source_address(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor(sourceAddress="None"))
    rack.await_up()
    rack.await_heard(OWN4)


def test_ttl_security_on_both_sides(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, ttl_security=True))
    rack.apply(to_tor(ttlSecurity=1))
    rack.await_up()
    rack.await_heard(OWN4)


def test_a_router_that_may_be_far_away_is_not_believed(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor())
    rack.await_up()
    rack.apply(to_tor(ttlSecurity=1))
    rack.await_refused()


def test_a_router_that_expects_another_as(rack: Rack) -> None:
    rack.tor.configure(replace(FOUR, node_as=64999))
    rack.apply(to_tor())
    until("the status says what the router objects to", lambda: "AS" in rack.reason())
    assert not rack.up()
    rack.tor.configure(FOUR)
    rack.await_up()


def test_a_router_in_another_as_than_the_manifest_says(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor(asNumber=65099))
    until("the status says so", lambda: "AS" in rack.reason())
    assert not rack.up()
    rack.apply(to_tor())
    rack.await_up()


def test_a_router_that_is_not_there_yet(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply()
    rack.tor.kill()
    rack.apply(to_tor())
    until("the status says so", lambda: rack.agent.session(TOR4).state == "Down")
    rack.tor.start()
    rack.await_up()
    rack.await_heard(OWN4)


def test_a_session_taken_out_of_the_manifests_ends_and_the_other_stays(rack: Rack) -> None:
    rack.tor.configure(FOUR, SIX)
    rack.apply(to_tor(), to_tor6())
    rack.await_up(NODE4, TOR4)
    rack.await_up(NODE6, TOR6)
    since = rack.agent.session(TOR6).since
    rack.apply(to_tor6())
    until(f"{rack.kind} sees it end", lambda: not rack.tor.session(NODE4).up)
    assert rack.tor.session(NODE6).up
    assert rack.agent.session(TOR6).since == since
    until("the status no longer has it", lambda: rack.agent.session(TOR4).state == "unknown")
