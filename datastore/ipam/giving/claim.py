"""How a node comes to a block, in two transactions.

    1   BlockAffinity NODE-BLOCK   pending     created; says what the node is about to do, and gives nobody anything
    2   BlockAffinity NODE-BLOCK   confirmed   compared with what 1 wrote
        IPAMBlock BLOCK                        created, or taken over when it is nobody's; with the first allocation

A node that dies in between leaves its claim pending: it goes on with it when it is back, or the claim is collected. A
node that finds the block to be another's by then takes its claim back and looks further.

Blocks are counted per family, as Calico counts them: a node of maxBlocksPerHost 2 may have two of IPv4 and two of IPv6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from core.addr import Family, Network, contains
from core.resources import BlockAffinity, IPAMBlock, IPPool, Metadata
from core.resources.ipam import VIRTUAL, AffinitySpec, AffinityState, IPAMConfigurationSpec
from datastore.api import ABSENT, Guard
from datastore.ipam import block as blocks
from datastore.ipam.books import Books, Seen, affinity_key, block_key
from datastore.ipam.giving.pools import free_ranges
from datastore.ipam.model import Change, Remove, Write


@dataclass(frozen=True, slots=True)
class Room:
    """A block that an address may be taken from, as it will be but for that; `changes` are written with it."""

    block: IPAMBlock
    revision: int
    pool: IPPool
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """What is to be written before the decision can be made: claims begun, and claims lost."""

    changes: tuple[Change, ...]
    guards: tuple[Guard, ...] = ()


def confirmed(books: Books, node: str, network: Network) -> tuple[Change, ...]:
    """The write that makes `node`'s claim to a block that it owns confirmed; none when it is, or cannot be read."""
    seen = books.affinity(node, network)
    if seen is None:
        return (Write(affinity(node, network, AffinityState.CONFIRMED), ABSENT),)
    if seen.resource is None or seen.resource.spec.state is AffinityState.CONFIRMED:
        return ()
    spec = msgspec.structs.replace(seen.resource.spec, state=AffinityState.CONFIRMED)
    return (Write(msgspec.structs.replace(seen.resource, spec=spec), seen.revision),)


def affinity(node: str, network: Network, state: AffinityState) -> BlockAffinity:
    """A claim."""
    virtual = node.startswith(VIRTUAL)
    return BlockAffinity(
        api_version=BlockAffinity.KIND.api_version,
        kind=BlockAffinity.KIND.name,
        metadata=Metadata(name=affinity_key(node, network).name),
        spec=AffinitySpec(
            state=state,
            node=node.removeprefix(VIRTUAL),
            cidr=str(network),
            type="virtual" if virtual else "host",
        ),
    )


class Claims:
    """A node's way to more blocks of one family, as the books are. `usable` blocks have an address to give."""

    def __init__(
        self,
        books: Books,
        node: str,
        family: Family,
        settings: IPAMConfigurationSpec,
        usable: Callable[[IPAMBlock], bool],
    ) -> None:
        self._books, self._node, self._settings = books, node, settings
        self._family, self._usable = family, usable
        self.count = books.count_blocks(node, family)

    def next(self, pools: tuple[IPPool, ...]) -> Room | Begun | None:
        """The block that comes next: one to take from now, or what to write first; None when there is none."""
        if not self._settings.auto_allocate_blocks:
            return None
        lost: list[Change] = []
        for seen in self._books.claims_of(self._node):
            found = self._resumed(seen, pools)
            if isinstance(found, Room):
                return found
            if found is not None:
                lost.append(found)
        if self.count - len(lost) < self._settings.most_blocks:
            for pool in pools:
                network = next(self._candidates(pool), None)
                if network is not None:
                    begun = self.begin(network, pool)
                    return Begun((*lost, *begun.changes), begun.guards)
        return Begun(tuple(lost)) if lost else None

    def begin(self, network: Network, pool: IPPool) -> Begun:
        """The first transaction for one block."""
        guards = self._books.present(pool.key)
        if (self.count + 1) * 2 > self._settings.most_blocks:
            # Another process of this node may claim too. Books would have to be behind by half of what it may have
            # for both to be wrong, so only from there on is it worth losing against claims of other nodes.
            guards += (self._books.none_since(BlockAffinity.KIND),)
        return Begun((Write(affinity(self._node, network, AffinityState.PENDING), ABSENT),), guards)

    def resume(self, seen: Seen[BlockAffinity], pool: IPPool) -> Room | None:
        """The block of a claim that was begun, for the second transaction; None when the claim is lost."""
        assert seen.resource is not None
        network = blocks.network(seen.resource)
        changes = confirmed(self._books, self._node, network)
        there = self._books.find(IPAMBlock, block_key(network))
        if there is None:
            if self._books.overlapping(network) or self._books.unplaced():
                return None
            if network.prefixlen != pool.spec.block_length:
                return None
            return Room(blocks.empty(network, self._node), ABSENT, pool, changes)
        if there.resource is None or there.resource.spec.affinity:
            return None
        return Room(blocks.given_to(there.resource, self._node), there.revision, pool, changes)

    def _resumed(self, seen: Seen[BlockAffinity], pools: tuple[IPPool, ...]) -> Room | Remove | None:
        if seen.resource is None:
            return None
        spec, network = seen.resource.spec, blocks.network(seen.resource)
        there = self._books.find(IPAMBlock, block_key(network))
        if there is not None and there.resource is not None and there.resource.spec.owner == self._node:
            return None  # it is ours already, and was asked for its addresses
        pool = next((each for each in pools if contains(blocks.network(each), network)), None)
        if pool is None or network.version != self._family:
            return None
        room = self.resume(seen, pool) if self.count <= self._settings.most_blocks else None
        if room is not None and self._usable(room.block):
            return room
        return Remove(seen.key, seen.revision) if spec.state is AffinityState.PENDING else None

    def _candidates(self, pool: IPPool) -> Iterator[Network]:
        """Blocks of a pool that may be claimed: those that are nobody's and have room, then new ones."""
        for seen in self._books.blocks_of("", self._family):
            assert seen.resource is not None
            network = blocks.network(seen.resource)
            if contains(blocks.network(pool), network) and self._unclaimed(network) and self._usable(seen.resource):
                yield network
        for network in free_ranges(self._books, pool, self._node):
            if self._unclaimed(network) and not self._books.wholly_reserved(network):
                yield network

    def _unclaimed(self, network: Network) -> bool:
        return self._books.at(affinity_key(self._node, network)) == ABSENT
