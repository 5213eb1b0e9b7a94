"""The agent and a pod that speaks BGP: a real BIRD in the pod's namespace."""

from __future__ import annotations

import msgspec
import pytest
from bgp_world import AgentProcess, Bird, World, block, defaults, node, peer, pool, until

from core.resources import WorkloadEndpoint

pytestmark = pytest.mark.kernel

POD = """
protocol static s4 { ipv4; route 10.244.1.7/32 blackhole; }
protocol bgp n4 {
  local 10.244.1.7 as 65100; neighbor 169.254.1.2 as 64512; multihop 2;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 { import all; export all; };
}
"""


def test_a_pod_that_is_selected_has_a_session_and_hears_of_the_nodes_blocks(world: World) -> None:
    world.wire("n1", ["10.9.1.2/32", "169.254.1.2/32"], "pod", ["10.244.1.7/32"])
    world.run("ip", "-n", world.namespace("n1"), "route", "add", "10.244.1.7/32", "dev", "pod")
    world.run("ip", "-n", world.namespace("pod"), "route", "add", "169.254.1.2/32", "dev", "n1")
    bird = Bird(world, "pod", "10.244.1.7")
    bird.start(POD)
    agent = AgentProcess(world, "n1", settle_s=2.0)
    spec = {"node": "n1", "pod": "router", "ipNetworks": ["10.244.1.7/32"]}
    metadata = {"name": "router", "namespace": "shop", "labels": {"bgp": "yes"}}
    endpoint = msgspec.convert({"metadata": metadata, "spec": spec}, WorkloadEndpoint)
    asked = peer("pods", "", localWorkloadSelector="bgp == 'yes'", asNumber=65100)
    resources = [
        node("n1", "10.9.1.2/24"),
        pool("main", "10.244.0.0/16"),
        block("10.244.1.0/26", "n1"),
        defaults(nodeToNodeMeshEnabled=False, localWorkloadPeeringIPV4="169.254.1.2"),
        endpoint,
    ]
    agent.apply(*resources, asked)
    until("the pod hears of the block", lambda: bird.prefixes("n4") == {"10.244.1.0/26"})
    until("the status says so", lambda: agent.up("10.244.1.7"))
    assert agent.session("10.244.1.7").name == "BGPPeer/pods/shop/router"
    agent.apply(*resources, peer("pods", "", localWorkloadSelector="bgp == 'no'", asNumber=65100))
    until("a pod that is no longer selected has none", lambda: not bird.up("n4"))
    until("the status forgets it", lambda: agent.state.sessions == [])
