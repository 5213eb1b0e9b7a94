"""Who is there for selectors to match: endpoints and network sets by their labels, those with the same labels once."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from core import labels
from core.addr import Network
from core.resources import GlobalNetworkSet, HostEndpoint, NetworkSet, WorkloadEndpoint
from core.selector import Selector
from core.snapshot import Snapshot
from policy.entities import named_ports

PortName: TypeAlias = tuple[str, int]
"""A port's name and its protocol."""


@dataclass(slots=True)
class _Alike:
    """Things with the same labels: whether any is a workload or a host, and the ports that any of them names."""

    labels: Mapping[str, str]
    workloads: int = 0
    hosts: int = 0
    ports: set[PortName] = field(default_factory=set)


class Population:
    """Everything that selectors can mean in a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._alike: dict[frozenset[tuple[str, str]], _Alike] = {}
        self._with: dict[str, dict[str, list[_Alike]]] = defaultdict(lambda: defaultdict(list))
        self._matched: dict[str, list[_Alike]] = {}
        addresses: dict[int, set[int]] = defaultdict(set)
        for pod in snapshot.of(WorkloadEndpoint).values():
            kind = self._kind(labels.workload(snapshot, pod))
            kind.workloads += 1
            kind.ports.update((name, protocol) for name, protocol, _ in named_ports(pod.spec.ports))
            for address in pod.spec.addresses:
                addresses[address.version].add(int(address))
        for host in snapshot.of(HostEndpoint).values():
            kind = self._kind(labels.host(snapshot, host))
            kind.hosts += 1
            kind.ports.update((name, protocol) for name, protocol, _ in named_ports(host.spec.ports))
        sets: list[NetworkSet | GlobalNetworkSet] = [
            *snapshot.of(NetworkSet).values(),
            *snapshot.of(GlobalNetworkSet).values(),
        ]
        for each in sets:
            self._kind(labels.network_set(snapshot, each))
        self._addresses = {version: sorted(found) for version, found in addresses.items()}
        self._ports = {port for kind in self._alike.values() for port in kind.ports}
        self.sets = len(sets)
        self.workloads = len(snapshot.of(WorkloadEndpoint))
        self.hosts = len(snapshot.of(HostEndpoint))

    def _kind(self, found: Mapping[str, str]) -> _Alike:
        key = frozenset(found.items())
        kind = self._alike.get(key)
        if kind is None:
            kind = self._alike[key] = _Alike(found)
            for label, value in found.items():
                self._with[label][value].append(kind)
        return kind

    def _matching(self, selector: Selector) -> list[_Alike]:
        known = self._matched.get(selector.canonical)
        if known is None:
            candidates = self._candidates(selector)
            known = self._matched[selector.canonical] = [each for each in candidates if selector.matches(each.labels)]
        return known

    def _candidates(self, selector: Selector) -> Iterable[_Alike]:
        """The shortest list that one required label gives."""
        best: list[_Alike] | None = None
        for label, values in selector.requirements().items():
            held = self._with.get(label, {})
            found = [kind for value in (held if values is None else values) for kind in held.get(value, ())]
            best = found if best is None or len(found) < len(best) else best
        return self._alike.values() if best is None else best

    def means_any(self, selector: Selector) -> bool:
        """Whether the selector matches an endpoint or a network set."""
        return bool(self._matching(selector))

    def selects(self, selector: Selector) -> tuple[bool, bool]:
        """Whether it selects a workload, and whether it selects a host."""
        found = self._matching(selector)
        return any(each.workloads for each in found), any(each.hosts for each in found)

    def names(self, port: PortName, selector: Selector | None) -> bool:
        """Whether anything that the selector matches (None: anything) has a port of this name."""
        if selector is None:
            return port in self._ports
        return any(port in each.ports for each in self._matching(selector))

    def has_pods_in(self, net: Network) -> bool:
        """Whether a pod's address lies in the prefix."""
        found = self._addresses.get(net.version, [])
        at = bisect_left(found, int(net.network_address))
        return at < len(found) and found[at] <= int(net.broadcast_address)
