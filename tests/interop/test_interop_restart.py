"""Restarts of either end: no packet lost while the other waits, and nothing stale when it is over."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
from bgp_world import block, until

from core.resources.status import SpeakerState
from tests.interop.rack import FAR4, OWN4, Rack, to_tor
from tests.interop.tor import FOUR, TOR4, Peering

pytestmark = pytest.mark.kernel

OTHER, FAR_OTHER = "10.244.2.0/26", "10.244.6.0/26"


def meet(rack: Rack, peering: Peering = FOUR, **spec: object) -> None:
    """In session, two blocks each way, everybody settled."""
    rack.tor.configure(peering)
    rack.apply(to_tor(**spec), block(OTHER, "n1"))
    rack.tor.announce(FAR4)
    rack.tor.announce(FAR_OTHER)
    rack.await_up()
    rack.await_heard(OWN4, OTHER)
    rack.await_learnt(FAR4, FAR_OTHER)
    until("the agent has settled", lambda: rack.agent.state.ready)
    until(f"{rack.kind} has the restart time", lambda: rack.tor.session().restart_s > 0 or not peering.restart_s)


def await_fresh(rack: Rack, *prefixes: str) -> None:
    """The router has heard of exactly these again: none is stale."""

    def fresh() -> bool:
        heard = rack.tor.heard()
        return heard.keys() == set(prefixes) and not any(each.stale for each in heard.values())

    until(f"{rack.kind} has {prefixes} and no stale route", fresh, every_s=0.1)


def kill_agent(rack: Rack) -> None:
    rack.agent.process.send_signal(signal.SIGKILL)
    rack.agent.process.wait(timeout=10)
    rack.agent.state = SpeakerState()


def test_exabgp_dies_twice_in_a_row(rack: Rack) -> None:
    # Again when everything is told again: who dies before has its stale routes dropped, by FRR too (RFC 4724, 4.2).
    meet(rack)
    with rack.pinging() as lost:
        for _ in range(2):
            killed = rack.agent.exabgp()
            os.kill(killed, signal.SIGKILL)
            until(f"{rack.kind} lost the session", lambda: not rack.tor.session().up)
            assert rack.tor.heard().keys() == {OWN4, OTHER}
            until("there is another", lambda killed=killed: exabgp(rack) not in (0, killed))
            until("in session again", rack.up, every_s=0.1)
            await_fresh(rack, OWN4, OTHER)
    assert lost() == 0
    assert rack.routes().keys() == {FAR4, FAR_OTHER}


def exabgp(rack: Rack) -> int:
    """The process id of ExaBGP, 0 while there is none."""
    try:
        return rack.agent.exabgp()
    except (AssertionError, IndexError):
        return 0


def test_the_agent_dies_and_comes_back_without_a_block(rack: Rack) -> None:
    meet(rack)
    with rack.pinging() as lost:
        kill_agent(rack)
        until(f"{rack.kind} lost the session", lambda: not rack.tor.session().up)
        assert rack.tor.heard().keys() == {OWN4, OTHER}
        rack.tor.withdraw(FAR_OTHER)
        rack.agent.start()
        rack.apply(to_tor())
        until("in session again", rack.up, every_s=0.1)
        await_fresh(rack, OWN4)
        rack.await_learnt(FAR4)
    assert lost() == 0


def test_the_agent_dies_again_before_it_is_back(rack: Rack) -> None:
    meet(rack)
    with rack.pinging() as lost:
        for _ in range(2):
            kill_agent(rack)
            rack.agent.start()
            rack.apply(to_tor(), block(OTHER, "n1"))
        until("in session again", rack.up, every_s=0.1)
        await_fresh(rack, OWN4, OTHER)
    assert lost() == 0
    assert rack.routes().keys() == {FAR4, FAR_OTHER}


def test_the_agent_stays_away_longer_than_it_said(rack: Rack) -> None:
    meet(rack, maxRestartTime="2s")
    kill_agent(rack)
    until(f"{rack.kind} lost the session", lambda: not rack.tor.session().up)
    rack.await_heard()
    assert rack.routes().keys() == {FAR4, FAR_OTHER}
    rack.agent.start()


def test_the_router_dies_and_comes_back_without_a_route(rack: Rack) -> None:
    meet(rack)
    with rack.pinging() as lost:
        rack.tor.kill()
        until("the node lost the session", lambda: not rack.agent.up(TOR4))
        assert rack.routes().keys() == {FAR4, FAR_OTHER}
        del rack.tor.announced[FAR_OTHER]
        rack.tor.start()
        until("in session again", rack.up, every_s=0.1)
        rack.await_learnt(FAR4)
        await_fresh(rack, OWN4, OTHER)
    assert lost() == 0


def test_both_ends_die_together(rack: Rack) -> None:
    meet(rack)
    rack.tor.kill()
    kill_agent(rack)
    assert rack.routes().keys() == {FAR4, FAR_OTHER}
    rack.tor.start()
    rack.agent.start()
    rack.apply(to_tor(), block(OTHER, "n1"))
    rack.await_up()
    await_fresh(rack, OWN4, OTHER)
    assert rack.routes().keys() == {FAR4, FAR_OTHER}


def test_the_router_stays_away_longer_than_it_said(rack: Rack) -> None:
    meet(rack, replace(FOUR, restart_s=2))
    rack.tor.kill()
    until("the node lost the session", lambda: not rack.agent.up(TOR4))
    assert rack.routes().keys() == {FAR4, FAR_OTHER}
    rack.await_learnt()
    rack.tor.start()


def test_a_router_without_graceful_restart_takes_its_routes_with_it(rack: Rack) -> None:
    meet(rack, replace(FOUR, restart_s=0))
    rack.tor.kill()
    took = until("its routes are gone", lambda: not rack.routes(), every_s=0.01)
    assert took < 2
    rack.tor.start()


def test_a_session_ended_by_the_router_comes_back_with_everything(rack: Rack) -> None:
    meet(rack)
    flaps = rack.agent.session(TOR4).flaps
    rack.tor.clear()
    until("the node has seen it", lambda: rack.agent.session(TOR4).flaps > flaps)
    rack.await_up()
    await_fresh(rack, OWN4, OTHER)
    until("the routes are back", lambda: rack.routes().keys() == {FAR4, FAR_OTHER})
