"""What a speaker keeps of the objects it follows: a part, where it goes by a part and there may be very many.

    EndpointSlice      one ready endpoint here and one elsewhere: whether there is any is all that adverts ask
    Service            without ports and pods' labels: its addresses and how traffic comes to it
    Secret             nothing of namespaces in which no password is looked up: what is not needed is not on this disk
    CalicoNodeStatus   the question, and when it was answered here: others' answers are as large as their tables
    WorkloadEndpoint   those of this node

So a cluster of 150,000 pods behind services takes a few MiB, and what pods do there mostly changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

from bgp.peering.secrets import NAMESPACES
from core.names import Key
from core.resources import CalicoNodeStatus, EndpointSlice, Metadata, Resource, Secret, Service, WorkloadEndpoint
from core.resources.node_status import NodeStatus
from core.resources.service import SERVICE_NAME, SliceEndpoint
from core.thrift import Decode


def thrifty(decode: Decode, node: str) -> Decode:
    """A decoder for the speaker of `node`; raises what `decode` raises."""

    def kept(key: Key, value: bytes) -> Resource | None:
        found = decode(key, value)
        if isinstance(found, WorkloadEndpoint) and found.spec.node != node:
            return None
        reduce = _REDUCE.get(type(found)) if found is not None else None
        return found if reduce is None else reduce(found, node)

    return kept


def _endpoint_slice(found: EndpointSlice, node: str) -> EndpointSlice:
    labels = {SERVICE_NAME: found.service} if found.service else {}
    return replace(
        found, metadata=_named(found.metadata, labels), endpoints=list(_telling(found.endpoints, node)), ports=[]
    )


def _telling(endpoints: list[SliceEndpoint], node: str) -> Iterator[SliceEndpoint]:
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    for here in (True, False):
        found = next((endpoint for endpoint in ready if (endpoint.node_name == node) is here), None)
        if found is not None:
            yield SliceEndpoint(addresses=found.addresses[:1], node_name=node if here else None)


def _service(found: Service, _node: str) -> Service:
    return replace(found, metadata=_named(found.metadata), spec=replace(found.spec, ports=[], selector={}))


def _secret(found: Secret, _node: str) -> Secret:
    looked_up = found.metadata.namespace in NAMESPACES
    return replace(found, metadata=_named(found.metadata), data=found.data if looked_up else {}, string_data={})


def _node_status(found: CalicoNodeStatus, node: str) -> CalicoNodeStatus:
    answered = found.status is not None and found.spec.node == node
    status = NodeStatus(last_updated=found.status.last_updated) if answered and found.status else None
    return replace(found, status=status)


def _named(metadata: Metadata, labels: Mapping[str, str] = MappingProxyType({})) -> Metadata:
    return Metadata(name=metadata.name, namespace=metadata.namespace, labels=dict(labels))


_REDUCE: Final[Mapping[type[Resource], Callable[[Any, str], Resource]]] = MappingProxyType(
    {
        CalicoNodeStatus: _node_status,
        EndpointSlice: _endpoint_slice,
        Secret: _secret,
        Service: _service,
    }
)
