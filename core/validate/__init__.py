"""What one object alone can be blamed for: each kind's own rules, and those that every object follows.

    validate(resource) = metadata's problems + those of VALIDATORS[type(resource)]

A validator is a generator of problems with paths; it never raises and reads nothing but its object. Where a manifest
gives as text what is later read as an address, a port or a selector, the validator reads it with the same function
(`core.values`, `core.selector`), so that whoever comes later need not ask again. What only several objects together can
get wrong is `core.admission`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from core.errors import Problem
from core.resources import (
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    BlockAffinity,
    CalicoNodeStatus,
    ClusterNetworkPolicy,
    EndpointSlice,
    FelixConfiguration,
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    HostEndpoint,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPAMRecord,
    IPPool,
    IPReservation,
    KubeControllersConfiguration,
    KubernetesNetworkPolicy,
    NetworkPolicy,
    NetworkSet,
    Node,
    Profile,
    Resource,
    Secret,
    Service,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
    WorkloadEndpoint,
)
from core.validate import (
    admin,
    bgp,
    controllers,
    ipam,
    kubernetes,
    metadata,
    network,
    node_status,
    policy,
    secret,
    service,
    staged,
)

VALIDATORS: Final[Mapping[type[Resource], Callable[[Any], Iterator[Problem]]]] = MappingProxyType(
    {
        AdminNetworkPolicy: admin.admin_network_policy,
        BGPConfiguration: bgp.configuration,
        BGPFilter: bgp.bgp_filter,
        BGPPeer: bgp.peer,
        BaselineAdminNetworkPolicy: admin.baseline_admin_network_policy,
        BlockAffinity: ipam.affinity,
        CalicoNodeStatus: node_status.node_status,
        ClusterNetworkPolicy: admin.cluster_network_policy,
        EndpointSlice: service.endpoint_slice,
        FelixConfiguration: network.felix_configuration,
        GlobalNetworkPolicy: policy.global_network_policy,
        GlobalNetworkSet: policy.network_set,
        HostEndpoint: network.host_endpoint,
        IPAMBlock: ipam.block,
        IPAMConfiguration: ipam.configuration,
        IPAMHandle: ipam.handle,
        IPAMRecord: ipam.record,
        IPPool: network.ip_pool,
        IPReservation: ipam.reservation,
        KubeControllersConfiguration: controllers.configuration,
        KubernetesNetworkPolicy: kubernetes.network_policy,
        NetworkPolicy: policy.network_policy,
        NetworkSet: policy.network_set,
        Node: network.node,
        Profile: policy.profile,
        Secret: secret.secret,
        Service: service.service,
        StagedGlobalNetworkPolicy: staged.global_network_policy,
        StagedKubernetesNetworkPolicy: staged.kubernetes_network_policy,
        StagedNetworkPolicy: staged.network_policy,
        Tier: policy.tier,
        WorkloadEndpoint: network.workload_endpoint,
    }
)
"""One entry for each kind that has rules of its own."""


def validate(resource: Resource) -> list[Problem]:
    """Everything wrong with one object; each problem names the object and the field."""
    problems = list(metadata.metadata(resource))
    own = VALIDATORS.get(type(resource))
    if own is not None:
        problems += own(resource)
    given = (resource.KIND.name, resource.metadata.namespace, resource.metadata.name)
    what = "/".join(part for part in given if part)
    return [replace(problem, what=what) for problem in problems]
