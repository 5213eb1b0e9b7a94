"""Who holds which pod address: pure block arithmetic, and a compare-and-swap loop over any `Store`.

    allocate(node, handle)
      the handle holds one already?   ── that one: asking twice is asking once
      a block of the node has room?   ── its lowest free address            Put(block, if_revision)
      a pool has room for a block?    ── a new block, or one nobody owns    Put(block, ABSENT | if_revision)
      else                            ── Exhausted, naming the pools

A block belongs to one node, whose name is in it, and is one object: two nodes that race for it write the same key
and one of them loses. The pool must still be there, as it was read, when the block is written. Where a node begins to
look in a pool depends on its name, so that nodes seldom race. The first and the last address of a block are as good as
the others: every pod has a route of its own.

One handle is not allocated from two places at once: its caller (the CNI plugin, under its lock on the host; felix
for its tunnel) sees to that.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from core import selector
from core.addr import Address, Family, Network, contains, order
from core.errors import Conflict, MuslinError
from core.labels import namespace_itself
from core.manifest import decode
from core.names import Key, Kind
from core.resources import EncapMode, IPAMBlock, IPPool, Metadata, Namespace, Node, R
from core.resources.ipam import BlockSpec
from datastore import objects
from datastore.api import ABSENT, Entry, Guard, Present, Store

ATTEMPTS: Final = 100
"""How often a lost race is run again before the caller hears of it."""

BACKOFF_S: Final = 0.002
BACKOFF_MAX_S: Final = 0.25


class Use(StrEnum):
    """What an address is for; a pool's `allowedUses` speaks of it. A tunnel's comes from a pool that tunnels."""

    WORKLOAD = "Workload"
    TUNNEL = "Tunnel"


class Exhausted(MuslinError):
    """No pool that may be used has a free address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Whose address, and which pools may give it.

    With `pools` (names) only those are asked, whatever their selectors say, as a user who names one expects.
    `namespace` is the pod's, "" when there is none.
    """

    node: str
    handle: str
    family: Family = Family.V4
    pools: Collection[str] | None = None
    namespace: str = ""
    use: Use = Use.WORKLOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A block as it was read; revision ABSENT when it is still to be created."""

    block: IPAMBlock
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a decision is made on, as of one revision."""

    pools: tuple[IPPool, ...]
    blocks: tuple[Held, ...]
    nodes: Mapping[str, Mapping[str, str]]
    namespaces: Mapping[str, Mapping[str, str]]
    revisions: Mapping[Key, int] = field(default_factory=dict)
    """Of the pools, where a write depends on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The address, and the block to write; `write` None when the handle held the address already."""

    address: Address
    write: Held | None


async def allocate(store: Store, request: Request) -> Address:
    """The address of `request.handle`, allocating one if it has none.

    Raises `Exhausted`, `Unavailable`, or `Conflict` when it lost ATTEMPTS races in a row.
    """
    for attempt in range(ATTEMPTS):
        state = await _read(store)
        choice = choose(state, request)
        if choice.write is None:
            return choice.address
        around = (pool.key for pool in state.pools if contains(pool.spec.network, choice.address))
        try:
            await _write(store, choice.write, [Present(key, state.revisions[key]) for key in around])
        except Conflict:
            await _back_off(attempt)
            continue
        return choice.address
    raise Conflict(f"address for {request.handle} on node {request.node}", None, None)


async def families(store: Store, node: str, namespace: str) -> tuple[Family, ...]:
    """The families in which a pod of `namespace` on `node` gets an address: those that a pool serves it in."""
    state = await _read(store)
    asked = (Request(node=node, handle="", family=family, namespace=namespace) for family in Family)
    return tuple(request.family for request in asked if usable_pools(state, request))


async def held_by(store: Store, handle: str) -> tuple[Address, ...]:
    """Every address of `handle`, of both families."""
    return tuple(address for held in (await _read(store)).blocks for address in addresses_of(held.block, handle))


async def release(store: Store, handle: str) -> tuple[Address, ...]:
    """Free every address of `handle`, of both families; those it held. None is a success.

    Raises `Unavailable`, or `Conflict` when it lost ATTEMPTS races in a row.
    """
    freed: set[Address] = set()
    for attempt in range(ATTEMPTS):
        holding = [held for held in (await _read(store)).blocks if addresses_of(held.block, handle)]
        if not holding:
            return tuple(sorted(freed, key=int))
        try:
            for held in holding:
                await _write(store, replace(held, block=without(held.block, handle)))
                freed.update(addresses_of(held.block, handle))
        except Conflict:
            await _back_off(attempt)
    raise Conflict(f"release of {handle}", None, None)


def choose(state: State, request: Request) -> Choice:
    """What `request` gets in `state`; raises `Exhausted`."""
    for held in state.blocks:
        for address in addresses_of(held.block, request.handle):
            if address.version == request.family:
                return Choice(address=address, write=None)
    pools = usable_pools(state, request)
    for held in _candidates(state, pools, request.node):
        free = first_free(held.block)
        if free is not None:
            allocations = {**held.block.spec.allocations, str(free): request.handle}
            block = _changed(held.block, affinity=f"host:{request.node}", allocations=allocations)
            return Choice(address=free, write=replace(held, block=block))
    raise Exhausted(_why(state, request, pools))


def usable_pools(state: State, request: Request) -> tuple[IPPool, ...]:
    """The pools that may serve `request`, by name."""
    labels = state.nodes.get(request.node, {})
    own = state.namespaces.get(request.namespace, {})
    namespace = namespace_itself(own, request.namespace) if request.namespace else {}

    def usable(pool: IPPool) -> bool:
        spec = pool.spec
        if spec.disabled or spec.network.version != request.family:
            return False
        if spec.allowed_uses and request.use not in spec.allowed_uses:
            return False
        if request.use is Use.TUNNEL and spec.ipip_mode is EncapMode.NEVER:
            return False
        if request.pools is not None:
            return pool.metadata.name in request.pools
        if spec.assignment_mode == "Manual" or not selector.parse(spec.node_selector).matches(labels):
            return False
        return not spec.namespace_selector or selector.parse(spec.namespace_selector).matches(namespace)

    return tuple(sorted(filter(usable, state.pools), key=lambda pool: pool.metadata.name))


def addresses_of(block: IPAMBlock, handle: str) -> tuple[Address, ...]:
    """What `handle` holds in `block`."""
    return tuple(ip_address(each) for each, holder in block.spec.allocations.items() if holder == handle)


def without(block: IPAMBlock, handle: str) -> IPAMBlock:
    """`block` with the addresses of `handle` free; it stays with its node."""
    return _changed(block, allocations={a: holder for a, holder in block.spec.allocations.items() if holder != handle})


def first_free(block: IPAMBlock) -> Address | None:
    """The lowest address nobody holds; None when the block is full."""
    network, taken = block.spec.network, block.spec.allocations.keys()
    if len(taken) >= network.num_addresses:
        return None
    # At most `len(taken)` of the first addresses are taken, so the look ends soon in a block of any size.
    return next((each for each in (network[i] for i in range(len(taken) + 1)) if str(each) not in taken), None)


def new_block(pool: IPPool, taken: Iterable[Network], node: str) -> Network | None:
    """A range of `pool` that overlaps none of `taken`, looked for from a place that `node` and the pool decide."""
    network, length = pool.spec.network, pool.spec.block_length
    count: int = 1 << (length - network.prefixlen)
    size: int = 1 << (network.max_prefixlen - length)
    taken = list(taken)
    if any(contains(each, network) for each in taken if each.prefixlen < network.prefixlen):
        return None  # one block, left from a larger pool, covers this one
    inside = [each for each in taken if contains(network, each)]
    full = {(int(each.network_address) - int(network.network_address)) // size for each in inside}
    for each in inside:
        if each.prefixlen < length:  # left from a pool of larger blocks: it covers several of ours
            first = (int(each.network_address) - int(network.network_address)) // size
            full.update(range(first, first + each.num_addresses // size))
    start = int.from_bytes(hashlib.sha256(f"{node} {network}".encode()).digest()[:8]) % count
    free = next((i % count for i in range(start, start + min(count, len(full) + 1)) if i % count not in full), None)
    return None if free is None else ip_network((int(network.network_address) + free * size, length))


def block_name(network: Network) -> str:
    """The name of the block's object: its CIDR with `.`, `:` and `/` as `-`."""
    return str(network).translate(str.maketrans(".:/", "---"))


