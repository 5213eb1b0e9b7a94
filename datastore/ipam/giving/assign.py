"""The addresses of a request: all of them or none, as one transaction made from what the books say.

    the handle holds one of the family already    ── it keeps that one
    a block of the node, in a pool that serves    ── the address that is next there
    a new block may be had                        ── claim it (two transactions), then the first of its addresses
    strictAffinity is off                         ── one address out of another node's block: borrowed
    else                                          ── Exhausted, and why

An owner that is no node (load balancers') never borrows, nor is it bound by maxBlocksPerHost or autoAllocateBlocks.

What was relied on goes into the step: the blocks' and the handle's revisions, and guards that the pool, the node, the
namespace, the settings and the reservations are as they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from core.addr import Address, Family, Network, contains
from core.names import Key
from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, Metadata, Node
from core.resources.ipam import AffinityState, HandleSpec, IPAMConfigurationSpec
from core.validate.ipam import MOST_BLOCKS
from datastore.api import ABSENT, Guard
from datastore.ipam import block as blocks
from datastore.ipam.books import Books, Seen, affinity_key, handle_name
from datastore.ipam.giving import exhaustion
from datastore.ipam.giving.claim import Begun, Claims, Room, confirmed
from datastore.ipam.giving.past import record
from datastore.ipam.giving.pools import families, relied_on, serving, serving_address
from datastore.ipam.model import Change, Exhausted, Grant, Request, Step, Write

EXCHANGED: Final = "exchanged"
"""What the record of an address says that went back in the transaction that gave another."""


def assign(books: Books, request: Request, now: datetime) -> Step:
    """What gives `request` its addresses next. Raises `Exhausted`, or `Invalid` for a pool asked for and not there."""
    return _Decision(books, request, now).step()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a handle holds, by its own word and the block's (an unreadable block has none).

    `guards`: that blocks which do not have what the handle says are as they are known. They may be behind the handle,
    and an address must not be forgotten for that.
    """

    places: Mapping[Address, Seen[IPAMBlock]]
    guards: tuple[Guard, ...]


def held(books: Books, seen: Seen[IPAMHandle]) -> Kept:
    """What a handle that can be read holds."""
    assert seen.resource is not None
    found: dict[Address, Seen[IPAMBlock]] = {}
    guards: tuple[Guard, ...] = ()
    spec = seen.resource.spec
    for text in spec.addresses:
        address = ip_address(text)
        there = books.block_around(address)
        if there is None:
            guards += (books.none_since(IPAMBlock.KIND),)
        elif there.resource is None or there.resource.spec.allocations.get(text) == spec.handle_id:
            found[address] = there
        else:
            guards += books.present(there.key)
    return Kept(found, guards)


