"""Who can talk to whom, as few kinds of end as policy tells apart, and how people call a crowd of them.

endpoints ─┐
hosts      ├─ sort ──> Kind: same family, same stacks, same classes, before and after ──> its members
the rest  ─┘
members ── name ──> "8 pods of shop app=web"
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import pairwise
from typing import Final, TypeAlias

from core.addr import Address, Family, Network
from core.names import Key
from core.resources import HostEndpoint, WorkloadEndpoint
from core.snapshot import Snapshot
from core.values import address
from policy.compile import Compiled
from policy.identity import Identity
from policy.model import Range
from policy.whatif.rows import Book

SPELT_OUT: Final = 3
"""Names or prefixes that are said one by one; of more, the first ones and how many there are."""

MOST_OWNED: Final = 256
"""Prefixes of up to so many addresses are looked at one by one: is anything of it outside?"""

Both: TypeAlias = tuple[str, str]
"""The name of a table before, and after."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Addresses that no endpoint has. `nets` empty: all that nothing names."""

    family: int
    nets: tuple[Network, ...] = ()

    def __str__(self) -> str:
        if not self.nets:
            return f"any other IPv{self.family} address"
        return few([str(net) for net in self.nets])


Member: TypeAlias = Key | Outside
"""An endpoint (of a workload or a host), or addresses outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Ends that policy does not tell apart. `ingress` and `egress` None: nothing is asked there.

    `local` is an own address before and after; where the tables ask which it is (`minds_local`), it is that of all.
    """

    family: int
    classes: tuple[int, int]
    ingress: Both | None = None
    egress: Both | None = None
    local: tuple[Address, Address] | None = None
    minds_local: bool = False
    members: tuple[Member, ...] = ()

    @property
    def outside(self) -> bool:
        """Whether these are addresses that no endpoint has."""
        return isinstance(self.members[0], Outside)


@dataclass(frozen=True, slots=True)
class View:
    """One state, compiled, and its tables as rows."""

    snapshot: Snapshot
    compiled: Compiled
    book: Book


def kinds(before: View, after: View) -> list[Kind]:
    """Every end that is there before and after, sorted by what policy can tell apart."""
    found: dict[object, list[Member]] = defaultdict(list)
    models: dict[object, Kind] = {}
    for kind, sorted_by in (*_workloads(before, after), *_hosts(before, after), *_outside(before, after)):
        found[sorted_by].extend(kind.members)
        models.setdefault(sorted_by, kind)
    return [replace(kind, members=_whole(found[sorted_by])) for sorted_by, kind in models.items()]


def _whole(members: Sequence[Member]) -> tuple[Member, ...]:
    """Outside prefixes as one member; where some of it has no name, none has."""
    outside = [each for each in members if isinstance(each, Outside)]
    if not outside:
        return tuple(dict.fromkeys(members))
    nets = [net for each in outside for net in each.nets]
    return (Outside(outside[0].family, tuple(nets) if all(each.nets for each in outside) else ()),)


def _workloads(before: View, after: View) -> Iterator[tuple[Kind, object]]:
    then, now = before.snapshot.of(WorkloadEndpoint), after.snapshot.of(WorkloadEndpoint)
    asking: dict[tuple[int, str], bool] = {}

    def asks(view: View, name: str) -> bool:
        key = (id(view), name)
        if key not in asking:
            asking[key] = view.book.asks_local(name)
        return asking[key]

    for key in sorted(then.keys() & now.keys()):
        was, becomes = before.compiled.chains.get(key), after.compiled.chains.get(key)
        if was is None or becomes is None:
            continue
        for one, other in _paired(then[key].spec.addresses, now[key].spec.addresses):
            local = (one, other)
            classes = (before.compiled.identity.of(one), after.compiled.identity.of(other))
            minds = any(asks(before, name) for name in was) or any(asks(after, name) for name in becomes)
            kind = Kind(
                family=one.version,
                classes=classes,
                ingress=(was[0], becomes[0]),
                egress=(was[1], becomes[1]),
                local=local,
                minds_local=minds,
                members=(key,),
            )
            yield kind, (one.version, classes, was, becomes, local if minds else None)


def _paired(one: Sequence[Address], other: Sequence[Address]) -> Iterator[tuple[Address, Address]]:
    """Addresses before and after, family by family, in their order."""
    for family in Family:
        mine = [each for each in one if each.version == family]
        theirs = [each for each in other if each.version == family]
        yield from zip(mine, theirs, strict=False)


def _hosts(before: View, after: View) -> Iterator[tuple[Kind, object]]:
    then, now = before.snapshot.of(HostEndpoint), after.snapshot.of(HostEndpoint)
    for key in sorted(then.keys() & now.keys()):
        for one, other in _paired(*map(_expected, (then[key], now[key]))):
            classes = (before.compiled.identity.of(one), after.compiled.identity.of(other))
            yield Kind(family=one.version, classes=classes, members=(key,)), ("host", one.version, classes)


