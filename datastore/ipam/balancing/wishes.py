"""What a Service of type LoadBalancer asks for: which families, addresses and pools. Pure.

    spec.loadBalancerClass   absent or `calico`: ours; any other is somebody else's
    spec.ipFamilies          one address of each; absent: of each family that a LoadBalancer pool serves
    spec.ipFamilyPolicy      SingleStack: of the first only; PreferDualStack: of those that can be had
    annotations              projectcalico.org/loadBalancerIPs           these addresses and no others
                             projectcalico.org/ipv4pools, .../ipv6pools  from these pools, by name or CIDR
    spec.loadBalancerIP      as loadBalancerIPs, if that names none

calico.md 1.2, "LoadBalancer IPAM". What a Service has already is kept as long as nothing that it says speaks against
it: a pool that is disabled gives nothing new, and takes nothing away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from core import values
from core.addr import Address, Family, contains
from core.errors import Invalid, Problem
from core.names import Key
from core.resources import IPPool, Service
from core.resources.ipam import LOAD_BALANCER
from datastore.ipam import block as blocks
from datastore.ipam.giving.pools import named
from datastore.ipam.model import Owner, Request, Use

CLASS: Final = "calico"
"""The `loadBalancerClass` that is ours, as Calico's."""

HANDLE: Final = "lb-"
"""How handles of Services begin; a digest of namespace and name follows."""

ADDRESSES: Final = "projectcalico.org/loadBalancerIPs"
POOLS: Final[Mapping[Family, str]] = {
    Family.V4: "projectcalico.org/ipv4pools",
    Family.V6: "projectcalico.org/ipv6pools",
}
FAMILIES: Final = {"IPv4": Family.V4, "IPv6": Family.V6}
POLICIES: Final = ("SingleStack", "PreferDualStack", "RequireDualStack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a Service is to have. `families` None: of any family that a pool serves. What it has of a family that is not
    among `allowed` goes."""

    families: tuple[Family, ...] | None
    allowed: frozenset[Family]
    addresses: tuple[Address, ...] = ()
    pools: Mapping[Family, tuple[str, ...]]

    def fits(self, address: Address, pools: Collection[IPPool], unreadable: AbstractSet[str]) -> bool:
        """Whether an address that the Service has may stay; `unreadable` are names of pools that nobody can read."""
        family = Family(address.version)
        if self.addresses:
            return address in self.addresses
        asked = self.pools.get(family)
        if family not in self.allowed or not asked:
            return family in self.allowed
        around = next((pool for pool in pools if contains(blocks.network(pool), address)), None)
        if around is None:
            return bool(unreadable & {*asked})
        return any(named(around, text) for text in asked)

    def missing(self, held: Collection[Address]) -> bool:
        """Whether an address is wanting beside those that are held and fit."""
        if self.families is None:
            return not held
        return not {*self.families} <= {Family(each.version) for each in held}


@lru_cache(maxsize=1 << 14)
def handle_of(namespace: str, name: str) -> str:
    """The handle of a Service's addresses."""
    return HANDLE + hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:32]


def ours(service: Service) -> bool:
    """Whether it is for us to give the Service addresses."""
    return service.spec.type == "LoadBalancer" and service.spec.load_balancer_class in (None, "", CLASS)


def asks(service: Service) -> bool:
    """Whether the Service asks for addresses of its own accord, as it must under RequestedServicesOnly."""
    asking = {ADDRESSES, *POOLS.values()} & service.metadata.annotations.keys()
    return bool(asking or service.spec.load_balancer_ip)


def balances(pool: IPPool) -> bool:
    """Whether a pool is for load balancers."""
    return Use.LOAD_BALANCER in pool.spec.allowed_uses


def served(pools: Collection[IPPool]) -> frozenset[Family]:
    """The families of which a Service can have an address that names no pool."""
    able = (pool for pool in pools if balances(pool) and not pool.terminating and not pool.spec.disabled)
    return frozenset(Family(pool.spec.network.version) for pool in able if pool.spec.assignment_mode != "Manual")


