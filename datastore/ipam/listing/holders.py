"""What the store holds of IPAM at one revision, and who says that he uses an address.

listing ── decode ──> of(IPAMBlock), of(IPAMHandle), ...      each with the revision of its last change
             └──────> unread                                  what nobody can read: it may be using anything

of(IPAMHandle)        ──┐
                        ├──> holders: handle text ── node, container, interface, addresses by block
of(IPAMBlock) texts   ──┘    (an allocation without a handle object has a holder too, made from its text)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, Generic, cast

from core import manifest
from core.addr import Address, Network, contains
from core.errors import Invalid
from core.names import TUNNEL_HANDLE, Key, Kind
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    IPReservation,
    KubeControllersConfiguration,
    Node,
    R,
    Resource,
    Service,
    WorkloadEndpoint,
)
from datastore.api import Entry, Listing
from datastore.ipam.balancing.wishes import service_of
from datastore.ipam.block import spelt
from datastore.ipam.books import handle_key

KINDS: Final[frozenset[Kind]] = frozenset(
    cls.KIND
    for cls in (IPPool, IPReservation, IPAMBlock, BlockAffinity, IPAMHandle, IPAMConfiguration, Node, WorkloadEndpoint)
)
"""What has to be listed."""

AUDITED: Final[frozenset[Kind]] = KINDS | {Service.KIND, KubeControllersConfiguration.KIND}
"""What an audit lists: also who has addresses of load balancers, which no node's collector asks."""

TUNNELS: Final = (
    TUNNEL_HANDLE,
    "vxlan-tunnel-addr-",
    "vxlan-v6-tunnel-addr-",
    "wireguard-tunnel-addr-",
    "wireguard-v6-tunnel-addr-",
)
"""How handles of a node's own addresses begin; the node's name follows. Calico's spelling."""


@dataclass(frozen=True, slots=True)
class Held(Generic[R]):
    """An object and the revision of its last change."""

    resource: R
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds addresses under the handle `text`. `object` None: blocks name it, and it has no IPAMHandle.

    `node` and `container` are "" where that cannot be told; `owner_of_tunnel` is the node whose own address it is,
    `service` the Service whose load balancer's.
    `addresses` are those that blocks give it, each with its block; and those that only the handle claims, with None.
    """

    text: str
    object: Held[IPAMHandle] | None
    node: str
    container: str = ""
    interface: str = ""
    owner_of_tunnel: str = ""
    service: Key | None = None
    addresses: Mapping[Address, Held[IPAMBlock] | None]


class Holdings:
    """Everything of `AUDITED` in a listing. What `before` has at the same revision is not decoded again."""

    def __init__(self, listing: Listing, before: Holdings | None = None) -> None:
        self.revision = listing.revision
        self._held: dict[Kind, dict[Key, Held[Resource]]] = {kind: {} for kind in AUDITED}
        unread: dict[Key, Entry] = {}
        for entry in listing.entries:
            if entry.key.kind not in AUDITED:
                continue
            known = before._held[entry.key.kind].get(entry.key) if before is not None else None
            try:
                kept = known if known is not None and known.revision == entry.revision else _read(entry)
            except (Invalid, ValueError):
                unread[entry.key] = entry
                continue
            self._held[entry.key.kind][entry.key] = kept
        self.unread: Mapping[Key, Entry] = MappingProxyType(unread)

    def of(self, cls: type[R]) -> Mapping[Key, Held[R]]:
        """Every object of a class that can be read."""
        return cast("Mapping[Key, Held[R]]", self._held[cls.KIND])

    def unread_of(self, cls: type[Resource]) -> tuple[Entry, ...]:
        """The objects of a class that cannot be read."""
        return tuple(entry for key, entry in self.unread.items() if key.kind == cls.KIND)

    @cached_property
    def nodes(self) -> frozenset[str]:
        """The names of all Nodes that there are, those that cannot be read too."""
        return frozenset(key.name for key in (*self._held[Node.KIND], *self.unread) if key.kind == Node.KIND)

    def pool_of(self, network: Network) -> Held[IPPool] | None:
        """The pool around a block; None when no pool that can be read is."""
        around = (pool for pool in self.of(IPPool).values() if contains(pool.resource.spec.network, network))
        return next(around, None)

    @cached_property
    def holders(self) -> Mapping[str, Holder]:
        """Who holds addresses, by the handle's text."""
        by_text: dict[str, dict[Address, Held[IPAMBlock] | None]] = {}
        for block in self.of(IPAMBlock).values():
            for address, text in block.resource.spec.allocations.items():
                by_text.setdefault(text, {})[ip_address(address)] = block
        objects = {held.resource.spec.handle_id: held for held in self.of(IPAMHandle).values()}
        return {
            text: _holder(text, objects.get(text), by_text.get(text, {})) for text in by_text.keys() | objects.keys()
        }

    @cached_property
    def _by_address(self) -> Mapping[Address, tuple[Held[WorkloadEndpoint], ...]]:
        found: dict[Address, tuple[Held[WorkloadEndpoint], ...]] = {}
        for held in self.of(WorkloadEndpoint).values():
            for address in held.resource.spec.addresses:
                found[address] = (*found.get(address, ()), held)
        return found

    @cached_property
    def by_container(self) -> Mapping[str, tuple[Held[WorkloadEndpoint], ...]]:
        """The endpoints that name a container, by that."""
        found: dict[str, tuple[Held[WorkloadEndpoint], ...]] = {}
        for held in self.of(WorkloadEndpoint).values():
            if container := held.resource.spec.container_id:
                found[container] = (*found.get(container, ()), held)
        return found

    @cached_property
    def by_interface(self) -> Mapping[tuple[str, str], tuple[WorkloadEndpoint, ...]]:
        """The endpoints, by their node and the name of the host's end of their wire."""
        found: dict[tuple[str, str], tuple[WorkloadEndpoint, ...]] = {}
        for held in self.of(WorkloadEndpoint).values():
            at = held.resource.spec.node, held.resource.spec.interface_name
            found[at] = (*found.get(at, ()), held.resource)
        return found

    @cached_property
    def of_container(self) -> Mapping[str, tuple[Holder, ...]]:
        """The holders of each container, whatever their node."""
        found: dict[str, tuple[Holder, ...]] = {}
        for _, holder in sorted(self.holders.items()):
            if holder.container:
                found[holder.container] = (*found.get(holder.container, ()), holder)
        return found

    def users(self, holder: Holder) -> tuple[Held[WorkloadEndpoint], ...]:
        """Every endpoint, of any node, that names one of the holder's addresses or its container."""
        found = {held.resource.key: held for held in self.by_container.get(holder.container, ())}
        for address in holder.addresses:
            found.update({held.resource.key: held for held in self._by_address.get(address, ())})
        return tuple(held for _, held in sorted(found.items()))

    def doubtful(self, holder: Holder) -> bool:
        """Whether an object that nobody can read may have to do with the holder.

        An endpoint may if it lies in the pod's namespace, or its bytes have the container or an address in them;
        any block if the handle has an address that no block gives it; and the handle's own object.
        """
        if None in holder.addresses.values() and self.unread_of(IPAMBlock):
            return True
        if holder.object is None and handle_key(holder.text) in self.unread:
            return True
        namespace = holder.object.resource.spec.namespace if holder.object is not None else ""
        marks = [text.encode() for text in (holder.container, *map(str, holder.addresses)) if text]
        return any(
            not namespace or entry.key.namespace == namespace or any(mark in entry.value for mark in marks)
            for entry in self.unread_of(WorkloadEndpoint)
        )


