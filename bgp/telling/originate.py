"""What a node originates: pure, from a snapshot.

    own blocks of exported pools            told as blocks, never a pod's address; a block of one address (blockSize 32
                                            or 128) while the address is taken: felix has no blackhole for it
    addresses borrowed from others' blocks  /32 or /128: longer than the block, so they win over it
    services                                bgp.services

Every prefix carries the communities that prefixAdvertisements give to what lies inside theirs. Communities limit how
far a route goes, so one that cannot be had withholds the routes it was meant for: told without, they would be open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bgp.model import Own
from bgp.paths.priority import NORMAL
from bgp.telling.services import told
from core import values
from core.addr import Network, contains, host_prefix, order
from core.resources import BGPConfiguration, IPAMBlock, IPPool
from core.resources.bgp import BGPConfigurationSpec, PrefixAdvertisement
from core.routing import pool_of
from core.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Originated:
    """What a node says of its own prefixes, and a sentence for everything that it should say and does not. `pools`
    are the ranges whose prefixes may be told at all."""

    own: Mapping[Network, Own] = field(default_factory=lambda: MappingProxyType({}))
    pools: tuple[Network, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advertisement:
    """Communities for what lies inside `cidr`; `missing` names those that nobody can tell."""

    where: str
    cidr: Network
    communities: tuple[str, ...]
    missing: tuple[str, ...]


def originated(snapshot: Snapshot, node: str) -> Originated:
    """What `node` originates, whatever it is being prepared for: `bgp.telling.export` knows about maintenance."""
    problems: list[str] = []
    sources: dict[Network, str] = {}
    try:
        sources = dict.fromkeys(told(snapshot, node), "service")
    except ValueError as error:
        problems.append(f"{error}: no service is told")
    pools = list(snapshot.of(IPPool).values())
    sources |= dict.fromkeys(_borrowed(snapshot, node, pools, problems), "borrowed")
    sources |= dict.fromkeys(_blocks(snapshot, node, pools), "block")
    specs = [
        found.spec
        for found in (snapshot.get(BGPConfiguration, f"node.{node}"), snapshot.get(BGPConfiguration, "default"))
        if found
    ]
    advertisements = list(_advertisements(snapshot, node, problems))
    priorities = {
        4: next((each.ipv4_normal_route_priority for each in specs if each.ipv4_normal_route_priority), NORMAL),
        6: next((each.ipv6_normal_route_priority for each in specs if each.ipv6_normal_route_priority), NORMAL),
    }
    own: dict[Network, Own] = {}
    withheld: dict[str, list[Network]] = {}
    for prefix in sorted(sources, key=order):
        about = [each for each in advertisements if contains(each.cidr, prefix)]
        for each in about:
            if each.missing:
                withheld.setdefault(_why(each), []).append(prefix)
        if not any(each.missing for each in about):
            given = dict.fromkeys(community for each in about for community in each.communities)
            own[prefix] = Own(source=sources[prefix], communities=tuple(given), priority=priorities[prefix.version])
    problems += [f"{why}: {', '.join(map(str, prefixes))} not told" for why, prefixes in withheld.items()]
    ranges = sorted((pool.spec.network for pool in pools if _told(pool)), key=order)
    return Originated(own=MappingProxyType(own), pools=tuple(ranges), problems=tuple(problems))


def _blocks(snapshot: Snapshot, node: str, pools: list[IPPool]) -> Iterator[Network]:
    affinity = f"host:{node}"
    for block in snapshot.of(IPAMBlock).values():
        if block.spec.affinity == affinity:
            prefix = block.spec.network
            taken = prefix.prefixlen < prefix.max_prefixlen or block.spec.allocations
            if taken and _exported(prefix, pools):
                yield prefix


def _borrowed(snapshot: Snapshot, node: str, pools: list[IPPool], problems: list[str]) -> Iterator[Network]:
    for key, block in snapshot.of(IPAMBlock).items():
        if not block.spec.borrowers or block.spec.node == node:
            continue
        for text in (address for address, borrower in block.spec.borrowers.items() if borrower == node):
            try:
                prefix = host_prefix(values.address(text))
            except ValueError as error:
                problems.append(f"IPAMBlock {key.name} spec.borrowers: {error}: not told")
                continue
            if contains(block.spec.network, prefix) and _exported(prefix, pools):
                yield prefix


def _exported(prefix: Network, pools: list[IPPool]) -> bool:
    pool = pool_of(prefix, pools)
    return pool is not None and _told(pool)


def _told(pool: IPPool) -> bool:
    return not pool.spec.disabled and not pool.spec.disable_bgp_export


def _advertisements(snapshot: Snapshot, node: str, problems: list[str]) -> Iterator[_Advertisement]:
    """The node's own advertisements when it has any, else the cluster's; names are the node's, then the cluster's."""
    names: dict[str, str] = {}
    chosen: tuple[str, BGPConfigurationSpec] | None = None
    for name in ("default", f"node.{node}"):
        found = snapshot.get(BGPConfiguration, name)
        if found is not None:
            names |= {community.name: community.value for community in found.spec.communities}
            chosen = (name, found.spec) if chosen is None or found.spec.prefix_advertisements else chosen
    if chosen is None:
        return
    name, spec = chosen
    for index, each in enumerate(spec.prefix_advertisements):
        where = f"BGPConfiguration {name} spec.prefixAdvertisements[{index}]"
        try:
            yield _advertisement(where, each, names)
        except ValueError as error:
            problems.append(f"{where}.cidr: {error}: it applies to nothing")


def _advertisement(where: str, given: PrefixAdvertisement, names: Mapping[str, str]) -> _Advertisement:
    found: list[str] = []
    missing: list[str] = []
    for text in given.communities:
        try:
            found.append(":".join(map(str, values.community(names.get(text, text)))))
        except ValueError:
            missing.append(text)
    cidr = values.network_or_address(given.cidr)
    return _Advertisement(where=where, cidr=cidr, communities=tuple(found), missing=tuple(missing))


def _why(advertisement: _Advertisement) -> str:
    names = ", ".join(map(repr, advertisement.missing))
    return f"{advertisement.where}.communities: there is no community {names}"