def wish(service: Service, able: AbstractSet[Family], held: Collection[Address]) -> Wish:
    """What one of our Services asks for; `able` is from `served`, `held` what it has. Raises `Invalid` for what cannot
    be read."""
    problems = list(_wrong(service))
    if problems:
        what = f"Service {service.metadata.namespace}/{service.metadata.name}"
        raise Invalid([Problem(what=what, path=each.path, why=each.why) for each in problems])
    addresses = tuple(sorted(_addresses(service), key=lambda each: each.version))
    pools = {family: names for family, text in POOLS.items() if (names := _names(service, text))}
    have = frozenset(Family(each.version) for each in held)
    if addresses:
        own = tuple(Family(each.version) for each in addresses)
        return Wish(families=own, allowed=frozenset(own), addresses=addresses, pools=pools)
    families, allowed = _families(service, able, have, frozenset(pools))
    return Wish(families=families, allowed=allowed, pools=pools)


def request(service: Service, wanted: Wish, instead_of: tuple[Address, ...]) -> Request:
    """What IPAM is asked for."""
    namespace, name = service.metadata.namespace, service.metadata.name
    return Request(
        handle=handle_of(namespace, name),
        owner=Owner(node=LOAD_BALANCER, namespace=namespace, service=name),
        families=wanted.families,
        pools=wanted.pools,
        addresses=wanted.addresses,
        use=Use.LOAD_BALANCER,
        instead_of=instead_of,
    )


def service_of(handle: str, namespace: str, service: str) -> Key | None:
    """The Service that a handle says it is of; None when that is not so."""
    if not service or handle != handle_of(namespace, service):
        return None
    return Key(Service.KIND, namespace, service)


def _families(
    service: Service, able: AbstractSet[Family], have: AbstractSet[Family], named: AbstractSet[Family]
) -> tuple[tuple[Family, ...] | None, frozenset[Family]]:
    """The families that a Service is to have, and those that it may keep."""
    said, policy = [FAMILIES[text] for text in service.spec.ip_families], service.spec.ip_family_policy
    can = able | named | have
    if policy == "SingleStack":
        first = said or sorted(have) or sorted(named) or sorted(able)
        return (tuple(first[:1]), frozenset(first[:1])) if first else (None, frozenset(Family))
    if said:
        some = [family for family in said if family in can] if policy == "PreferDualStack" else said
        return tuple(some or said[:1]), frozenset(said)
    if policy == "RequireDualStack":
        return tuple(Family), frozenset(Family)
    return tuple(sorted(can)) or None, frozenset(Family)


def _wrong(service: Service) -> Iterator[Problem]:
    spec = service.spec
    for text in spec.ip_families:
        if text not in FAMILIES:
            yield Problem(path="spec.ipFamilies", why=f"{text!r} is neither IPv4 nor IPv6")
    if spec.ip_family_policy and spec.ip_family_policy not in POLICIES:
        yield Problem(path="spec.ipFamilyPolicy", why=f"{spec.ip_family_policy!r} is not one of {', '.join(POLICIES)}")
    for text in POOLS.values():
        yield from _unread(service, text)
    yield from list(_unread(service, ADDRESSES)) or _addresses_wrong(service)


def _unread(service: Service, annotation: str) -> Iterator[Problem]:
    try:
        _list(service, annotation)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = service.metadata.annotations[annotation]
        why = f"{text!r} is not a JSON list of texts, as '[\"...\"]' is"
        yield Problem(path=f"metadata.annotations[{annotation}]", why=why)


def _addresses_wrong(service: Service) -> Iterator[Problem]:
    path = f"metadata.annotations[{ADDRESSES}]"
    found: list[Address] = []
    for text in _names(service, ADDRESSES):
        try:
            found.append(values.address(text))
        except ValueError as error:
            yield Problem(path=path, why=str(error))
    versions = [each.version for each in found]
    if len(set(versions)) < len(versions):
        yield Problem(path=path, why=f"asks for {', '.join(map(str, found))}; at most one of a family can be had")
    said = {FAMILIES[text] for text in service.spec.ip_families if text in FAMILIES}
    for each in found:
        if said and Family(each.version) not in said:
            yield Problem(path=path, why=f"asks for {each}, and spec.ipFamilies is {service.spec.ip_families}")


def _addresses(service: Service) -> tuple[Address, ...]:
    named = _names(service, ADDRESSES)
    if not named and service.spec.load_balancer_ip:
        named = (service.spec.load_balancer_ip,)
    return tuple(map(values.address, named))


def _names(service: Service, annotation: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in _list(service, annotation)))


def _list(service: Service, annotation: str) -> list[str]:
    text = service.metadata.annotations.get(annotation, "")
    return msgspec.json.decode(text, type=list[str]) if text.strip() else []
