"""This node's own address inside the tunnel: allocated once from a pool that tunnels, kept in the Node object.

It is kept when every pool goes back to Never: a switch there and back must not renumber the node, and one address a
node is a small price. It is given back, and another taken, only when its pool is gone.
"""

from __future__ import annotations

from msgspec.structs import replace

from core.addr import Address, contains
from core.names import TUNNEL_HANDLE
from core.resources import IPPool, Node
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import Store
from datastore.ipam import thin as ipam
from felix.overlay import may_tunnel, tunnel_address


def settled(snapshot: Snapshot, node: str) -> bool:
    """Whether there is nothing to do: no pool tunnels, the node cannot, or its address lies in a pool."""
    local = snapshot.get(Node, node)
    if local is None or local.address(4) is None or not any(map(may_tunnel, snapshot.of(IPPool).values())):
        return True
    address = tunnel_address(local)
    return address is not None and _in_a_pool(snapshot, address)


def handle(node: str) -> str:
    """Under which IPAM keeps it."""
    return f"{TUNNEL_HANDLE}{node}"


async def ensure(store: Store, snapshot: Snapshot, node: str) -> None:
    """Allocate the address and write it into the Node, unless `snapshot` is settled.

    Raises `Exhausted`, `Conflict` (somebody else changed the Node: the next snapshot tells) or `Unavailable`.
    """
    if settled(snapshot, node):
        return
    found = await objects.read(store, Node, node)
    if found is None or found[0].spec.bgp is None:
        return
    local, revision = found
    present = tunnel_address(local)
    if present is not None:
        if _in_a_pool(snapshot, present):
            return  # the store is ahead of the snapshot
        await ipam.release(store, handle(node))
    address = await ipam.allocate(store, ipam.Request(node=node, handle=handle(node), use=ipam.Use.TUNNEL))
    bgp = replace(found[0].spec.bgp, ipv4_ipip_tunnel_addr=str(address))
    await objects.write(store, replace(local, spec=replace(local.spec, bgp=bgp)), revision)


def _in_a_pool(snapshot: Snapshot, address: Address) -> bool:
    return any(contains(pool.spec.network, address) for pool in snapshot.of(IPPool).values())
