"""Whose address is it, when two pods claim one: decided once for the cluster, so that every node says the same.

    one claims it                              it is that one's
    IPAM's handle names one of them alone      it is that one's, and the others lend it nothing
    otherwise                                  contested: nobody's for an Allow, everybody's for a Deny (`policy.doubt`)

An endpoint that cannot be read may claim any address: then only a handle tells. IPAM's word is worth that much because
it gives an address to one handle only, and a handle means one container: `NETWORK.CONTAINER` of the CNI plugin,
`NETWORK.NAMESPACE.POD` of a lab. The order of names decides nothing: whoever may write an endpoint chooses its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from core.addr import Address
from core.names import Key
from core.resources.network import IPAMBlock, WorkloadEndpoint
from core.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Claims:
    """The addresses that each endpoint holds, those of it that are contested, and what is wrong, in words."""

    held: Mapping[Key, Sequence[Address]] = field(default_factory=dict)
    contested: Mapping[Key, Sequence[Address]] = field(default_factory=dict)
    problems: Mapping[Key, Sequence[str]] = field(default_factory=dict)


def claims(snapshot: Snapshot) -> Claims:
    """Every address of every readable endpoint that holds it, or is among those who might."""
    endpoints = snapshot.of(WorkloadEndpoint)
    claimants: dict[Address, list[Key]] = defaultdict(list)
    for key, endpoint in sorted(endpoints.items()):
        for address in dict.fromkeys(endpoint.spec.addresses):
            claimants[address].append(key)
    unread = [key for key in snapshot.problems if key.kind == WorkloadEndpoint.KIND]
    handles = _handles(snapshot, {address for address, keys in claimants.items() if unread or len(keys) > 1})
    held: dict[Key, list[Address]] = defaultdict(list)
    contested: dict[Key, list[Address]] = defaultdict(list)
    problems: dict[Key, list[str]] = defaultdict(list)
    for address, keys in claimants.items():
        holder = (
            keys[0] if len(keys) == 1 and not unread else _holder(handles.get(address, ""), keys, endpoints, unread)
        )
        for key in keys:
            if holder is None:
                contested[key].append(address)
            elif key == holder:
                held[key].append(address)
            if len(keys) > 1 and key != holder:
                problems[key].append(_words(address, key, keys, holder))
    return Claims(held, contested, problems)


def _handles(snapshot: Snapshot, wanted: Collection[Address]) -> dict[Address, str]:
    """What IPAM says of the addresses `wanted`; "" where its blocks do not agree."""
    found: dict[Address, str] = {}
    if wanted:
        for block in snapshot.of(IPAMBlock).values():
            for text, handle in block.spec.allocations.items():
                address = ip_address(text)
                if address in wanted:
                    found[address] = handle if found.get(address, handle) == handle else ""
    return found


def _holder(
    handle: str, keys: Sequence[Key], endpoints: Mapping[Key, WorkloadEndpoint], unread: Sequence[Key]
) -> Key | None:
    """The one of `keys` that `handle` names, unless it may name another too."""
    named = [key for key in keys if _is_pod(handle, key) or _is_container(handle, endpoints[key])]
    if len(named) != 1 or any(_is_pod(handle, key) or _workload(key) == _workload(named[0]) for key in unread):
        return None
    return named[0]


def _is_pod(handle: str, key: Key) -> bool:
    """Whether a lab's handle means the pod that the endpoint is named after; the name alone has to tell."""
    namespace, _, pod = handle.partition(".")[2].partition(".")
    return bool(pod) and key.namespace == namespace and _workload(key)[1].endswith(f"-k8s-{pod.replace('-', '--')}")


def _is_container(handle: str, endpoint: WorkloadEndpoint) -> bool:
    container = endpoint.spec.container_id
    return bool(container) and handle.endswith(f".{container}")


def _workload(key: Key) -> tuple[str, str]:
    """What two endpoints of one container have in common: the name less its last part, the interface."""
    return key.namespace, key.name.rpartition("-")[0]


def _words(address: Address, key: Key, keys: Sequence[Key], holder: Key | None) -> str:
    if holder is not None:
        return f"{address} is {holder}'s, says IPAM: this endpoint's labels do not count for it"
    others = ", ".join(str(each) for each in keys if each != key)
    return f"{address} is claimed by {others} too, and IPAM does not tell whose it is: nobody is allowed by its labels"
