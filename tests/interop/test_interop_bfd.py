"""BFD with the router: a silence ends the session and its routes, long before the hold time. GoBGP has no BFD."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bgp_world import until

from tests.interop.rack import FAR4, Rack, to_tor
from tests.interop.tor import FOUR, TOR4
from tests.interop.tor_bird import BirdTor
from tests.interop.tor_frr import FrrTor

pytestmark = pytest.mark.kernel

WITH_BFD = pytest.mark.parametrize("running_rack", ["bird", "frr"], indirect=True)


@WITH_BFD
def test_a_silence_ends_the_session_and_its_routes(rack: Rack) -> None:
    tor = rack.tor
    assert isinstance(tor, BirdTor | FrrTor)
    tor.configure(replace(FOUR, bfd=True, restart_s=0))
    rack.apply(to_tor(bfd={"minimumSendInterval": "300ms", "minimumRecvInterval": "300ms", "multiplier": 3}))
    rack.await_up()
    tor.announce(FAR4)
    rack.await_learnt(FAR4)
    until(f"{rack.kind} sees BFD up", lambda: tor.watched() == "up")
    until("so does the node", lambda: rack.agent.session(TOR4).bfd.lower() == "up")
    tor.silence()
    try:
        took = until("the routes are gone", lambda: not rack.routes(), every_s=0.01)
        until("the session is down", lambda: not rack.agent.up(TOR4))
    finally:
        tor.wake()
    assert took < 3
    rack.await_up()
    rack.await_learnt(FAR4)


@WITH_BFD
def test_a_router_without_bfd_is_still_a_peer(rack: Rack) -> None:
    rack.tor.configure(FOUR)
    rack.apply(to_tor(bfd={}))
    rack.await_up()
    rack.tor.announce(FAR4)
    rack.await_learnt(FAR4)
