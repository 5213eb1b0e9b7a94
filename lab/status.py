"""What runs in a lab, as the machine and its routers (not our own agents) say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.addr import Address
from lab import underlay
from lab.cluster import DATASTORE, PROBE, attach


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host: what it is, its addresses, its processes by label (do they run?), its sessions as it sees them."""

    name: str
    what: str
    addresses: tuple[Address, ...]
    processes: Mapping[str, bool]
    sessions: Mapping[str, str]


def status(lab: str) -> tuple[HostStatus, ...]:
    """Every host and pod of a lab, as the machine and the routers (not our own agents) say."""
    underlay.require_root()
    cluster = attach(lab)
    running = {label: each.process.alive() for label, each in cluster.record.processes.items()}
    found = []
    for host in cluster.wiring.hosts:
        own = {label: alive for label, alive in running.items() if label.partition("@")[2].partition(".")[0] == host}
        router = cluster.routers.get(host)
        sessions = {each.neighbour: each.state for each in router.sessions()} if router and all(own.values()) else {}
        addresses = tuple(interface.ip for interface in cluster.wiring.addresses.get(host, ()))
        what = f"router ({router.wiring.kind})" if router else "node" if own else "external"
        found.append(HostStatus(host, what, addresses, own, sessions))
    found += [HostStatus(pod, "pod", each, {}, {}) for pod, each in cluster.record.pod_addresses.items()]
    machine: Mapping[str, bool] = {label: running[label] for label in (DATASTORE, PROBE) if label in running}
    return (HostStatus(cluster.name, "lab", (), machine, {}), *found)
