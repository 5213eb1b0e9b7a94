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
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address

from core.addr import Address
from core.changes import Changes
from core.memo import Memo
from core.names import Key
from core.resources import IPAMBlock, WorkloadEndpoint
from core.snapshot import Snapshot
from policy.place import Place, place_of, places_of, readable


class Holders:
    """Who claims which address, and who holds it, from one snapshot to the next."""

    def __init__(self) -> None:
        self._endpoints: Mapping[Key, WorkloadEndpoint] = {}
        self._alone: dict[Place, Key] = {}
        self._crowds: dict[Place, set[Key]] = {}
        self._unread: frozenset[Key] = frozenset()
        self._blocks: Mapping[Key, IPAMBlock] = {}
        self._read = Memo()

    def update(self, snapshot: Snapshot, changed: Changes[Key, WorkloadEndpoint]) -> Collection[Place]:
        """Follow `snapshot`, in which these endpoints changed; the addresses of which others may be the holders now."""
        unread = frozenset(key for key in snapshot.problems if key.kind == WorkloadEndpoint.KIND)
        blocks = snapshot.of(IPAMBlock)
        self._endpoints = snapshot.of(WorkloadEndpoint)
        found: set[Place] = set()
        for key, endpoint in changed.gone.items():
            for place in places_of(endpoint):
                self._leave(place, key)
                found.add(place)
        for key, endpoint in changed.come.items():
            for place in places_of(endpoint):
                self._claim(place, key)
                found.add(place)
        if unread != self._unread or (unread and blocks is not self._blocks):
            found.update(self._alone, self._crowds)
        found.update(self._crowds)  # their endpoints, or what IPAM says of them, may be others
        self._unread, self._blocks = unread, blocks
        self._read.forget()
        return found

    def _claim(self, place: Place, key: Key) -> None:
        crowd = self._crowds.get(place)
        if crowd is not None:
            crowd.add(key)
        elif place in self._alone:
            self._crowds[place] = {self._alone.pop(place), key}
        else:
            self._alone[place] = key

    def _leave(self, place: Place, key: Key) -> None:
        crowd = self._crowds.get(place)
        if crowd is None:
            self._alone.pop(place, None)
            return
        crowd.discard(key)
        if len(crowd) == 1:
            self._alone[place] = self._crowds.pop(place).pop()

    def of(self, places: Collection[Place]) -> dict[Place, list[tuple[Key, bool]]]:
        """Whose each of `places` is, and whether that is sure: one holder, all who might be, or nobody."""
        handles = self._handles(place for place in places if self._unread or place in self._crowds)
        return {place: self._of(place, handles.get(place, "")) for place in places}

    def _of(self, place: Place, handle: str) -> list[tuple[Key, bool]]:
        alone = self._alone.get(place)
        if alone is not None and not self._unread:
            return [(alone, True)]
        keys = self._claimants(place)
        holder = _holder(handle, keys, self._endpoints, self._unread)
        return [(key, False) for key in keys] if holder is None else [(holder, True)]

    def _claimants(self, place: Place) -> list[Key]:
        alone = self._alone.get(place)
        return [alone] if alone is not None else sorted(self._crowds.get(place, ()))

    @property
    def problems(self) -> dict[Key, list[str]]:
        """What endpoints have to be told: addresses of theirs that others claim too."""
        found: dict[Key, list[str]] = defaultdict(list)
        handles = self._handles(self._crowds)
        for place in sorted(self._crowds):
            keys = self._claimants(place)
            holder = _holder(handles.get(place, ""), keys, self._endpoints, self._unread)
            for key in keys:
                if key != holder:
                    found[key].append(_words(readable(place), key, keys, holder))
        return found

    def _handles(self, wanted: Iterable[Place]) -> dict[Place, str]:
        """What IPAM says of the addresses `wanted`; "" where its blocks do not agree."""
        left, found = set(wanted), dict[Place, str]()
        if left:
            for block in self._blocks.values():
                for place, handle in self._read(_allocations, block).items():
                    if place in left:
                        found[place] = handle if found.get(place, handle) == handle else ""
        return found


def _allocations(block: IPAMBlock) -> dict[Place, str]:
    return {place_of(ip_address(text)): handle for text, handle in block.spec.allocations.items()}


def _holder(
    handle: str, keys: Sequence[Key], endpoints: Mapping[Key, WorkloadEndpoint], unread: Collection[Key]
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
