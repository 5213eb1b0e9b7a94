"""A store in a dict, as `datastore/api.py` says, and those who see it: late, or as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from random import Random
from typing import Any

from core.names import Key, Kind
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPPool,
    IPReservation,
    Metadata,
    Node,
    Resource,
)
from core.resources.ipam import AffinityState, BlockSpec, IPAMConfigurationSpec, ReservationSpec
from core.resources.network import IPPoolSpec
from datastore.api import ABSENT, At, Unchanged
from datastore.ipam.block import block_name
from datastore.ipam.books import KINDS, Books
from datastore.ipam.giving.assign import assign
from datastore.ipam.giving.claim import affinity
from datastore.ipam.giving.release import release
from datastore.ipam.model import Owner, Remove, Request, Step, Write


class World:
    """Keys, values, one counter; transactions that compare. `log` is the history, for those who watch."""

    def __init__(self) -> None:
        self.revision = 1
        self.objects: dict[Key, tuple[Resource, int]] = {}
        self.log: list[tuple[int, Key, Resource | None]] = []
        self._last_put: dict[Kind, int] = {}
        self._kinds: dict[Kind, dict[str, Resource]] = {}

    def at(self, key: Key) -> int:
        return self.objects[key][1] if key in self.objects else ABSENT

    def of(self, kind: Kind) -> dict[str, Resource]:
        return self._kinds.setdefault(kind, {})

    def holds(self, step: Step) -> bool:
        """Whether every compare and every guard of a step holds now."""
        for change in step.changes:
            key = change.resource.key if isinstance(change, Write) else change.key
            if self.at(key) != change.if_revision:
                return False
        for guard in step.guards:
            match guard:
                case At(key, revision) if self.at(key) != revision:
                    return False
                case Unchanged(kind, since) if self._last_put.get(kind, ABSENT) > since:
                    return False
        return True

    def txn(self, step: Step) -> bool:
        """All of a step or nothing."""
        keys = [change.resource.key if isinstance(change, Write) else change.key for change in step.changes]
        assert len(set(keys)) == len(keys)
        if not self.holds(step):
            return False
        self.write(
            *(change.resource for change in step.changes if isinstance(change, Write)),
            gone=[change.key for change in step.changes if isinstance(change, Remove)],
        )
        return True

    def write(self, *resources: Resource, gone: list[Key] | None = None) -> None:
        """What an administrator does: one transaction that compares nothing."""
        self.revision += 1
        for key in set(gone or []) - {resource.key for resource in resources}:
            if self.objects.pop(key, None) is not None:
                del self._kinds[key.kind][key.name]
                self._log(key, None)
        for resource in resources:
            self.objects[resource.key] = (resource, self.revision)
            self.of(resource.KIND)[resource.key.name] = resource
            self._log(resource.key, resource)
            self._last_put[resource.key.kind] = self.revision

    def _log(self, key: Key, resource: Resource | None) -> None:
        if key.kind in KINDS:
            self.log.append((self.revision, key, resource))


@dataclass(slots=True)
class Watcher:
    """One node's books, fed with the history in its order but late; with its own writes at once."""

    name: str
    world: World
    books: Books = field(default_factory=Books)
    seen: dict[Key, int] = field(default_factory=dict)
    position: int = 0

    def catch_up(self, random: Random | None = None) -> None:
        """See the history up to now, or up to some moment before."""
        log = self.world.log
        end = len(log)
        if random is not None:
            end = random.randint(self.position, end)
            while 0 < end < len(log) and log[end - 1][0] == log[end][0]:
                end += 1  # a revision is seen whole
        for revision, key, resource in log[self.position : end]:
            self._see(key, resource, revision)
        if end > self.position:
            self.books.caught_up(self.world.revision if end == len(log) else log[end - 1][0])
        self.position = end

    def carry_out(self, step: Step) -> bool:
        """Make a step, and know of it."""
        if not self.world.txn(step):
            return False
        for change in step.changes:
            if isinstance(change, Write):
                self._see(change.resource.key, change.resource, self.world.revision)
            else:
                self._see(change.key, None, self.world.revision)
        return True

    def _see(self, key: Key, resource: Resource | None, revision: int) -> None:
        if self.seen.get(key, ABSENT) < revision:
            self.seen[key] = revision
            self.books.see(key, resource, revision if resource is not None else ABSENT)


class Cluster:
    """A world, one node's books that are up to date, and requests that are carried out until they are granted."""

    def __init__(self, *resources: Resource) -> None:
        self.world = World()
        self.world.write(*resources)
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    @property
    def books(self) -> Books:
        watcher = Watcher("", self.world)
        watcher.catch_up()
        return watcher.books

    def put(self, *resources: Resource) -> None:
        self.world.write(*resources)

    def hide(self, resource: Resource) -> Books:
        """The books when an object is there that cannot be read."""
        self.put(resource)
        books = self.books
        books.see(resource.key, None, self.world.revision)
        return books

    def decide(self, handle: str, node: str = "a", **fields: Any) -> Step:
        return assign(self.books, request(handle, node, **fields), self.now)

    def give(self, handle: str, node: str = "a", **fields: Any) -> list[str]:
        """The addresses of a handle, however many steps it takes."""
        for _ in range(4):
            step = self.decide(handle, node, **fields)
            assert self.world.txn(step)
            if step.grant is not None:
                return [str(address) for address in step.grant.addresses]
        raise AssertionError(f"{handle} is not done")

    def carry_out(self, step: Step) -> None:
        assert self.world.txn(step)

    def take_back(self, handle: str, why: str = "DEL") -> list[str]:
        step = release(self.books, handle, why, self.now)
        self.carry_out(step)
        assert step.grant is not None
        return [str(address) for address in step.grant.addresses]

    def block(self, cidr: str) -> BlockSpec:
        found = self.world.of(IPAMBlock.KIND)[block_name(ip_network(cidr))]
        assert isinstance(found, IPAMBlock)
        return found.spec

    def names(self, cls: type[Resource]) -> list[str]:
        return sorted(self.world.of(cls.KIND))


def request(handle: str, node: str = "a", **fields: Any) -> Request:
    namespace = fields.pop("namespace", "")
    return Request(handle=handle, owner=Owner(node=node, namespace=namespace, pod=handle), **fields)


def pool(name: str, cidr: str, **fields: Any) -> IPPool:
    metadata = Metadata(name=name, deletion_timestamp=fields.pop("deleted", None))
    return IPPool(metadata=metadata, spec=IPPoolSpec(cidr=cidr, **fields))


def node(name: str, **labels: str) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def settings(**fields: Any) -> IPAMConfiguration:
    return IPAMConfiguration(metadata=Metadata(name="default"), spec=IPAMConfigurationSpec(**fields))


def reservation(*cidrs: str) -> IPReservation:
    return IPReservation(metadata=Metadata(name="kept"), spec=ReservationSpec(reserved_cidrs=list(cidrs)))


def block(cidr: str, owner: str = "", **spec: Any) -> IPAMBlock:
    affinity = f"host:{owner}" if owner else ""
    name = block_name(ip_network(cidr))
    return IPAMBlock(metadata=Metadata(name=name), spec=BlockSpec(cidr=cidr, affinity=affinity, **spec))


def claim(owner: str, cidr: str, state: AffinityState = AffinityState.PENDING) -> BlockAffinity:
    return affinity(owner, ip_network(cidr), state)
