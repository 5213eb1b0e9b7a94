"""The agent against real BIRDs, in network namespaces."""

from __future__ import annotations

import os
import signal

import pytest
from bgp_world import AgentProcess, Bird, RouteMonitor, World, block, defaults, node, peer, pool, until
from msgspec import structs

from core.breaker import RELEASE
from core.resources import Metadata
from core.resources.status import SpeakerState

pytestmark = pytest.mark.kernel

TOR = """
protocol static s4 {{ ipv4; {routes} }}
protocol bgp n4 {{
  local {local} as {local_as}; neighbor {peer} as 64512; hold time 90;
  connect delay time 1; connect retry time 2; error wait time 1,2; {more}
  ipv4 {{ import {imports}; export {exports}; next hop self; }};
}}
"""


def tor(
    local: str,
    peer: str,
    *routes: str,
    local_as: int = 65001,
    imports: str = "all",
    exports: str = "all",
    more: str = "",
) -> str:
    return TOR.format(
        local=local,
        peer=peer,
        local_as=local_as,
        imports=imports,
        exports=exports,
        more=more,
        routes=" ".join(f"route {each} blackhole;" for each in routes),
    )


def test_blocks_out_blocks_in_withdrawn_at_once(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    bird = Bird(world, "tor", "10.9.1.1")
    routes = ("10.244.5.0/26", "10.244.6.0/26", "10.245.1.0/26", "192.0.2.0/24")
    bird.start(tor("10.9.1.1", "10.9.1.2", *routes))
    agent = AgentProcess(world, "n1")
    resources = [
        node("n1", "10.9.1.2/24"),
        node("n2", "10.9.2.2/24"),
        pool("main", "10.244.0.0/16"),
        pool("always", "10.245.0.0/16", ipipMode="Always"),
        block("10.244.1.0/26", "n1"),
        block("10.244.5.0/26", "n2"),
        block("10.245.1.0/26", "n2"),
        peer("tor", "10.9.1.1", asNumber=65001),
        defaults(nodeToNodeMeshEnabled=False),
    ]
    agent.apply(*resources)
    until("BIRD sees the session and the block", lambda: bird.prefixes("n4") == {"10.244.1.0/26"})
    until("the learnt blocks are in the kernel", lambda: len(world.routes("n1")) == 2)
    learnt = world.routes("n1")
    assert set(learnt) == {"10.244.5.0/26", "10.244.6.0/26"}
    assert learnt["10.244.5.0/26"]["gateway"] == "10.9.1.1"
    assert learnt["10.244.5.0/26"]["metric"] == 200
    until("the status says so", lambda: agent.up("10.9.1.1") and agent.state.routes_in == 2)
    assert agent.session("10.9.1.1").received == 4
    assert agent.session("10.9.1.1").advertised == 1
    assert agent.state.programmed == 1

    agent.apply(*resources, block("10.244.2.0/26", "n1"), block("10.244.9.9/32", "n1"))
    until("a new block is told, a single address is not", lambda: len(bird.prefixes("n4")) == 2)
    assert bird.prefixes("n4") == {"10.244.1.0/26", "10.244.2.0/26"}
    bird.configure(tor("10.9.1.1", "10.9.1.2", "10.244.5.0/26"))
    took = until("a withdrawn block leaves the kernel", lambda: len(world.routes("n1")) == 1, every_s=0.005)
    assert took < 0.5
    agent.apply(*[each for each in resources if each.metadata.name != "10-244-1-0-26"])
    until("a released block is withdrawn", lambda: bird.prefixes("n4") == set())
    assert bird.up("n4")


def test_speaker_killed_and_nothing_moves(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    bird = Bird(world, "tor", "10.9.1.1")
    bird.start(tor("10.9.1.1", "10.9.1.2", "10.244.5.0/26"))
    agent = AgentProcess(world, "n1")
    resources = [node("n1", "10.9.1.2/24"), pool("main", "10.244.0.0/16"), defaults(nodeToNodeMeshEnabled=False)]
    resources += [block("10.244.1.0/26", "n1"), peer("tor", "10.9.1.1", asNumber=65001)]
    agent.apply(*resources)
    until("settled", lambda: agent.state.ready and world.routes("n1") and bird.prefixes("n4"))
    monitor = RouteMonitor(world, "n1")
    sync = Bird.prefixes

    first = agent.exabgp()
    os.kill(first, signal.SIGKILL)
    until("BIRD lost the session", lambda: not bird.up("n4"))
    assert sync(bird, "n4") == {"10.244.1.0/26"}
    until("the session is back", lambda: bird.up("n4") and agent.up("10.9.1.1"))
    assert agent.exabgp() != first
    until("everything was told again", lambda: agent.session("10.9.1.1").advertised == 1)
    assert sync(bird, "n4") == {"10.244.1.0/26"}

    second = agent.exabgp()
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()
    until("ExaBGP dies with its agent", lambda: not os.path.exists(f"/proc/{second}"))
    assert set(world.routes("n1")) == {"10.244.5.0/26"}
    assert sync(bird, "n4") == {"10.244.1.0/26"}
    agent.start()
    agent.state = SpeakerState()
    agent.apply(*resources)
    until("settled again", lambda: agent.state.ready and agent.up("10.9.1.1"))
    until("stale routes are refreshed", lambda: "s" not in stale_flags(bird))
    assert sync(bird, "n4") == {"10.244.1.0/26"}
    assert monitor.lines == []


def stale_flags(bird: Bird) -> str:
    return "s" if "STALE" in bird.ask("show", "route", "all", "protocol", "n4").upper() else ""


def test_two_tors_are_used_together_and_a_lost_one_is_dropped(world: World) -> None:
    birds = {}
    for number in (1, 2):
        here, there = f"10.9.{number}.1", f"10.9.{number}.2"
        world.wire(f"tor{number}", [f"{here}/24"], "n1", [f"{there}/24"])
        birds[number] = Bird(world, f"tor{number}", here)
        birds[number].start(tor(here, there, "10.244.5.0/26", local_as=65000 + number, more="graceful restart off;"))
    agent = AgentProcess(world, "n1")
    agent.apply(
        node("n1", "10.9.1.2/24"),
        pool("main", "10.244.0.0/16", ipipMode="Fallback"),
        block("10.244.1.0/26", "n1"),
        peer("tor1", "10.9.1.1", asNumber=65001),
        peer("tor2", "10.9.2.1", asNumber=65002, sourceAddress="None"),
        defaults(nodeToNodeMeshEnabled=False),
    )
    until("both next hops are in the kernel", lambda: len(gateways(world)) == 2)
    assert gateways(world) == {"10.9.1.1", "10.9.2.1"}
    birds[2].process.kill()
    took = until("the lost router's next hop is gone", lambda: gateways(world) == {"10.9.1.1"}, every_s=0.005)
    assert took < 0.5


def gateways(world: World) -> set[str]:
    route = world.routes("n1").get("10.244.5.0/26", {})
    return {hop["gateway"] for hop in route.get("nexthops", [route]) if "gateway" in hop}


def test_ipv6_and_ipv4_mesh_between_two_agents(world: World) -> None:
    world.wire("n1", ["10.9.1.1/24", "fd09::1/64"], "n2", ["10.9.1.2/24", "fd09::2/64"])
    resources = [
        node("n1", "10.9.1.1/24", "fd09::1/64"),
        node("n2", "10.9.1.2/24", "fd09::2/64"),
        pool("main", "10.244.0.0/16"),
        pool("six", "fd44::/48"),
        block("10.244.1.0/26", "n1"),
        block("10.244.2.0/26", "n2"),
        block("fd44::40/122", "n1"),
        block("fd44::80/122", "n2"),
    ]
    agents = [AgentProcess(world, name) for name in ("n1", "n2")]
    for agent in agents:
        agent.apply(*resources)
    for place, block4, block6, gateway4, gateway6 in (
        ("n1", "10.244.2.0/26", "fd44::80/122", "10.9.1.2", "fd09::2"),
        ("n2", "10.244.1.0/26", "fd44::40/122", "10.9.1.1", "fd09::1"),
    ):
        until(f"{place} learnt IPv4", lambda place=place: world.routes(place))
        until(f"{place} learnt IPv6", lambda place=place: world.routes(place, version=6))
        assert {key: value["gateway"] for key, value in world.routes(place).items()} == {block4: gateway4}
        assert {k: v["gateway"] for k, v in world.routes(place, version=6).items()} == {block6: gateway6}
    until("settled", lambda: all(agent.state.ready for agent in agents))


def test_blocks_that_vanish_together_stay_advertised_until_somebody_says_so(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    bird = Bird(world, "tor", "10.9.1.1")
    bird.start(tor("10.9.1.1", "10.9.1.2"))
    agent = AgentProcess(world, "n1")
    blocks = [block(f"10.244.{number}.0/26", "n1") for number in range(60)]
    rest = [
        pool("main", "10.244.0.0/16"),
        peer("tor", "10.9.1.1", asNumber=65001),
        defaults(nodeToNodeMeshEnabled=False),
    ]
    here = node("n1", "10.9.1.2/24", "fd01::9/64")
    agent.apply(here, *rest, *blocks)
    until("BIRD sees the blocks", lambda: len(bird.prefixes("n4")) == 60)
    until("the agent is ready", lambda: agent.state.ready)
    assert agent.state.problems == ["this host has no address fd01::9 (Node spec.bgp.ipv6Address)"]
    agent.apply(here, *rest, block("10.244.99.0/26", "n1"))
    until("what is new goes ahead", lambda: "10.244.99.0/26" in bird.prefixes("n4"))
    assert len(bird.prefixes("n4")) == 61
    until("the status says so", lambda: any("60 of 60 blocks" in each for each in agent.state.problems))
    assert (agent.state.ready, agent.state.programmed) == (False, 1)
    released = structs.replace(node("n1", "10.9.1.2/24"), metadata=Metadata(name="n1", annotations={RELEASE: "now"}))
    agent.apply(released, *rest, block("10.244.99.0/26", "n1"))
    until("the rest is withdrawn", lambda: bird.prefixes("n4") == {"10.244.99.0/26"})
    until("the agent is ready again", lambda: agent.state.ready and agent.state.programmed == 3)
    assert agent.state.problems == []
