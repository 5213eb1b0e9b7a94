"""How full pools and blocks are, and what there is to say of one address: from a scene to rows and documents. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import collapse_addresses, ip_address, ip_network
from typing import Any, Final, cast

from cli.ipam_read import Scene
from core.addr import Address, Network, contains, order, overlap
from core.resources import BlockAffinity, IPAMBlock, IPAMConfiguration, IPPool, IPReservation
from core.resources.ipam import IPAMConfigurationSpec

STOCK: Final = ("GROUPING", "CIDR", "IPS TOTAL", "IN USE", "RESERVED", "FREE", "NAME")
BORROWED: Final = ("IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO")
CONFIGURATION: Final = ("PROPERTY", "VALUE")

MANY: Final = 10**9
"""From here on numbers of addresses are rounded for people."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line, and where it stands among others."""

    order: tuple[Any, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the answer: lines for people, documents for programs."""

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    documents: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stock:
    """How many addresses of a range are in use, and how many others are reserved."""

    network: Network
    used: int
    reserved: int

    @property
    def free(self) -> int:
        """Those that may be given without being asked for."""
        return self.network.num_addresses - self.used - self.reserved

    def cells(self) -> tuple[str, ...]:
        """Total, in use, reserved, free."""
        total = self.network.num_addresses
        return (_number(total), *(f"{_number(each)} ({each * 100 // total}%)" for each in self._parts()))

    def document(self) -> dict[str, Any]:
        """For programs."""
        used, reserved, free = self._parts()
        return {
            "cidr": str(self.network),
            "total": self.network.num_addresses,
            "inUse": used,
            "reserved": reserved,
            "free": free,
        }

    def _parts(self) -> tuple[int, int, int]:
        return self.used, self.reserved, self.free


def pools(scene: Scene) -> Part:
    """Every pool."""
    rows: list[Row] = []
    documents: list[dict[str, Any]] = []
    for held in sorted(scene.seen.of(IPPool).values(), key=lambda each: order(each.resource.spec.network)):
        pool = held.resource
        network = pool.spec.network
        stock = _stock(scene, network, [each for each in scene.uses.allocations if contains(network, each)])
        state = " (Terminating)" if pool.terminating else " (disabled)" if pool.spec.disabled else ""
        cells = ("IP Pool", pool.spec.cidr, *stock.cells(), f"{pool.metadata.name}{state}")
        rows.append(Row((*order(pool.spec.network), 0), cells))
        documents.append({"name": pool.metadata.name, "terminating": pool.terminating, **stock.document()})
    return Part(STOCK, tuple(rows), documents)


def blocks(scene: Scene) -> Part:
    """Every block, with the node that it belongs to."""
    rows: list[Row] = []
    documents: list[dict[str, Any]] = []
    for held in sorted(scene.uses.blocks, key=lambda each: order(each.resource.spec.network)):
        block = held.resource
        stock = _stock(scene, block.spec.network, [ip_address(text) for text in block.spec.allocations])
        cells = ("Block", block.spec.cidr, *stock.cells(), block.spec.node or block.spec.affinity or "(nobody's)")
        rows.append(Row((*order(block.spec.network), 1), cells))
        documents.append({"affinity": block.spec.affinity, **stock.document()})
    return Part(STOCK, tuple(rows), documents)


def borrowed(scene: Scene) -> Part:
    """Every address that is used on another node than its block's."""
    rows: list[Row] = []
    documents: list[dict[str, Any]] = []
    for address, all_of in scene.uses.allocations.items():
        for given in (each for each in all_of if each.borrowed):
            spec = given.block.resource.spec
            kind, to = _holder(scene, address)
            cells = (str(address), given.node, spec.cidr, spec.node or "(nobody)", kind, to)
            rows.append(Row((address.version, int(address)), cells))
            documents.append(
                {
                    "ip": str(address),
                    "node": given.node,
                    "block": spec.cidr,
                    "owner": spec.node,
                    "type": kind,
                    "allocatedTo": to,
                }
            )
    return Part(BORROWED, tuple(rows), documents)


def configuration(scene: Scene) -> Part:
    """How addresses are given: the settings, or what holds without them."""
    spec = settings(scene)
    values: dict[str, Any] = {
        "strictAffinity": spec.strict_affinity,
        "autoAllocateBlocks": spec.auto_allocate_blocks,
        "maxBlocksPerHost": spec.most_blocks,
        "ipCooldownSeconds": spec.ip_cooldown_seconds,
        "kubeVirtVMAddressPersistence": spec.kube_virt_vm_address_persistence or "Enabled",
    }
    shown = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    rows = tuple(Row((), (_title(name), text)) for name, text in shown.items())
    return Part(CONFIGURATION, rows, [values])


def _title(field: str) -> str:
    """A setting as Calico's tables spell it."""
    return f"{field[0].upper()}{field[1:]}".replace("IpC", "IPC")


def settings(scene: Scene) -> IPAMConfigurationSpec:
    """The settings in force."""
    found = (held.resource.spec for held in scene.seen.of(IPAMConfiguration).values())
    return next(found, IPAMConfigurationSpec())


def address_document(scene: Scene, address: Address, now: datetime) -> dict[str, Any]:
    """What there is to say of one address."""
    given = next(iter(scene.uses.allocations.get(address, ())), None)
    around = scene.pool_of(address)
    block = next((held.resource for held in scene.uses.blocks if contains(held.resource.spec.network, address)), None)
    holder = scene.uses.holder(given) if given else None
    spec = holder.object.resource.spec if holder and holder.object else None
    return {
        "address": str(address),
        "state": _state(scene, address, block, now),
        "handle": given.handle if given else "",
        "node": given.node if given else "",
        "pod": f"{spec.namespace}/{spec.pod}" if spec and spec.pod else "",
        "service": f"{spec.namespace}/{spec.service}" if spec and spec.service else "",
        "container": holder.container if holder else "",
        "interface": spec.interface if spec else "",
        "since": spec.since if spec else "",
        "usedBy": [str(use) for use in scene.uses.uses.get(address, ())],
        "pool": f"{around.resource.metadata.name} ({around.resource.spec.cidr})" if around else "",
        "block": block.spec.cidr if block else "",
        "affinity": block.spec.affinity if block else "",
        "claim": _claim(scene, block) if block else "",
        "borrowed": given.borrowed if given else None,
    }


def _state(scene: Scene, address: Address, block: IPAMBlock | None, now: datetime) -> str:
    if scene.uses.allocations.get(address):
        return "in use"
    if scene.uses.dark(address):
        return "unknown: its block cannot be read"
    if scene.pool_of(address) is None:
        return "in no IPPool"
    if any(contains(each, address) for each in _reserved(scene)):
        return "reserved"
    freed = block.spec.freed.get(str(address)) if block else None
    until = datetime.fromisoformat(freed) + timedelta(seconds=settings(scene).ip_cooldown_seconds) if freed else now
    if until > now:
        return f"resting until {until.isoformat(timespec='seconds')}"
    return f"free since {freed}" if freed else "free"


def _claim(scene: Scene, block: IPAMBlock) -> str:
    claims = (held.resource.spec for held in scene.seen.of(BlockAffinity).values())
    mine = (claim for claim in claims if claim.network == block.spec.network)
    return ", ".join(f"{claim.node} {claim.state}" for claim in mine)


def _holder(scene: Scene, address: Address) -> tuple[str, str]:
    """What kind of thing holds an address, and which."""
    given = scene.uses.allocations[address][0]
    holder = scene.uses.holder(given)
    spec = holder.object.resource.spec if holder.object is not None else None
    if holder.owner_of_tunnel:
        return "tunnel", holder.owner_of_tunnel
    return ("pod", f"{spec.namespace}/{spec.pod}") if spec and spec.pod else ("handle", given.handle)


def _stock(scene: Scene, network: Network, held: Sequence[Address]) -> Stock:
    reserved = _within(_reserved(scene), network)
    taken = sum(any(contains(each, address) for each in reserved) for address in held) if reserved else 0
    return Stock(network, len(held), sum(each.num_addresses for each in reserved) - taken)


def _reserved(scene: Scene) -> tuple[Network, ...]:
    specs = (held.resource.spec for held in scene.seen.of(IPReservation).values())
    return tuple(ip_network(text) for spec in specs for text in spec.reserved_cidrs)


def _within(ranges: Sequence[Network], network: Network) -> tuple[Network, ...]:
    """The parts of `ranges` that lie in `network`, none of them twice."""
    parts = [each if contains(network, each) else network for each in ranges if overlap(each, network)]
    return tuple(cast("Iterator[Network]", collapse_addresses(parts)))


def _number(count: int) -> str:
    return str(count) if count < MANY else f"{count:.4g}"
