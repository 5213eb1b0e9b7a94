"""This node's own address inside the tunnel: given once from a pool that tunnels, kept in the Node object.

    IPAM    handle ipip-tunnel-addr-NODE ──┐ one transaction: neither
    Node    spec.bgp.ipv4IPIPTunnelAddr  ──┘ is ever there without the other

It is kept when every pool goes back to Never: a switch there and back must not renumber the node, and one address a
node is a small price. It is given back, and another taken, only when its pool is gone, or is being deleted and waits
for nothing but tunnels. An address that stands in the Node and that IPAM knows nothing of (written by hand, or
restored) is claimed, lest a pod be given it; if another holds it already, the node gets a new one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import Final

from msgspec import structs

from core.addr import Address, Family, contains
from core.names import TUNNEL_HANDLE
from core.resources import IPAMBlock, IPPool, Node
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import Operation, Store
from datastore.ipam.block import block_name
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Exhausted, Grant, Owner, Request, Use
from felix.overlay import may_tunnel, tunnel_address

POOL_GONE: Final = "pool gone"
"""Why an address is given back, as its record says."""


def settled(snapshot: Snapshot, node: str) -> bool:
    """Whether there is nothing to do: no pool tunnels, the node cannot, or its address is of a pool and is its own."""
    local = snapshot.get(Node, node)
    if local is None or local.address(4) is None:
        return True
    address = tunnel_address(local)
    pool = None if address is None else _pool_of(snapshot, address)
    if pool is not None and _waits_for_tunnels(snapshot, pool):
        return False
    tunnelling = (each for each in snapshot.of(IPPool).values() if may_tunnel(each))
    if all(_waits_for_tunnels(snapshot, each) for each in tunnelling):
        return True
    if address is None or pool is None:
        return False
    return not may_tunnel(pool) or _holds(snapshot, pool, address, node)


def handle(node: str) -> str:
    """Under which IPAM keeps it."""
    return f"{TUNNEL_HANDLE}{node}"


async def ensure(store: Store, ledger: Ledger, snapshot: Snapshot, node: str) -> None:
    """Take the address and write it into the Node, unless `snapshot` is settled.

    Raises `Exhausted`, `Conflict` (somebody else changed the Node: the next snapshot tells) or `Unavailable`.
    """
    if settled(snapshot, node):
        return
    found = await objects.read(store, Node, node)
    if found is None or found[0].spec.bgp is None:
        return
    local, revision = found
    present = tunnel_address(local)
    pool = None if present is None else _pool_of(snapshot, present)
    if present is not None and (pool is None or _waits_for_tunnels(snapshot, pool)):
        await ledger.release(handle(node), POOL_GONE, [objects.put(_with(local, ""), revision)])
        return  # the Node has changed: the next snapshot finds it without an address

    def into_node(grant: Grant) -> list[Operation]:
        (address,) = grant.addresses
        return [] if address == present else [objects.put(_with(local, str(address)), revision)]

    request = Request(handle=handle(node), owner=Owner(node=node), families=(Family.V4,), use=Use.TUNNEL)
    if present is not None:
        with suppress(Exhausted):  # another holds it
            await ledger.assign(replace(request, addresses=(present,)), into_node)
            return
    await ledger.assign(request, into_node)


def _with(node: Node, address: str) -> Node:
    """`node` with another tunnel address; "" for none."""
    assert node.spec.bgp is not None
    bgp = structs.replace(node.spec.bgp, ipv4_ipip_tunnel_addr=address)
    return structs.replace(node, spec=structs.replace(node.spec, bgp=bgp))


def _pool_of(snapshot: Snapshot, address: Address) -> IPPool | None:
    pools = snapshot.of(IPPool).values()
    return next((pool for pool in pools if contains(pool.spec.network, address)), None)


def _waits_for_tunnels(snapshot: Snapshot, pool: IPPool) -> bool:
    """Whether a pool is being deleted and no pod has an address of it: it would wait for its tunnels' for ever."""
    if not pool.terminating or any(key.kind == IPAMBlock.KIND for key in snapshot.problems):
        return False
    blocks = (
        block.spec for block in snapshot.of(IPAMBlock).values() if contains(pool.spec.network, block.spec.network)
    )
    return all(holder.startswith(TUNNEL_HANDLE) for block in blocks for holder in block.allocations.values())


def _holds(snapshot: Snapshot, pool: IPPool, address: Address, node: str) -> bool:
    """Whether IPAM says of a pool's address that it is the node's."""
    network = ip_network((int(address), pool.spec.block_length), strict=False)
    block = snapshot.get(IPAMBlock, block_name(network))
    return block is not None and block.spec.allocations.get(str(address)) == handle(node)
