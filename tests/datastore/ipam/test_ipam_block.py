"""One block: which address is next, what a release leaves behind, and that nothing is changed in place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import msgspec
import pytest
from ipam_world import block

from core.resources import IPAMBlock
from datastore.ipam.block import (
    block_name,
    give_back,
    given_to,
    network_of,
    next_free,
    rested_since,
    resting,
    stamp,
    take,
    texts_within,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CIDR = "10.0.0.0/30"


def taken(start: IPAMBlock, *addresses: str, node: str = "a") -> IPAMBlock:
    for address in addresses:
        start = take(start, ip_address(address), f"h{address}", node)
    return start


@pytest.mark.parametrize("cidr", ["10.244.7.0/26", "fd00::40/122", "fd00:1:2:3:4:5:6:0/116", "::/122"])
def test_a_block_is_named_by_its_cidr_and_its_cidr_can_be_told_from_the_name(cidr: str) -> None:
    name = block_name(ip_network(cidr))
    assert not set(name) & set(".:/")
    assert network_of(name) == ip_network(cidr)


@pytest.mark.parametrize("name", ["", "mine", "10-0-0-1-26", "10-0-0-0", "300-0-0-0-26", "fd00---129"])
def test_what_is_no_name_of_a_block_has_no_cidr(name: str) -> None:
    assert network_of(name) is None


@pytest.mark.parametrize("cidr", [CIDR, "fd00::/126"])
def test_addresses_never_used_come_first_the_lowest_of_them_then_the_longest_freed(cidr: str) -> None:
    first, second, third, fourth = (str(each) for each in ip_network(cidr))
    given = taken(block(cidr, "a"), third, first)
    given = give_back(given, ip_address(third), NOON)
    assert next_free(given) == ip_address(second)
    given = taken(given, second, fourth)
    given = give_back(given, ip_address(second), NOON + timedelta(seconds=9))
    assert next_free(given) == ip_address(third)
    given = taken(given, third)
    assert next_free(given) == ip_address(second)
    assert next_free(taken(given, second)) is None


def test_what_is_freed_at_the_same_time_comes_back_in_the_order_of_the_releases() -> None:
    order = ["10.0.0.3", "10.0.0.1", "10.0.0.0", "10.0.0.2"]
    given = taken(block(CIDR, "a"), *sorted(order))
    for address in order:
        given = give_back(given, ip_address(address), NOON)
    given = msgspec.json.decode(msgspec.json.encode(given, order="sorted"), type=IPAMBlock)  # as a store keeps it
    for address in order:
        assert next_free(given) == ip_address(address)
        given = taken(given, address)


def test_a_clock_that_is_a_little_behind_does_not_change_the_order_and_one_far_ahead_does_not_spoil_it() -> None:
    given = taken(block(CIDR, "a"), *map(str, ip_network(CIDR)))
    given = give_back(given, ip_address("10.0.0.2"), NOON)
    given = give_back(given, ip_address("10.0.0.1"), NOON - timedelta(milliseconds=300))
    assert given.spec.freed["10.0.0.1"] > given.spec.freed["10.0.0.2"]
    given = give_back(given, ip_address("10.0.0.0"), NOON + timedelta(days=900))
    given = give_back(given, ip_address("10.0.0.3"), NOON)
    assert given.spec.freed["10.0.0.3"] == stamp(NOON)


def test_a_freed_address_rests_as_long_as_the_cool_down_says() -> None:
    given = taken(block("10.0.0.0/31", "a"), "10.0.0.0", "10.0.0.1")
    given = give_back(given, ip_address("10.0.0.1"), NOON)
    for seconds, there in ((0, None), (29.9, None), (30, "10.0.0.1")):
        rested = rested_since(NOON + timedelta(seconds=seconds), 30)
        assert next_free(given, rested) == (there and ip_address(there))
        assert resting(given, rested) == (there is None)
    assert next_free(given, rested_since(NOON, 0)) == ip_address("10.0.0.1")
    assert not resting(given, rested_since(NOON, 0))


def test_a_time_that_cannot_be_read_rests() -> None:
    given = block("10.0.0.0/32", "a", freed={"10.0.0.0": "yesterday"})
    assert next_free(given, rested_since(NOON, 30)) is None


def test_what_is_reserved_is_passed_over_whether_it_was_ever_used_or_not() -> None:
    reserved = texts_within(ip_network(CIDR), [ip_network("10.0.0.0/31")])
    assert reserved == {"10.0.0.0", "10.0.0.1"}
    given = taken(block(CIDR, "a"), "10.0.0.1", "10.0.0.2")
    given = give_back(given, ip_address("10.0.0.1"), NOON)
    assert next_free(given, "", reserved) == ip_address("10.0.0.3")
    assert next_free(taken(given, "10.0.0.3"), "", reserved) is None
    assert texts_within(ip_network(CIDR), [ip_network("10.0.0.0/8")]) == set(map(str, ip_network(CIDR)))
    assert texts_within(ip_network(CIDR), [ip_network("10.0.1.0/24"), ip_network("fd00::/8")]) == set()


def test_an_address_on_another_node_than_the_blocks_is_borrowed_until_it_is_given_back() -> None:
    own = taken(block(CIDR, "a"), "10.0.0.0")
    lent = taken(own, "10.0.0.1", node="b")
    assert (own.spec.borrowers, lent.spec.borrowers) == ({}, {"10.0.0.1": "b"})
    back = give_back(lent, ip_address("10.0.0.1"), NOON)
    assert (back.spec.borrowers, back.spec.allocations) == ({}, own.spec.allocations)
    assert back.spec.freed == {"10.0.0.1": stamp(NOON)}


def test_a_block_that_changes_hands_keeps_what_is_held_where_it_is_used() -> None:
    given = taken(taken(block(CIDR, "a"), "10.0.0.0"), "10.0.0.1", node="b")
    nobodys = given_to(given, "")
    assert (nobodys.spec.affinity, nobodys.spec.borrowers) == ("", {"10.0.0.0": "a", "10.0.0.1": "b"})
    assert given_to(nobodys, "b").spec.borrowers == {"10.0.0.0": "a"}
    assert given_to(nobodys, "a").spec.borrowers == {"10.0.0.1": "b"}


def test_a_change_is_a_copy() -> None:
    before = taken(block(CIDR, "a"), "10.0.0.0")
    as_it_was = msgspec.json.encode(before)
    take(before, ip_address("10.0.0.1"), "h", "b")
    give_back(before, ip_address("10.0.0.0"), NOON)
    given_to(before, "b")
    assert msgspec.json.encode(before) == as_it_was
