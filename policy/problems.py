"""What people have to be told of policy: what was closed and why, and what is accepted but has no effect yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from core.names import Key, Kind
from core.resources.admin import AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy
from core.resources.network import HostEndpoint, Namespace, ServiceAccount, WorkloadEndpoint
from core.resources.policy import (
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    KubernetesNetworkPolicy,
    NetworkPolicy,
    NetworkSet,
    Profile,
    Tier,
)
from core.resources.service import EndpointSlice
from core.resources.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from core.snapshot import Snapshot

_SELECTED: Final = "rules whose selector could mean what it says deny, and allow nothing by it"
_INHERITED: Final = f"{_SELECTED}; so does each policy that could apply by it"
_EVERY_POD: Final = "every workload is denied"
_UNTOLD: Final = "what it would do is not told; nothing else comes of it"
_NAMESPACED: Final = "everything in its namespace is denied"

CLOSED: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        NetworkPolicy.KIND: _NAMESPACED,
        KubernetesNetworkPolicy.KIND: _NAMESPACED,
        GlobalNetworkPolicy.KIND: "every workload and every host endpoint is denied",
        AdminNetworkPolicy.KIND: _EVERY_POD,
        BaselineAdminNetworkPolicy.KIND: _EVERY_POD,
        ClusterNetworkPolicy.KIND: _EVERY_POD,
        StagedNetworkPolicy.KIND: _UNTOLD,
        StagedGlobalNetworkPolicy.KIND: _UNTOLD,
        StagedKubernetesNetworkPolicy.KIND: _UNTOLD,
        EndpointSlice.KIND: "rules that name a service of its namespace deny what they could, and allow what is known",
        Tier.KIND: "its policies come before all others and can only deny, and its end denies",
        Profile.KIND: f"it denies; {_INHERITED}",
        Namespace.KIND: f"its profile denies; {_INHERITED}",
        ServiceAccount.KIND: f"its profile denies; {_INHERITED}",
        NetworkSet.KIND: _SELECTED,
        GlobalNetworkSet.KIND: _SELECTED,
        HostEndpoint.KIND: f"no interface is judged by it; {_SELECTED}",
        WorkloadEndpoint.KIND: f"it is cut off; {_SELECTED}",
    }
)
"""What comes of an object that cannot be read, by kind."""


def problems(
    snapshot: Snapshot,
    unsaid: Mapping[Key, str],
    contested: Mapping[Key, Sequence[str]],
    asking_more: Iterable[WorkloadEndpoint] = (),
) -> Mapping[Key, str]:
    """One text per object: the given ones (rules that are closed, addresses that others claim too) and the rest.

    `asking_more` are the endpoints that ask for what is not programmed.
    """
    found: dict[Key, list[str]] = defaultdict(list)
    for key, why in snapshot.problems.items():
        if key.kind in CLOSED:
            found[key].append(f"cannot be read: {why}; until it can, {CLOSED[key.kind]}")
    for key, text in unsaid.items():
        found[key].append(text)
    for key, texts in contested.items():
        found[key].extend(texts)
    for endpoint in asking_more:
        found[endpoint.key].append("ipNATs is not programmed yet: it has no effect")
    return MappingProxyType({key: "; ".join(found[key]) for key in sorted(found)})
