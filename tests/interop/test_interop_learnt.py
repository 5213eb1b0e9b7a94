"""What the router tells the node: taken, refused, withdrawn; what the node tells of its own."""

from __future__ import annotations

import pytest
from bgp_world import block, until

from tests.interop.rack import FAR4, FAR6, OWN4, OWN6, Rack, to_tor, to_tor6
from tests.interop.tor import FOUR, NODE4, NODE6, NODE_AS, SIX, TOR4, TOR6, Said

pytestmark = pytest.mark.kernel


def meet(rack: Rack, **spec: object) -> None:
    """Both sessions, as plain as they can be."""
    rack.tor.configure(FOUR, SIX)
    rack.apply(to_tor(**spec), to_tor6(**spec))
    rack.await_up(NODE4, TOR4)
    rack.await_up(NODE6, TOR6)


def test_blocks_are_announced_and_withdrawn_as_they_come_and_go(rack: Rack) -> None:
    meet(rack)
    new4, new6 = "10.244.2.0/26", "fd44::c0/122"
    sessions = to_tor(), to_tor6()
    rack.apply(*sessions, block(new4, "n1"), block(new6, "n1"))
    rack.await_heard(OWN4, new4)
    rack.await_heard(OWN6, new6, node=NODE6)
    rack.apply(*sessions)
    rack.await_heard(OWN4)
    rack.await_heard(OWN6, node=NODE6)


def test_what_the_router_withdraws_leaves_the_kernel(rack: Rack) -> None:
    meet(rack)
    for prefix in (FAR4, "10.244.6.0/26", FAR6):
        rack.tor.announce(prefix)
    rack.await_learnt(FAR4, "10.244.6.0/26")
    rack.await_learnt(FAR6, version=6)
    rack.tor.withdraw("10.244.6.0/26")
    rack.tor.withdraw(FAR6)
    rack.await_learnt(FAR4)
    rack.await_learnt(version=6)


def test_default_routes_and_foreign_prefixes_are_not_taken(rack: Rack) -> None:
    meet(rack)
    foreign = ("0.0.0.0/0", "192.0.2.0/24", "10.244.0.0/15", OWN4)
    for prefix in (*foreign, "::/0", "2001:db8::/32", FAR4, FAR6):
        rack.tor.announce(prefix)
    until("the node has heard all of them", lambda: rack.agent.session(TOR4).received == 5)
    until("of IPv6, too", lambda: rack.agent.session(TOR6).received >= 3)  # FRR tells our own back to us
    rack.await_learnt(FAR4)
    rack.await_learnt(FAR6, version=6)
    assert rack.routes().keys() == {FAR4}
    assert rack.routes(6).keys() == {FAR6}


def test_a_path_with_our_own_as_is_a_loop_unless_it_may_be(rack: Rack) -> None:
    meet(rack)
    rack.tor.announce(FAR4, Said(path=(65009, NODE_AS)))
    rack.tor.announce("10.244.6.0/26")
    rack.await_learnt("10.244.6.0/26")
    until("the node has heard of both", lambda: rack.agent.session(TOR4).received >= 2)
    assert rack.routes().keys() == {"10.244.6.0/26"}
    rack.apply(to_tor(numAllowedLocalASNumbers=1), to_tor6())
    rack.await_learnt(FAR4, "10.244.6.0/26")
    rack.tor.announce(FAR4, Said(path=(NODE_AS, 65009, NODE_AS)))
    rack.await_learnt("10.244.6.0/26")