def _candidates(state: State, pools: tuple[IPPool, ...], node: str) -> Iterator[Held]:
    """Blocks to take from, best first: the node's own, then one nobody owns, then one yet to be made; pool by pool."""
    blocks = sorted(state.blocks, key=lambda held: _by_address(held.block))
    for owner in (node, ""):
        for pool in pools:
            inside = (held for held in blocks if contains(pool.spec.network, held.block.spec.network))
            yield from (held for held in inside if held.block.spec.affinity == (f"host:{owner}" if owner else ""))
    for pool in pools:
        network = new_block(pool, [held.block.spec.network for held in state.blocks], node)
        if network is not None:
            yield Held(block=_empty(network), revision=ABSENT)


def _empty(network: Network) -> IPAMBlock:
    return IPAMBlock(
        api_version=IPAMBlock.KIND.api_version,
        kind=IPAMBlock.KIND.name,
        metadata=Metadata(name=block_name(network)),
        spec=BlockSpec(cidr=str(network)),
    )


def _changed(block: IPAMBlock, **fields: object) -> IPAMBlock:
    return msgspec.structs.replace(block, spec=msgspec.structs.replace(block.spec, **fields))


def _by_address(block: IPAMBlock) -> tuple[int, int, int]:
    return order(block.spec.network)


