"""The ends: of a handle, of one address, of a block, of a claim; and what is remembered of them."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address, ip_network

import msgspec
from ipam_world import Cluster, block, claim, pool, settings

from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPAMRecord
from core.resources.ipam import AffinityState
from core.validate import validate
from datastore.api import ABSENT
from datastore.ipam.books import handle_key
from datastore.ipam.giving.past import record_name
from datastore.ipam.giving.release import (
    release,
    release_address,
    release_affinity,
    release_block,
)

FOUR, SIX = pool("four", "10.0.0.0/30", block_size=30), pool("six", "fd00::/126", block_size=126)
RANGE = ip_network("10.0.0.0/30")


def records(cluster: Cluster) -> list[IPAMRecord]:
    found = cluster.world.of(IPAMRecord.KIND).values()
    return sorted((each for each in found if isinstance(each, IPAMRecord)), key=lambda each: each.spec.until)


def test_a_release_frees_all_of_a_handle_in_one_step_and_remembers_each() -> None:
    cluster = Cluster(FOUR, SIX)
    given = cluster.give("net.c1", namespace="shop")
    cluster.now += timedelta(seconds=5)
    before = cluster.world.revision
    assert cluster.take_back("net.c1") == given
    assert cluster.world.revision == before + 1
    assert cluster.names(IPAMHandle) == []
    assert cluster.block("10.0.0.0/30").allocations == cluster.block("fd00::/126").allocations == {}
    assert {each.spec.address for each in records(cluster)} == set(given)
    one = records(cluster)[0]
    assert (one.spec.handle_id, one.spec.node, one.spec.namespace, one.spec.pod) == ("net.c1", "a", "shop", "net.c1")
    assert (one.spec.since, one.spec.until) == ("2026-01-01T12:00:00.000000Z", "2026-01-01T12:00:05.000000Z")
    assert one.spec.why == "DEL"


def test_what_is_written_is_valid() -> None:
    cluster = Cluster(FOUR, SIX)
    cluster.give("Net/Work.C1")
    cluster.give("net.c2", "b")
    cluster.take_back("Net/Work.C1")
    for kind in (IPAMBlock, IPAMHandle, BlockAffinity, IPAMRecord):
        assert cluster.names(kind)
        for each in cluster.world.of(kind.KIND).values():
            assert validate(each) == []


def test_a_release_of_nothing_is_nothing() -> None:
    cluster = Cluster(FOUR)
    step = release(cluster.books, "h", "DEL", cluster.now)
    assert (step.changes, step.grant and step.grant.addresses) == ((), ())


def test_the_same_holder_may_have_the_same_address_many_times_and_each_is_remembered() -> None:
    cluster = Cluster(FOUR)
    for _ in range(3):
        cluster.give("h", addresses=(ip_address("10.0.0.0"),))
        cluster.now += timedelta(microseconds=1)
        cluster.take_back("h")
    assert len(records(cluster)) == 3
    assert record_name(ip_address("fd00::1"), "h", "1") != record_name(ip_address("fd00::1"), "h", "2")


def test_an_address_given_anew_is_not_freed_by_an_old_judgement() -> None:
    cluster = Cluster(FOUR)
    (text,) = cluster.give("h")
    judged = cluster.world.at(handle_key("h"))
    late = release(cluster.books, "h", "leak", cluster.now)
    handle = cluster.world.objects[handle_key("h")][0]
    cluster.put(handle)  # what every ADD does
    assert not cluster.world.txn(late)
    assert release_address(cluster.books, ip_address(text), "leak", cluster.now, judged).changes == ()
    assert release_address(cluster.books, ip_address(text), "leak", cluster.now, ABSENT).changes == ()
    cluster.carry_out(release_address(cluster.books, ip_address(text), "leak", cluster.now, judged + 1))
    assert cluster.names(IPAMHandle) == []


def test_one_address_of_two_leaves_the_other_with_its_handle() -> None:
    cluster = Cluster(FOUR, SIX)
    four, six = cluster.give("h")
    cluster.carry_out(release_address(cluster.books, ip_address(six), "asked", cluster.now))
    handle = cluster.world.of(IPAMHandle.KIND)["h"]
    assert isinstance(handle, IPAMHandle)
    assert list(handle.spec.addresses) == [four]
    assert release_address(cluster.books, ip_address(six), "asked", cluster.now).changes == ()
    assert cluster.take_back("h") == [four]


def test_an_allocation_whose_handle_is_missing_can_be_freed_and_not_if_the_handle_is_there_after_all() -> None:
    cluster = Cluster(FOUR, block("10.0.0.0/30", "b", allocations={"10.0.0.2": "lost"}))
    step = release_address(cluster.books, ip_address("10.0.0.2"), "mend", cluster.now, ABSENT)
    behind = cluster.books
    cluster.carry_out(step)
    assert cluster.block("10.0.0.0/30").allocations == {}
    assert [(each.spec.handle_id, each.spec.node, each.spec.since) for each in records(cluster)] == [("lost", "b", "")]
    cluster.put(block("10.0.0.0/30", "b"))
    (text,) = cluster.give("h", "b")
    behind = cluster.books
    behind.see(handle_key("h"), None, ABSENT)  # handles are read one at a time: it was not
    assert not cluster.world.txn(release_address(behind, ip_address(text), "mend", cluster.now))


def test_an_address_in_a_block_that_cannot_be_read_stays_with_its_handle() -> None:
    cluster = Cluster(FOUR, SIX)
    four, six = cluster.give("h")
    books = cluster.books
    books.see(block("10.0.0.0/30").key, None, cluster.world.at(block("10.0.0.0/30").key))
    step = release(books, "h", "DEL", cluster.now)
    cluster.carry_out(step)
    assert step.grant is not None
    assert [str(each) for each in step.grant.addresses] == [six]
    assert release_address(books, ip_address(four), "DEL", cluster.now).changes == ()
    assert cluster.take_back("h") == [four]


def test_a_handle_newer_than_its_block_is_not_dropped_without_its_address() -> None:
    cluster = Cluster(FOUR)
    cluster.give("x")
    behind = cluster.books
    cluster.give("h")
    handle, revision = cluster.world.objects[handle_key("h")]
    behind.see(handle.key, handle, revision)
    assert not cluster.world.txn(release(behind, "h", "DEL", cluster.now))
    unknown = Cluster(FOUR).books
    unknown.see(handle.key, handle, revision)
    assert not cluster.world.txn(release(unknown, "h", "DEL", cluster.now))


def test_a_block_goes_with_its_claim_when_it_is_empty_and_has_rested() -> None:
    cluster = Cluster(FOUR, settings(ip_cooldown_seconds=60))
    cluster.give("h")
    assert release_block(cluster.books, RANGE, cluster.now).changes == ()
    cluster.take_back("h")
    cluster.now += timedelta(seconds=59)
    assert release_block(cluster.books, RANGE, cluster.now).changes == ()
    cluster.now += timedelta(seconds=1)
    step = release_block(cluster.books, RANGE, cluster.now)
    cluster.carry_out(step)
    assert cluster.names(IPAMBlock) == cluster.names(BlockAffinity) == []
    assert release_block(cluster.books, RANGE, cluster.now).changes == ()


def test_a_block_used_again_or_a_longer_rest_refuses_the_end_of_a_block() -> None:
    for change in (block("10.0.0.0/30", "a", allocations={"10.0.0.1": "h"}), settings(ip_cooldown_seconds=600)):
        cluster = Cluster(FOUR)
        cluster.give("h")
        cluster.take_back("h")
        late = release_block(cluster.books, RANGE, cluster.now)
        assert late.changes
        cluster.put(change)
        assert not cluster.world.txn(late)


def test_a_claim_that_leads_nowhere_goes_alone() -> None:
    cluster = Cluster(FOUR, claim("a", "10.0.0.0/30"), block("10.0.0.0/30", "b"))
    cluster.carry_out(release_affinity(cluster.books, "a", RANGE, cluster.now))
    assert cluster.names(BlockAffinity) == []
    assert cluster.block("10.0.0.0/30").node == "b"
    assert release_affinity(cluster.books, "a", RANGE, cluster.now).changes == ()


def test_what_is_held_on_a_node_that_is_gone_stays_held_and_its_block_becomes_nobodys() -> None:
    cluster = Cluster(FOUR)
    (text,) = cluster.give("h", "gone")
    cluster.carry_out(release_affinity(cluster.books, "gone", RANGE, cluster.now))
    left = cluster.block("10.0.0.0/30")
    assert (left.affinity, left.allocations, left.borrowers) == ("", {text: "h"}, {text: "gone"})
    assert cluster.names(BlockAffinity) == []
    assert cluster.give("x", "b") != [text]
    assert cluster.block("10.0.0.0/30").node == "b"
    assert cluster.take_back("h") == [text]


def test_an_empty_block_of_a_node_that_is_gone_goes() -> None:
    cluster = Cluster(FOUR)
    cluster.give("h")
    cluster.take_back("h")
    cluster.carry_out(release_affinity(cluster.books, "a", RANGE, cluster.now))
    assert cluster.names(IPAMBlock) == cluster.names(BlockAffinity) == []


def test_a_claim_to_a_block_that_cannot_be_read_stays() -> None:
    cluster = Cluster(FOUR, claim("a", "10.0.0.0/30", AffinityState.CONFIRMED))
    books = cluster.hide(block("10.0.0.0/30", "a"))
    assert release_affinity(books, "a", RANGE, cluster.now).changes == ()
    assert release_block(books, RANGE, cluster.now).changes == ()


def test_a_block_survives_the_store_as_it_was() -> None:
    cluster = Cluster(FOUR)
    cluster.give("h")
    found = cluster.world.of(IPAMBlock.KIND)["10-0-0-0-30"]
    assert msgspec.json.decode(msgspec.json.encode(found, order="sorted"), type=IPAMBlock) == found