class _Decision:
    """One request on its way to a step."""

    def __init__(self, books: Books, request: Request, now: datetime) -> None:
        self._books, self._request, self._now = books, request, now
        self._node = request.owner.node
        self._handle = books.handle(request.handle)
        self._rested = ""
        self._doubted: tuple[Guard, ...] = ()
        self._back: dict[Address, Seen[IPAMBlock]] = {}
        self._left_out: tuple[Guard, ...] = ()

    def step(self) -> Step:
        """The step."""
        kept = self._kept()
        wanted = self._wanted(kept)
        if not wanted and self._back:
            return self._written(kept, [], ())
        if not wanted:
            return Step(grant=self._grant(kept), guards=self._as_kept(kept))
        if self._request.needs_node and self._books.at(Key(Node.KIND, "", self._node)) == ABSENT:
            why = f"there is no Node {self._node}; create it, or start the agent with its name"
            raise Exhausted(f"no address for {self._request.handle}: {why}")
        self._settings = self._books.settings()
        if self._request.owner.virtual:
            self._settings = _unbound(self._settings)
        self._rested = blocks.rested_since(self._now, self._settings.ip_cooldown_seconds)
        given: list[tuple[Room, Address]] = []
        begun: list[Begun] = []
        for family, address in wanted:
            found = self._any(family) if address is None else self._this(address)
            if isinstance(found, Begun):
                begun.append(found)
            else:
                given.append(found)
        guards = (*relied_on(self._books, self._request), *self._books.settings_guards(), *self._left_out)
        if begun:
            changes = tuple(change for each in begun for change in each.changes)
            return Step(changes=changes, guards=_once(guards, *(each.guards for each in begun)))
        return self._written(kept, given, guards)

    def _kept(self) -> Mapping[Address, Seen[IPAMBlock]]:
        if self._handle is None:
            return {}
        if self._handle.resource is None:
            raise Exhausted(f"{self._handle.key} cannot be read, so what it holds is not known; repair or remove it")
        elsewhere = self._handle.resource.spec.node
        if elsewhere not in ("", self._node):
            why = f"node {elsewhere} has addresses under that name, and they are not to be on two nodes"
            raise Exhausted(f"no address for {self._request.handle} on node {self._node}: {why}; see ipam show")
        kept = held(self._books, self._handle)
        for address, there in kept.places.items():
            if there.resource is None:
                raise Exhausted(f"{address} of {self._request.handle} lies in {there.key}, which cannot be read")
        self._doubted = kept.guards
        self._back = {each: there for each, there in kept.places.items() if each in self._request.instead_of}
        return {each: there for each, there in kept.places.items() if each not in self._back}

    def _wanted(self, kept: Mapping[Address, Seen[IPAMBlock]]) -> list[tuple[Family, Address | None]]:
        request = self._request
        have = {Family(address.version): address for address in kept}
        if have and not request.addresses and request.families is None:
            return []  # a pool that has come since does not give a running pod another family
        asked = families(self._books, request)
        if not asked:
            raise Exhausted(exhaustion.nothing_serves(self._books, request))
        if request.families is None and not request.addresses and len(asked) < len(Family):
            self._left_out = (self._books.none_since(IPPool.KIND),)  # a pod would do without a family for good
        exact = {Family(address.version): address for address in request.addresses}
        for family, address in exact.items():
            if have.get(family, address) != address:
                raise Exhausted(f"{request.handle} has {have[family]} and asks for {address}; release the one it has")
        return [(family, exact.get(family)) for family in asked if family not in have]

    def _any(self, family: Family) -> tuple[Room, Address] | Begun:
        """An address of a family, from the best place there is."""
        fit = serving(self._books, self._request, family)
        for room in self._own(fit.pools, family):
            address = self._next(room.block)
            if address is not None:
                return room, address
        claims = Claims(self._books, self._node, family, self._settings, self._usable)
        found = claims.next(fit.pools)
        if isinstance(found, Begun):
            return found
        if found is not None:
            address = self._next(found.block)
            if address is not None:
                return found, address
        if not self._settings.strict_affinity:
            for room in self._others(fit.pools):
                address = self._next(room.block)
                if address is not None:
                    return room, address
        raise Exhausted(exhaustion.why(self._books, self._request, family, fit, self._settings, self._rested))

    def _own(self, pools: tuple[IPPool, ...], family: Family) -> Iterator[Room]:
        mine = self._books.blocks_of(self._node, family)
        for pool in pools:
            for seen in mine:
                assert seen.resource is not None
                network = blocks.network(seen.resource)
                if contains(blocks.network(pool), network) and not blocks.full(seen.resource) and self._stays(network):
                    yield Room(seen.resource, seen.revision, pool, confirmed(self._books, self._node, network))

    def _stays(self, network: Network) -> bool:
        claim = self._books.affinity(self._node, network)
        if claim is None or claim.resource is None:
            return True
        return claim.resource.spec.state is not AffinityState.PENDING_DELETION

    def _others(self, pools: tuple[IPPool, ...]) -> Iterator[Room]:
        """Blocks of other nodes that may have an address, in an order that the handle decides."""
        shuffled = random.Random(self._request.handle)  # noqa: S311 - to spread, not to hide
        for pool in pools:
            for seen in self._books.roomy_within(blocks.network(pool), shuffled):
                if seen.resource is not None and seen.resource.spec.node != self._node:
                    yield Room(seen.resource, seen.revision, pool)

    def _next(self, block: IPAMBlock) -> Address | None:
        if not self._books.usable(blocks.network(block)):
            return None
        return blocks.next_free(block, self._rested, self._books.reserved_in(blocks.network(block)))

    def _usable(self, block: IPAMBlock) -> bool:
        return self._next(block) is not None

    def _this(self, address: Address) -> tuple[Room, Address] | Begun:
        """An address that was asked for by itself, and no other."""
        fit = serving_address(self._books, self._request, address)
        if not fit.pools:
            raise Exhausted(exhaustion.no_pool_for(self._request, address, fit))
        seen = self._books.block_around(address)
        if seen is None or (seen.resource is not None and not seen.resource.spec.affinity):
            found = self._claimed(address, fit.pools[0], seen)
        else:
            found = self._from(address, seen, fit.pools[0])
        if isinstance(found, Room):
            exhaustion.refuse_taken(self._request, found.block, address, self._rested, self._settings)
            return found, address
        return found

    def _from(self, address: Address, seen: Seen[IPAMBlock], pool: IPPool) -> Room:
        """The block that has the address: the node's own, or another's, who then lends it."""
        block = seen.resource
        if block is None:
            raise Exhausted(f"{address} lies in {seen.key}, which cannot be read; repair it")
        if not self._books.usable(blocks.network(block)):
            raise Exhausted(
                f"{address} lies in {seen.key}, which overlaps another block, or is too wide; run ipam check"
            )
        if block.spec.owner == self._node:
            changes = confirmed(self._books, self._node, blocks.network(block))
            return Room(block, seen.revision, pool, changes)
        if block.spec.affinity and not block.spec.node:
            raise Exhausted(f"{address} lies in {seen.key}, which is {block.spec.affinity}'s and not for pods")
        if self._request.owner.virtual:
            whose = f"node {block.spec.node}'s" if block.spec.node else "nobody's"
            raise Exhausted(
                f"{address} for {self._request} lies in {seen.key}, which is {whose}: free its addresses first"
            )
        exhaustion.refuse_taken(self._request, block, address, self._rested, self._settings)
        if self._settings.strict_affinity:
            owner = f"node {block.spec.node}'s" if block.spec.node else "no node's"
            why = f"lies in {seen.key}, {owner}, and strictAffinity keeps node {self._node} from borrowing it"
            raise Exhausted(f"{address} for {self._request.handle} {why}")
        return Room(block, seen.revision, pool)

    def _claimed(self, address: Address, pool: IPPool, seen: Seen[IPAMBlock] | None) -> Room | Begun:
        """The block of an address that is in nobody's: claimed for the node, or borrowed from where that may not be."""
        family = Family(address.version)
        if seen is not None:
            assert seen.resource is not None
            network = blocks.network(seen.resource)
        else:
            network = ip_network((int(address), pool.spec.block_length), strict=False)
            if self._books.overlapping(network) or self._books.unplaced():
                why = "blocks of another size are in the way" if not self._books.unplaced() else "a block is unreadable"
                raise Exhausted(f"{address} for {self._request.handle}: no block can be made around it; {why}")
        claims = Claims(self._books, self._node, family, self._settings, self._usable)
        before = self._books.find(BlockAffinity, affinity_key(self._node, network))
        why = exhaustion.no_claim(self._node, claims.count, self._settings, begun=before is not None)
        if why and seen is not None:
            return self._from(address, seen, pool)
        if why:
            raise Exhausted(f"{address} for {self._request.handle} lies in no block yet, and {why}")
        if before is None:
            return claims.begin(network, pool)
        room = claims.resume(before, pool) if before.resource is not None else None
        if room is None:
            raise Exhausted(f"{address} for {self._request.handle}: {before.key} is in the way; run ipam check")
        return room

    def _written(
        self,
        kept: Mapping[Address, Seen[IPAMBlock]],
        given: list[tuple[Room, Address]],
        guards: tuple[Guard, ...],
    ) -> Step:
        """Blocks, claims and the handle, in one transaction; and what goes back."""
        places = {address: there.resource.spec.cidr for address, there in kept.items() if there.resource is not None}
        pools: tuple[Guard, ...] = ()
        taken: dict[Key, Write] = {}
        for room, address in given:
            block = blocks.take(room.block, address, self._request.handle, self._node)
            taken[block.key] = Write(block, room.revision)
            places[address] = room.block.spec.cidr
            pools += self._books.present(room.pool.key)
        records = self._given_back(taken)
        claims = (change for room, _ in given for change in room.changes)
        changes = (*taken.values(), *claims, self._write_handle(places), *records)
        return Step(changes=changes, guards=_once(guards, pools, self._doubted), grant=self._grant(places))

    def _given_back(self, taken: dict[Key, Write]) -> list[Change]:
        """Free what goes back, in the blocks that are written anyhow (`taken`) or in its own; the records of it."""
        records: list[Change] = []
        for address, there in self._back.items():
            assert self._handle is not None
            assert self._handle.resource is not None
            before = taken.get(there.key)
            block = before.resource if before is not None else there.resource
            assert isinstance(block, IPAMBlock)
            records.append(Write(record(block, address, self._handle.resource.spec, EXCHANGED, self._now), ABSENT))
            taken[there.key] = Write(blocks.give_back(block, address, self._now), there.revision)
        return records

    def _write_handle(self, places: dict[Address, str]) -> Write:
        owner = self._request.owner
        spec = HandleSpec(
            handle_id=self._request.handle,
            addresses={str(address): cidr for address, cidr in places.items()},
            node="" if owner.virtual else owner.node,
            namespace=owner.namespace,
            pod=owner.pod,
            container=owner.container,
            interface=owner.interface,
            service=owner.service,
            since=blocks.stamp(self._now),
        )
        if self._handle is not None and self._handle.resource is not None:
            return Write(msgspec.structs.replace(self._handle.resource, spec=spec), self._handle.revision)
        made = IPAMHandle(
            api_version=IPAMHandle.KIND.api_version,
            kind=IPAMHandle.KIND.name,
            metadata=Metadata(name=handle_name(self._request.handle)),
            spec=spec,
        )
        return Write(made, ABSENT)

    def _as_kept(self, kept: Mapping[Address, Seen[IPAMBlock]]) -> tuple[Guard, ...]:
        keys = [seen.key for seen in kept.values()] + ([self._handle.key] if self._handle is not None else [])
        return _once(*(self._books.present(key) for key in keys))

    def _grant(self, addresses: Mapping[Address, Seen[IPAMBlock]] | Mapping[Address, str]) -> Grant:
        in_order = tuple(sorted(addresses, key=lambda address: (address.version, int(address))))
        return Grant(handle=self._request.handle, addresses=in_order)


def _unbound(settings: IPAMConfigurationSpec) -> IPAMConfigurationSpec:
    """How an owner that is no node takes blocks: as many as it needs, and its own only."""
    return msgspec.structs.replace(
        settings, strict_affinity=True, auto_allocate_blocks=True, max_blocks_per_host=MOST_BLOCKS
    )


def _once(*groups: tuple[Guard, ...]) -> tuple[Guard, ...]:
    return tuple(dict.fromkeys(guard for group in groups for guard in group))
