"""What runs in a lab, as the machine and its routers (not our own agents) say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.addr import Address
from lab import underlay
from lab.cluster import DATASTORE, PROBE, Cluster, attach
from lab.routers import Session


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
        sessions = _sessions(router.sessions()) if router and all(own.values()) else {}
        addresses = tuple(interface.ip for interface in cluster.wiring.addresses.get(host, ()))
        found.append(HostStatus(host, _what(cluster, host), addresses, own, sessions))
    found += [HostStatus(pod, "pod", each, {}, {}) for pod, each in cluster.record.pod_addresses.items()]
    machine: Mapping[str, bool] = {label: running[label] for label in (DATASTORE, PROBE) if label in running}
    return (HostStatus(cluster.name, "lab", (), machine, {}), *found)


def _sessions(sessions: Iterable[Session]) -> Mapping[str, str]:
    """State by neighbour; its IPv6 session, where there is one of each family, apart."""
    found: dict[str, str] = {}
    for each in sessions:
        name = f"{each.neighbour} (IPv6)" if each.neighbour in found else each.neighbour
        found[name] = each.state
    return found


def _what(cluster: Cluster, host: str) -> str:
    """What a host is; of a router, also what it does for its nodes."""
    if host in cluster.wiring.switches:
        return "switch"
    router = cluster.wiring.routers.get(host)
    if router is None:
        return "node" if any(node.name == host for node in cluster.topology.nodes) else "external"
    roles = [
        str(router.kind),
        *([f"AS {router.as_number}"] if router.as_number else []),
        *(["reflector"] if any(each.client for each in router.neighbours) else []),
        *([f"BFD {router.bfd.interval} ms x {router.bfd.multiplier}"] if router.bfd else []),
        *(["password"] if router.password else []),
    ]
    return f"router ({', '.join(roles)})"
