"""The result of ADD: read as the runtime brings it along (`prevResult`), joined with ours, and written.

    prevResult   interfaces [ifb0]          ips [..., interface 0]     routes [...]   dns
    ours         interfaces [mus…, eth0]    ips [..., interface 1]     routes [...]
    told         interfaces [ifb0, mus…, eth0]  ips [0, then 1 + 1]    routes [...]   dns

What other plugins of the chain said goes on as they said it, in keys that we know and in those that we do not. CNI
specification 1.1.0, sections 2 and 5; before 1.0.0 an address says its family, from 1.1.0 an interface its MTU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any, Final

from cni.spec import Code, Failure
from core.addr import Address, Interface, Network

_LISTS: Final = ("interfaces", "ips", "routes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An interface in a result; `sandbox` is the path of the pod's namespace, "" for the host's end."""

    name: str
    mac: str
    mtu: int
    sandbox: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What ADD made: both ends, each address with its gateway, and where to through which gateway."""

    host: Device
    pod: Device
    addresses: tuple[tuple[Interface, Address], ...]
    routes: tuple[tuple[Network, Address], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A result as it was given: its lists as they are, and the addresses of each interface ("" where none is named)."""

    given: Mapping[str, Any] = field(default_factory=dict)
    addresses: Mapping[str, frozenset[Interface]] = field(default_factory=dict)
    macs: Mapping[str, str] = field(default_factory=dict)

    def of(self, interface: str) -> frozenset[Interface]:
        """The addresses said to be on `interface`, or on none in particular."""
        return self.addresses.get(interface, frozenset()) | self.addresses.get("", frozenset())


def previous(given: Any) -> Result:
    """`prevResult`, read. Raises `Failure` when it is no result."""
    try:
        if any(not isinstance(given.get(key) or [], list) for key in _LISTS):
            raise TypeError("a list is not a list")
        devices = [(str(each["name"]), str(each.get("mac") or "")) for each in given.get("interfaces") or []]
        addresses: dict[str, set[Interface]] = {}
        for each in given.get("ips") or []:
            index = each.get("interface")
            name = devices[index][0] if index is not None and index >= 0 else ""
            addresses.setdefault(name, set()).add(ip_interface(each["address"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Failure(Code.CONFIG, f"prevResult: not a result of ADD ({error!r})") from None
    return Result(
        given=given,
        addresses={name: frozenset(found) for name, found in addresses.items()},
        macs=dict(devices),
    )


def told(joined: Joined, before: Result | None, dns: Mapping[str, Any], version: str) -> Mapping[str, Any]:
    """The answer to ADD in `version`: ours after what `before` says."""
    given = before.given if before else {}
    devices = [*_listed(given, "interfaces"), *(_device(each, version) for each in (joined.host, joined.pod))]
    pod = len(devices) - 1
    addresses = [
        {"address": str(interface), "gateway": str(gateway), "interface": pod}
        | ({"version": str(interface.version)} if version < "1" else {})
        for interface, gateway in joined.addresses
    ]
    routes = [{"dst": str(destination), "gw": str(gateway)} for destination, gateway in joined.routes]
    return {
        **given,
        "cniVersion": version,
        "interfaces": devices,
        "ips": [*_listed(given, "ips"), *addresses],
        "routes": [*_listed(given, "routes"), *routes],
        "dns": {**(given.get("dns") or {}), **dns},
    }


def _listed(given: Mapping[str, Any], key: str) -> Sequence[Any]:
    return given.get(key) or []


def _device(device: Device, version: str) -> Mapping[str, Any]:
    said: dict[str, Any] = {"name": device.name, "mac": device.mac}
    if device.sandbox:
        said["sandbox"] = device.sandbox
    if version >= "1.1":
        said["mtu"] = device.mtu
    return said
