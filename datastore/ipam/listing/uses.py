"""Each address from both sides: which block gives it to whom, and who says that he uses it. For audits.

    blocks ──> allocations: address ── handle, block, node ──┐
                                                             ├── the same address on both sides, or something is wrong
    endpoints, Nodes' tunnels ──> uses: address ── by whom ──┘
    Services' load balancers ──>

A block that breaks a rule is not given to anybody else, but as far as its text can be told it counts here: its
addresses are held all the same. Of one that cannot be told at all the range is known from its name, or not even that:
then nobody knows what is held there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address

import msgspec

from core import values
from core.addr import Address, Network, contains
from core.names import Key
from core.resources import IPAMBlock, IPPool, Node, Service, WorkloadEndpoint
from datastore.api import Entry
from datastore.ipam.balancing import ingress
from datastore.ipam.balancing.wishes import balances, handle_of, ours
from datastore.ipam.block import network_of
from datastore.ipam.listing.holders import Held, Holder, Holdings


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Who says that an address is his: an endpoint, a Node for its own tunnel (`tunnel` is its handle), or a Service
    for its load balancer (`service` is its handle)."""

    key: Key
    node: str
    container: str = ""
    tunnel: str = ""
    service: str = ""

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """That a block gives an address to a handle, for use on `node`."""

    address: Address
    handle: str
    block: Held[IPAMBlock]
    node: str

    @property
    def borrowed(self) -> bool:
        """Whether it is used on another node than the block's."""
        return self.node != self.block.resource.spec.node


class Uses:
    """Both sides of all addresses, of one state of the store."""

    def __init__(self, seen: Holdings) -> None:
        self.seen = seen
        broken = [(entry, _as_far_as_told(entry)) for entry in seen.unread_of(IPAMBlock)]
        whole = seen.of(IPAMBlock).values()
        told = (Held(block, entry.revision) for entry, block in broken if block is not None)
        self.blocks: tuple[Held[IPAMBlock], ...] = (*whole, *told)
        self._dark = [network_of(entry.key.name) for entry, block in broken if block is None]

    @cached_property
    def allocations(self) -> Mapping[Address, tuple[Allocation, ...]]:
        """Who holds each address, by address; more than one only where blocks overlap."""
        found: dict[Address, tuple[Allocation, ...]] = {}
        for block in self.blocks:
            spec = block.resource.spec
            for text, handle in spec.allocations.items():
                address, node = ip_address(text), spec.borrowers.get(text, spec.node)
                given = Allocation(address=address, handle=handle, block=block, node=node)
                found[address] = (*found.get(address, ()), given)
        return dict(sorted(found.items(), key=lambda item: (item[0].version, int(item[0]))))

    @cached_property
    def uses(self) -> Mapping[Address, tuple[Use, ...]]:
        """Who says that he uses each address."""
        found: dict[Address, tuple[Use, ...]] = {}
        for endpoint in self.seen.of(WorkloadEndpoint).values():
            spec = endpoint.resource.spec
            use = Use(key=endpoint.resource.key, node=spec.node, container=spec.container_id)
            for address in dict.fromkeys(spec.addresses):
                found[address] = (*found.get(address, ()), use)
        for node in self.seen.of(Node).values():
            for tunnel, text in ((tunnel, text) for tunnel, text in _tunnels(node.resource) if text):
                use = Use(key=node.resource.key, node=node.resource.metadata.name, tunnel=tunnel)
                found[ip_address(text)] = (*found.get(ip_address(text), ()), use)
        for address, use in self._balanced():
            found[address] = (*found.get(address, ()), use)
        return dict(sorted(found.items(), key=lambda item: (item[0].version, int(item[0]))))

    def _balanced(self) -> Iterator[tuple[Address, Use]]:
        """Who of our Services says that he has an address of a LoadBalancer pool; what else they say is others'."""
        networks = [held.resource.spec.network for held in self.seen.of(IPPool).values() if balances(held.resource)]
        for key, held in self.seen.of(Service).items():
            for address in ingress.addresses(held.resource) if ours(held.resource) else ():
                if any(contains(network, address) for network in networks):
                    yield address, Use(key=key, node="", service=handle_of(key.namespace, key.name))

    @cached_property
    def pools(self) -> tuple[Network, ...]:
        """The ranges of all pools that can be read."""
        return tuple(held.resource.spec.network for held in self.seen.of(IPPool).values())

    def pooled(self, address: Address) -> bool:
        """Whether a pool has the address, or may have it: a pool that cannot be read may have any."""
        return any(contains(pool, address) for pool in self.pools) or bool(self.seen.unread_of(IPPool))

    def dark(self, address: Address) -> bool:
        """Whether the address may lie in a block of which nobody can tell what it holds."""
        return any(network is None or contains(network, address) for network in self._dark)

    def used(self, given: Allocation) -> bool:
        """Whether anybody speaks for an allocated address, or may."""
        if self.uses.get(given.address):
            return True
        holder = self.holder(given)
        if holder.service is not None and holder.service in self.seen.unread:
            return True
        return bool(self.seen.users(holder)) or self.seen.doubtful(holder)

    def holder(self, given: Allocation) -> Holder:
        """Who holds an allocated address."""
        known = self.seen.holders.get(given.handle)
        if known is not None:
            return known
        return Holder(text=given.handle, object=None, node=given.node, addresses={given.address: given.block})


def _tunnels(node: Node) -> Iterator[tuple[str, str]]:
    """The handle and the address ("" for none) of each tunnel that a node may have."""
    spec, name = node.spec, node.metadata.name
    if spec.bgp is not None:
        yield f"ipip-tunnel-addr-{name}", spec.bgp.ipv4_ipip_tunnel_addr
    yield f"vxlan-tunnel-addr-{name}", spec.ipv4_vxlan_tunnel_addr
    yield f"vxlan-v6-tunnel-addr-{name}", spec.ipv6_vxlan_tunnel_addr
    if spec.wireguard is not None:
        yield f"wireguard-tunnel-addr-{name}", spec.wireguard.interface_ipv4_address
        yield f"wireguard-v6-tunnel-addr-{name}", spec.wireguard.interface_ipv6_address


def _as_far_as_told(entry: Entry) -> IPAMBlock | None:
    """A block that breaks a rule, if its range and its addresses can be told all the same."""
    try:
        block = msgspec.json.decode(entry.value, type=IPAMBlock)
        values.network(block.spec.cidr)
        for text in (*block.spec.allocations, *block.spec.borrowers, *block.spec.freed):
            values.address(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    return block if block.key == entry.key else None
