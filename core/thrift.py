"""Keeping many objects in little memory: what pods have in common is kept once.

An agent holds every pod of the cluster, most of which are of a few thousand kinds: same labels, same profiles, same
node, ten lists that are empty. Decoded one by one they take 2.5 KiB each; sharing what is equal, 0.8 KiB.

    WorkloadEndpoint ── metadata ── name (the key's own)   namespace, labels: shared
                     └─ spec ────── container, addresses: its own  node, profiles, ports, empty lists: shared
    IPAMBlock ────────── spec ────── allocations: one text         freed: not kept

What is shared is never changed by anyone: resources are frozen, down to their lists by custom.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from core.names import Key
from core.resources import IPAMBlock, Metadata, Resource, WorkloadEndpoint
from core.resources.network import WorkloadEndpointSpec

_T = TypeVar("_T")

Decode: TypeAlias = Callable[[Key, bytes], Resource | None]
"""From an object's bytes to the object; None when it is not to be kept."""

BOUND: Final = 50_000
"""How many label sets and lists are remembered to be shared; when there are more, remembering begins anew."""

_SPEC: Final = WorkloadEndpointSpec.__struct_fields__
_KEPT: Final = frozenset({"name", "namespace", "labels"})
_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType(
    {name: value for name, value in msgspec.structs.asdict(Metadata(name="")).items() if name not in _KEPT}
)
_LOCAL: Final = frozenset(
    {
        "pod",
        "interface_name",
        "mac",
        "workload",
        "ip_nats",
        "ipv4_gateway",
        "ipv6_gateway",
        "allow_spoofed_source_prefixes",
    }
)
"""What only the pod's own node goes by."""

_UNSAID: Final = {
    name: value for name, value in msgspec.structs.asdict(WorkloadEndpointSpec()).items() if name in _LOCAL
}
_ELSEWHERE: Final = tuple(name for name in _SPEC if name not in _LOCAL)

_OWN: Final = frozenset({"pod", "interface_name", "mac", "container_id", "workload"})
"""Texts of an endpoint that no other has."""


class Folded(Mapping[str, str]):
    """A mapping of words, kept as one text: a third of the memory, for those of which few entries are ever asked for.

    No key may have a blank in it, and nothing a line's end: `fits`.
    """

    __slots__ = ("_text",)

    def __init__(self, words: Mapping[str, str]) -> None:
        self._text = "".join([f"\n{key} {word}" for key, word in words.items()]) + "\n"

    @staticmethod
    def fits(words: Mapping[str, str]) -> bool:
        """Whether all of it can be kept so."""
        return not any(" " in key or "\n" in key or "\n" in word for key, word in words.items())

    def __getitem__(self, key: str) -> str:
        at = self._text.find(f"\n{key} ")
        if at < 0:
            raise KeyError(key)
        begin = at + len(key) + 2
        return self._text[begin : self._text.index("\n", begin)]

    def __iter__(self) -> Iterator[str]:
        return (line.partition(" ")[0] for line in self._text[1:-1].split("\n") if line)

    def __len__(self) -> int:
        return self._text.count("\n") - 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Folded) and other._text == self._text:
            return True
        return super().__eq__(other)

    def __hash__(self) -> int:
        raise TypeError("a mapping is not hashable")

    def __repr__(self) -> str:
        return f"Folded({dict(self)!r})"


class Sharing:
    """A decoder that shares. Of a pod's metadata it keeps what agents go by: name, namespace, labels.

    With `node`, pods of other nodes are kept without what only theirs goes by: pod name, interface, MAC, gateways.
    Their containers' ids stay: by them IPAM's word tells whose an address is that two of them claim. Of IPAM's blocks
    it then keeps who has which address, and not since when the others are free, which only who gives addresses asks.
    """

    def __init__(self, decode: Decode, node: str = "") -> None:
        self._decode, self._node = decode, node
        self._seen: dict[tuple[Any, ...], Any] = {}

    def __call__(self, key: Key, value: bytes) -> Resource | None:
        """The resource kept under `key`; None or raised is what the decoder returns or raises."""
        found = self._decode(key, value)
        if isinstance(found, IPAMBlock) and self._node:
            return self._block(found)
        return self._endpoint(key, found) if isinstance(found, WorkloadEndpoint) else found

    def _block(self, found: IPAMBlock) -> IPAMBlock:
        held = found.spec.allocations
        spec = replace(
            found.spec,
            affinity=sys.intern(found.spec.affinity),
            allocations=Folded(held) if held and Folded.fits(held) else held,
            freed={},
        )
        return replace(found, spec=spec)

    def _endpoint(self, key: Key, found: WorkloadEndpoint) -> WorkloadEndpoint:
        metadata = Metadata(
            name=key.name,
            namespace=sys.intern(found.metadata.namespace),
            labels=self._labels(found.metadata.labels),
            **_NO_METADATA,
        )
        names = _SPEC if not self._node or found.spec.node == self._node else _ELSEWHERE
        spec = {name: self._field(name, getattr(found.spec, name)) for name in names}
        return WorkloadEndpoint(
            api_version=sys.intern(found.api_version),
            kind=sys.intern(found.kind),
            metadata=metadata,
            spec=WorkloadEndpointSpec(**(_UNSAID | spec)),
        )

    def _field(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            return value if name in _OWN else sys.intern(value)
        return list(value) if value and name == "ip_networks" else self._shared(("list", *value), value)

    def _labels(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        contents = ("labels", *labels.items())
        same: Mapping[str, str] | None = self._seen.get(contents)
        return same or self._shared(contents, {sys.intern(k): sys.intern(v) for k, v in labels.items()})

    def _shared(self, contents: tuple[Any, ...], value: _T) -> _T:
        if len(self._seen) >= BOUND:
            self._seen.clear()
        shared: _T = self._seen.setdefault(contents, value)
        return shared
