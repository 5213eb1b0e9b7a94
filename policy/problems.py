"""What people have to be told of policy: what was closed and why, and what is accepted but has no effect yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from core.names import Key, Kind
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
from core.snapshot import Snapshot

_SELECTED: Final = "rules whose selector could mean what it says deny, and allow nothing by it"
_INHERITED: Final = f"{_SELECTED}; so does each policy that could apply by it"
_NAMESPACED: Final = "everything in its namespace is denied"

CLOSED: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        NetworkPolicy.KIND: _NAMESPACED,
        KubernetesNetworkPolicy.KIND: _NAMESPACED,
        GlobalNetworkPolicy.KIND: "every workload is denied",
        Tier.KIND: "its policies come before all others and can only deny, and its end denies",
        Profile.KIND: f"it denies; {_INHERITED}",
        Namespace.KIND: f"its profile denies; {_INHERITED}",
        ServiceAccount.KIND: f"its profile denies; {_INHERITED}",
        NetworkSet.KIND: _SELECTED,
        GlobalNetworkSet.KIND: _SELECTED,
        HostEndpoint.KIND: _SELECTED,
        WorkloadEndpoint.KIND: f"it is cut off; {_SELECTED}",
    }
)
"""What comes of an object that cannot be read, by kind."""

FOR_HOSTS: Final = "is for host endpoints, which muslin does not program yet: it has no effect"


def problems(
    snapshot: Snapshot, unsaid: Mapping[Key, str], contested: Mapping[Key, Sequence[str]]
) -> Mapping[Key, str]:
    """One text per object: the given ones (rules that are closed, addresses that others claim too) and the rest."""
    found: dict[Key, list[str]] = defaultdict(list)
    for key, why in snapshot.problems.items():
        if key.kind in CLOSED:
            found[key].append(f"cannot be read: {why}; until it can, {CLOSED[key.kind]}")
    for key, text in unsaid.items():
        found[key].append(text)
    for key, texts in contested.items():
        found[key].extend(texts)
    for key, text in _without_effect(snapshot):
        found[key].append(text)
    return MappingProxyType({key: "; ".join(found[key]) for key in sorted(found)})


def _without_effect(snapshot: Snapshot) -> Iterator[tuple[Key, str]]:
    """What manifests ask for, and muslin accepts, but does not do yet: said, so that nobody relies on it."""
    for key, policy in snapshot.of(GlobalNetworkPolicy).items():
        asked = {
            "doNotTrack": policy.spec.do_not_track,
            "preDNAT": policy.spec.pre_dnat,
            "applyOnForward": policy.spec.apply_on_forward,
        }
        yield from ((key, f"{name} {FOR_HOSTS}") for name, given in asked.items() if given)
    for key in snapshot.of(HostEndpoint):
        yield key, "rules of pods can mean it, but muslin does not police a host's own interfaces yet"
    for key, endpoint in snapshot.of(WorkloadEndpoint).items():
        if endpoint.spec.ip_nats:
            yield key, "ipNATs is not programmed yet: it has no effect"
        if endpoint.spec.allow_spoofed_source_prefixes:
            yield key, "allowSpoofedSourcePrefixes is not programmed yet: it has no effect"