def _why(state: State, request: Request, pools: tuple[IPPool, ...]) -> str:
    who = f"no IPv{request.family} address for {request.handle} on node {request.node}"
    if pools:
        full = ", ".join(f"{pool.metadata.name} ({pool.spec.cidr})" for pool in pools)
        return f"{who}: every block is full or another node's in {full}; add a pool or free addresses"
    known = ", ".join(sorted(pool.metadata.name for pool in state.pools if pool.spec.network.version == request.family))
    named = f" (asked for: {', '.join(sorted(request.pools))})" if request.pools is not None else ""
    return f"{who}: none of the pools may be used{named}; there are: {known or 'none'}"


async def _read(store: Store) -> State:
    listing = await store.list({IPPool.KIND, IPAMBlock.KIND, Node.KIND, Namespace.KIND})
    by_kind: dict[Kind, list[Entry]] = defaultdict(list)
    for entry in listing.entries:
        by_kind[entry.key.kind].append(entry)
    return State(
        pools=tuple(_decode(entry, IPPool) for entry in by_kind[IPPool.KIND]),
        revisions={entry.key: entry.revision for entry in by_kind[IPPool.KIND]},
        blocks=tuple(
            Held(block=_decode(entry, IPAMBlock), revision=entry.revision) for entry in by_kind[IPAMBlock.KIND]
        ),
        nodes={entry.key.name: _decode(entry, Node).metadata.labels for entry in by_kind[Node.KIND]},
        namespaces={entry.key.name: _decode(entry, Namespace).metadata.labels for entry in by_kind[Namespace.KIND]},
    )


async def _write(store: Store, held: Held, guards: Sequence[Guard] = ()) -> None:
    await store.txn([objects.put(held.block, held.revision)], guards)


def _decode(entry: Entry, cls: type[R]) -> R:
    resource = decode(entry.key, entry.value)
    assert isinstance(resource, cls)
    return resource


async def _back_off(attempt: int) -> None:
    bound = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(attempt, 10))
    await asyncio.sleep(random.random() * bound)  # noqa: S311 - jitter, not a secret
