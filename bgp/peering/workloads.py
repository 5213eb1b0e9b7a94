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
from bgp.peering.settings import asked_as
from bgp.peering.wishes import Wish, blocked
from core.addr import host_prefix
from core.peering import peering_address, taken
from core.resources import Node, WorkloadEndpoint
from core.resources.bgp import BGPPeerSpec
from core.snapshot import Snapshot


def workloads(
    name: str, type_: PeerType, spec: BGPPeerSpec, snapshot: Snapshot, node: Node
) -> Iterator[Wish | Blocked]:
    """A session with each selected workload of `node`, one a family that it has an address of.

    Raises ValueError when a selector, an AS number or an address is none.
    """
    number = asked_as(spec.as_number)
    if not number:
        raise ValueError("asNumber is needed with localWorkloadSelector")
    here = [each for _, each in sorted(snapshot.of(WorkloadEndpoint).items()) if each.spec.node == node.metadata.name]
    for endpoint in taken(spec, snapshot, here):
        for peer in endpoint.spec.addresses:
            wish = partial(
                Wish,
                name=f"{name}/{endpoint.metadata.namespace}/{endpoint.metadata.name}",
                type=type_,
                peer=peer,
                remote_as=number,
                within=tuple(host_prefix(own) for own in endpoint.spec.addresses if own.version == peer.version),
            )
            local = peering_address(snapshot, node.metadata.name, peer.version)
            reason = f"BGPConfiguration has no localWorkloadPeeringIPV{peer.version}: pods would not know whom to call"
            yield wish(local=local) if local is not None else blocked(wish(), reason)
