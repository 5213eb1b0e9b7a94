"""This node's host endpoints: which interface each of them covers. Pure.

    spec.interfaceName: eth0     that interface, whether it is there yet or not
    spec.expectedIPs, no name    whatever interfaces have one of these addresses, by the facts
    spec.interfaceName: '*'      every other interface that is no workload's, also one that nobody has thought of yet

One interface has one endpoint. A name goes before an address and both before `*`; among equals the first by name keeps
it, so that the outcome depends on the state alone. An endpoint that is left with nothing is set aside, with the reason.
The loopback interface is never policed, and a workload's has a workload endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

from core.names import WORKLOAD_PREFIX, Key
from core.resources import HostEndpoint
from core.snapshot import Snapshot
from linux.model import Facts

EVERY: Final = "*"
"""The interfaceName of an endpoint that covers whatever has none of its own."""

LOOPBACK: Final = "lo"

_PLAIN: Final = re.compile(r"[0-9A-Za-z_.-]{1,15}")
_WORKLOAD: Final = re.compile(rf"(?!muslin\.){WORKLOAD_PREFIX}.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host endpoint and the interfaces it covers; `pending` says what it still waits for, "" nothing."""

    key: Key
    interfaces: tuple[str, ...] = ()
    everywhere: bool = False
    pending: str = ""

    @property
    def name(self) -> str:
        """As the status spells it: no namespace looks like this."""
        return status_name(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """This node's host endpoints in order of key, and those set aside with the reason."""

    local: tuple[Host, ...] = ()
    rejected: Mapping[Key, str] = field(default_factory=lambda: MappingProxyType({}))


def status_name(key: Key) -> str:
    """How the status spells a host endpoint."""
    return f"{key.kind.name}/{key.name}"


def is_workloads(interface: str) -> bool:
    """Whether an interface is a workload's by its name, and so has a workload endpoint or is cut off."""
    return _WORKLOAD.fullmatch(interface) is not None


def local_keys(snapshot: Snapshot, node: str) -> list[Key]:
    """The host endpoints of `node`, sorted."""
    return sorted(key for key, each in snapshot.of(HostEndpoint).items() if each.spec.node == node)


def hosts(snapshot: Snapshot, facts: Facts, node: str) -> Hosts:
    """The host endpoints whose `spec.node` is `node`."""
    known = snapshot.of(HostEndpoint)
    keys = local_keys(snapshot, node)
    named = [key for key in keys if known[key].spec.interface_name not in ("", EVERY)]
    found = [key for key in keys if not known[key].spec.interface_name]
    every = [key for key in keys if known[key].spec.interface_name == EVERY]
    holders: dict[str, Key] = {}
    local: dict[Key, Host] = {}
    rejected: dict[Key, str] = {}
    for key in named:
        name = known[key].spec.interface_name
        if reason := _objection(name, holders):
            rejected[key] = reason
        else:
            holders[name] = key
            local[key] = Host(key=key, interfaces=(name,), pending=_awaited(name, facts))
    for key in found:
        _by_address(key, known[key].spec.expected_ips, facts, holders, local, rejected)
    if every:
        local[every[0]] = Host(key=every[0], everywhere=True)
        rejected.update((key, f"every other interface belongs to {every[0]}") for key in every[1:])
    return Hosts(
        local=tuple(local[key] for key in sorted(local)),
        rejected=MappingProxyType({key: rejected[key] for key in sorted(rejected)}),
    )


def _by_address(
    key: Key,
    expected: Sequence[str],
    facts: Facts,
    holders: dict[str, Key],
    local: dict[Key, Host],
    rejected: dict[Key, str],
) -> None:
    """Give the endpoint `key` the free interfaces that have one of its addresses."""
    having = list(_having(expected, facts))
    taken = {name: reason for name in having if (reason := _objection(name, holders))}
    free = tuple(name for name in having if name not in taken)
    if taken and not free:
        rejected[key] = "; ".join(taken.values())
        return
    holders.update(dict.fromkeys(free, key))
    pending = "" if free else f"no interface has {' or '.join(expected) or 'an address that it expects'} yet"
    local[key] = Host(key=key, interfaces=free, pending=pending)


def _having(expected: Sequence[str], facts: Facts) -> Iterator[str]:
    wanted = {ip_address(text) for text in expected}
    for name, link in sorted(facts.links.items()):
        if name != LOOPBACK and any(interface.ip in wanted for interface in link.addresses):
            yield name


def _objection(interface: str, holders: Mapping[str, Key]) -> str:
    if not _PLAIN.fullmatch(interface):
        return f"{interface!r} is not an interface name of 1 to 15 letters, digits, _ . or -"
    if interface == LOOPBACK:
        return "the loopback interface is never policed"
    if is_workloads(interface):
        return f"{interface} is a workload's interface: policy for workloads judges it"
    return f"{interface} belongs to {holders[interface]}" if interface in holders else ""


def _awaited(interface: str, facts: Facts) -> str:
    link = facts.links.get(interface)
    if link is None:
        return f"there is no interface {interface} yet"
    return "" if link.up else f"interface {interface} is down"
