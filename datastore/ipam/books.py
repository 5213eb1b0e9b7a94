"""What one process knows of the cluster's addresses, indexed: pools, blocks, affinities, handles, settings, nodes.

    listing, watch, own writes ──> see(key, resource, revision)   the object as it is at that revision
                                   see(key, None, revision)       it is there and cannot be read
                                   see(key, None, ABSENT)         it is gone

Decisions are made on books and carry what they were made on as compares and guards, so books that are behind cost a
refused transaction and no more. One thing is asked of whoever fills them: with a pool, all blocks that are older than
it are known. That is so for a watch, which keeps the order, and for a listing of all `KINDS`; it is not for a pool
that was read alone. (Two blocks that overlap have different names, so no compare of the store's sees them. What keeps
them apart is that a pool's blocks are of one size, and that whoever knows a pool knows what an earlier one left.)

What cannot be read is not empty. A block's range is in its name, and nobody gets anything of it; if the name says no
range either, nobody gets a new block. A pool gives nothing; reservations and settings stop what depends on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from random import Random
from typing import Final, Generic

from core.addr import Address, Family, Network, contains
from core.names import Key, Kind
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    IPReservation,
    Namespace,
    Node,
    R,
    Resource,
)
from core.resources.ipam import VIRTUAL, IPAMConfigurationSpec
from core.validate.checks import name as checked_name
from core.validate.ipam import MOST_ADDRESSES
from datastore.api import ABSENT, At, Guard, Unchanged
from datastore.ipam import block as blocks
from datastore.ipam.model import Exhausted
from datastore.ipam.ranges import Ranges

KINDS: Final = frozenset(
    each.KIND
    for each in (
        IPPool,
        IPAMBlock,
        BlockAffinity,
        IPAMHandle,
        IPReservation,
        IPAMConfiguration,
        Node,
        Namespace,
    )
)
"""What books are kept of."""

SETTINGS: Final = Key(IPAMConfiguration.KIND, "", "default")


@dataclass(frozen=True, slots=True)
class Seen(Generic[R]):
    """An object at a revision; `resource` None when it cannot be read."""

    key: Key
    resource: R | None
    revision: int


def handle_key(handle: str) -> Key:
    """Where the object of a handle lies."""
    return Key(IPAMHandle.KIND, "", handle_name(handle))


@lru_cache(maxsize=1 << 14)
def handle_name(handle: str) -> str:
    """The name of a handle's object: itself where that can be a name, else a digest of it."""
    try:
        return checked_name(handle)
    except ValueError:
        return f"sha256.{hashlib.sha256(handle.encode()).hexdigest()[:40]}"


def block_key(network: Network) -> Key:
    """Where the object of a block lies."""
    return Key(IPAMBlock.KIND, "", blocks.block_name(network))


def affinity_key(node: str, network: Network) -> Key:
    """Where the object of a node's claim to a block lies."""
    return Key(BlockAffinity.KIND, "", f"{node.removeprefix(VIRTUAL)}-{blocks.block_name(network)}")


