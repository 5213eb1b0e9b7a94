"""What garbage collection makes of deleted nodes, and of blocks, claims, pools and records at their end. Pure."""

from __future__ import annotations

import random
from datetime import timedelta
from ipaddress import ip_address

import pytest
from ipam_collect_world import (
    B0,
    B1,
    B2,
    GRACE,
    NOW,
    World,
    affinity,
    bare_handle,
    block,
    carried_out,
    cooldown,
    endpoint,
    handle,
    node,
    pool,
    removals,
    world,
    writes,
)

from core.manifest import encode
from core.resources import IPAMBlock, IPAMRecord, Resource
from core.resources.ipam import AffinityState, HandleSpec
from datastore.api import Entry
from datastore.ipam.collecting.collect import MOST_PATIENCE, Written
from datastore.ipam.collecting.history import BATCH, MOST_RECORDS, OLDEST, outdated
from datastore.ipam.giving.past import record

# Nodes that are gone


def test_a_tunnels_address_is_in_use_while_its_node_is_there() -> None:
    tunnel = bare_handle("ipip-tunnel-addr-n2", "10.0.0.7", B0, "n2")
    seen = world(pool(), node("n1"), node("n2"), block(B0, _7="ipip-tunnel-addr-n2"), tunnel)
    assert seen.due(1 + MOST_PATIENCE) == set()
    seen.drop(node("n2"))
    assert seen.due() == {"handle ipip-tunnel-addr-n2"}
    seen.drop(tunnel)
    assert seen.due() == {"handle ipip-tunnel-addr-n2"}


def test_our_own_tunnels_address_is_never_ours_to_take() -> None:
    seen = world(pool(), block(B0, _7="ipip-tunnel-addr-n1"), bare_handle("ipip-tunnel-addr-n1", "10.0.0.7", B0))
    assert seen.due(1 + MOST_PATIENCE) == set()


def gone() -> World:
    """n2 is gone: a container of its, an empty block, a claim that it never finished."""
    return world(
        *(pool(), node("n1"), block(B0, "n2", _7="net.c1"), affinity(B0, "n2"), block(B1, "n2"), affinity(B1, "n2")),
        *(handle("c1", "10.0.0.7", B0, owner="n2"), affinity(B2, "n2", AffinityState.PENDING)),
    )


def test_what_a_node_that_is_gone_had_goes() -> None:
    seen = gone()
    assert seen.due() == {*("handle net.c1", "block 10.0.0.64/26", "owner 10.0.0.0/26", "affinity n2-10-0-0-128-26")}
    empty = seen.candidates()["block 10.0.0.64/26"].step
    assert set(removals(empty)) == {block(B1).key, affinity(B1, "n2").key}


def test_a_block_that_others_use_outlives_its_node() -> None:
    used = block(B0, "n2", borrowers={"10.0.0.8": "n1"}, _7="k8s-pod-network.shop.web", _8="somebody")
    seen = world(pool(), node("n1"), used, affinity(B0, "n2"))
    assert seen.due() == {"owner 10.0.0.0/26"}
    step = seen.candidates()["owner 10.0.0.0/26"].step
    left = writes(step)["IPAMBlock 10-0-0-0-26"]
    assert isinstance(left, IPAMBlock)
    assert (left.spec.affinity, left.spec.allocations) == ("", used.spec.allocations)
    assert left.spec.borrowers == {"10.0.0.7": "n2", "10.0.0.8": "n1"}
    assert set(removals(step)) == {affinity(B0, "n2").key}


def test_steps_on_one_block_are_laid_over_one_another() -> None:
    seen = world(
        *(pool(), node("n1"), block(B0, "n2", _7="net.c1", _8="net.c2", _9="somebody"), affinity(B0, "n2")),
        *(handle("c1", "10.0.0.7", B0, owner="n2"), handle("c2", "10.0.0.8", B0, owner="n2")),
    )
    scene, found = seen.scene(), seen.candidates()
    assert set(found) == {"handle net.c1", "handle net.c2", "owner 10.0.0.0/26"}
    written = Written(scene.holdings, scene.now)
    for each in found.values():
        fresh = written.rebased(each.step)
        assert carried_out(seen, fresh)
        written.note(fresh, seen.revision)
    left = seen.scene().holdings.of(IPAMBlock)[block(B0).key].resource.spec
    assert (left.affinity, left.allocations, left.borrowers) == ("", {"10.0.0.9": "somebody"}, {"10.0.0.9": "n2"})
    assert sorted(left.freed) == ["10.0.0.7", "10.0.0.8"]
    assert seen.candidates() == {}


