"""BIRD, FRR and GoBGP, run for real: sessions come up, blocks cross the fabric, an import filter closes and opens."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from core.errors import MuslinError, Unsupported
from lab import gobgp_fib, ip, processes
from lab.routers import Bird, Kernel, parse_bird_routes
from lab.topology import RouterKind
from lab.wiring import Neighbour, RouterWiring
from linux import netns

pytestmark = pytest.mark.lab

BLOCK = ip_network("10.9.0.64/26")
STRAY = ip_network("192.0.2.0/24")


def fabric(tor: str, pools: list[str] | None = None) -> dict[str, Any]:
    """A spine of BIRD, one router under test with a node, and an external host."""
    return {
        "name": "fabric",
        "pools": pools or ["10.9.0.0/16"],
        "routers": [
            {"name": "spine", "kind": "bird", "asNumber": 65000},
            {"name": "tor", "kind": tor, "asNumber": 65001, "uplinks": ["spine"], "nodeHoldTime": 9},
        ],
        "racks": [{"name": "rack", "router": "tor"}],
        "nodes": [{"name": "node-1", "rack": "rack", "asNumber": 65101}],
        "external": [{"name": "internet", "router": "spine"}],
    }


def speaker(ground: Any, directory: Path, node: str, networks: list[str]) -> Bird:
    """A BIRD in a node's namespace that announces static blocks to the router, as a node's own speaker would."""
    tor = next(each for each in ground.wiring.routers["tor"].neighbours if each.name == node)
    wiring = RouterWiring(
        name=node,
        kind=RouterKind.BIRD,
        as_number=tor.as_number,
        router_id=str(tor.address),
        bridges={},
        neighbours=(Neighbour("tor", tor.local, tor.address, 65001, node=False),),
        pools=(),
        node_hold_time=None,
    )

    class Node(Bird):
        def config(self) -> str:
            routes = "".join(f"route {network} blackhole; " for network in networks)
            return super().config() + f"protocol static {{ ipv4; {routes} }}\n"

    bird = Node(wiring, ground.namespace(node), directory / node)
    ground.processes += bird.start()
    return bird


@pytest.mark.parametrize("kind", ["bird", "frr", "gobgp"])
def test_a_block_crosses_the_fabric_and_a_filter_takes_it_back(
    kind: str, ground: Any, tmp_path: Path, wait: Callable[[Callable[[], object]], None]
) -> None:
    made = ground(fabric(kind))
    speaker(made, tmp_path, "node-1", [str(BLOCK), str(STRAY)])
    tor, spine = made.routers["tor"], made.routers["spine"]
    wait(lambda: all(session.up for router in (tor, spine) for session in router.sessions()))
    wait(lambda: BLOCK in spine.routes())

    # the router takes pod blocks from the node and nothing else, and installs them in its kernel
    assert tor.pod_routes() == {BLOCK: frozenset({made.wiring.addresses["node-1"][0].ip})}
    assert STRAY not in tor.routes()
    wait(lambda: BLOCK in ip.routes(made.namespace("tor"), 4))
    assert ip.routes(made.namespace("tor"), 4)[BLOCK]["gateway"] == str(made.wiring.addresses["node-1"][0].ip)
    assert spine.routes()[BLOCK] == {ip_address("172.31.1.1")}

    # rejecting takes it out of the whole fabric while every session stays; accepting brings it back
    tor.reject()
    assert BLOCK not in tor.routes()
    wait(lambda: BLOCK not in spine.routes())
    wait(lambda: BLOCK not in ip.routes(made.namespace("tor"), 4))
    assert all(session.up for session in tor.sessions())
    tor.accept()
    wait(lambda: BLOCK in spine.routes())
    tor.reject([ip_network("10.9.1.0/24")])
    assert BLOCK in tor.routes()
    tor.reject([ip_network("10.9.0.0/24")])
    wait(lambda: BLOCK not in spine.routes())
    assert all(session.up for session in tor.sessions())


@pytest.mark.parametrize("kind", ["frr", "gobgp"])
def test_nodes_and_the_outside_reach_each_other_over_the_routers(
    kind: str, ground: Any, wait: Callable[[Callable[[], object]], None]
) -> None:
    made = ground(fabric(kind, ["10.9.0.0/16", "fd09::/48"]))

    def reached(address: str) -> bool:
        argv = netns.command(made.namespace("node-1"), "ping", "-c1", "-W1", address)
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    wait(lambda: reached("172.30.1.10"))
    wait(lambda: reached("fd30:1::10"))


@pytest.mark.parametrize("kind", ["bird", "frr", "gobgp"])
def test_nodes_of_one_as_see_each_others_blocks(
    kind: str, ground: Any, tmp_path: Path, wait: Callable[[Callable[[], object]], None]
) -> None:
    nodes = {
        "racks": [{"name": "rack", "router": "tor", "asNumber": 64512}],
        "nodes": [{"name": "node-1", "rack": "rack"}, {"name": "node-2", "rack": "rack"}],
    }
    made = ground(fabric(kind) | nodes)
    speaker(made, tmp_path, "node-1", [str(BLOCK)])
    second = speaker(made, tmp_path, "node-2", [])
    wait(lambda: BLOCK in second.routes())


def test_the_routers_processes_end_with_the_lab(ground: Any) -> None:
    made = ground(fabric("frr"))
    assert len(made.processes) == 3
    assert all(process.alive() for process in made.processes)
    processes.stop(made.processes)
    assert not any(process.alive() for process in made.processes)


def test_a_router_that_cannot_start_says_why(ground: Any, tmp_path: Path) -> None:
    made = ground(fabric("kernel") | {"routers": [{"name": "tor", "kind": "kernel"}], "external": []})

    class Broken(Bird):
        def config(self) -> str:
            return "protocol nonsense;"

    assert isinstance(made.routers["tor"], Kernel)
    with pytest.raises(Unsupported, match="router tor is of kind kernel and speaks no BGP"):
        made.routers["tor"].reject()
    with pytest.raises(MuslinError, match=r"(?s)router tor \(bird\) died.*bird.conf:1"):
        Broken(made.wiring.routers["tor"], made.namespace("tor"), tmp_path).start()


def test_routes_are_read_from_what_bird_prints() -> None:
    text = (
        "BIRD 2.0.12 ready.\nTable master4:\n"
        "10.9.0.0/26          unicast [a_v4 10:00:00.000] * (100) [AS65101i]\n\tvia 172.16.1.11 on rack1\n"
        "                     unicast [b_v4 10:00:00.000] (100) [AS65102i]\n\tvia 172.16.1.12 on rack1\n"
        "10.9.1.0/26          unreachable [c_v4 10:00:00.000] * (100) [AS65101i]\n"
    )
    assert parse_bird_routes(text) == {
        ip_network("10.9.0.0/26"): {ip_address("172.16.1.11"), ip_address("172.16.1.12")},
        ip_network("10.9.1.0/26"): frozenset(),
    }


def test_what_gobgp_says_of_a_prefix_becomes_one_line_for_ip() -> None:
    def path(hop: str, kind: int = 3, **more: Any) -> dict[str, Any]:
        return {"nlri": {"prefix": "10.9.0.0/26"}, "attrs": [{"type": 1}, {"type": kind, "nexthop": hop}], **more}

    two = gobgp_fib.lines([path("172.16.1.11"), path("172.16.1.12")])
    assert list(two) == ["route replace 10.9.0.0/26 proto bgp nexthop via 172.16.1.11 nexthop via 172.16.1.12"]
    assert list(gobgp_fib.lines([path("172.16.1.11", withdrawal=True)])) == ["route del 10.9.0.0/26 proto bgp"]
    assert list(gobgp_fib.lines([path("0.0.0.0")])) == []  # what it originates itself stands in the kernel already
    assert gobgp_fib.next_hops([path("fd16:1::11", kind=14)]) == (ip_address("fd16:1::11"),)