def _expected(host: HostEndpoint) -> list[Address]:
    return [address(text) for text in host.spec.expected_ips]


def _outside(before: View, after: View) -> Iterator[tuple[Kind, object]]:
    then, now = before.compiled.identity, after.compiled.identity
    for family in Family:
        world = (then.world[family], now.world[family])
        yield Kind(family=family, classes=world, members=(Outside(family),)), ("outside", family, world)
        make = IPv4Address if family == Family.V4 else IPv6Address
        owned = _owned(family, before.snapshot, after.snapshot)
        for first, last in _cut(family, then, now):
            if last - first < MOST_OWNED and owned.issuperset(range(first, last + 1)):
                continue
            classes = (then.around(family, first), now.around(family, first))
            nets: tuple[Network, ...] = tuple(summarize_address_range(make(first), make(last)))
            yield Kind(family=family, classes=classes, members=(Outside(family, nets),)), ("outside", family, classes)


def _owned(family: int, *snapshots: Snapshot) -> set[int]:
    """Addresses that endpoints have, before and after."""
    found = []
    for snapshot in snapshots:
        pods = (pod.spec.addresses for pod in snapshot.of(WorkloadEndpoint).values())
        hosts = (_expected(host) for host in snapshot.of(HostEndpoint).values())
        found.append({int(each) for addresses in (*pods, *hosts) for each in addresses if each.version == family})
    return set.intersection(*found)


def _cut(family: int, then: Identity, now: Identity) -> list[Range]:
    """The ranges that either state names, in disjoint pieces."""
    spans = [span for identity in (then, now) for span, _ in identity.ranges.get(family, ())]
    cuts = sorted({edge for first, last in spans for edge in (first, last + 1)})
    return [(first, end - 1) for first, end in pairwise(cuts) if any(_named(i, family, first) for i in (then, now))]


def _named(identity: Identity, family: int, number: int) -> int | None:
    ranges = identity.ranges.get(family, ())
    at = bisect_right(ranges, number, key=lambda piece: piece[0][0]) - 1
    return ranges[at][1] if at >= 0 and ranges[at][0][1] >= number else None


class Crowds:
    """Names for sets of ends, as a person would call them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._pods = snapshot.of(WorkloadEndpoint)
        self._of_namespace = Counter(key.namespace for key in self._pods)
        self._with: dict[str, Counter[tuple[str, str]]] = {}

    def name(self, members: Iterable[Member]) -> str:
        """All of them in one phrase."""
        pods = sorted(each for each in members if isinstance(each, Key) and each.kind == WorkloadEndpoint.KIND)
        hosts = sorted(each.name for each in members if isinstance(each, Key) and each.kind != WorkloadEndpoint.KIND)
        outside = list(dict.fromkeys(str(each) for each in members if isinstance(each, Outside)))
        parts = self._name_pods(pods)
        if hosts:
            parts.append(few([f"host endpoint {name}" for name in hosts]))
        return ", ".join([*parts, *outside])

    def _name_pods(self, pods: Sequence[Key]) -> list[str]:
        by_namespace: dict[str, list[Key]] = defaultdict(list)
        for key in pods:
            by_namespace[key.namespace].append(key)
        if len(pods) == len(self._pods) and len(by_namespace) > 1:
            return [f"all {len(pods)} pods"]
        if len(by_namespace) > SPELT_OUT:
            return [f"{len(pods)} pods of {len(by_namespace)} namespaces ({few(sorted(by_namespace))})"]
        return [self._of_one(namespace, keys) for namespace, keys in by_namespace.items()]

    def _of_one(self, namespace: str, pods: Sequence[Key]) -> str:
        if len(pods) == 1:
            return self.pod(pods[0])
        if len(pods) == self._of_namespace[namespace]:
            return f"all {len(pods)} pods of {namespace}"
        shared = self._label(namespace, pods)
        if shared is not None:
            return f"{len(pods)} pods of {namespace} {shared[0]}={shared[1]}"
        return few([self.pod(key) for key in pods])

    def pod(self, key: Key) -> str:
        """`NAMESPACE/POD`."""
        return f"{key.namespace}/{self._pods[key].spec.pod or key.name}"

    def _label(self, namespace: str, pods: Sequence[Key]) -> tuple[str, str] | None:
        """A label that these pods of the namespace have, and no other of it."""
        counts = self._with.get(namespace)
        if counts is None:
            counts = self._with[namespace] = Counter(
                item
                for key, pod in self._pods.items()
                if key.namespace == namespace
                for item in pod.metadata.labels.items()
            )
        shared = set.intersection(*(set(self._pods[key].metadata.labels.items()) for key in pods))
        return min((item for item in shared if counts[item] == len(pods)), key=_usual_first, default=None)


def _usual_first(item: tuple[str, str]) -> tuple[bool, str, str]:
    return item[0] not in ("app", "app.kubernetes.io/name", "k8s-app", "name"), *item


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SPELT_OUT} more" if len(names) > SPELT_OUT else ""
    return ", ".join(names[:SPELT_OUT]) + more
