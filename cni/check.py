"""CHECK: everything that is not as ADD left it, in one message.

    prevResult ── addresses, MAC ──┐
    datastore  ── endpoint, handle, blocks ──┼── must agree
    kernel     ── both ends, addresses, routes ──┤
    felix      ── up ──┘

A felix that is away says nothing about the pod: when that is all, CHECK is to be asked again.

What plugins later in the chain added to the result, or to the pod, is theirs and is not looked at. A pod that has only
just been added is given a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_interface
from typing import Final

from cni import wiring
from cni.call import Call, Found
from cni.result import Result
from cni.spec import Code, Failure
from cni.thread import in_thread
from cni.wiring import View
from core.addr import Family, Interface, Network, host_prefix
from core.endpoint_feed import NotProgrammed
from core.resources import WorkloadEndpoint
from linux.route_query import Ways

CONVERGE_S: Final = 2.0
"""How long felix may take (seconds) before it counts as something wrong."""


async def check(call: Call) -> None:
    """Raise `Failure` with everything that is not as ADD left it. Raises `MuslinError` or `OSError`, too."""
    found = await call.found()
    before = call.conf.previous or Result()
    if not call.is_of(found) or found.endpoint is None:
        raise Failure(Code.NOT_AS_ADDED, f"{call.key}: not there, or another container's, or another network's")
    held = _interfaces(found.endpoint)
    wrong = [
        *_result_faults(call, before, held),
        *await _ipam_faults(call, held),
        *await in_thread(call.means.threads, _kernel_faults, call, found.endpoint, held | before.of(call.at.interface)),
    ]
    lacking = await _felix_faults(call, found)
    if lacking and not wrong and call.means.outcomes.said is None:
        raise Failure(Code.TRY_AGAIN, lacking[0])  # the pod may well be as ADD left it: nobody says that it is not
    if wrong or lacking:
        raise Failure(Code.NOT_AS_ADDED, "; ".join([*wrong, *lacking]))


def _interfaces(endpoint: WorkloadEndpoint) -> frozenset[Interface]:
    return frozenset(ip_interface(host_prefix(each)) for each in endpoint.spec.addresses)


def _result_faults(call: Call, before: Result, held: frozenset[Interface]) -> Iterator[str]:
    expected = before.of(call.at.interface)
    if lacking := held - expected:
        yield f"the endpoint has {_listed(lacking)}, ADD gave {_listed(expected)}"
    if lost := {each for each in expected - held if each.network.num_addresses == 1}:
        yield f"ADD gave {_listed(lost)}, the endpoint has {_listed(held)}"
    for name in (call.place.host, call.at.interface):
        if before.macs and name not in before.macs:
            yield f"prevResult knows no interface {name}"


async def _ipam_faults(call: Call, held: frozenset[Interface]) -> Iterator[str]:
    ours = await call.means.ledger.held_by(call.handle)
    missing = held - {ip_interface(host_prefix(each)) for each in ours.addresses}
    return iter([f"{_listed(missing)}: not the container's in IPAM"] if missing else [])


def _kernel_faults(call: Call, endpoint: WorkloadEndpoint, expected: frozenset[Interface]) -> list[str]:
    place = call.place
    view = wiring.look(place)
    if view is None:
        return [f"{place.host} and {place.inside} in {place.path}: not there, or not the ends of one wire"]
    return [
        *(f"{link.name} is down" for link in (view.wire.host, view.wire.pod) if not link.up),
        *_mac_faults(call, endpoint, view),
        *([f"{place.inside} has not {_listed(missing)}"] if (missing := expected - view.addresses) else []),
        *_route_faults(call, endpoint, view),
        *(_host_faults(endpoint, view) if call.conf.wait_s else ()),
    ]


def _mac_faults(call: Call, endpoint: WorkloadEndpoint, view: View) -> Iterator[str]:
    macs = call.conf.previous.macs if call.conf.previous else {}
    for link, ours in ((view.wire.host, wiring.HOST_MAC), (view.wire.pod, endpoint.spec.mac)):
        if link.mac != ours:
            yield f"{link.name} has the MAC address {link.mac}, not {ours}"
        elif macs.get(link.name, ours).lower() != ours:
            yield f"{link.name} has the MAC address {ours}, ADD gave {macs[link.name]}"


def _route_faults(call: Call, endpoint: WorkloadEndpoint, view: View) -> Iterator[str]:
    """A route that a later plugin made more exact is fine; one that is gone altogether is not."""
    wanted = [*wiring.routes_of(endpoint.spec.addresses, call.conf.ipam.routes)]
    wanted += [host_prefix(wiring.GATEWAYS[Family.V4]) for each in endpoint.spec.addresses if each.version == 4]
    if missing := [each for each in wanted if each not in view.routes]:
        yield f"{call.at.interface} has no route to {_listed(missing)}"


def _host_faults(endpoint: WorkloadEndpoint, view: View) -> Iterator[str]:
    """What felix sees to on the host, seen for ourselves: it may be gone since felix said that all is well."""
    host = view.wire.host
    with Ways() as ways:
        for address in endpoint.spec.addresses:
            way = ways.to(address)
            if way.device != host.name:
                yield f"the node leads to {address} by {way.device or way.kind}, not by {host.name}"
    for family in sorted({Family(each.version) for each in endpoint.spec.addresses} - view.gateways):
        yield f"{host.name} is not the pod's gateway {wiring.GATEWAYS[family]}"


async def _felix_faults(call: Call, found: Found) -> list[str]:
    if not call.conf.wait_s:
        return []
    try:
        await call.means.outcomes.until_up(call.name, found.revision, min(CONVERGE_S, call.conf.wait_s))
    except NotProgrammed as why:
        return [str(why)]
    return []


def _listed(values: Iterable[Interface | Network]) -> str:
    return ", ".join(sorted(map(str, values))) or "no address"