def test_endpoints_of_a_node_that_is_gone_keep_what_is_theirs() -> None:
    seen = gone().put(endpoint("c1", "10.0.0.7", owner="n2"))
    assert "handle net.c1" not in seen.due(1 + MOST_PATIENCE)


def test_a_node_that_comes_back_in_time_loses_nothing() -> None:
    seen = gone()
    seen.scan(0.0)
    seen.put(node("n2"))
    assert seen.scan(GRACE) == set()


def test_one_node_goes_first_for_one_that_is_gone_and_each_has_its_turn() -> None:
    others = [node(f"m{number}") for number in range(12)]
    patiences = []
    for each in others:
        seen = gone().put(*others)
        seen.drop(node("n1"))
        seen.node = each.metadata.name
        patiences.append(seen.candidates()["handle net.c1"].patience)
    assert sorted(patiences) == sorted(1 + min(rank, MOST_PATIENCE) for rank in range(12))


def test_a_node_that_is_not_of_the_cluster_collects_for_nobody() -> None:
    seen = gone()
    seen.node = "stranger"
    assert seen.due(1 + MOST_PATIENCE) == set()


# Blocks


def test_an_empty_block_goes_when_the_node_has_another_in_use() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="a.b.c"), block(B1), affinity(B0), affinity(B1))
    assert seen.due() == {"block 10.0.0.64/26"}
    assert set(removals(seen.candidates()["block 10.0.0.64/26"].step)) == {block(B1).key, affinity(B1).key}


def test_a_block_that_was_used_in_between_begins_again() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="a.b.c"), block(B1))
    seen.scan(0.0)
    seen.put(block(B1))
    assert seen.scan(GRACE) == set()


def test_a_node_keeps_one_block_of_each_pool_that_serves_it() -> None:
    six = pool("six", "fd00::/112")
    seen = world(pool(), six, node("n1"), block(B0), block(B1), block(B2), block("fd00::/122"), block("fd00::40/122"))
    assert seen.due() == {"block 10.0.0.64/26", "block 10.0.0.128/26", "block fd00::40/122"}


@pytest.mark.parametrize(
    "why", [{"node_selector": "rack == 'b'"}, {"disabled": True}, {"allowed_uses": ["LoadBalancer"]}]
)
def test_the_last_block_goes_when_its_pool_serves_the_node_no_more(why: dict[str, object]) -> None:
    seen = world(pool(**why), node("n1", rack="a"), block(B0), affinity(B0))  # type: ignore[arg-type]
    assert seen.due() == {"block 10.0.0.0/26"}
    assert seen.scan(0.0) == set()


def test_a_block_whose_addresses_rest_stays() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="a.b.c"), cooldown(60))
    rests = block(B1)
    rests = type(rests)(
        metadata=rests.metadata,
        spec=type(rests.spec)(cidr=B1, affinity="host:n1", freed={"10.0.0.65": "2026-01-31T11:59:30.000000Z"}),
    )
    seen.put(rests)
    assert seen.due() == set()
    seen.now = NOW + timedelta(seconds=31)
    assert seen.due() == {"block 10.0.0.64/26"}
    seen.now = NOW
    seen.put(cooldown(0))
    assert seen.due() == {"block 10.0.0.64/26"}


@pytest.mark.parametrize("pools", [(pool(ends=True),), ()])
def test_an_empty_block_of_a_pool_at_its_end_goes_at_once(pools: tuple[Resource, ...]) -> None:
    seen = world(*pools, node("n1"), node("n2"), block(B0), affinity(B0), block(B1, _7="a.b.c"), block(B2, "n2"))
    assert seen.scan(0.0) == {"block 10.0.0.0/26"}
    assert seen.due(1 + MOST_PATIENCE) == {"block 10.0.0.0/26", "block 10.0.0.128/26"}


def test_a_block_of_nobodys_goes_when_it_is_empty() -> None:
    seen = world(pool(), node("n1"), block(B0, ""), block(B1, "", _7="a.b.c"))
    assert seen.due() == {"block 10.0.0.0/26"}


def test_a_block_of_no_host_is_not_ours_to_judge() -> None:
    virtual = block(B0)
    virtual = type(virtual)(
        metadata=virtual.metadata, spec=type(virtual.spec)(cidr=B0, affinity="virtual:load-balancer")
    )
    assert world(node("n1"), virtual).due(1 + MOST_PATIENCE) == set()


# Affinities and pools