class Books:
    """The index. What one allocation asks takes the same time however many blocks, handles and nodes there are."""

    def __init__(self) -> None:
        self.revision = ABSENT
        self._seen: dict[Key, Seen[Resource]] = {}
        self._unreadable: dict[Kind, set[str]] = {}
        self._pools = Ranges()
        self._pool_order: dict[int, tuple[IPPool, ...]] = {}
        self._blocks = Ranges()
        self._roomy = Ranges()
        self._owned: dict[str, set[str]] = {}
        self._unplaced: set[str] = set()
        self._claims: dict[str, set[str]] = {}
        self._reserved: dict[str, tuple[Network, ...]] = {}
        self._reserved_in: dict[Network, frozenset[str]] = {}

    def caught_up(self, revision: int) -> None:
        """All that was written up to `revision` of what is guarded as a kind (settings, reservations, blocks, claims)
        has been seen. Own writes, and what is read alone, may be ahead of it."""
        self.revision = max(self.revision, revision)

    def see(self, key: Key, resource: Resource | None, revision: int) -> None:
        """Note an object as it is now (see the module's text). What was known of it before is forgotten."""
        before = self._seen.pop(key, None)
        after: Seen[Resource] | None = None
        if revision != ABSENT or resource is not None:
            after = self._seen[key] = Seen(key, _sound(resource), revision)
        self._note_unreadable(key, after)
        match key.kind:
            case IPAMBlock.KIND:
                self._index_block(key.name, before, after)
            case BlockAffinity.KIND:
                self._index_affinity(key.name, before, after)
            case IPPool.KIND:
                self._index_pool(key.name, before, after)
            case IPReservation.KIND:
                self._index_reservation(key.name, after)

    def at(self, key: Key) -> int:
        """The revision at which an object is known; ABSENT when none is."""
        seen = self._seen.get(key)
        return ABSENT if seen is None else seen.revision

    def find(self, cls: type[R], key: Key) -> Seen[R] | None:
        """An object; None when there is none."""
        seen = self._seen.get(key)
        if seen is None:
            return None
        assert seen.resource is None or isinstance(seen.resource, cls)
        return seen  # type: ignore[return-value]

    def everything(self, cls: type[R]) -> Iterator[Seen[R]]:
        """All objects of a kind, in no order: for audits and collection, not for an allocation."""
        for key in [key for key in self._seen if key.kind == cls.KIND]:
            found = self.find(cls, key)
            assert found is not None
            yield found

    def unreadable(self, kind: Kind) -> tuple[str, ...]:
        """The names of those of a kind that cannot be read."""
        return tuple(sorted(self._unreadable.get(kind, ())))

    def present(self, key: Key) -> tuple[Guard, ...]:
        """The guard that an object is as it is known; none for one that is not there."""
        revision = self.at(key)
        return () if revision == ABSENT else (At(key, revision),)

    def none_since(self, kind: Kind) -> Guard:
        """The guard that nothing of a kind was written after all that was seen of it (`caught_up`)."""
        return Unchanged(kind, self.revision)

    # pools

    def pools(self, family: int) -> tuple[IPPool, ...]:
        """The pools of a family that can be read, by name."""
        if family not in self._pool_order:
            found = [seen.resource for seen in self.everything(IPPool) if seen.resource is not None]
            mine = [pool for pool in found if blocks.network(pool).version == family]
            self._pool_order[family] = tuple(sorted(mine, key=lambda pool: pool.metadata.name))
        return self._pool_order[family]

    def pool(self, name: str) -> Seen[IPPool] | None:
        """A pool by its name."""
        return self.find(IPPool, Key(IPPool.KIND, "", name))

    def pool_around(self, inner: Address | Network) -> IPPool | None:
        """The pool that an address or a block lies in."""
        for name in self._pools.around(inner):
            seen = self.pool(name)
            if seen is not None and seen.resource is not None:
                return seen.resource
        return None

    # blocks

    def block(self, name: str) -> Seen[IPAMBlock] | None:
        """A block by its name."""
        return self.find(IPAMBlock, Key(IPAMBlock.KIND, "", name))

    def block_around(self, inner: Address | Network) -> Seen[IPAMBlock] | None:
        """The block that an address lies in; of several (that must not be) the widest."""
        names = self._blocks.around(inner)
        return self.block(names[0]) if names else None

    def blocks_of(self, node: str, family: int) -> list[Seen[IPAMBlock]]:
        """The blocks whose affinity is `node`'s ("": nobody's), by address."""
        found = [self.block(name) for name in self._owned.get(blocks.affinity_of(node), ())]
        mine = [seen for seen in found if seen is not None and _version(seen) == family]
        return sorted(mine, key=_start)

    def blocks_within(self, network: Network) -> Iterator[Seen[IPAMBlock]]:
        """The blocks in a prefix, unreadable ones too, by address."""
        return self._named(self._blocks.within(network))

    def roomy_within(self, network: Network, random: Random) -> Iterator[Seen[IPAMBlock]]:
        """The blocks in a prefix, of any node or none, in which not every address is held; in random order."""
        return self._named(self._roomy.shuffled_within(network, random))

    def taken_within(self, network: Network) -> int:
        """How many addresses of a prefix lie in blocks."""
        return self._blocks.count_within(network)

    def overlapping(self, network: Network) -> bool:
        """Whether any block has an address of `network`, also one that cannot be read."""
        return self._blocks.overlap(network)

    def usable(self, network: Network) -> bool:
        """Whether a block of `network` may give addresses: no other has any of them, which would give them too, and it
        is not wider than any is made."""
        return network.num_addresses <= MOST_ADDRESSES and self._blocks.count(network) <= 1

    def taken_around(self, network: Network) -> Network | None:
        """What keeps a block from being made of `network`: a block around it, a reservation around it, or `network`
        itself when blocks have parts of it. None when nothing does."""
        around = self._blocks.around(network)
        if around:
            return _range(self._seen[Key(IPAMBlock.KIND, "", around[0])])
        if self.overlapping(network):
            return network
        return next((each for ranges in self._reserved.values() for each in ranges if contains(each, network)), None)

    def unplaced(self) -> tuple[str, ...]:
        """The names of blocks whose range nobody can tell."""
        return tuple(sorted(self._unplaced))

    # affinities, handles

    def affinity(self, node: str, network: Network) -> Seen[BlockAffinity] | None:
        """A node's claim to a block."""
        return self.find(BlockAffinity, affinity_key(node, network))

    def claims_of(self, node: str) -> list[Seen[BlockAffinity]]:
        """All claims of a node that can be read, by address."""
        keys = (Key(BlockAffinity.KIND, "", name) for name in self._claims.get(node, ()))
        found = [seen for seen in (self.find(BlockAffinity, key) for key in keys) if seen is not None]
        return sorted(found, key=lambda seen: seen.key.name)

    def count_blocks(self, node: str, family: int) -> int:
        """How many blocks of a family `node` has or is about to have: those it owns and those it claims."""
        claimed = {seen.resource.spec.cidr for seen in self.claims_of(node) if seen.resource is not None}
        owned = {seen.resource.spec.cidr for seen in self.blocks_of(node, family) if seen.resource is not None}
        return len(owned | {cidr for cidr in claimed if (":" in cidr) == (family == Family.V6)})

    def handle(self, handle: str) -> Seen[IPAMHandle] | None:
        """The object of a handle."""
        return self.find(IPAMHandle, handle_key(handle))

    # settings

    def settings(self) -> IPAMConfigurationSpec:
        """How addresses are given. Raises `Exhausted` when the settings are there and cannot be read."""
        seen = self.find(IPAMConfiguration, SETTINGS)
        if seen is None:
            return IPAMConfigurationSpec()
        if seen.resource is None:
            raise Exhausted(f"{SETTINGS} cannot be read, so no address is given; apply it again")
        return seen.resource.spec

    def settings_guards(self) -> tuple[Guard, ...]:
        """That settings and reservations are as they are known."""
        return (*(self.present(SETTINGS) or (self.none_since(SETTINGS.kind),)), self.none_since(IPReservation.KIND))

    def reserved_in(self, network: Network) -> AbstractSet[str]:
        """The addresses (texts) of a block that are reserved. Raises `Exhausted` when a reservation cannot be read."""
        hidden = self.unreadable(IPReservation.KIND)
        if hidden:
            raise Exhausted(f"IPReservation {hidden[0]} cannot be read, so no address is given; apply it again")
        found = self._reserved_in.get(network)
        if found is None:
            ranges = [each for reserved in self._reserved.values() for each in reserved]
            found = self._reserved_in[network] = blocks.texts_within(network, ranges) if ranges else frozenset()
        return found

    def wholly_reserved(self, network: Network) -> bool:
        """Whether all of a block is reserved. Raises as `reserved_in`."""
        return len(self.reserved_in(network)) == network.num_addresses

    # the index

    def _named(self, names: Iterator[str]) -> Iterator[Seen[IPAMBlock]]:
        for name in names:
            seen = self.block(name)
            assert seen is not None
            yield seen

    def _note_unreadable(self, key: Key, after: Seen[Resource] | None) -> None:
        hidden = self._unreadable.setdefault(key.kind, set())
        if after is not None and after.resource is None:
            hidden.add(key.name)
        else:
            hidden.discard(key.name)

    def _index_block(self, name: str, before: Seen[Resource] | None, after: Seen[Resource] | None) -> None:
        if before is not None:
            self._unplaced.discard(name)
            network = _range(before)
            if network is not None:
                self._blocks.remove(network, name)
            if isinstance(before.resource, IPAMBlock):
                self._owned[before.resource.spec.affinity].discard(name)
                if _gives(before.resource):
                    self._roomy.remove(blocks.network(before.resource), name)
        if after is not None:
            network = _range(after)
            if network is None:
                self._unplaced.add(name)
            else:
                self._blocks.add(network, name)
            if isinstance(after.resource, IPAMBlock):
                self._owned.setdefault(after.resource.spec.affinity, set()).add(name)
                if _gives(after.resource):
                    self._roomy.add(blocks.network(after.resource), name)

    def _index_affinity(self, name: str, before: Seen[Resource] | None, after: Seen[Resource] | None) -> None:
        if before is not None and isinstance(before.resource, BlockAffinity):
            self._claims[before.resource.spec.owner].discard(name)
        if after is not None and isinstance(after.resource, BlockAffinity):
            self._claims.setdefault(after.resource.spec.owner, set()).add(name)

    def _index_pool(self, name: str, before: Seen[Resource] | None, after: Seen[Resource] | None) -> None:
        self._pool_order.clear()
        if before is not None and isinstance(before.resource, IPPool):
            self._pools.remove(blocks.network(before.resource), name)
        if after is not None and isinstance(after.resource, IPPool):
            self._pools.add(blocks.network(after.resource), name)

    def _index_reservation(self, name: str, after: Seen[Resource] | None) -> None:
        self._reserved_in.clear()
        self._reserved.pop(name, None)
        if after is not None and isinstance(after.resource, IPReservation):
            self._reserved[name] = tuple(ip_network(text) for text in after.resource.spec.reserved_cidrs)


