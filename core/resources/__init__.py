"""Every kind of resource muslin knows, and the registry to find one by apiVersion and kind or by key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from core.names import ROOT, Key, Kind
from core.resources.admin import AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy
from core.resources.base import Base, Metadata, R, Resource
from core.resources.bgp import BGPConfiguration, BGPFilter, BGPPeer
from core.resources.controllers import KubeControllersConfiguration
from core.resources.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPAMRecord,
    IPReservation,
)
from core.resources.network import (
    EncapMode,
    FelixConfiguration,
    HostEndpoint,
    IPPool,
    Namespace,
    Node,
    Pod,
    ServiceAccount,
    WorkloadEndpoint,
)
from core.resources.node_status import CalicoNodeStatus
from core.resources.policy import (
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    KubernetesNetworkPolicy,
    NetworkPolicy,
    NetworkSet,
    Profile,
    Tier,
)
from core.resources.secret import Secret
from core.resources.service import EndpointSlice, Service
from core.resources.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from core.resources.status import FelixStatus, SpeakerStatus

CLASSES: Final[tuple[type[Resource], ...]] = (
    AdminNetworkPolicy,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    BaselineAdminNetworkPolicy,
    BlockAffinity,
    CalicoNodeStatus,
    ClusterNetworkPolicy,
    EndpointSlice,
    FelixConfiguration,
    FelixStatus,
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
    Namespace,
    NetworkPolicy,
    NetworkSet,
    Node,
    Pod,
    Profile,
    Secret,
    Service,
    ServiceAccount,
    SpeakerStatus,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
    WorkloadEndpoint,
)

BY_KIND: Final[Mapping[Kind, type[Resource]]] = MappingProxyType({cls.KIND: cls for cls in CLASSES})
BY_MANIFEST: Final[Mapping[tuple[str, str], type[Resource]]] = MappingProxyType(
    {(cls.KIND.api_version, cls.KIND.name): cls for cls in CLASSES}
    | {(IPAMConfiguration.KIND.api_version, "IPAMConfig"): IPAMConfiguration}  # the kind's older name in Calico
)
DECODERS: Final[Mapping[Kind, msgspec.json.Decoder[Resource]]] = MappingProxyType(
    {cls.KIND: msgspec.json.Decoder(cls) for cls in CLASSES}
)
"""From JSON. They are made while there is one thread: msgspec (0.22) looks into a class when it is first asked for one,
and two threads that do so at once end the process (SIGSEGV). An agent reads in several as soon as it starts."""

_BY_PATH: Final = {(cls.KIND.group, cls.KIND.plural): cls.KIND for cls in CLASSES}

__all__ = [
    "BY_KIND",
    "BY_MANIFEST",
    "CLASSES",
    "DECODERS",
    "AdminNetworkPolicy",
    "BGPConfiguration",
    "BGPFilter",
    "BGPPeer",
    "Base",
    "BaselineAdminNetworkPolicy",
    "BlockAffinity",
    "CalicoNodeStatus",
    "ClusterNetworkPolicy",
    "EncapMode",
    "EndpointSlice",
    "FelixConfiguration",
    "FelixStatus",
    "GlobalNetworkPolicy",
    "GlobalNetworkSet",
    "HostEndpoint",
    "IPAMBlock",
    "IPAMConfiguration",
    "IPAMHandle",
    "IPAMRecord",
    "IPPool",
    "IPReservation",
    "KubeControllersConfiguration",
    "KubernetesNetworkPolicy",
    "Metadata",
    "Namespace",
    "NetworkPolicy",
    "NetworkSet",
    "Node",
    "Pod",
    "Profile",
    "R",
    "Resource",
    "Secret",
    "Service",
    "ServiceAccount",
    "SpeakerStatus",
    "StagedGlobalNetworkPolicy",
    "StagedKubernetesNetworkPolicy",
    "StagedNetworkPolicy",
    "Tier",
    "WorkloadEndpoint",
    "parse_path",
]


def parse_path(path: str) -> Key:
    """The key that lies at `path`; ValueError when it is none of ours."""
    parts = path.removeprefix(ROOT).split("/")
    kind = _BY_PATH.get((parts[0], parts[1])) if len(parts) >= 3 and path.startswith(ROOT) else None
    if kind is None or len(parts) != (4 if kind.namespaced else 3):
        raise ValueError(f"{path!r} is not the path of a muslin object")
    return Key(kind, sys.intern(parts[2]) if kind.namespaced else "", parts[-1])