def test_a_claim_that_was_given_up_in_the_middle_goes() -> None:
    pending = affinity(B1, state=AffinityState.PENDING)
    seen = world(pool(), node("n1"), node("n2"), block(B0, _7="a.b.c"), affinity(B0), pending)
    assert seen.due() == {"affinity n1-10-0-0-64-26"}
    seen.put(block(B1, "n2"), affinity(B1, "n2"))  # another node won
    assert seen.due() == {"affinity n1-10-0-0-64-26"}


def test_a_claim_that_is_taken_up_again_begins_again() -> None:
    pending = affinity(B1, state=AffinityState.PENDING)
    seen = world(pool(), node("n1"), pending)
    seen.scan(0.0)
    seen.put(pending)
    assert seen.scan(GRACE) == set()


def test_a_claim_to_a_block_that_cannot_be_read_stays() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="a.b.c"), affinity(B0))
    seen.spoil(block(B0))
    assert seen.due() == set()


def test_a_pool_goes_with_its_last_block() -> None:
    seen = world(pool(ends=True), node("n1"), block(B0))
    assert seen.scan(0.0) == {"block 10.0.0.0/26"}
    seen.drop(block(B0))
    assert seen.scan(1.0) == {"pool pods"}
    assert removals(seen.candidates()["pool pods"].step) == {pool().key: seen.entries[pool().key].revision}


def test_a_pool_that_does_not_end_stays_without_a_block() -> None:
    assert world(pool(), node("n1")).due() == set()


# State, not history


def test_the_order_of_the_listing_changes_nothing() -> None:
    seen = gone().put(
        *(block("10.0.1.0/26", _7="net.c5", _8="net.c6"), handle("c5", "10.0.1.7", "10.0.1.0/26")),
        *(endpoint("c6", "10.0.1.8", pod="api"), block("10.0.1.64/26"), pool("old", "10.1.0.0/16", ends=True)),
        *(block("10.1.0.0/26"), node("n3")),
    )
    expected = seen.candidates()
    assert len(expected) >= 6
    keys = list(seen.entries)
    shuffled = random.Random(5)
    for _ in range(20):
        shuffled.shuffle(keys)
        found = seen.candidates(keys)
        assert {name: (each.witness, each.patience) for name, each in found.items()} == {
            name: (each.witness, each.patience) for name, each in expected.items()
        }


def test_nothing_that_is_freed_is_left_in_a_handle_or_a_block() -> None:
    seen = world(pool(), node("n1"), block(B0, _7="net.c1", _8="net.c1", _9="other.c1"))
    step = seen.candidates()["container c1"].step
    written = writes(step)["IPAMBlock 10-0-0-0-26"]
    assert isinstance(written, IPAMBlock)
    assert written.spec.allocations == {}
    records = [each for each in writes(step).values() if isinstance(each, IPAMRecord)]
    assert sorted(each.spec.address for each in records) == ["10.0.0.7", "10.0.0.8", "10.0.0.9"]


# The past


def _past(count: int, owner: str, age: timedelta) -> list[Entry]:
    found: list[Entry] = []
    for number in range(count):
        spec = HandleSpec(handle_id=f"net.c{number}", addresses={}, node=owner)
        moment = NOW - age + timedelta(microseconds=number)
        made = record(block(B0), ip_address("10.0.0.7"), spec, "DEL", moment)
        found.append(Entry(made.key, encode(made), number + 2))
    return found


def test_the_newest_records_stay() -> None:
    entries = _past(MOST_RECORDS + 2 * BATCH + 1, "n1", timedelta(hours=1))
    batches = list(outdated(reversed(entries), "n1", {"n1"}, NOW))
    assert [len(each) for each in batches] == [BATCH, BATCH, 1]
    assert {each.key for batch in batches for each in batch} == {each.key for each in entries[: 2 * BATCH + 1]}
    assert all(each.if_revision for batch in batches for each in batch)


def test_no_record_gets_older_than_a_week() -> None:
    old, young = _past(3, "n1", OLDEST + timedelta(seconds=1)), _past(3, "n1", OLDEST - timedelta(seconds=1))
    (batch,) = outdated([*old, *young], "n1", {"n1"}, NOW)
    assert {each.key for each in batch} == {each.key for each in old}


def test_records_of_nodes_that_are_gone_are_not_for_ever() -> None:
    old, young = _past(2, "n2", 2 * OLDEST), _past(2, "n2", OLDEST / 2)
    assert list(outdated([*old, *young], "n1", {"n1", "n2"}, NOW)) == []
    (batch,) = outdated([*old, *young], "n1", {"n1"}, NOW)
    assert {each.key for each in batch} == {each.key for each in old}
