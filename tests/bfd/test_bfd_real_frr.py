"""Our BFD against FRR's bfdd, with what bfdd itself says of the session."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bgp_world import Frr, World, until
from watcher import Watcher, every, silent

from bgp.bfd.watch import BfdState

pytestmark = pytest.mark.kernel

TOR4, NODE4, TOR6, NODE6 = "10.9.1.1", "10.9.1.2", "fd09::1", "fd09::2"


def pace(ms: int, multiplier: int = 3) -> list[str]:
    return [f"detect-multiplier {multiplier}", f"receive-interval {ms}", f"transmit-interval {ms}"]


def peer(address: str, local: str, *lines: str) -> list[str]:
    return [f"peer {address} local-address {local}", *lines, "exit"]


@pytest.fixture(scope="module")
def frr(world: World) -> Frr:
    world.wire("tor", [f"{TOR4}/24", f"{TOR6}/64"], "node", [f"{NODE4}/24", f"{NODE6}/64"])
    made = Frr(world, "tor", "", ("zebra", "bfdd"))
    configure(made, *peer(NODE4, TOR4, *pace(300)), *peer(NODE6, TOR6, *pace(300)))
    return made


@pytest.fixture(scope="module")
def node(frr: Frr, world: World) -> Iterator[Watcher]:
    made = Watcher(world, "node")
    made.start({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    try:
        yield made
    finally:
        made.stop()


def configure(frr: Frr, *lines: str) -> None:
    frr.ask("configure terminal", "bfd", *lines)


def said(frr: Frr, address: str) -> dict[str, Any]:
    return next((each for each in json.loads(frr.ask("show bfd peers json")) if each["peer"] == address), {})


def up(frr: Frr, node: Watcher, *, ms: int = 300) -> None:
    for here, there in ((TOR4, NODE4), (TOR6, NODE6)):
        until(f"{here} is up for both", lambda here=here, there=there: said(frr, there)["status"] == "up")
        until("we wait as long as both say", lambda here=here: node.state(here).detection_ms == 3.0 * ms)
        assert node.up(here)


def test_up_in_both_families_at_the_pace_that_both_want(frr: Frr, node: Watcher) -> None:
    up(frr, node)
    for address in (NODE4, NODE6):
        until(
            f"{address} tells bfdd its pace",
            lambda address=address: said(frr, address)["remote-transmit-interval"] == 300,
        )
        seen = said(frr, address)
        assert (seen["remote-receive-interval"], seen["remote-detect-multiplier"]) == (300, 3)
        assert seen["diagnostic"] == "ok"


def test_other_intervals_are_negotiated_while_it_stays_up(frr: Frr, node: Watcher) -> None:
    up(frr, node)
    losses = node.losses()
    node.configure({TOR4: (NODE4, every(100)), TOR6: ("", every(100))})
    configure(frr, *peer(NODE4, TOR4, *pace(100)), *peer(NODE6, TOR6, *pace(100)))
    up(frr, node, ms=100)
    until("bfdd knows ours", lambda: said(frr, NODE4)["remote-receive-interval"] == 100)
    configure(frr, *peer(NODE4, TOR4, *pace(300)), *peer(NODE6, TOR6, *pace(300)))
    up(frr, node)
    assert node.losses() == losses


def test_silence_is_noticed_in_time_by_both(frr: Frr, node: Watcher, world: World) -> None:
    node.configure({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    up(frr, node)
    with silent(world, "tor", "node"):
        begun = time.monotonic()
        assert 0.5 < node.lost_at(TOR4, begun) - begun < 1.0
        assert 0.5 < node.lost_at(TOR6, begun) - begun < 1.0
    up(frr, node)
    with silent(world, "node", "tor"):
        begun = time.monotonic()
        took = until("bfdd has lost us", lambda: said(frr, NODE4)["status"] != "up", every_s=0.01)
        assert took < 1.2  # what vtysh takes is in it
        assert said(frr, NODE4)["diagnostic"] == "control detection time expired"
        assert "the peer says so (time expired)" in lost(node, begun).reason
    up(frr, node)


def lost(node: Watcher, begun: float) -> BfdState:
    node.lost_at(TOR4, begun)
    return node.state(TOR4)


def test_a_router_that_switches_it_off_is_not_lost(frr: Frr, node: Watcher) -> None:
    up(frr, node)
    losses = node.losses()
    configure(frr, *peer(NODE4, TOR4, "shutdown"))
    until("we are down", lambda: not node.up(TOR4))
    assert not node.state(TOR4).lost
    assert node.state(TOR4).reason == "BFD is switched off at the peer"
    assert node.up(TOR6)
    configure(frr, *peer(NODE4, TOR4, "no shutdown"))
    up(frr, node)
    assert node.losses() == losses


def test_a_session_that_is_made_anew_on_the_router_is_not_a_dead_path(frr: Frr, node: Watcher) -> None:
    """As bgpd does when its own session comes up and its address is known. A new one first speaks after a second."""
    node.configure({TOR4: (NODE4, every(1000)), TOR6: ("", every(1000))})
    up(frr, node, ms=1000)
    losses, since = node.losses(), node.state(TOR4).since
    configure(frr, f"no peer {NODE4} local-address {TOR4}", *peer(NODE4, TOR4, *pace(300)))
    until("a new session", lambda: node.state(TOR4).since != since)
    node.configure({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    up(frr, node)
    assert node.losses() == losses


def test_a_node_that_switches_it_off_says_so(frr: Frr, node: Watcher) -> None:
    up(frr, node)
    node.configure({TOR6: ("", every(300))})
    until("bfdd hears of it", lambda: said(frr, NODE4)["status"] == "down", timeout_s=0.9)
    assert "admin" in said(frr, NODE4)["remote-diagnostic"]
    node.configure({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    up(frr, node)


def test_a_bfdd_that_restarts_comes_up_again(frr: Frr, node: Watcher) -> None:
    up(frr, node)
    begun = time.monotonic()
    frr.kill("bfdd")
    lost(node, begun)
    frr.start("bfdd")
    configure(frr, *peer(NODE4, TOR4, *pace(300)), *peer(NODE6, TOR6, *pace(300)))
    up(frr, node)


def test_a_bfdd_on_the_node_itself_is_said_and_does_no_harm(frr: Frr, world: World) -> None:
    world.wire("tor", ["10.9.2.1/24"], "two", ["10.9.2.2/24"])
    there = Frr(world, "two", "", ("zebra", "bfdd"))
    node = Watcher(world, "two")
    node.start({"10.9.2.1": ("10.9.2.2", every(300))})
    try:
        until("the port is taken", lambda: "UDP port 3784 is taken" in node.state("10.9.2.1").reason)
        assert "FRR's bfdd" in node.state("10.9.2.1").reason
        assert node.bfd.pid
        configure(frr, *peer("10.9.2.2", "10.9.2.1", *pace(300)))
        there.kill("bfdd")
        until("with the port it comes up by itself", lambda: node.up("10.9.2.1"))
    finally:
        node.stop()
