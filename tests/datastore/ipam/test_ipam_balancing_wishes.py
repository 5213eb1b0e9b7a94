"""What a Service asks for, and what is done about it: from objects to decisions, without a store."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from core.addr import Family
from core.errors import Invalid
from core.resources import IPAMHandle, Metadata
from core.resources.ipam import HandleSpec
from datastore.ipam.balancing.ingress import addresses, telling
from datastore.ipam.balancing.plan import Context, Due, Give, Take, Wait, judge
from datastore.ipam.balancing.wishes import Wish, handle_of, served, wish
from tests.datastore.balancing_ground import assigning, balanced, ingress, service
from tests.datastore.ipam_ground import pool

FOUR, SIX = balanced("four", "198.51.100.0/24"), balanced("six", "2001:db8::/112")
BOTH = frozenset(Family)
V4, V6 = (Family.V4,), (Family.V6,)
Words = Mapping[str, str]


@pytest.mark.parametrize(
    ("spec", "able", "held", "wanted"),
    [
        ({}, BOTH, [], (Family.V4, Family.V6)),
        ({}, V4, [], V4),
        ({}, [], [], None),
        ({}, V6, ["198.51.100.1"], (Family.V4, Family.V6)),
        ({"ip_families": ["IPv6", "IPv4"]}, V4, [], (Family.V6, Family.V4)),
        ({"ip_families": ["IPv6"]}, BOTH, [], V6),
        ({"ip_families": ["IPv6", "IPv4"], "ip_family_policy": "SingleStack"}, BOTH, [], V6),
        ({"ip_family_policy": "SingleStack"}, BOTH, [], V4),
        ({"ip_family_policy": "SingleStack"}, V6, [], V6),
        ({"ip_family_policy": "SingleStack"}, V4, ["2001:db8::1"], V6),
        ({"ip_family_policy": "SingleStack"}, [], [], None),
        ({"ip_families": ["IPv4", "IPv6"], "ip_family_policy": "PreferDualStack"}, V4, [], V4),
        ({"ip_families": ["IPv4", "IPv6"], "ip_family_policy": "PreferDualStack"}, [], [], V4),
        ({"ip_family_policy": "RequireDualStack"}, V4, [], (Family.V4, Family.V6)),
        ({"load_balancer_ip": "2001:db8::7"}, BOTH, [], V6),
        ({"asks": {"loadBalancerIPs": '["198.51.100.7"]'}, "load_balancer_ip": "2001:db8::7"}, BOTH, [], V4),
        ({"asks": {"ipv6pools": '["six"]'}, "ip_family_policy": "SingleStack"}, BOTH, [], V6),
        ({"asks": {"ipv6pools": '["manual"]'}}, V4, [], (Family.V4, Family.V6)),
        ({"asks": {"loadBalancerIPs": "[]", "ipv4pools": " "}}, V4, [], V4),
    ],
)
def test_which_families_a_service_is_to_have(spec: dict[str, Any], able: Any, held: list[str], wanted: Any) -> None:
    assert wish(service("web", **spec), frozenset(able), [ip_address(each) for each in held]).families == wanted


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"asks": {"loadBalancerIPs": "198.51.100.1"}}, "is not a JSON list of texts"),
        ({"asks": {"loadBalancerIPs": '{"a": "b"}'}}, "is not a JSON list of texts"),
        ({"asks": {"loadBalancerIPs": "[" * 100_000}}, "is not a JSON list of texts"),
        ({"asks": {"loadBalancerIPs": '["web.example"]'}}, "'web.example'"),
        ({"asks": {"loadBalancerIPs": '["198.51.100.1", "198.51.100.2"]'}}, "at most one of a family can be had"),
        ({"asks": {"loadBalancerIPs": '["2001:db8::1"]'}, "ip_families": ["IPv4"]}, "and spec.ipFamilies is"),
        ({"asks": {"ipv4pools": "[7]"}}, "is not a JSON list of texts"),
        ({"asks": {"ipv6pools": "six"}}, "is not a JSON list of texts"),
        ({"ip_families": ["IPv5"]}, "spec.ipFamilies: 'IPv5' is neither IPv4 nor IPv6"),
        ({"ip_family_policy": "Triple"}, "spec.ipFamilyPolicy: 'Triple' is not one of"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_path(spec: dict[str, Any], why: str) -> None:
    with pytest.raises(Invalid, match=r"Service shop/web: (metadata\.annotations\[projectcalico.org/|spec\.)") as error:
        wish(service("web", **spec), BOTH, ())
    assert why in str(error.value)


def test_pools_that_serve_are_enabled_automatic_and_for_load_balancers() -> None:
    others = [
        pool("pods", "10.0.0.0/24"),
        balanced("off", "2001:db8:1::/112", disabled=True),
        balanced("manual", "2001:db8:2::/112", assignment_mode="Manual"),
    ]
    assert served([FOUR, *others]) == {Family.V4}
    assert served([FOUR, SIX, *others]) == BOTH


@pytest.mark.parametrize(
    ("asks", "address", "fits"),
    [
        ({}, "198.51.100.1", True),
        ({}, "192.0.2.1", True),  # its pool is no more: it stays all the same
        ({"ipv4pools": '["four"]'}, "198.51.100.1", True),
        ({"ipv4pools": '["198.51.100.0/24"]'}, "198.51.100.1", True),
        ({"ipv4pools": '["more"]'}, "198.51.100.1", False),
        ({"ipv4pools": '["more"]'}, "192.0.2.1", False),
        ({"ipv4pools": '["unread"]'}, "192.0.2.1", True),  # it may lie in that
        ({"ipv4pools": '["more"]'}, "2001:db8::1", True),
        ({"loadBalancerIPs": '["198.51.100.7"]'}, "198.51.100.1", False),
        ({"loadBalancerIPs": '["198.51.100.7"]'}, "198.51.100.7", True),
        ({"loadBalancerIPs": '["198.51.100.7"]'}, "2001:db8::1", False),
    ],
)
def test_what_a_service_has_stays_if_nothing_speaks_against_it(asks: Words, address: str, fits: bool) -> None:
    given = ip_address(address)
    wanted = wish(service("web", asks=asks), BOTH, [given])
    assert isinstance(wanted, Wish)
    assert wanted.fits(given, [FOUR, SIX], frozenset({"unread"})) is fits


def test_a_family_that_is_not_asked_for_any_more_goes() -> None:
    given = ip_address("2001:db8::1")
    assert not wish(service("web", ip_families=["IPv4"]), BOTH, [given]).fits(given, [FOUR, SIX], frozenset())


@pytest.mark.parametrize(
    ("status", "held", "after"),
    [
        (None, ["198.51.100.1"], ingress("198.51.100.1")),
        ({"conditions": [1]}, ["198.51.100.1"], {"conditions": [1], **ingress("198.51.100.1")}),
        (ingress("198.51.100.9", "192.0.2.1"), ["198.51.100.1"], ingress("192.0.2.1", "198.51.100.1")),
        (ingress("198.51.100.9"), [], {"loadBalancer": {}}),
        ({"loadBalancer": None}, ["198.51.100.1"], ingress("198.51.100.1")),
        ({"loadBalancer": {"ingress": {"ip": 1}}}, ["198.51.100.1"], ingress("198.51.100.1")),
    ],
)
def test_what_a_service_says_afterwards(status: Any, held: list[str], after: Any) -> None:
    given = [ip_address(each) for each in held]
    is_ours = Context.of([FOUR], None, frozenset()).balanced
    said = telling(service("web", status), given, is_ours)
    assert said == service("web", after)
    assert telling(said, given, is_ours) is said


@pytest.mark.parametrize(
    "status",
    [
        {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}, {"hostname": "h"}, "odd", {"ip": 7}]}},
        ingress("198.51.100.1"),
    ],
)
def test_what_is_so_already_is_not_written(status: Any) -> None:
    given = service("web", status)
    assert addresses(given) == (ip_address("198.51.100.1"),)
    assert telling(given, addresses(given), lambda _: True) is given


def decided(held: str = "", settings: str = "AllServices", **spec: Any) -> Due | None:
    context = Context.of([FOUR, SIX], assigning(settings), frozenset())
    given = service("web", ingress(held) if held else None, **spec)
    made = handle(held) if held else None
    return judge(given.key, given, made, context)


def handle(address: str) -> IPAMHandle:
    text = handle_of("shop", "web")
    spec = HandleSpec(handle_id=text, addresses={address: "198.51.100.0/26"}, namespace="shop", service="web")
    return IPAMHandle(metadata=Metadata(name=text), spec=spec)


def test_what_is_done_about_a_service() -> None:
    assert isinstance(decided(), Give)
    assert decided("198.51.100.1", ip_families=["IPv4"]) is None
    assert isinstance(decided("198.51.100.1"), Give), "the other family"
    assert decided(settings="RequestedServicesOnly") is None
    assert isinstance(decided("198.51.100.1", settings="RequestedServicesOnly"), Take)
    assert isinstance(decided(settings="RequestedServicesOnly", asks={"ipv4pools": "[]"}), Give)
    assert isinstance(decided(asks={"ipv4pools": "x"}), Wait)
    assert decided(load_balancer_class="other/lb") is None
    assert decided(type="NodePort") is None
    taken = decided("198.51.100.1", load_balancer_class="other/lb")
    assert isinstance(taken, Take)
    assert taken.told == service("web", {"loadBalancer": {}}, load_balancer_class="other/lb")
    moved = decided("198.51.100.1", asks={"loadBalancerIPs": '["198.51.100.2"]'})
    assert isinstance(moved, Give)
    assert moved.request.instead_of == (ip_address("198.51.100.1"),)


def test_without_a_pool_for_it_a_service_waits_for_one() -> None:
    web = service("web")
    found = judge(web.key, web, None, Context.of([pool("pods", "10.0.0.0/24")], None, frozenset()))
    assert isinstance(found, Wait)
    assert found.why == "there is no IPPool whose allowedUses is [LoadBalancer]; make one"


def test_settings_that_nobody_can_read_give_nothing_and_take_nothing() -> None:
    context = Context.of([FOUR], None, frozenset({assigning("AllServices").key}))
    web = service("web")
    found = judge(web.key, web, None, context)
    assert isinstance(found, Wait)
    assert "KubeControllersConfiguration default cannot be read" in found.why
    has = service("web", ingress("198.51.100.1"))
    assert judge(has.key, has, handle("198.51.100.1"), context) is None
