"""Services' addresses among all others: audits count them, and no node collects, takes or keeps anything of them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from core.addr import Address
from core.manifest import encode
from core.names import Key
from core.resources import IPAMBlock, IPAMHandle, Metadata, Resource, Service
from core.resources.ipam import LOAD_BALANCER, AffinityState, BlockSpec, HandleSpec
from datastore.api import Entry, Listing
from datastore.ipam.auditing.audit import audit
from datastore.ipam.auditing.findings import Fault
from datastore.ipam.auditing.mend import look, mend
from datastore.ipam.balancing.wishes import handle_of
from datastore.ipam.block import block_name
from datastore.ipam.collecting import idle, unused
from datastore.ipam.collecting.collect import Live, Scene
from datastore.ipam.collecting.departure import departure
from datastore.ipam.giving.claim import affinity
from datastore.ipam.listing.holders import AUDITED, Holdings
from datastore.ipam.listing.uses import Uses
from tests.datastore.balancing_ground import balanced, ingress, service
from tests.datastore.ipam import ipam_audit_world as w

C = "198.51.100.0/28"
WEB = handle_of("shop", "web")
POOL = balanced("lb", "198.51.100.0/24", block_size=28)
CLAIM = affinity(LOAD_BALANCER, ip_network(C), AffinityState.CONFIRMED)


def virtual(**held: str) -> IPAMBlock:
    allocations = {f"198.51.100.{part.removeprefix('_')}": text for part, text in held.items()}
    spec = BlockSpec(cidr=C, affinity=LOAD_BALANCER, allocations=allocations)
    return IPAMBlock(metadata=Metadata(name=block_name(ip_network(C))), spec=spec)


def holding(address: str, name: str = "web", since: str = w.LONG_AGO) -> IPAMHandle:
    text = handle_of("shop", name)
    spec = HandleSpec(handle_id=text, addresses={address: C}, namespace="shop", service=name, since=since)
    return IPAMHandle(metadata=Metadata(name=text), spec=spec)


HELD = holding("198.51.100.1")
SERVED = (POOL, virtual(_1=WEB), CLAIM, HELD, service("web", ingress("198.51.100.1")))
POD = w.endpoint("pod-c9", "a", "c9", "198.51.100.1")


def state(*put: Resource, gone: Iterable[Resource] = ()) -> dict[Key, Resource]:
    """The sound state with a Service that is served, and some objects put in or taken out."""
    return w.changed(*SERVED, *put, gone=gone)


def holdings(objects: dict[Key, Resource], raw: dict[Key, bytes] | None = None) -> Holdings:
    values = {key: encode(each) for key, each in objects.items()} | (raw or {})
    return Holdings(Listing(9, tuple(Entry(key, value, 7) for key, value in values.items())))


def test_a_served_service_is_sound() -> None:
    report = audit(holdings(state()), w.NOW)
    assert (report.findings, report.notes) == ((), ())
    assert {str(given.address): used for given, used in report.allocations}["198.51.100.1"]
    assert {each.node for each in report.stocks} == {"a", "b"}


@pytest.mark.parametrize(
    ("objects", "fault", "certain"),
    [
        (state(gone=[service("web")]), Fault.LEAK, True),
        (state(service("web")), Fault.LEAK, False),
        (state(service("web", ingress("198.51.100.1"), load_balancer_class="other/lb")), Fault.LEAK, False),
        (state(service("db", ingress("198.51.100.9"))), Fault.UNALLOCATED, False),
        (state(service("db", ingress("198.51.100.1"))), Fault.SEVERAL, False),
        (state(POD), Fault.SEVERAL, False),
        (state(gone=[HELD]), Fault.NO_HANDLE, True),
        (state(gone=[CLAIM]), Fault.NO_AFFINITY, True),
        (state(gone=[virtual()]), Fault.NO_BLOCK, True),
    ],
    ids=["gone", "untold", "class", "unheld", "two", "pod", "handle", "claim", "block"],
)
def test_what_does_not_agree_is_found(objects: dict[Key, Resource], fault: Fault, certain: bool) -> None:
    found = {each.fault: each for each in audit(holdings(objects), w.NOW).findings}
    assert fault in found, found
    assert (found[fault].step is not None) is certain


@pytest.mark.parametrize(
    "objects",
    [
        state(gone=[service("web")]),
        state(gone=[HELD]),
        state(gone=[CLAIM]),
    ],
    ids=["gone", "handle", "claim"],
)
async def test_what_is_certain_is_mended(tmp_path: Path, objects: dict[Key, Resource]) -> None:
    store = await w.stored(tmp_path, objects)
    before = await look(store, w.NOW)
    mended = await mend(store, {each.identity for each in before.findings}, lambda: w.NOW)
    assert mended.done
    assert not mended.left.findings
    await store.close()


def test_what_others_say_of_other_addresses_is_no_ones_fault() -> None:
    theirs = service("db", ingress("198.51.100.9"), load_balancer_class="other/lb")
    outside = service("out", {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "h"}]}})
    assert not audit(holdings(state(theirs, outside)), w.NOW).findings


def test_a_service_that_nobody_can_read_may_use_what_it_holds() -> None:
    report = audit(holdings(state(), {service("web").key: b"{"}), w.NOW)
    assert [each.fault for each in report.findings] == [Fault.UNREADABLE]


def test_who_waits_is_named_with_the_reason() -> None:
    waits = [
        service("bad", asks={"loadBalancerIPs": "x"}),
        service("taken", asks={"loadBalancerIPs": '["198.51.100.1"]'}),
        service("none", ip_families=["IPv6"]),
        service("next"),
    ]
    bad, following, none, taken = audit(holdings(state(*waits)), w.NOW).notes
    assert bad.startswith("Service shop/bad waits for an address: ")
    assert "is not a JSON list of texts" in bad
    assert "muslin datastore` is about to give it" in following
    assert "no IPv6 address for Service shop/none: none of the IPv6 pools may be used: six is for Workload" in none
    assert taken.endswith(f"198.51.100.1 for Service shop/taken is held by {WEB}; release it, or ask for another")
    many = [service(f"s{number}", ip_families=["IPv6"]) for number in range(30)]
    assert audit(holdings(state(*many)), w.NOW).notes[-1] == "10 more Services wait for an address"


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_no_node_collects_what_is_the_load_balancers(ends: bool, held: bool) -> None:
    block = virtual(_1=WEB) if held else virtual()
    objects = state(block, w.ended(POOL) if ends else POOL, gone=[service("web"), *([] if held else [HELD])])
    pending = affinity(LOAD_BALANCER, ip_network("198.51.100.16/28"), AffinityState.PENDING)
    objects[pending.key] = pending
    live: frozenset[Address] = frozenset({ip_address("10.1.0.97")})
    scene = Scene(holdings=holdings(objects), live=Live(interfaces=frozenset(), addresses=live), node="a", now=w.NOW)
    found = [each.subject for each in (*unused.candidates(scene), *idle.candidates(scene))]
    assert not [each for each in found if "198" in each or "lb" in each or "load-balancer" in each]


def test_a_node_of_that_name_is_not_the_owner_and_takes_nothing_with_it() -> None:
    objects = state(w.node("load-balancer"))
    going = departure(Uses(holdings(objects)), "load-balancer")
    assert going.over
    assert not departure(Uses(holdings(objects)), "a").obstacles
    assert {*AUDITED} >= {Service.KIND}
    assert replace(CLAIM).spec.owner == LOAD_BALANCER
