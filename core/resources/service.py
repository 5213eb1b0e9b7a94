"""Kubernetes' services and who answers for them: what a rule's `services` means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from msgspec import field

from core.names import Kind
from core.resources.base import Base, Resource

SERVICE_NAME: Final = "kubernetes.io/service-name"
"""The label by which an EndpointSlice says whose it is."""


class ServicePort(Base, frozen=True, kw_only=True):
    """A port of a service, and the port of its pods behind it."""

    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None
    port: int
    target_port: int | str | None = None
    node_port: int | None = None


class ServiceSpec(Base, frozen=True, kw_only=True):
    """As Kubernetes has it. Policy asks its EndpointSlices only: `publishNotReadyAddresses` shows in them."""

    ports: list[ServicePort] = []
    selector: Mapping[str, str] = {}
    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] = field(default_factory=list, name="clusterIPs")
    external_ips: list[str] = field(default_factory=list, name="externalIPs")
    external_name: str = ""
    load_balancer_ip: str = field(default="", name="loadBalancerIP")
    load_balancer_source_ranges: list[str] = []
    load_balancer_class: str | None = None
    allocate_load_balancer_node_ports: bool | None = None
    session_affinity: str | None = None
    session_affinity_config: Mapping[str, Any] | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    health_check_node_port: int | None = None
    publish_not_ready_addresses: bool = False
    ip_families: list[str] = []
    ip_family_policy: str | None = None
    traffic_distribution: str | None = None


class Service(Resource, frozen=True, kw_only=True):
    """Kubernetes' service."""

    KIND: ClassVar[Kind] = Kind("core", "services", "Service", "v1", True)
    spec: ServiceSpec = ServiceSpec()
    status: Mapping[str, Any] | None = None


class EndpointConditions(Base, frozen=True, kw_only=True):
    """Absent `ready` means ready."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(Base, frozen=True, kw_only=True):
    """One endpoint of a service: usually a pod, with one address."""

    addresses: list[str]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    target_ref: Mapping[str, Any] | None = None
    deprecated_topology: Mapping[str, str] | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Mapping[str, Any] | None = None

    @property
    def ready(self) -> bool:
        """Whether traffic is sent to it."""
        return self.conditions.ready is not False


class SlicePort(Base, frozen=True, kw_only=True):
    """A port that every endpoint of the slice has; protocol TCP when absent."""

    name: str | None = None
    protocol: str = "TCP"
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(Resource, frozen=True, kw_only=True):
    """Some of the endpoints of a service, all of one family; the label `kubernetes.io/service-name` says which."""

    KIND: ClassVar[Kind] = Kind("discovery.k8s.io", "endpointslices", "EndpointSlice", "v1", True)
    address_type: str
    endpoints: list[SliceEndpoint] = []
    ports: list[SlicePort] = []

    @property
    def service(self) -> str:
        """The name of its service; "" when it is of none."""
        return self.metadata.labels.get(SERVICE_NAME, "")
