"""What a lab waits for, as sentences about what is still missing ("" when nothing is). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from core.addr import Address, Network, contains
from core.names import workload_endpoint_name
from core.resources.status import FelixState, SpeakerState
from lab.routers import Session
from lab.topology import Topology

UP: Final = "Established"


def unprogrammed(topology: Topology, found: Mapping[str, FelixState], revision: int) -> str:
    """Nodes whose felix has not programmed `revision`, or not every pod of theirs."""
    missing = []
    for node in topology.nodes:
        state = found.get(node.name)
        if state is None or not state.ready or state.programmed < revision:
            missing.append(f"{node.name} is at revision {state.programmed if state else 'none'} of {revision}")
            continue
        for pod in (pod for pod in topology.pods if pod.node == node.name):
            endpoint = state.endpoints.get(f"{pod.namespace}/{workload_endpoint_name(pod.node, pod.short)}")
            if endpoint is None or endpoint.state != "up":
                seen = f"{endpoint.state} {endpoint.reason}".strip() if endpoint else "unknown to felix"
                missing.append(f"{pod.name} on {node.name} is {seen}")
    return "; ".join(missing)


def unpeered(topology: Topology, found: Mapping[str, SpeakerState], sessions: Mapping[str, Iterable[Session]]) -> str:
    """Sessions that are not established, as nodes and as routers (by name) see them."""
    down = [
        f"{router}: {each.neighbour} is {each.state}"
        for router, seen in sessions.items()
        for each in seen
        if not each.up
    ]
    for node in topology.nodes:
        state = found.get(node.name)
        if state is None or not state.ready:
            down.append(f"{node.name} is not ready")
        else:
            down += [f"{node.name}: {each.peer} is {each.state}" for each in state.sessions if each.state != UP]
    return "; ".join(down)


def unrouted(pods: Mapping[str, Iterable[Address]], routes: Mapping[str, Iterable[Network]]) -> str:
    """Pods that some host (by name) has no route to."""
    missing = []
    for host, held in routes.items():
        known = tuple(held)
        lost = [pod for pod, own in pods.items() if not all(any(contains(net, ip) for net in known) for ip in own)]
        if lost:
            missing.append(f"{host} has no route to {', '.join(lost)}")
    return "; ".join(missing)