def _sound(resource: Resource | None) -> Resource | None:
    """`resource`, or None when it is as little use as if it could not be read: a prefix or an address in it is none, or
    a handle is kept under another's name."""
    try:
        match resource:
            case IPAMBlock():
                return blocks.spelt(resource)
            case IPAMHandle():
                mine = handle_name(resource.spec.handle_id) == resource.metadata.name
                return blocks.spelt_handle(resource) if mine else None
            case IPPool() | BlockAffinity():
                blocks.network(resource)
            case IPReservation():
                [ip_network(text) for text in resource.spec.reserved_cidrs]
    except ValueError:
        return None
    return resource


def _range(seen: Seen[Resource]) -> Network | None:
    if isinstance(seen.resource, IPAMBlock):
        return blocks.network(seen.resource)
    return blocks.network_of(seen.key.name)


def _gives(block: IPAMBlock) -> bool:
    """Whether there may be something to have of it; a block of a virtual owner (a load balancer's) is not for pods."""
    return (not block.spec.affinity or bool(block.spec.node)) and not blocks.full(block)


def _version(seen: Seen[IPAMBlock]) -> int:
    assert seen.resource is not None
    return blocks.network(seen.resource).version


def _start(seen: Seen[IPAMBlock]) -> int:
    assert seen.resource is not None
    return int(blocks.network(seen.resource).network_address)
