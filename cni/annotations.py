"""What a pod, its namespace and the configuration wish for, as one wish. Pure.

    pod's annotations        ipAddrs ipv4pools ipv6pools ipFamilies hwAddr allowedSourcePrefixes
      over namespace's       ipv4pools ipv6pools ipFamilies
      over configuration's   ipam.ipv4_pools ipam.ipv6_pools ipam.assign_ipv4 ipam.assign_ipv6
    runtime's                runtimeConfig.ips, .mac; args.cni.ips; CNI_ARGS IP, MAC

The runtime speaks of one container, as the pod's annotations do: where both ask for something, they must ask for the
same. Nothing that is asked for is passed over: it is given, or the call fails and says which annotation. Source:
calico.md 1.2 (Pod annotations), 1.3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cni.arguments import Attachment
from cni.conf import Conf
from cni.spec import Code, Failure
from core import values
from core.addr import Address, Family, Network

PREFIX: Final = "cni.projectcalico.org/"
_LIMITS: Final = "qos.projectcalico.org/"

_SHARED: Final = ("ipv4pools", "ipv6pools", "ipFamilies")
"""What a Namespace may say for its pods."""

_FAMILIES: Final = {"ipv4": Family.V4, "ipv6": Family.V6, "4": Family.V4, "6": Family.V6}
_GATES: Final = {
    "ipAddrsNoIpam": "ip_addrs_no_ipam",
    "floatingIPs": "floating_ips",
    "allowedSourcePrefixes": "allowed_source_prefixes",
}
_NOT_THERE: Final = {
    "ipAddrsNoIpam": "an address that IPAM does not know may be another's; use ipAddrs",
    "floatingIPs": "muslin has no floating addresses yet; use a Service",
}

T = TypeVar("T")
Given = Mapping[str, tuple[str, str]]
"""By annotation, without the prefix: its value, and the object that it is on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the addresses and the wire should be. `families` None is each that a pool serves; `mac` "" any;
    `sources` are prefixes from which the pod may send besides its addresses."""

    addresses: tuple[Address, ...] = ()
    families: tuple[Family, ...] | None = None
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    mac: str = ""
    sources: tuple[Network, ...] = ()


def wish(conf: Conf, at: Attachment, pod: Mapping[str, str], namespace: Mapping[str, str]) -> Wish:
    """The wish of `at`, whose Pod and Namespace have these annotations. Raises `Failure`."""
    own = _ours(pod, f"Pod {at.namespace}/{at.pod}")
    around = _ours(namespace, f"Namespace {at.namespace}")
    _refuse_gated(conf, own)
    _refuse_limits(at, pod)
    shared = {**{key: around[key] for key in _SHARED if key in around}, **own}
    addresses = _agreed(
        "addresses",
        {
            "runtimeConfig.ips": frozenset(conf.asked.addresses),
            "CNI_ARGS IP": frozenset(at.addresses),
            f"{PREFIX}ipAddrs": frozenset(_values(own, "ipAddrs", values.address)),
        },
    )
    if len({each.version for each in addresses}) < len(addresses):
        raise Failure(Code.CONFIG, f"{PREFIX}ipAddrs: two addresses of one family; a pod has one of each")
    mac = _agreed(
        "a MAC address",
        {"runtimeConfig.mac": conf.asked.mac, "CNI_ARGS MAC": at.mac, f"{PREFIX}hwAddr": _mac(own)},
    )
    pools = {
        family: found or conf.ipam.pools.get(family, ())
        for family, key in ((Family.V4, "ipv4pools"), (Family.V6, "ipv6pools"))
        if (found := _values(shared, key, str)) or family in conf.ipam.pools
    }
    return Wish(
        addresses=tuple(sorted(addresses or (), key=lambda each: each.version)),
        families=_families(shared) or conf.ipam.families,
        pools=pools,
        mac=mac or "",
        sources=_values(own, "allowedSourcePrefixes", values.network_or_address),
    )


def askers(conf: Conf, at: Attachment, pod: Mapping[str, str], namespace: Mapping[str, str]) -> str:
    """Who says which addresses the pod of `at` is to have, for the person who has to change it; "" when nobody does."""
    own, around = _ours(pod, f"Pod {at.namespace}/{at.pod}"), _ours(namespace, f"Namespace {at.namespace}")
    given = {**{key: around[key] for key in _SHARED if key in around}, **own}
    found = [f"{given[key][1]}: {PREFIX}{key}" for key in ("ipAddrs", *_SHARED) if key in given]
    for family, key in ((Family.V4, "ipv4"), (Family.V6, "ipv6")):
        if family in conf.ipam.pools and f"{key}pools" not in given:
            found.append(f"the network configuration: ipam.{key}_pools")
    return "; ".join(found)


def _ours(annotations: Mapping[str, str], where: str) -> Given:
    return {
        key.removeprefix(PREFIX): (value, where)
        for key, value in annotations.items()
        if key.startswith(PREFIX) and value.strip()
    }


def _refuse_gated(conf: Conf, own: Given) -> None:
    for key in own.keys() & _GATES.keys():
        where, switch = own[key][1], f"feature_control.{_GATES[key]}"
        if _GATES[key] not in conf.features:
            raise Failure(Code.CONFIG, f"{where}: {PREFIX}{key}: {switch} is not true in the network configuration")
        if key in _NOT_THERE:
            raise Failure(Code.CONFIG, f"{where}: {PREFIX}{key}: {_NOT_THERE[key]}")


def _refuse_limits(at: Attachment, pod: Mapping[str, str]) -> None:
    for key in sorted(key for key, value in pod.items() if key.startswith(_LIMITS) and value.strip()):
        why = "muslin keeps pods to no such limit; for bandwidth, chain the bandwidth plugin and use kubernetes.io/"
        raise Failure(Code.CONFIG, f"Pod {at.namespace}/{at.pod}: {key}: {why}ingress-bandwidth")


def _agreed(what: str, asked: Mapping[str, T]) -> T:
    """The one thing that all who ask for any ask for; the empty one when nobody does."""
    some = {path: value for path, value in asked.items() if value}
    if len({*some.values()}) > 1:
        said = "; ".join(f"{path}: {_said(value)}" for path, value in some.items())
        raise Failure(Code.CONFIG, f"{what} asked for twice, and not the same: {said}")
    return next(iter(some.values()), next(iter(asked.values())))


def _said(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, frozenset) else str(value)


def _families(given: Given) -> tuple[Family, ...] | None:
    found = _values(given, "ipFamilies", lambda text: _FAMILIES[text.lower()])
    return tuple(sorted(set(found))) or None


def _mac(own: Given) -> str:
    if "hwAddr" not in own:
        return ""
    text, where = own["hwAddr"]
    try:
        return values.mac(text)
    except ValueError as error:
        raise Failure(Code.CONFIG, f"{where}: {PREFIX}hwAddr: {error}") from None


def _values(given: Given, key: str, reads: Callable[[str], T]) -> tuple[T, ...]:
    """An annotation that is a JSON list of texts, each read by `reads`."""
    if key not in given:
        return ()
    text, where = given[key]
    try:
        return tuple(_each(text, reads))
    except KeyError as unknown:
        why = f"{unknown} is not IPv4 or IPv6"
    except ValueError as error:
        why = str(error)
    raise Failure(Code.CONFIG, f"{where}: {PREFIX}{key}: {why}")


def _each(text: str, reads: Callable[[str], T]) -> Iterator[T]:
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f'{text!r} is not a JSON list of texts, such as ["..."]')
    for each in listed:
        yield reads(each)
