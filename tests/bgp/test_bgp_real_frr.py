"""The whole program, `python -m bgp`, between a real datastore and a real FRR."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bgp_world import ROOT, Frr, World, block, defaults, node, peer, pool, until

from core.resources import R, Resource, SpeakerStatus
from datastore import objects
from datastore.client import GrpcStore
from datastore.serve import serve

pytestmark = pytest.mark.kernel

FRR = """
router bgp 65001
 bgp router-id 10.9.1.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 10.9.1.2 remote-as 64512
 neighbor 10.9.1.2 timers connect 1
 neighbor 10.9.1.2 advertisement-interval 0
 neighbor fd09::2 remote-as 64512
 neighbor fd09::2 timers connect 1
 neighbor fd09::2 advertisement-interval 0
 address-family ipv4 unicast
  network 10.244.5.0/26
  network 10.244.6.0/26
 exit-address-family
 address-family ipv6 unicast
  neighbor fd09::2 activate
  network fd44::80/122
 exit-address-family
exit
"""

RESOURCES: tuple[Resource, ...] = (
    node("n1", "10.9.1.2/24", "fd09::2/64"),
    node("n2", "10.9.2.2/24"),
    pool("main", "10.244.0.0/16", ipipMode="Fallback"),
    pool("six", "fd44::/48"),
    block("10.244.1.0/26", "n1"),
    block("fd44::40/122", "n1"),
    block("10.244.5.0/26", "n2"),
    peer("tor", "10.9.1.1", asNumber=65001),
    peer("tor6", "fd09::1", asNumber=65001),
    peer("filtered", "10.9.1.7", asNumber=65001, filters=["missing"]),
    defaults(nodeToNodeMeshEnabled=False),
)


def manifest(resource: R) -> R:
    """As users write it, with its apiVersion and kind."""
    kind = resource.KIND
    return type(resource)(
        **{
            **{field: getattr(resource, field) for field in resource.__struct_fields__},
            "api_version": kind.api_version,
            "kind": kind.name,
        }
    )


async def reached(what: str, holds: Callable[[], object]) -> float:
    return await asyncio.to_thread(until, what, holds, 20.0, 0.01)


async def test_from_the_datastore_to_frr_and_back(world: World, tmp_path: Path) -> None:
    world.wire("tor", ["10.9.1.1/24", "fd09::1/64"], "n1", ["10.9.1.2/24", "fd09::2/64"])
    frr = await asyncio.to_thread(Frr, world, "tor", FRR)
    target = f"unix:{tmp_path}/store.sock"
    listening = asyncio.Event()
    server = asyncio.create_task(serve(f"sqlite:{tmp_path}/store.db", [target], on_ready=lambda _: listening.set()))
    await listening.wait()
    store = GrpcStore(target)
    try:
        await store.txn([objects.put(manifest(each)) for each in RESOURCES])
        argv = ["-m", "bgp", "--node", "n1", "--datastore", target, "--run-dir", str(tmp_path / "run")]
        agent = world.start("n1", sys.executable, *argv, cwd=ROOT)
        await reached("FRR holds the block, and only that", lambda: frr.prefixes("10.9.1.2") == {"10.244.1.0/26"})
        await reached("the kernel holds FRR's blocks", lambda: len(world.routes("n1")) == 2)
        await reached("and its IPv6 block", lambda: world.routes("n1", version=6))
        assert {key: value["gateway"] for key, value in world.routes("n1", version=6).items()} == {
            "fd44::80/122": "fd09::1"
        }
        await reached("FRR holds ours", lambda: frr.prefixes("fd09::2") == {"fd44::40/122"})
        await _status_says_so(store)

        frr.ask("configure terminal", "router bgp 65001", "address-family ipv4 unicast", "no network 10.244.6.0/26")
        took = await reached("a withdrawn block leaves the kernel", lambda: len(world.routes("n1")) == 1)
        assert took < 0.5
        await store.txn([objects.put(manifest(block("10.244.2.0/26", "n1")))])
        await reached("a new block is told", lambda: len(frr.prefixes("10.9.1.2")) == 2)

        agent.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.wait, 10) == 0
        assert set(world.routes("n1")) == {"10.244.5.0/26"}
        await reached("FRR sees it gone", lambda: "Established" not in frr.ask("show bgp neighbors 10.9.1.2"))
        assert len(frr.prefixes("10.9.1.2")) == 2
    finally:
        await store.close()
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


async def _status_says_so(store: GrpcStore) -> None:
    async with asyncio.timeout(15):
        while True:
            found = await objects.read(store, SpeakerStatus, "n1")
            if found and found[0].status.ready and found[0].status.routes_in == 3:
                break
            await asyncio.sleep(0.05)
    state = found[0].status
    assert {(each.name, each.peer, each.state) for each in state.sessions} == {
        ("BGPPeer/tor", "10.9.1.1", "Established"),
        ("BGPPeer/tor6", "fd09::1", "Established"),
        ("BGPPeer/filtered", "10.9.1.7", "Blocked"),
    }
    assert state.routes_out == ["10.244.1.0/26", "fd44::40/122"]
    assert state.programmed >= 1