def _read(entry: Entry) -> Held[Resource]:
    """Raises `Invalid`, or ValueError for a block that has one address twice, in two spellings."""
    found = manifest.decode(entry.key, entry.value)
    return Held(spelt(found) if isinstance(found, IPAMBlock) else found, entry.revision)


def _holder(text: str, held: Held[IPAMHandle] | None, blocks: Mapping[Address, Held[IPAMBlock] | None]) -> Holder:
    owner = next((text.removeprefix(tunnel) for tunnel in TUNNELS if text.startswith(tunnel)), "")
    if held is None:
        nodes = set(_used_on(blocks))
        network, dot, container = text.partition(".")
        known = bool(network and dot and container) and "." not in container and not owner
        node = nodes.pop() if len(nodes) == 1 else ""
        return Holder(
            text=text,
            object=None,
            node=node,
            container=container if known else "",
            owner_of_tunnel=owner,
            addresses=blocks,
        )
    spec = held.resource.spec
    known = text.endswith(f".{spec.container}") and len(text) > len(spec.container) + 1 and not owner
    claimed: dict[Address, Held[IPAMBlock] | None] = dict.fromkeys(map(ip_address, spec.addresses))
    return Holder(
        text=text,
        object=held,
        node=spec.node,
        container=spec.container if known else "",
        interface=spec.interface,
        owner_of_tunnel=owner if spec.node in ("", owner) else "",
        service=service_of(text, spec.namespace, spec.service),
        addresses={**claimed, **blocks},
    )


def _used_on(blocks: Mapping[Address, Held[IPAMBlock] | None]) -> Iterator[str]:
    """The nodes on which the addresses are, as their blocks say."""
    for address, block in blocks.items():
        if block is not None:
            spec = block.resource.spec
            yield spec.borrowers.get(str(address), "") or spec.node
