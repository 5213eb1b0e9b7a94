"""A node that is being drained is a last resort to routers that run what we print for them."""

from __future__ import annotations

import json

import pytest
from bgp_world import AgentProcess, Bird, Frr, World, block, defaults, node, peer, pool, until

from bgp.router_config.bird import LAST_RESORT

pytestmark = pytest.mark.kernel

BIRD = f"""
function taken() {{ {LAST_RESORT}return true; }}
protocol bgp n4 {{
  local 10.9.1.1 as 65001; neighbor 10.9.1.2 as 64512; connect delay time 1; connect retry time 2;
  ipv4 {{ import where taken(); export none; }};
}}
"""

FRR = """
bgp community-list standard MUSLIN-DRAINED permit 65535:0
route-map TAKEN permit 5
 match community MUSLIN-DRAINED
 set local-preference 0
exit
route-map TAKEN permit 10
exit
router bgp 65002
 bgp router-id 10.9.2.1
 no bgp ebgp-requires-policy
 neighbor 10.9.2.2 remote-as 64512
 address-family ipv4 unicast
  neighbor 10.9.2.2 route-map TAKEN in
 exit-address-family
exit
"""


def test_what_a_drained_node_tells_has_local_preference_0(world: World) -> None:
    world.wire("bird", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    world.wire("frr", ["10.9.2.1/24"], "n1", ["10.9.2.2/24"])
    bird = Bird(world, "bird", "10.9.1.1")
    bird.start(BIRD)
    frr = Frr(world, "frr", FRR)
    agent = AgentProcess(world, "n1")

    def is_drained(maintenance: str) -> None:
        agent.apply(
            node("n1", "10.9.1.2/24", maintenance=maintenance),
            pool("main", "10.244.0.0/16"),
            block("10.244.1.0/26", "n1"),
            peer("bird", "10.9.1.1", asNumber=65001),
            peer("frr", "10.9.2.1", asNumber=65002, sourceAddress="None"),
            defaults(nodeToNodeMeshEnabled=False),
        )

    def preferences() -> tuple[str, int | None]:
        shown = bird.ask("show", "route", "all", "protocol", "n4")
        seen = shown.partition("BGP.local_pref: ")[2].split("\n")[0]
        paths = json.loads(frr.ask("show bgp ipv4 unicast 10.244.1.0/26 json")).get("paths", [])
        return seen, paths[0].get("locPrf", 100) if paths else None

    is_drained("")
    until("both have the block, as any other", lambda: preferences() == ("100", 100))
    is_drained("GracefulShutdown")
    until("it is a last resort to both", lambda: preferences() == ("0", 0))
    until("the status says so", lambda: agent.state.maintenance == "GracefulShutdown")
    is_drained("Withdrawn")
    until("it is gone from both", lambda: preferences() == ("", None))
    until("the status says that, too", lambda: agent.state.maintenance == "Withdrawn")
    is_drained("")
    until("it is back", lambda: preferences() == ("100", 100))
