"""The WorkloadEndpoint of an attachment, as the datastore holds it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cni.spec import DEFAULT, Attachment, Config
from core.addr import Address, host_prefix
from core.names import workload_endpoint_name, workload_interface
from core.resources import Metadata, WorkloadEndpoint
from core.resources.network import WorkloadEndpointSpec

NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"


def handle(config: Config, attachment: Attachment) -> str:
    """The name under which IPAM keeps a container's addresses."""
    return f"{config.name}.{attachment.container}"


def name(config: Config, attachment: Attachment) -> str:
    """The endpoint's name."""
    return workload_endpoint_name(config.node, attachment.pod)


def endpoint(
    config: Config,
    attachment: Attachment,
    addresses: Iterable[Address],
    mac: str,
    before: WorkloadEndpoint | None = None,
) -> WorkloadEndpoint:
    """The endpoint. The labels of `before`, the same container's, stay where nothing newer is known."""
    kept = before.metadata.labels if before is not None and is_of(before, attachment) else {}
    return WorkloadEndpoint(
        api_version=WorkloadEndpoint.KIND.api_version,
        kind=WorkloadEndpoint.KIND.name,
        metadata=Metadata(
            name=name(config, attachment),
            namespace=attachment.namespace,
            labels={
                **kept,
                **config.labels,
                NAMESPACE_LABEL: attachment.namespace,
                ORCHESTRATOR_LABEL: "k8s",
                SERVICE_ACCOUNT_LABEL: DEFAULT,
            },
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=config.node,
            container_id=attachment.container,
            pod=attachment.pod,
            endpoint=attachment.interface,
            service_account_name=DEFAULT,
            ip_networks=[str(host_prefix(address)) for address in addresses],
            profiles=[f"kns.{attachment.namespace}", f"ksa.{attachment.namespace}.{DEFAULT}"],
            interface_name=workload_interface(attachment.namespace, attachment.pod),
            mac=mac,
        ),
    )


def is_of(found: WorkloadEndpoint, attachment: Attachment) -> bool:
    """Whether the endpoint belongs to this interface of this container, and not to the pod's former or next one."""
    return found.spec.container_id == attachment.container and found.spec.endpoint == attachment.interface
