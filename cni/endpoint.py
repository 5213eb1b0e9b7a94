"""The WorkloadEndpoint of an attachment, as the datastore holds it. Pure.

Labels: the Pod's, then those that the runtime gives (`args.cni.labels`), then Calico's own three, which nobody else
sets. `cni.follow_pods` puts the Pod's newer labels in later; which of an endpoint's labels came from the runtime is in
an annotation, so that they stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from cni.arguments import Attachment
from core.addr import Address, Network, host_prefix
from core.names import workload_endpoint_name, workload_interface
from core.resources import Metadata, Pod, WorkloadEndpoint
from core.resources.network import EndpointPort, WorkloadEndpointSpec

NAMESPACE_LABEL: Final = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL: Final = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL: Final = "projectcalico.org/serviceaccount"
_OWN: Final = frozenset({NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL})

RUNTIME_LABELS: Final = "muslin.io/runtime-labels"
"""An endpoint's annotation: the labels that the runtime gave it, as JSON."""

NETWORK: Final = "muslin.io/network"
"""An endpoint's annotation: the network that it is of. One without is of whichever asks."""

_WITH_PORTS: Final = frozenset({"TCP", "UDP", "SCTP"})
_DEFAULT: Final = "default"


def handle(network: str, attachment: Attachment) -> str:
    """The name under which IPAM keeps a container's addresses."""
    return f"{network}.{attachment.container}"


def name(node: str, attachment: Attachment) -> str:
    """The endpoint's name."""
    return workload_endpoint_name(node, attachment.pod)


def own_mac(handle: str) -> str:
    """The address of the pod's end where nobody asks for one: a container's own, the same each time."""
    return "02:" + hashlib.sha1(handle.encode(), usedforsecurity=False).digest()[:5].hex(":")


def endpoint(
    node: str,
    attachment: Attachment,
    addresses: Iterable[Address],
    *,
    network: str,
    mac: str,
    pod: Pod | None = None,
    runtime_labels: Mapping[str, str] | None = None,
    sources: Iterable[Network] = (),
) -> WorkloadEndpoint:
    """The endpoint of a container; `pod` None where Kubernetes knows of none."""
    given = dict(runtime_labels or {})
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        container_id=attachment.container,
        pod=attachment.pod,
        endpoint=attachment.interface,
        ip_networks=[str(host_prefix(address)) for address in addresses],
        interface_name=workload_interface(attachment.namespace, attachment.pod),
        mac=mac,
        allow_spoofed_source_prefixes=[str(each) for each in sources],
    )
    bare = WorkloadEndpoint(
        api_version=WorkloadEndpoint.KIND.api_version,
        kind=WorkloadEndpoint.KIND.name,
        metadata=Metadata(
            name=name(node, attachment),
            namespace=attachment.namespace,
            annotations={
                NETWORK: network,
                **({RUNTIME_LABELS: json.dumps(given, sort_keys=True)} if given else {}),
            },
        ),
        spec=spec,
    )
    return as_pod_says(bare, pod)


def as_pod_says(endpoint: WorkloadEndpoint, pod: Pod | None) -> WorkloadEndpoint:
    """The endpoint with the labels, the named ports and the service account of the Pod as it is now."""
    namespace = endpoint.metadata.namespace
    account = pod.service_account if pod else _DEFAULT
    labels = {
        **(pod.metadata.labels if pod else {}),
        **runtime_labels(endpoint),
        NAMESPACE_LABEL: namespace,
        ORCHESTRATOR_LABEL: "k8s",
        SERVICE_ACCOUNT_LABEL: account,
    }
    spec = msgspec.structs.replace(
        endpoint.spec,
        service_account_name=account,
        profiles=[f"kns.{namespace}", f"ksa.{namespace}.{account}"],
        ports=list(_ports(pod)) if pod else [],
    )
    metadata = msgspec.structs.replace(
        endpoint.metadata, labels=labels, generate_name=pod.metadata.generate_name if pod else ""
    )
    return msgspec.structs.replace(endpoint, metadata=metadata, spec=spec)


def is_of(found: WorkloadEndpoint, network: str, attachment: Attachment) -> bool:
    """Whether the endpoint belongs to this interface of this container in this network, and not to the pod's former or
    next one."""
    spec = found.spec
    ours = spec.container_id == attachment.container and spec.endpoint == attachment.interface
    return ours and found.metadata.annotations.get(NETWORK, network) == network


def same(one: WorkloadEndpoint, other: WorkloadEndpoint) -> bool:
    """Whether two say the same, apart from what the server keeps."""

    def said(each: WorkloadEndpoint) -> tuple[Any, ...]:
        metadata = each.metadata
        return each.spec, metadata.labels, metadata.annotations, metadata.generate_name

    return said(one) == said(other)


def runtime_labels(endpoint: WorkloadEndpoint) -> Mapping[str, str]:
    """The labels that the runtime gave it."""
    try:
        found = json.loads(endpoint.metadata.annotations.get(RUNTIME_LABELS, "{}"))
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _ports(pod: Pod) -> Iterator[EndpointPort]:
    """The ports of a Pod's containers that have a name or are the host's; what does not read as one is left out."""
    for container in _listed(pod.spec, "containers"):
        for each in _listed(container, "ports"):
            port: Any = each.get("containerPort")
            host = each.get("hostPort") or 0
            named, protocol = each.get("name") or "", each.get("protocol") or "TCP"
            at = each.get("hostIP") or ""
            sound = type(port) is type(host) is int and type(named) is type(protocol) is type(at) is str
            if sound and protocol in _WITH_PORTS and (named or host):
                yield EndpointPort(name=named, port=port, protocol=protocol, host_port=host, host_ip=at)


def _listed(given: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    found = (given or {}).get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
