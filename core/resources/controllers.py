"""The settings of Calico's kube-controllers, of which muslin has one controller: addresses for Services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from msgspec import field

from core.names import Kind
from core.resources.base import Base, Resource, calico

ALL_SERVICES: Final = "AllServices"
REQUESTED_ONLY: Final = "RequestedServicesOnly"


class LoadBalancerController(Base, frozen=True, kw_only=True):
    """Which Services of type LoadBalancer are given addresses: all, or those that ask for some by annotation."""

    assign_ips: str | None = field(default=None, name="assignIPs")


class Controllers(Base, frozen=True, kw_only=True):
    """Each controller's own. Only `loadBalancer` means anything here: what the others do, muslin's agents do, or
    Kubernetes' API server would have to be the datastore. They are kept as they are."""

    load_balancer: LoadBalancerController | None = None
    node: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    workload_endpoint: Mapping[str, Any] | None = None
    service_account: Mapping[str, Any] | None = None
    namespace: Mapping[str, Any] | None = None
    migration: Mapping[str, Any] | None = None
    policy_migration: Mapping[str, Any] | None = None


class KubeControllersSpec(Base, frozen=True, kw_only=True):
    """As Calico has it; `controllers` is what counts."""

    log_severity_screen: str | None = None
    health_checks: str | None = None
    etcd_v3_compaction_period: str | None = field(default=None, name="etcdV3CompactionPeriod")
    prometheus_metrics_port: int | None = None
    debug_profile_port: int | None = None
    controllers: Controllers = Controllers()


class KubeControllersConfiguration(Resource, frozen=True, kw_only=True):
    """The one named `default` counts."""

    KIND: ClassVar[Kind] = calico("kubecontrollersconfigurations", "KubeControllersConfiguration")
    spec: KubeControllersSpec = KubeControllersSpec()
    status: Mapping[str, Any] | None = None

    @property
    def only_requested(self) -> bool:
        """Whether Services that ask for nothing are given no address."""
        balancer = self.spec.controllers.load_balancer
        return balancer is not None and balancer.assign_ips == REQUESTED_ONLY
