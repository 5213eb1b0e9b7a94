"""The resources that follow from a topology: what an installer and the CNI plugin would write on a real cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cni.endpoint import NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL
from core import manifest, names
from core.addr import Address, host_prefix
from core.resources import Metadata, Namespace, Node, Resource, WorkloadEndpoint
from core.resources.network import EndpointPort, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from lab.topology import Pod, PodPort, Topology
from lab.wiring import Wiring


def nodes(topology: Topology, wiring: Wiring) -> Iterator[Node]:
    """One Node each, with its addresses and AS, labelled with its rack."""
    for entry in topology.nodes:
        by_version = {interface.version: str(interface) for interface in wiring.addresses[entry.name]}
        labels = {"kubernetes.io/hostname": entry.name, "rack": entry.rack, **entry.labels}
        bgp = NodeBGPSpec(
            ipv4_address=by_version.get(4, ""),
            ipv6_address=by_version.get(6, ""),
            as_number=topology.node_as(entry),
            route_reflector_cluster_id=entry.route_reflector_cluster_id,
        )
        yield Node(
            metadata=Metadata(name=entry.name, labels=labels),
            api_version=Node.KIND.api_version,
            kind=Node.KIND.name,
            spec=NodeSpec(bgp=bgp),
        )


def namespaces(topology: Topology) -> Iterator[Namespace]:
    """The Namespace of every pod, with the label Kubernetes gives it."""
    for name in dict.fromkeys(pod.namespace for pod in topology.pods):
        yield Namespace(
            metadata=Metadata(name=name, labels={"kubernetes.io/metadata.name": name}),
            api_version=Namespace.KIND.api_version,
            kind=Namespace.KIND.name,
        )


def endpoint(pod: Pod, addresses: Sequence[Address]) -> WorkloadEndpoint:
    """A pod's WorkloadEndpoint."""
    named = [each for each in pod.ports if isinstance(each, PodPort)]
    return WorkloadEndpoint(
        metadata=Metadata(
            name=names.workload_endpoint_name(pod.node, pod.short),
            namespace=pod.namespace,
            labels={
                NAMESPACE_LABEL: pod.namespace,
                ORCHESTRATOR_LABEL: "k8s",
                SERVICE_ACCOUNT_LABEL: pod.service_account,
                **pod.labels,
            },
        ),
        api_version=WorkloadEndpoint.KIND.api_version,
        kind=WorkloadEndpoint.KIND.name,
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=pod.node,
            pod=pod.short,
            endpoint="eth0",
            service_account_name=pod.service_account,
            ip_networks=[str(host_prefix(address)) for address in addresses],
            profiles=[f"kns.{pod.namespace}", f"ksa.{pod.namespace}.{pod.service_account}"],
            interface_name=names.workload_interface(pod.namespace, pod.short),
            ports=[EndpointPort(name=each.name, port=each.port, protocol=each.protocol) for each in named],
        ),
    )


def handle(pod: Pod) -> str:
    """The name under which IPAM keeps a pod's addresses."""
    return f"k8s-pod-network.{pod.namespace}.{pod.short}"


def as_yaml(resources: Iterable[Resource]) -> str:
    """Manifests, as `muslin apply` reads them."""
    return manifest.to_yaml([manifest.render(each) for each in resources])
