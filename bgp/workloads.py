"""Sessions with pods: a BGPPeer's `localWorkloadSelector` selects workloads of its own node. Pure.

    pod (router, load balancer, VM)                    node
    10.244.1.7, AS asNumber  <── TCP from and to ──>   localWorkloadPeeringIPV4 of BGPConfiguration

A pod may speak for its own addresses and for nothing else, whatever filters say (calico.md 1.4,
localWorkloadSelector): what a workload says must not move another's traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bgp.model import Blocked, PeerType
from bgp.settings import asked_as, configurations
from bgp.wishes import Wish, blocked
from core import labels
from core.addr import Address, host_prefix
from core.resources import Node, WorkloadEndpoint
from core.resources.bgp import BGPPeerSpec
from core.selector import parse
from core.snapshot import Snapshot
from core.values import address


def workloads(
    name: str, type_: PeerType, spec: BGPPeerSpec, snapshot: Snapshot, node: Node
) -> Iterator[Wish | Blocked]:
    """A session with each selected workload of `node`, one a family that it has an address of.

    Raises ValueError when a selector, an AS number or an address is none.
    """
    number = asked_as(spec.as_number)
    if not number:
        raise ValueError("asNumber is needed with localWorkloadSelector")
    selector = parse(spec.local_workload_selector)
    for key, endpoint in sorted(snapshot.of(WorkloadEndpoint).items()):
        if endpoint.spec.node != node.metadata.name or not selector.matches(labels.workload(snapshot, endpoint)):
            continue
        for peer in endpoint.spec.addresses:
            wish = partial(
                Wish,
                name=f"{name}/{key.namespace}/{key.name}",
                type=type_,
                peer=peer,
                remote_as=number,
                within=tuple(host_prefix(own) for own in endpoint.spec.addresses if own.version == peer.version),
            )
            local = peering_address(snapshot, node.metadata.name, peer.version)
            reason = f"BGPConfiguration has no localWorkloadPeeringIPV{peer.version}: pods would not know whom to call"
            yield wish(local=local) if local is not None else blocked(wish(), reason)


def peering_address(snapshot: Snapshot, node: str, version: int) -> Address | None:
    """The address that local workloads call on `node`, if there is one."""
    found = configurations(snapshot, node)
    given = (each.local_workload_peering_ipv4 if version == 4 else each.local_workload_peering_ipv6 for each in found)
    text = next(filter(None, given), "")
    return address(text, version) if text else None
