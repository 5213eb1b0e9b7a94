"""IPAM against a naive model: eight nodes and two servers that give Services addresses, all with books that are behind,
and everything that can happen between two steps.

The model is a dict of who was told that he has which address. It knows nothing of blocks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address, ip_network
from random import Random

import msgspec
import pytest
from ipam_world import Watcher, World

from core.addr import Address, Family, Network, contains
from core.names import Key
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPAMRecord,
    IPPool,
    IPReservation,
    Metadata,
    Node,
)
from core.resources.ipam import LOAD_BALANCER, AffinityState, IPAMConfigurationSpec, ReservationSpec
from core.resources.network import IPPoolSpec
from datastore.api import ABSENT
from datastore.ipam.block import stamp
from datastore.ipam.books import KINDS
from datastore.ipam.giving.assign import assign
from datastore.ipam.giving.release import release, release_address, release_affinity, release_block
from datastore.ipam.listing.split import children
from datastore.ipam.model import Exhausted, Owner, Request, Step, Use, Write

OPERATIONS = int(os.environ.get("MUSLIN_IPAM_OPERATIONS", "100000"))
NODES = tuple(f"n{number}" for number in range(8))
FOR_PODS = tuple(map(ip_network, ("10.0.0.0/26", "10.0.1.0/27", "fd00::/122", "fd00:1::/123")))
FOR_SERVICES = tuple(map(ip_network, ("10.0.2.0/27", "fd00:2::/123")))
TOPS = FOR_PODS + FOR_SERVICES
net = lru_cache(ip_network)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def key(cls: type[IPPool] | type[Node] | type[IPReservation], name: str) -> Key:
    return Key(cls.KIND, "", name)


def for_services(inner: Address | Network) -> bool:
    return any(contains(each, inner) for each in FOR_SERVICES)


class Play:
    """The cluster, what was promised to whom, and the rules."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = FIRST
        self.world = World()
        self.nodes = [Watcher(name, self.world) for name in (*NODES, LOAD_BALANCER, LOAD_BALANCER)]
        self.holder: dict[Address, str] = {}
        self.on: dict[str, str] = {}
        self.freed: dict[Address, datetime] = {}
        self.asking: dict[int, Request] = {}
        self.numbers = 0
        self.releases = 0
        self.counts: Counter[str] = Counter()
        for network in TOPS:
            self.world.write(self._pool(network, network.max_prefixlen - 3))
        self.world.write(*(Node(metadata=Metadata(name=name)) for name in NODES))

    # what can happen

    def step(self) -> None:
        self.now += timedelta(milliseconds=self.random.choice((0, 0, 1, 20, 300)))
        action = self.random.choices(ACTIONS, WEIGHTS)[0]
        watcher = self.random.choice(self.nodes)
        if self.random.random() < 0.2:
            watcher.catch_up(self.random)
        self.counts[action.__name__] += 1
        action(self, watcher)

    def ask(self, watcher: Watcher) -> None:
        """A new request of a node that is not at one already; its steps come later, one at a time."""
        if id(watcher) in self.asking:
            return self.go_on(watcher)
        virtual = watcher.name == LOAD_BALANCER
        known = [handle for handle, node in self.on.items() if not virtual or node == LOAD_BALANCER]
        again = self.random.random() < (0.4 if virtual else 0.05) and known
        handle = self.random.choice(known) if again else f"net.c{self.numbers}"
        self.numbers += 1
        node = self.on.get(handle, watcher.name)
        if node != watcher.name:
            return None
        addresses: tuple[Address, ...] = ()
        if self.random.random() < 0.15:
            among = self.random.choice(FOR_SERVICES if virtual else TOPS)
            addresses = (among[self.random.randrange(among.num_addresses)],)
        families = self.random.choice((None, (Family.V4,), (Family.V6,), (Family.V4, Family.V6)))
        owner, use, back = Owner(node=watcher.name, pod=handle), Use.WORKLOAD, tuple[Address, ...]()
        if owner.virtual:
            owner, use = Owner(node=watcher.name, namespace="shop", service=handle), Use.LOAD_BALANCER
            back = tuple(each for each, holder in self.holder.items() if holder == handle and each not in addresses)
        self.asking[id(watcher)] = Request(
            handle=handle, owner=owner, addresses=addresses, families=families, use=use, instead_of=back
        )
        return self.go_on(watcher)

    def go_on(self, watcher: Watcher) -> None:
        """One transaction further."""
        request = self.asking.get(id(watcher))
        if request is None:
            return
        try:
            step = assign(watcher.books, request, self.now)
        except Exhausted as exhausted:
            self._refused(watcher, request, exhausted)
            return
        node = key(Node, watcher.name)
        known = watcher.books.at(node)
        if not watcher.carry_out(step):
            self.counts["conflicts"] += 1
            if self.random.random() < 0.7:
                watcher.catch_up()
            return
        if step.grant is None:
            self._claimed(watcher.name, step)
            return
        assert request.owner.virtual or known in (ABSENT, self.world.at(node)), (
            "given on a node that was deleted or changed meanwhile"
        )
        del self.asking[id(watcher)]
        self._granted(watcher.name, request, step)

    def _refused(self, watcher: Watcher, request: Request, exhausted: Exhausted) -> None:
        self.counts["exhausted"] += 1
        del self.asking[id(watcher)]
        behind = watcher.position < len(self.world.log)
        watcher.catch_up()
        if not behind and not request.addresses and request.families is not None and len(request.families) == 1:
            left = self._could_have(watcher.name, request.families[0])
            assert left is None, f"{left} is left, and yet: {exhausted}"

    def crash(self, watcher: Watcher) -> None:
        """The process ends in the middle; another reads everything."""
        self.asking.pop(id(watcher), None)
        watcher.books = type(watcher.books)()
        watcher.seen.clear()
        watcher.position = 0
        for there, (resource, revision) in self.world.objects.items():
            if there.kind in KINDS:
                watcher.seen[there] = revision
                watcher.books.see(there, resource, revision)
        watcher.position = len(self.world.log)
        watcher.books.caught_up(self.world.revision)

    def free(self, watcher: Watcher) -> None:
        if not self.on:
            return
        handle = self.random.choice(list(self.on))
        if self.random.random() < 0.2:
            mine = [address for address, holder in self.holder.items() if holder == handle]
            step = release_address(watcher.books, self.random.choice(mine), "test", self.now)
        else:
            step = release(watcher.books, handle, "test", self.now)
        self._release(watcher, step)

    def _release(self, watcher: Watcher, step: Step) -> None:
        if not step.changes or not watcher.carry_out(step):
            watcher.catch_up()
            return
        assert step.grant is not None
        for address in step.grant.addresses:
            assert self.holder.pop(address) == step.grant.handle
            self.freed[address] = self.now
            self.releases += 1
        if step.grant.handle not in self.holder.values():
            del self.on[step.grant.handle]

    def collect(self, watcher: Watcher) -> None:
        """What a node's collector does: an empty block, a claim that leads nowhere, what a deleted node has left."""
        blocks = list(self.world.of(IPAMBlock.KIND).values())
        claims = list(self.world.of(BlockAffinity.KIND).values())
        if blocks and self.random.random() < 0.5:
            block = self.random.choice(blocks)
            assert isinstance(block, IPAMBlock)
            step = release_block(watcher.books, net(block.spec.cidr), self.now)
        elif claims:
            claim = self.random.choice(claims)
            assert isinstance(claim, BlockAffinity)
            virtual = claim.spec.type == "virtual"  # its blocks stay its own while they are in use
            gone = not virtual and key(Node, claim.spec.node) not in self.world.objects
            stays = virtual or self.random.random() < 0.8
            if not gone and claim.spec.state is AffinityState.CONFIRMED and stays:
                return
            step = release_affinity(watcher.books, claim.spec.owner, net(claim.spec.cidr), self.now)
        else:
            return
        before = dict(self.world.of(IPAMBlock.KIND))
        if step.changes and watcher.carry_out(step):
            for name in before.keys() - self.world.of(IPAMBlock.KIND).keys():
                block = before[name]
                assert isinstance(block, IPAMBlock)
                for address in [each for each in self.freed if contains(net(block.spec.cidr), each)]:
                    assert not self._rests(address), f"{address} rests, and its block forgets it"
                    del self.freed[address]

    def turn_settings(self, watcher: Watcher) -> None:
        strict = self.random.random() < 0.4
        spec = IPAMConfigurationSpec(
            strict_affinity=strict,
            auto_allocate_blocks=not strict or self.random.random() < 0.8,
            max_blocks_per_host=self.random.choice((0, 1, 2, 3)),
            ip_cooldown_seconds=self.random.choice((0, 0, 2, 30)),
        )
        if self.random.random() < 0.1:
            self.world.write(gone=[Key(IPAMConfiguration.KIND, "", "default")])
        else:
            self.world.write(IPAMConfiguration(metadata=Metadata(name="default"), spec=spec))

    def turn_reservation(self, watcher: Watcher) -> None:
        name = f"r{self.random.randrange(3)}"
        if self.random.random() < 0.5:
            self.world.write(gone=[key(IPReservation, name)])
            return
        among = self.random.choice(TOPS)
        length = self.random.randint(among.prefixlen, among.max_prefixlen)
        some = ip_network((int(among[self.random.randrange(among.num_addresses)]), length), strict=False)
        spec = ReservationSpec(reserved_cidrs=[str(some)])
        self.world.write(IPReservation(metadata=Metadata(name=name), spec=spec))

    def turn_pool(self, watcher: Watcher) -> None:
        """Split one in two, make two one, disable one, or give an unused one another block size."""
        top = self.random.choice(TOPS)
        pools = [pool for pool in self._pools() if contains(top, net(pool.spec.cidr))]
        one = self.random.choice(pools)
        network, length = net(one.spec.cidr), one.spec.block_length
        fate = self.random.random()
        if fate < 0.3 and len(pools) == 1 and network.prefixlen < length:
            self.world.write(*children(one, 2, stamp(self.now)), gone=[one.key])
        elif fate < 0.6 and len({pool.spec.block_length for pool in pools}) == 1:
            self.world.write(self._pool(top, length), gone=[pool.key for pool in pools])
        elif fate < 0.8:
            spec = msgspec.structs.replace(one.spec, disabled=not one.spec.disabled)
            self.world.write(msgspec.structs.replace(one, spec=spec))
        elif not any(contains(network, address) for address in self.holder):
            other = network.max_prefixlen - self.random.randint(1, 4)
            self.world.write(gone=[one.key])
            self.world.write(self._pool(network, other))

    def turn_node(self, watcher: Watcher) -> None:
        """A node is deleted, sometimes with all that is on it, or is back. Its agent may not know for a while."""
        there = key(Node, watcher.name)
        if watcher.name == LOAD_BALANCER:
            return
        if there not in self.world.objects:
            self.world.write(Node(metadata=Metadata(name=watcher.name)))
        elif watcher.name not in self.on.values() or self.random.random() < 0.5:
            self.world.write(gone=[there])

    # the rules

    def _granted(self, node: str, request: Request, step: Step) -> None:
        assert step.grant is not None
        assert step.grant.handle == request.handle
        versions = [address.version for address in step.grant.addresses]
        assert len(set(versions)) == len(versions)
        assert set(request.families or ()) <= set(versions) or request.addresses
        assert set(request.addresses) <= set(step.grant.addresses)
        for address in request.instead_of:
            if self.holder.get(address) == request.handle:
                assert address not in step.grant.addresses
                del self.holder[address]
                self.freed[address] = self.now
                self.releases += 1
                self.counts["exchanged"] += 1
        fresh = [each for each in step.grant.addresses if self.holder.get(each) != request.handle]
        for address in fresh:
            assert address not in self.holder, f"{address} is {self.holder[address]}'s"
            settings = self._settings()
            pool = next(each for each in self._pools() if contains(net(each.spec.cidr), address))
            assert not pool.spec.disabled
            assert for_services(address) is request.owner.virtual
            if address not in request.addresses:
                assert not self._reserved(address)
            assert not self._rests(address), f"{address} rests"
            block = self._block(address)
            if settings.strict_affinity or request.owner.virtual:
                assert block.spec.owner == node
            assert block.spec.borrowers.get(str(address)) == (None if block.spec.owner == node else node)
            self.counts["borrowed"] += block.spec.owner != node
            self.counts["services"] += request.owner.virtual
            self.holder[address] = request.handle
            self.freed.pop(address, None)
        self.counts["granted"] += bool(fresh)
        self.on[request.handle] = node
        for address in step.grant.addresses:
            assert self._block(address).spec.allocations[str(address)] == request.handle
            handle = self.world.objects[Key(IPAMHandle.KIND, "", request.handle)][0]
            assert isinstance(handle, IPAMHandle)
            assert str(address) in handle.spec.addresses

    def _claimed(self, node: str, step: Step) -> None:
        for change in step.changes:
            if isinstance(change, Write):
                assert isinstance(change.resource, BlockAffinity)
                version = net(change.resource.spec.cidr).version
                most = self._settings().most_blocks
                assert node == LOAD_BALANCER or self._count(node, version) <= most, "too many blocks"
        self.counts["claims"] += 1

    def audit(self) -> None:
        """All of the store against all that was promised."""
        said: dict[Address, str] = {}
        ranges: list[Network] = []
        for block in self._blocks():
            network = net(block.spec.cidr)
            assert not any(network.overlaps(other) for other in ranges if other.version == network.version)
            ranges.append(network)
            for text, handle in block.spec.allocations.items():
                address = ip_address(text)
                assert contains(network, address)
                said[address] = handle
                user = block.spec.borrowers.get(text, block.spec.owner)
                assert user == self.on[handle]
            assert block.spec.borrowers.keys() <= block.spec.allocations.keys()
            assert not block.spec.freed.keys() & block.spec.allocations.keys()
            assert block.spec.owner not in block.spec.borrowers.values()
        assert said == self.holder
        held = {
            ip_address(text): handle.spec.handle_id
            for handle in self.world.of(IPAMHandle.KIND).values()
            if isinstance(handle, IPAMHandle)
            for text in handle.spec.addresses
        }
        assert held == self.holder
        records = self.world.of(IPAMRecord.KIND)
        assert len(records) == self.releases

    def settle(self) -> None:
        """Everybody goes, and what is left is collected."""
        self.asking.clear()
        one = self.nodes[0]
        one.catch_up()
        while self.on:
            self._release(one, release(one.books, next(iter(self.on)), "end", self.now))
        self.now += timedelta(hours=1)
        for claim in list(self.world.of(BlockAffinity.KIND).values()):
            assert isinstance(claim, BlockAffinity)
            assert one.carry_out(release_affinity(one.books, claim.spec.owner, net(claim.spec.cidr), self.now))
        for block in self._blocks():
            assert one.carry_out(release_block(one.books, net(block.spec.cidr), self.now))
        self.audit()
        for cls in (IPAMBlock, BlockAffinity, IPAMHandle):
            assert not self.world.of(cls.KIND)
        assert not self.holder

    # what is so

    def _pool(self, network: Network, length: int) -> IPPool:
        name = str(network).translate(str.maketrans(".:/", "---")).strip("-")
        uses = ["LoadBalancer"] if for_services(network) else []
        spec = IPPoolSpec(cidr=str(network), block_size=length, allowed_uses=uses)
        return IPPool(metadata=Metadata(name=f"p-{name}"), spec=spec)

    def _pools(self) -> list[IPPool]:
        return [pool for pool in self.world.of(IPPool.KIND).values() if isinstance(pool, IPPool)]

    def _blocks(self) -> list[IPAMBlock]:
        return [block for block in self.world.of(IPAMBlock.KIND).values() if isinstance(block, IPAMBlock)]

    def _block(self, address: Address) -> IPAMBlock:
        found = [block for block in self._blocks() if contains(net(block.spec.cidr), address)]
        assert len(found) == 1, f"{address} lies in {len(found)} blocks"
        return found[0]

    def _settings(self) -> IPAMConfigurationSpec:
        found = self.world.objects.get(Key(IPAMConfiguration.KIND, "", "default"))
        if found is None:
            return IPAMConfigurationSpec()
        assert isinstance(found[0], IPAMConfiguration)
        return found[0].spec

    def _reserved(self, address: Address) -> bool:
        reservations = self.world.of(IPReservation.KIND).values()
        texts = [text for each in reservations if isinstance(each, IPReservation) for text in each.spec.reserved_cidrs]
        return any(contains(net(text), address) for text in texts)

    def _rests(self, address: Address) -> bool:
        seconds = self._settings().ip_cooldown_seconds
        return address in self.freed and self.now < self.freed[address] + timedelta(seconds=seconds)

    def _count(self, node: str, version: int) -> int:
        claims = [each.spec for each in self.world.of(BlockAffinity.KIND).values() if isinstance(each, BlockAffinity)]
        mine = {spec.cidr for spec in claims if spec.owner == node}
        mine |= {block.spec.cidr for block in self._blocks() if block.spec.owner == node}
        return sum(net(cidr).version == version for cidr in mine)

    def _could_have(self, node: str, family: Family) -> Address | None:
        """An address that `node` should have got; every one is looked at."""
        settings, blocks = self._settings(), self._blocks()
        virtual = node == LOAD_BALANCER
        may = settings.auto_allocate_blocks and self._count(node, family) < settings.most_blocks
        claimable, strict = may or virtual, settings.strict_affinity or virtual
        for pool in self._pools():
            network, length = net(pool.spec.cidr), pool.spec.block_length
            if pool.spec.disabled or network.version != family or bool(pool.spec.allowed_uses) is not virtual:
                continue
            for address in (network[number] for number in range(network.num_addresses)):
                if address in self.holder or self._reserved(address) or self._rests(address):
                    continue
                around = [block for block in blocks if contains(net(block.spec.cidr), address)]
                if around and (around[0].spec.owner == node or not strict):
                    return address
                if around and not around[0].spec.affinity and claimable:
                    return address
                new = ip_network((int(address), length), strict=False)
                if not around and claimable and not any(net(each.spec.cidr).overlaps(new) for each in blocks):
                    return address
        return None


ACTIONS: tuple[Callable[[Play, Watcher], None], ...] = (
    Play.ask,
    Play.go_on,
    Play.free,
    Play.collect,
    Play.crash,
    Play.turn_settings,
    Play.turn_reservation,
    Play.turn_pool,
    Play.turn_node,
)
WEIGHTS = (40, 25, 22, 8, 1, 0.6, 0.6, 0.6, 0.6)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [int(os.environ.get("MUSLIN_IPAM_SEED", "5"))])
def test_no_address_is_given_twice_and_none_is_lost(seed: int) -> None:
    play = Play(seed)
    for number in range(OPERATIONS):
        try:
            play.step()
            if number % 500 == 0:
                play.audit()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, operation {number}: {error}") from error
    counts = play.counts
    play.settle()
    for what in ("granted", "borrowed", "claims", "conflicts", "exhausted", "services", "exchanged"):
        assert counts[what] > OPERATIONS // 500, f"seed {seed}: hardly any {what}: {counts}"
