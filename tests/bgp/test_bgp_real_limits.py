"""A real BIRD that tells more than its session may."""

from __future__ import annotations

import pytest
from bgp_world import AgentProcess, Bird, World, defaults, node, peer, pool, until

pytestmark = pytest.mark.kernel

TOR = """
protocol static s4 {{ ipv4; {routes} }}
protocol bgp n4 {{
  local 10.9.1.1 as 65001; neighbor 10.9.1.2 as 64512; hold time 90;
  connect delay time 1; connect retry time 2; error wait time 1,2;
  ipv4 {{ import all; export all; next hop self; }};
}}
"""


def tor(*numbers: int) -> str:
    return TOR.format(routes=" ".join(f"route 10.244.{number}.0/26 blackhole;" for number in numbers))


def test_the_surplus_waits_until_there_is_room(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    bird = Bird(world, "tor", "10.9.1.1")
    bird.start(tor(*range(12)))
    agent = AgentProcess(world, "n1")
    agent.apply(
        node("n1", "10.9.1.2/24"),
        pool("main", "10.244.0.0/16"),
        peer("tor", "10.9.1.1", asNumber=65001, maxPrefixesIn=10),
        defaults(nodeToNodeMeshEnabled=False),
    )
    until("as many as may be are in the kernel", lambda: len(world.routes("n1")) == 10)
    until("the status says so", lambda: any("2 more were refused" in each for each in agent.state.problems))
    assert agent.up("10.9.1.1"), "the session is kept"
    before = agent.session("10.9.1.1").since
    taken = {int(prefix.split(".")[2]) for prefix in world.routes("n1")}
    refused = set(range(12)) - taken
    kept = sorted(taken)[:5]
    bird.configure(tor(*kept, *refused))
    until("what was refused has come in", lambda: len(world.routes("n1")) == 7)
    assert {int(prefix.split(".")[2]) for prefix in world.routes("n1")} == {*kept, *refused}
    until("nobody complains any more", lambda: not any("refused" in each for each in agent.state.problems))
    assert agent.session("10.9.1.1").since == before, "the session never went down"
