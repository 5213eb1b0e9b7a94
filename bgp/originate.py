"""What a node originates: pure, from a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bgp.model import Own
from core.addr import Network, order
from core.resources import IPAMBlock, IPPool
from core.routing import pool_of
from core.snapshot import Snapshot


def own(snapshot: Snapshot, node: str) -> Mapping[Network, Own]:
    """The node's blocks of pools that are exported; a block of one address is never told to anybody."""
    pools = list(snapshot.of(IPPool).values())
    blocks = (block.spec.network for block in snapshot.of(IPAMBlock).values() if block.spec.node == node)
    told = sorted((prefix for prefix in blocks if _exported(prefix, pools)), key=order)
    return MappingProxyType({prefix: Own(source="block") for prefix in told})


def _exported(prefix: Network, pools: list[IPPool]) -> bool:
    pool = pool_of(prefix, pools)
    told = pool is not None and not pool.spec.disabled and not pool.spec.disable_bgp_export
    return told and prefix.prefixlen < prefix.max_prefixlen
