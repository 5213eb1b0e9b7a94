"""GoBGP that runs what we print for it: what it takes of a family without a pool, what next hop nodes hear from it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from bgp_world import Bird, World, defaults, node, peer, pool, until

from bgp.router_config.gobgp import gobgp
from bgp.router_config.side import router_side
from core.resources import Resource
from core.snapshot import Snapshot

pytestmark = pytest.mark.kernel

CLUSTER: list[Resource] = [
    node("n1", "10.9.1.2/24", "fd09::2/64"),
    pool("main", "10.244.0.0/16"),
    peer("tor", "10.9.1.1", asNumber=65001),
    peer("tor6", "fd09::1", asNumber=65001),
    defaults(nodeToNodeMeshEnabled=False),
]

NODE = """
protocol static { ipv4; route 10.244.1.0/26 blackhole; route 0.0.0.0/0 blackhole; }
protocol static { ipv6; route fd44::40/122 blackhole; route ::/0 blackhole; }
protocol bgp four { local 10.9.1.2 as 64512; neighbor 10.9.1.1 as 65001; ipv4 { import all; export all; }; }
protocol bgp six { local fd09::2 as 64512; neighbor fd09::1 as 65001; ipv6 { import all; export all; }; }
"""


SPINE = """
protocol static { ipv4; route 10.244.9.0/26 blackhole; }
protocol bgp tor { local 10.9.2.2 as 65000; neighbor 10.9.2.1 as 65001; ipv4 { import all; export all; }; }
"""

TO_SPINE = """
[[neighbors]]
  [neighbors.config]
    neighbor-address = "10.9.2.2"
    peer-as = 65000
"""


def printed(*resources: Resource, addresses: Sequence[str]) -> str:
    snapshot = Snapshot().apply(1, [(each.key, each) for each in resources])
    return gobgp(router_side(snapshot, list(map(ip_address, addresses))))


def start(world: World, text: str) -> None:
    config = world.scratch / "gobgpd.toml"
    config.write_text(text)
    with (world.scratch / "gobgpd.log").open("w") as log:
        argv = ("gobgpd", "-f", str(config), "--pprof-disable", "--api-hosts", "127.0.0.1:50051")
        world.start("tor", *argv, stdout=log, stderr=log)


def test_gobgp_is_the_next_hop_of_what_it_has_from_elsewhere_for_nodes_of_its_own_as(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    world.wire("tor", ["10.9.2.1/24"], "spine", ["10.9.2.2/24"])
    same = [node("n1", "10.9.1.2/24", asNumber=65001), CLUSTER[1], CLUSTER[2], CLUSTER[4]]
    start(world, printed(*same, addresses=["10.9.1.1"]) + TO_SPINE)
    Bird(world, "spine", "10.9.2.2").start(SPINE)
    bird = Bird(world, "n1", "10.9.1.2")
    bird.start(
        "protocol bgp tor { local 10.9.1.2 as 65001; neighbor 10.9.1.1 as 65001; ipv4 { import all; export none; }; }"
    )
    until("the node hears the spine's block", lambda: "10.244.9.0/26" in bird.ask("show", "route"))
    assert "BGP.next_hop: 10.9.1.1\n" in bird.ask("show", "route", "all", "10.244.9.0/26")


def test_a_family_without_a_pool_is_closed_in_gobgp(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24", "fd09::1/64"], "n1", ["10.9.1.2/24", "fd09::2/64"])
    start(world, printed(*CLUSTER, addresses=("10.9.1.1", "fd09::1")))
    Bird(world, "n1", "10.9.1.2").start(NODE)

    def taken(family: str, *of: str) -> set[str]:
        argv = world.command("tor", "gobgp", "-j", *of, "-a", family)
        said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20).stdout
        return set(json.loads(said or "{}"))

    def heard(family: str, address: str) -> set[str]:
        return taken(family, "neighbor", address, "adj-in")

    until("GoBGP heard both of IPv4", lambda: len(heard("ipv4", "10.9.1.2")) == 2)
    until("GoBGP heard both of IPv6", lambda: len(heard("ipv6", "fd09::2")) == 2)
    until("it took the block", lambda: taken("ipv4", "global", "rib") == {"10.244.1.0/26"})
    assert taken("ipv6", "global", "rib") == set()
