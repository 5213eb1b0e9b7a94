"""Everything that has labels and addresses: which groups of things lie where.

    endpoints ── Holders ── whose each address is ──┐
    hosts' interfaces ── expected addresses ────────┼── placed: address -> its groups
    network sets, and what cannot be read ── nets ──┴── nets: group -> prefixes

From one snapshot to the next only what changed is placed anew. Labels inherited from a namespace, a service account or
a profile are kept with the source that many groups share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from core import labels, values
from core.addr import Network
from core.changes import Changes, changes
from core.labels import Labelled
from core.names import Key
from core.resources.network import EndpointPort, HostEndpoint, Namespace, ServiceAccount, WorkloadEndpoint
from core.resources.policy import GlobalNetworkSet, NetworkSet, Profile
from core.snapshot import Snapshot
from policy.holders import Holders
from policy.index import Group, LabelIndex, Source
from policy.place import Place, place_of

ANYWHERE: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
LABELLED: Final = frozenset(cls.KIND for cls in (WorkloadEndpoint, HostEndpoint, NetworkSet, GlobalNetworkSet))
_SOURCES: Final = (Namespace, ServiceAccount, Profile)
SOURCES: Final = frozenset(cls.KIND for cls in _SOURCES)
"""Kinds that things inherit labels from."""

NamedPorts: TypeAlias = tuple[tuple[str, int, int], ...]
_Alike: TypeAlias = tuple[tuple[str, ...], tuple[str, ...], NamedPorts, bool]


class Crowd:
    """Things in groups by their labels; the first thing of a group makes it, the last one takes it away."""

    def __init__(self) -> None:
        self.index = LabelIndex()
        self._snapshot = Snapshot()
        self._groups: dict[_Alike, Group] = {}
        self._alike: dict[Group, _Alike] = {}
        self._sources: dict[tuple[str, ...], Source] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Take inherited labels from `snapshot`."""
        before, self._snapshot = self._snapshot, snapshot
        changed = _changed(before, snapshot)
        if changed:
            for name, source in self._sources.items():
                if not changed.isdisjoint(_keys(name)):
                    self._refresh(source)

    def _refresh(self, source: Source) -> None:
        groups = list(source.groups)
        thing = groups[0].thing
        assert thing is not None
        for group in groups:
            self.index.remove(group)
        source.labels = labels.inherited(self._snapshot, thing)
        for group in groups:
            group.unknown = self._unknown(group.thing)
            self.index.add(group)

    def _unknown(self, thing: Labelled | None) -> labels.Unknown | None:
        return labels.unknown(self._snapshot, thing) if thing is not None and self._snapshot.problems else None

    def join(self, thing: Labelled, *, sure: bool = True) -> Group:
        """The group of `thing`, which counts in it until it leaves."""
        ports = named_ports(thing.spec.ports) if isinstance(thing, WorkloadEndpoint | HostEndpoint) else ()
        own = thing.metadata.labels
        alike = (labels.source(thing), (*own, *own.values()), ports, sure)
        group = self._groups.get(alike)
        if group is None:
            source = self._sources.get(alike[0])
            if source is None:
                source = self._sources[alike[0]] = Source(labels.inherited(self._snapshot, thing))
            group = Group(thing, labels.own(own), source, ports, self._unknown(thing), sure)
            self._groups[alike] = group
            self._alike[group] = alike
            self.index.add(group)
        group.size += 1
        return group

    def leave(self, group: Group) -> None:
        """One thing less in a group."""
        group.size -= 1
        if not group.size:
            alike = self._alike.pop(group)
            del self._groups[alike]
            self.index.remove(group)
            if not group.source.groups:
                del self._sources[alike[0]]


def _changed(before: Snapshot, after: Snapshot) -> set[Key]:
    """The namespaces, service accounts and profiles that are others now, or can no more or again be read."""
    found: set[Key] = set()
    for cls in _SOURCES:
        changed = changes(before.of(cls), after.of(cls))
        found.update(changed.gone, changed.come)
    if before.problems is not after.problems:
        found.update(key for key in before.problems.keys() ^ after.problems.keys() if key.kind in SOURCES)
    return found


def _keys(source: tuple[str, ...]) -> list[Key]:
    """The objects that `labels.source` names."""
    _, namespace, account, _, *profiles = source
    keys = [Key(Profile.KIND, "", name) for name in profiles]
    if namespace:
        keys += [Key(Namespace.KIND, "", namespace), Key(ServiceAccount.KIND, namespace, account)]
    return keys


