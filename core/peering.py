"""Sessions of a node with its own pods, as far as both agents must agree: which pods, and where they call. Pure.

    pod that a BGPPeer's localWorkloadSelector selects ──> localWorkloadPeeringIPV4 or IPV6 : listenPort

bgp has the sessions; felix puts the address on the host and lets those pods, and no others, call it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

from core import labels
from core.addr import Address
from core.resources import BGPConfiguration, Node, WorkloadEndpoint
from core.resources.bgp import BGPConfigurationSpec, BGPPeerSpec
from core.selector import parse
from core.snapshot import Snapshot
from core.values import address

DEFAULT_PORT: Final = 179


def configurations(snapshot: Snapshot, node: str) -> list[BGPConfigurationSpec]:
    """What is set for a node: BGPConfiguration `node.NAME`, then `default`; the first to say something holds."""
    found = (snapshot.get(BGPConfiguration, f"node.{node}"), snapshot.get(BGPConfiguration, "default"))
    return [each.spec for each in found if each]


def listen_port(snapshot: Snapshot, node: str) -> int:
    """The TCP port of the node's speaker."""
    return next(filter(None, (each.listen_port for each in configurations(snapshot, node))), DEFAULT_PORT)


def peering_address(snapshot: Snapshot, node: str, version: int) -> Address | None:
    """The address that local workloads call on `node`, if there is one. ValueError when it is no address."""
    found = configurations(snapshot, node)
    given = (each.local_workload_peering_ipv4 if version == 4 else each.local_workload_peering_ipv6 for each in found)
    text = next(filter(None, given), "")
    return address(text, version) if text else None


def peering_addresses(snapshot: Snapshot, node: str) -> tuple[Address, ...]:
    """Those of both families; what is no address is left out."""
    found = []
    for version in (4, 6):
        with contextlib.suppress(ValueError):
            found.append(peering_address(snapshot, node, version))
    return tuple(each for each in found if each is not None)


def applies(spec: BGPPeerSpec, node: Node) -> bool:
    """Whether a BGPPeer is one of `node`'s. Raises ValueError when its selector does not parse."""
    if spec.node:
        return spec.node == node.metadata.name
    return not spec.node_selector or parse(spec.node_selector).matches(node.metadata.labels)


def taken(spec: BGPPeerSpec, snapshot: Snapshot, endpoints: Iterable[WorkloadEndpoint]) -> list[WorkloadEndpoint]:
    """Those of `endpoints` that a BGPPeer's localWorkloadSelector selects. Raises ValueError when it does not parse."""
    if not spec.local_workload_selector:
        return []
    selector = parse(spec.local_workload_selector)
    return [each for each in endpoints if selector.matches(labels.workload(snapshot, each))]
