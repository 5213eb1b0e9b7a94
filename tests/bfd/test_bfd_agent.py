"""The whole agent with BFD: a dead path is left at once, a restart of ours is none."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest
from bgp_world import AgentProcess, Bird, Frr, World, block, defaults, node, peer, pool, until
from watcher import said, silent

from core.resources import Resource
from core.resources.status import SpeakerState

pytestmark = pytest.mark.kernel

OWN, FAR = "10.244.1.0/26", "10.244.5.0/26"

BIRD = """
protocol static s4 {{ ipv4; route 10.244.5.0/26 blackhole; }}
protocol bfd {{ }}
protocol bgp n4 {{
  local {tor} as {as_number}; neighbor {node} as 64512; bfd {{ interval {ms} ms; multiplier 3; }};
  connect delay time 1; connect retry time 2; error wait time 1,2;
  ipv4 {{ import all; export all; next hop self; }};
}}
"""

FRR = """
router bgp 65001
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart
 neighbor 10.9.6.2 remote-as 64512
 neighbor 10.9.6.2 bfd
 neighbor 10.9.6.2 update-source 10.9.6.1
 neighbor 10.9.6.2 timers connect 2
 address-family ipv4 unicast
  network 10.244.5.0/26
"""


def state(address: str, *peers: Resource) -> list[Resource]:
    cluster = [node("n1", f"{address}/24"), pool("main", "10.244.0.0/16"), block(OWN, "n1")]
    return [*cluster, defaults(nodeToNodeMeshEnabled=False), *peers]


def gateways(world: World, place: str) -> set[str]:
    route = world.routes(place).get(FAR, {})
    return {hop["gateway"] for hop in route.get("nexthops", [route]) if "gateway" in hop}


def test_a_silent_router_is_left_at_once_and_used_again_when_it_speaks(world: World) -> None:
    birds = []
    for number in (1, 2):
        tor, here = f"10.9.{number}.1", f"10.9.{number}.2"
        world.wire(f"tor{number}", [f"{tor}/24"], "two", [f"{here}/24"])
        birds.append(Bird(world, f"tor{number}", tor))
        birds[-1].start(BIRD.format(tor=tor, node=here, as_number=65000 + number, ms=100))
    fast = {"minimumSendInterval": "100ms", "minimumRecvInterval": "100ms"}
    agent = AgentProcess(world, "two", node="n1")
    agent.apply(
        *state(
            "10.9.1.2",
            peer("tor1", "10.9.1.1", asNumber=65001, bfd=fast),
            peer("tor2", "10.9.2.1", asNumber=65002, bfd=fast, sourceAddress="None"),
        )
    )
    until("both are used", lambda: gateways(world, "two") == {"10.9.1.1", "10.9.2.1"})
    until("BFD is up with both", lambda: [agent.session(each).bfd for each in ("10.9.1.1", "10.9.2.1")] == ["Up"] * 2)
    until("at its pace", lambda: all(each.timeout == 0.3 for bird in birds for each in said(bird).values()))
    with silent(world, "tor1", "two"):
        took = until("it is left", lambda: gateways(world, "two") == {"10.9.2.1"}, every_s=0.005)
        assert took < 0.5
        until("its session is ended", lambda: not agent.up("10.9.1.1"))
        assert agent.up("10.9.2.1")
        until("status says so", lambda: agent.session("10.9.1.1").bfd == "Down")
        assert agent.session("10.9.1.1").warnings == ["BFD: the path failed: time expired"]
        assert agent.session("10.9.1.1").bfd_flaps == 1
    until("both are used again", lambda: gateways(world, "two") == {"10.9.1.1", "10.9.2.1"})
    until("BFD is up again", lambda: agent.session("10.9.1.1").bfd == "Up" and agent.up("10.9.1.1"))
    time.sleep(1.0)  # an end of the new session by the old loss would come now
    assert birds[0].up("n4")
    assert agent.session("10.9.1.1").bfd_flaps == 1
    end(agent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_ours_is_no_dead_path_to_bird(world: World, number: signal.Signals) -> None:
    place = f"bird{number}"
    world.wire(f"r{number}", ["10.9.5.1/24"], place, ["10.9.5.2/24"])
    bird = Bird(world, f"r{number}", "10.9.5.1")
    bird.start(BIRD.format(tor="10.9.5.1", node="10.9.5.2", as_number=65001, ms=300))
    resources = state("10.9.5.2", peer("tor", "10.9.5.1", asNumber=65001, bfd={}))

    def stands() -> Callable[[], bool]:
        before = said(bird)["10.9.5.2"]
        return lambda: said(bird)["10.9.5.2"].stands_since(before)

    restarts(world, place, number, resources, lambda: bird.prefixes("n4") == {OWN}, stands, "10.9.5.1")


def test_a_restart_of_ours_is_no_dead_path_to_frr(world: World) -> None:
    world.wire("frr", ["10.9.6.1/24"], "underfrr", ["10.9.6.2/24"])
    frr = Frr(world, "frr", FRR, ("zebra", "bfdd", "bgpd"))
    resources = state("10.9.6.2", peer("tor", "10.9.6.1", asNumber=65001, bfd={}))

    def stands() -> Callable[[], bool]:
        before = downs()
        return lambda: downs() == before

    def downs() -> int:
        return int(json.loads(frr.ask("show bfd peers counters json"))[0]["session-down"])

    def routed() -> bool:
        return OWN in world.routes("frr", protocol="bgp")

    restarts(world, "underfrr", signal.SIGKILL, resources, routed, stands, "10.9.6.1")


def restarts(
    world: World,
    place: str,
    number: signal.Signals,
    resources: list[Resource],
    routed: Callable[[], bool],
    stands: Callable[[], Callable[[], bool]],
    tor: str,
) -> None:
    """End the agent, wait longer than BFD would, start it again: the router's BFD and routes stand all the while."""
    agent = AgentProcess(world, place, node="n1")
    agent.apply(*resources)
    until("all is up", lambda: agent.session(tor).bfd == "Up" and agent.up(tor) and agent.state.ready and routed())
    until("BFD is up to stay", lambda: settled(agent, tor))
    stood = stands()
    agent.process.send_signal(number)
    agent.process.wait(timeout=10)
    end_at = time.monotonic() + 1.3
    while time.monotonic() < end_at:
        assert routed()
        assert stood()
    agent.start()
    agent.state = SpeakerState()
    agent.apply(*resources)
    until("all is up again", lambda: agent.session(tor).bfd == "Up" and agent.up(tor) and agent.state.ready)
    assert routed()
    assert stood()
    assert set(world.routes(place)) == {FAR}
    end(agent)


def settled(agent: AgentProcess, tor: str) -> bool:
    """Whether BFD is up a second later, too: FRR makes its session anew once after BGP has come up."""
    if agent.session(tor).bfd != "Up":
        return False
    time.sleep(1.0)
    return agent.session(tor).bfd == "Up"


def end(agent: AgentProcess) -> None:
    agent.process.kill()
    agent.process.wait(timeout=10)