class Placement:
    """Where the groups of the whole cluster lie. `moved`: addresses that lie in other groups than at the last `settle`.

    `nets_moved` says the same of prefixes as a whole. `asking_more` are endpoints that ask for what is not programmed.
    """

    def __init__(self) -> None:
        self.crowd = Crowd()
        self.placed: dict[Place, tuple[Group, ...]] = {}
        self.moved: set[Place] = set()
        self.nets: dict[Key, tuple[Group, tuple[Network, ...]]] = {}
        self.nets_moved = False
        self.asking_more: dict[Key, WorkloadEndpoint] = {}
        self._snapshot = Snapshot()
        self._holders = Holders()
        self._alone: dict[Group, tuple[Group, ...]] = {}
        self._hosts: dict[Key, tuple[Group, tuple[Place, ...]]] = {}
        self._hosts_at: dict[Place, list[Group]] = defaultdict(list)
        self._unread: dict[Key, Group] = {}

    @property
    def index(self) -> LabelIndex:
        """The groups by their labels."""
        return self.crowd.index

    @property
    def contested(self) -> Mapping[Key, list[str]]:
        """What endpoints have to be told of their addresses."""
        return self._holders.problems

    def settle(self) -> None:
        """What moved has been taken note of."""
        self.moved, self.nets_moved = set(), False
        self.index.touched.clear()

    def follow(self, snapshot: Snapshot) -> None:
        """Place what changed."""
        before, self._snapshot = self._snapshot, snapshot
        self.crowd.follow(snapshot)
        moved = self._move_hosts(changes(before.of(HostEndpoint), snapshot.of(HostEndpoint)))
        self._move_sets(changes(before.of(NetworkSet), snapshot.of(NetworkSet)))
        self._move_sets(changes(before.of(GlobalNetworkSet), snapshot.of(GlobalNetworkSet)))
        self._reread(snapshot)
        endpoints = changes(before.of(WorkloadEndpoint), snapshot.of(WorkloadEndpoint))
        moved.update(self._holders.update(snapshot, endpoints))
        known = snapshot.of(WorkloadEndpoint)
        for place, holders in self._holders.of(moved).items():
            self._place(place, [(known[key], sure) for key, sure in holders])
        for key in endpoints.gone:
            self.asking_more.pop(key, None)
        self.asking_more.update((key, each) for key, each in endpoints.come.items() if each.spec.ip_nats)

    def _place(self, place: Place, holders: Iterable[tuple[WorkloadEndpoint, bool]]) -> None:
        groups = [self.crowd.join(thing, sure=sure) for thing, sure in holders]
        hosts = self._hosts_at.get(place, ())
        for group in hosts:
            group.size += 1
        before, now = self.placed.get(place, ()), (*groups, *hosts)
        for group in before:
            self.crowd.leave(group)
        if now != before:
            self.moved.add(place)
            if now:
                self.placed[place] = self._shared(now)
            else:
                del self.placed[place]

    def _shared(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """One tuple for all addresses that lie in one and the same group."""
        if len(groups) > 1:
            return groups
        if len(self._alone) > 2 * len(self.index.groups) + 1000:
            self._alone = {group: each for group, each in self._alone.items() if group in self.index.groups}
        return self._alone.setdefault(groups[0], groups)

    def _move_hosts(self, changed: Changes[Key, HostEndpoint]) -> set[Place]:
        moved: set[Place] = set()
        for key in changed.gone:
            group, places = self._hosts.pop(key)
            moved.update(places)
            for place in places:
                self._hosts_at[place].remove(group)
                if not self._hosts_at[place]:
                    del self._hosts_at[place]
            self.crowd.leave(group)
        for key, host in changed.come.items():
            group = self.crowd.join(host)
            places = tuple(dict.fromkeys(place_of(values.address(text)) for text in host.spec.expected_ips))
            self._hosts[key] = group, places
            moved.update(places)
            for place in places:
                self._hosts_at[place].append(group)
        return moved

    def _move_sets(self, changed: Changes[Key, NetworkSet] | Changes[Key, GlobalNetworkSet]) -> None:
        for key in changed.gone:
            self.crowd.leave(self.nets.pop(key)[0])
        for key, given in changed.come.items():
            self.nets[key] = self.crowd.join(given), tuple(map(values.loose_network, given.spec.nets))
        self.nets_moved = self.nets_moved or bool(changed)

    def _reread(self, snapshot: Snapshot) -> None:
        """What cannot be read may have any address: it lies everywhere, and surely nowhere."""
        for key, group in self._unread.items():
            self.index.remove(group)
            if self.nets[key][0] is group:  # else it can be read again
                del self.nets[key]
        unread = sorted(key for key in snapshot.problems if key.kind in LABELLED)
        self.nets_moved = self.nets_moved or bool(self._unread or unread)
        self._unread = {}
        for key in unread:
            known, unknown = labels.of_unreadable(snapshot, key)
            group = Group(None, {}, Source(known), unknown=unknown, sure=False, size=1)
            self._unread[key] = group
            self.nets[key] = group, ANYWHERE
            self.index.add(group)


def named_ports(ports: Iterable[EndpointPort]) -> NamedPorts:
    """Name, protocol and number of each."""
    return tuple((port.name, _protocol(port.protocol), port.port) for port in ports)


@lru_cache(maxsize=512)
def _protocol(value: int | str) -> int:
    return values.protocol(value)
