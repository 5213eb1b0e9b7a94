"""Assign order, the two phases of a claim, borrowing, specific addresses, and what is said when there is nothing."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest
from ipam_world import Cluster, block, claim, node, pool, request, reservation, settings

from core.addr import Address, Family
from core.errors import Invalid
from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, Namespace, Node
from core.resources.base import Metadata
from core.resources.ipam import AffinityState, HandleSpec
from datastore.api import ABSENT, At, Unchanged
from datastore.ipam.books import handle_key, handle_name
from datastore.ipam.giving.assign import assign
from datastore.ipam.giving.pools import free_ranges
from datastore.ipam.giving.release import release_affinity
from datastore.ipam.model import Exhausted, Remove, Write

PODS = pool("pods", "10.0.0.0/28", block_size=30)
SIX = pool("six", "fd00::/124", block_size=126)


def wanted(*texts: str) -> tuple[Address, ...]:
    return tuple(map(ip_address, texts))


def home(owner: str = "a") -> str:
    """The block of PODS that a node claims first."""
    return str(next(free_ranges(Cluster(PODS).books, PODS, owner)))


def others() -> list[str]:
    return [str(each) for each in ip_network("10.0.0.0/28").subnets(new_prefix=30) if str(each) != home()]


# nodes


def test_who_needs_a_node_gets_nothing_without_one_and_counts_on_it() -> None:
    cluster = Cluster(PODS)
    with pytest.raises(Exhausted, match="no address for h: there is no Node a; create it"):
        assign(cluster.books, request("h", needs_node=True), cluster.now)
    cluster.put(node("a"))
    guards = assign(cluster.books, request("h", needs_node=True), cluster.now).guards
    assert [each.key for each in guards if isinstance(each, At) and each.key.kind == Node.KIND] == [node("a").key]


def test_that_a_family_has_no_pool_is_counted_on_where_it_is_left_open() -> None:
    cluster = Cluster(PODS)
    lacking = Unchanged(IPPool.KIND, cluster.books.revision)
    assert lacking in cluster.decide("h").guards
    assert lacking not in cluster.decide("h", families=(Family.V4,)).guards
    assert lacking not in Cluster(PODS, SIX).decide("h").guards


# claims


def test_a_claim_is_made_in_two_phases() -> None:
    cluster = Cluster(PODS, node("a"))
    first = cluster.decide("h")
    (pending,) = first.changes
    assert first.grant is None
    assert isinstance(pending, Write)
    assert (pending.resource, pending.if_revision) == (claim("a", home()), ABSENT)
    cluster.carry_out(first)
    second = cluster.decide("h")
    assert second.grant is not None
    made, confirmed, handle = second.changes
    assert isinstance(made, Write)
    assert isinstance(made.resource, IPAMBlock)
    assert (made.if_revision, made.resource.spec.cidr, made.resource.spec.node) == (ABSENT, home(), "a")
    assert isinstance(confirmed, Write)
    assert confirmed.resource == claim("a", home(), AffinityState.CONFIRMED)
    assert confirmed.if_revision == cluster.world.at(pending.resource.key)
    assert isinstance(handle, Write)
    assert isinstance(handle.resource, IPAMHandle)
    assert (handle.resource.spec.addresses, handle.if_revision) == ({home()[:-3]: home()}, ABSENT)
    cluster.carry_out(second)


def test_a_claim_left_pending_gives_nobody_anything_and_is_resumed_by_its_node() -> None:
    far = next(cidr for cidr in others() if cidr != home("b"))
    cluster = Cluster(PODS, claim("a", far), settings(strict_affinity=True))
    assert cluster.names(IPAMBlock) == []
    cluster.give("x", "b")
    assert cluster.give("h", "a") == [far[:-3]]
    assert cluster.names(BlockAffinity) == sorted([claim("a", far).metadata.name, claim("b", home("b")).metadata.name])


def test_a_claim_lost_to_another_node_is_taken_back_and_the_next_block_tried() -> None:
    cluster = Cluster(PODS, claim("a", home()), claim("b", home(), AffinityState.CONFIRMED), block(home(), "b"))
    step = cluster.decide("h")
    assert step.grant is None
    removed, begun = step.changes
    assert removed == Remove(claim("a", home()).key, cluster.world.at(claim("a", home()).key))
    assert isinstance(begun, Write)
    assert isinstance(begun.resource, BlockAffinity)
    assert begun.resource.spec.cidr != home()
    assert ip_address(cluster.give("h")[0]) not in ip_network(home())


def test_two_nodes_that_want_one_block_get_two() -> None:
    cluster = Cluster(PODS, claim("a", home()), claim("b", home()))
    late = cluster.books
    assert ip_address(cluster.give("x", "b")[0]) in ip_network(home())
    assert not cluster.world.txn(assign(late, request("h"), cluster.now))
    assert ip_address(cluster.give("h")[0]) not in ip_network(home())


def test_a_block_that_is_nobodys_is_adopted_before_a_new_one_is_made() -> None:
    loose = block(others()[0], allocations={others()[0][:-3]: "old"}, borrowers={others()[0][:-3]: "gone"})
    cluster = Cluster(PODS, loose)
    (given,) = cluster.give("h")
    assert ip_address(given) in ip_network(others()[0])
    assert cluster.block(others()[0]).node == "a"
    assert cluster.block(others()[0]).borrowers == {others()[0][:-3]: "gone"}


def test_a_claim_whose_pool_has_another_block_size_by_now_is_taken_back() -> None:
    cluster = Cluster(PODS, claim("a", "10.0.0.0/29"))
    assert claim("a", "10.0.0.0/29").key in {each.key for each in cluster.decide("h").changes if hasattr(each, "key")}
    assert cluster.give("h")


def test_an_own_block_without_a_confirmed_claim_gets_one_with_the_next_allocation() -> None:
    cluster = Cluster(PODS, block(home(), "a"))
    cluster.give("h")
    assert cluster.world.of(BlockAffinity.KIND) == {
        claim("a", home()).metadata.name: claim("a", home(), AffinityState.CONFIRMED)
    }


def test_a_block_whose_claim_is_being_deleted_is_not_the_nodes_own() -> None:
    cluster = Cluster(PODS, block(home(), "a"), claim("a", home(), AffinityState.PENDING_DELETION))
    assert ip_address(cluster.give("h")[0]) not in ip_network(home())


# order


def test_own_blocks_come_first_then_a_new_one_then_what_others_lend() -> None:
    cluster = Cluster(PODS, *(block(cidr, "b") for cidr in others()))
    own = [cluster.give(f"h{number}")[0] for number in range(4)]
    assert [ip_address(each) for each in own] == list(ip_network(home()))
    (lent,) = cluster.give("last")
    (lender,) = (cidr for cidr in others() if ip_address(lent) in ip_network(cidr))
    assert (cluster.block(lender).node, cluster.block(lender).borrowers) == ("b", {lent: "a"})
    assert cluster.take_back("last") == [lent]
    assert (cluster.block(lender).allocations, cluster.block(lender).borrowers) == ({}, {})


def test_borrowers_spread_over_the_blocks_and_each_handle_always_begins_at_the_same() -> None:
    cluster = Cluster(PODS, settings(max_blocks_per_host=1), *(block(cidr, "b") for cidr in others()))
    for number in range(4):
        cluster.give(f"h{number}")
    chosen = {handle: cluster.decide(handle).grant for handle in map(str, range(20))}
    assert chosen == {handle: cluster.decide(handle).grant for handle in chosen}
    assert len({grant.addresses for grant in chosen.values() if grant}) == len(others())


def test_the_blocks_of_a_load_balancer_lend_nothing() -> None:
    virtual = IPAMBlock(
        metadata=Metadata(name="10-0-0-0-30"),
        spec=block("10.0.0.0/30").spec.__class__(cidr="10.0.0.0/30", affinity="virtual:load-balancer"),
    )
    cluster = Cluster(pool("pods", "10.0.0.0/30", block_size=30), virtual)
    for fields in ({}, {"addresses": wanted("10.0.0.1")}):
        with pytest.raises(Exhausted):
            cluster.decide("h", **fields)


# all or none


def test_both_families_or_none() -> None:
    cluster = Cluster(PODS, SIX)
    assert {ip_address(each).version for each in cluster.give("h")} == {4, 6}
    for number in range(15):
        cluster.give(f"x{number}", families=(Family.V6,))
    before = cluster.world.revision
    with pytest.raises(Exhausted, match=r"no IPv6 address for y on node a"):
        cluster.decide("y", families=(Family.V4, Family.V6))
    assert cluster.world.revision == before


def test_asking_twice_is_asking_once() -> None:
    cluster = Cluster(PODS)
    given = cluster.give("h")
    cluster.put(SIX, settings(max_blocks_per_host=1))
    step = cluster.decide("h")
    assert step.changes == ()
    assert step.grant is not None
    assert [str(each) for each in step.grant.addresses] == given
    assert {guard.key.kind for guard in step.guards if isinstance(guard, At)} == {IPAMBlock.KIND, IPAMHandle.KIND}


def test_a_family_that_is_asked_for_by_name_is_added_to_what_is_held() -> None:
    cluster = Cluster(PODS)
    (four,) = cluster.give("h")
    cluster.put(SIX)
    both = cluster.give("h", families=(Family.V4, Family.V6))
    assert both[0] == four
    handle = cluster.world.of(IPAMHandle.KIND)["h"]
    assert isinstance(handle, IPAMHandle)
    assert sorted(handle.spec.addresses) == sorted(both)


def test_a_handle_says_for_whom_it_holds() -> None:
    cluster = Cluster(PODS)
    cluster.give("net.c1", namespace="shop")
    handle = cluster.world.of(IPAMHandle.KIND)["net.c1"]
    assert isinstance(handle, IPAMHandle)
    spec = handle.spec
    assert (spec.handle_id, spec.node, spec.namespace, spec.pod) == ("net.c1", "a", "shop", "net.c1")
    assert spec.since == "2026-01-01T12:00:00.000000Z"


def test_a_handle_that_can_be_no_name_has_a_digest_for_one() -> None:
    assert handle_name("net.c1") == "net.c1"
    digest = handle_name("Net/Work.C1")
    assert digest.startswith("sha256.")
    assert digest == handle_name("Net/Work.C1") != handle_name("Net/Work.C2")
    cluster = Cluster(PODS)
    assert cluster.give("Net/Work.C1") == cluster.give("Net/Work.C1")
    assert cluster.names(IPAMHandle) == [digest]


# settings


def test_max_blocks_per_host_caps_the_blocks_of_each_family() -> None:
    cluster = Cluster(PODS, SIX, settings(strict_affinity=True, max_blocks_per_host=2))
    for number in range(8):
        cluster.give(f"h{number}")
    said = "node a has 2 blocks of the 2 that maxBlocksPerHost allows; raise the limit"
    with pytest.raises(Exhausted, match=said):
        cluster.decide("h8")
    assert cluster.give("x", "b")


def test_a_claim_that_was_begun_counts_against_the_limit() -> None:
    off = pool("off", "10.1.0.0/28", block_size=30, disabled=True)
    cluster = Cluster(PODS, off, claim("a", "10.1.0.0/30"), settings(strict_affinity=True, max_blocks_per_host=1))
    with pytest.raises(Exhausted, match="node a has 1 blocks of the 1 that maxBlocksPerHost allows"):
        cluster.decide("h")


def test_a_claim_near_the_limit_is_guarded_against_another_process_of_the_node() -> None:
    near = Cluster(PODS, settings(max_blocks_per_host=1)).decide("h")
    far = Cluster(PODS, settings(max_blocks_per_host=20)).decide("h")
    kinds = [[each.kind for each in step.guards if isinstance(each, Unchanged)] for step in (near, far)]
    assert [BlockAffinity.KIND in each for each in kinds] == [True, False]


def test_without_auto_allocate_blocks_a_node_has_what_it_was_given() -> None:
    cluster = Cluster(PODS, settings(strict_affinity=True, auto_allocate_blocks=False), block(home(), "a"))
    assert [cluster.give(f"h{number}") for number in range(4)]
    with pytest.raises(Exhausted, match="autoAllocateBlocks keeps node a from making one"):
        cluster.decide("h4")


def test_strict_affinity_lends_nothing() -> None:
    cluster = Cluster(PODS, settings(strict_affinity=True), *(block(cidr, "b") for cidr in [home(), *others()]))
    with pytest.raises(Exhausted, match=r"16 free in blocks of other nodes; strictAffinity keeps it from"):
        cluster.decide("h")


def test_settings_or_reservations_that_cannot_be_read_refuse_and_say_which() -> None:
    for hidden in (settings(), reservation("10.0.0.0/32")):
        cluster = Cluster(PODS)
        kept = cluster.give("old")
        books = cluster.hide(hidden)
        with pytest.raises(Exhausted, match=f"{hidden.KIND.name} {hidden.metadata.name} cannot be read"):
            assign(books, request("h"), cluster.now)
        step = assign(books, request("old"), cluster.now)
        assert step.grant is not None
        assert [str(each) for each in step.grant.addresses] == kept


def test_a_reserved_address_is_never_given_unless_it_is_asked_for() -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/30", block_size=30), reservation("10.0.0.0/31", "10.9.0.0/16", "fd00::/8"))
    assert [cluster.give(handle) for handle in "ab"] == [["10.0.0.2"], ["10.0.0.3"]]
    with pytest.raises(Exhausted, match="2 of 4 held, 2 reserved; only reserved addresses are left"):
        cluster.decide("c")
    assert cluster.give("c", addresses=wanted("10.0.0.1")) == ["10.0.0.1"]


def test_a_block_that_is_reserved_as_a_whole_is_not_claimed() -> None:
    cluster = Cluster(PODS, reservation(home()))
    assert ip_address(cluster.give("h")[0]) not in ip_network(home())


def test_a_freed_address_rests_and_the_error_says_until_when() -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/32", block_size=32), settings(ip_cooldown_seconds=60))
    cluster.give("h")
    cluster.take_back("h")
    cluster.now += timedelta(seconds=59)
    with pytest.raises(Exhausted, match=r"1 freed and resting; the next has rested at 2026-01-01T12:01:00\.000000Z"):
        cluster.decide("x")
    with pytest.raises(Exhausted, match="rests until"):
        cluster.decide("x", addresses=wanted("10.0.0.0"))
    cluster.now += timedelta(seconds=1)
    assert cluster.give("x") == ["10.0.0.0"]


# specific addresses


def test_a_specific_address_is_that_one_and_its_block_is_claimed_for_the_node() -> None:
    cluster = Cluster(PODS)
    assert cluster.give("h", addresses=wanted("10.0.0.6")) == ["10.0.0.6"]
    assert cluster.block("10.0.0.4/30").node == "a"
    assert cluster.give("h", addresses=wanted("10.0.0.6")) == ["10.0.0.6"]


def test_specific_addresses_of_both_families() -> None:
    cluster = Cluster(PODS, SIX)
    assert cluster.give("h", addresses=wanted("fd00::9", "10.0.0.6")) == ["10.0.0.6", "fd00::9"]
    with pytest.raises(Invalid, match="at most one of a family"):
        cluster.decide("x", addresses=wanted("10.0.0.1", "10.0.0.2"))


def test_a_specific_address_in_another_nodes_block_is_borrowed_unless_affinity_is_strict() -> None:
    cluster = Cluster(PODS, block("10.0.0.4/30", "b"))
    assert cluster.give("h", addresses=wanted("10.0.0.6")) == ["10.0.0.6"]
    assert cluster.block("10.0.0.4/30").borrowers == {"10.0.0.6": "a"}
    cluster.put(settings(strict_affinity=True))
    with pytest.raises(Exhausted, match=r"IPAMBlock 10-0-0-4-30, node b's, and strictAffinity keeps node a"):
        cluster.decide("x", addresses=wanted("10.0.0.7"))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.0.0.1", "10.0.0.1 for h is held by x; release it"),
        ("10.9.9.9", "lies in no pool"),
        ("10.1.0.1", "pool off is disabled"),
        ("fd00::1", "lies in no pool"),
    ],
)
def test_a_specific_address_that_cannot_be_had_says_why(address: str, why: str) -> None:
    cluster = Cluster(PODS, pool("off", "10.1.0.0/24", disabled=True))
    cluster.give("x", "b", addresses=wanted("10.0.0.1"))
    with pytest.raises(Exhausted, match=why):
        cluster.decide("h", addresses=wanted(address))


def test_a_specific_address_obeys_the_pools_that_are_asked_for_and_no_selector() -> None:
    manual = pool("manual", "10.1.0.0/24", assignment_mode="Manual", node_selector="never == 'ever'")
    cluster = Cluster(PODS, manual)
    with pytest.raises(Exhausted, match="lies in none of manual"):
        cluster.decide("h", addresses=wanted("10.0.0.1"), pools={Family.V4: ("manual",)})
    assert cluster.give("h", addresses=wanted("10.1.0.1")) == ["10.1.0.1"]


def test_a_handle_that_has_one_address_does_not_get_another_of_the_family() -> None:
    cluster = Cluster(PODS)
    cluster.give("h", addresses=wanted("10.0.0.1"))
    with pytest.raises(Exhausted, match=r"h has 10\.0\.0\.1 and asks for 10\.0\.0\.2"):
        cluster.decide("h", addresses=wanted("10.0.0.2"))


@pytest.mark.parametrize("fields", [{"max_blocks_per_host": 1}, {"auto_allocate_blocks": False}])
def test_no_block_is_made_for_a_specific_address_beyond_the_limits(fields: dict[str, int]) -> None:
    cluster = Cluster(PODS, block("10.0.0.0/30", "a"), settings(strict_affinity=True, **fields))
    with pytest.raises(Exhausted, match=r"10\.0\.0\.9 for h lies in no block yet, and"):
        cluster.decide("h", addresses=wanted("10.0.0.9"))


def test_no_block_is_made_around_an_address_over_one_of_another_size() -> None:
    cluster = Cluster(PODS, block("10.0.0.8/31", "b"))
    with pytest.raises(Exhausted, match="blocks of another size are in the way"):
        cluster.decide("h", addresses=wanted("10.0.0.10"))


# nothing to give


def test_when_nothing_serves_the_error_says_why_for_each_pool() -> None:
    with pytest.raises(Exhausted, match="there is no IPv4 pool; there is no IPv6 pool"):
        Cluster().decide("h")
    cluster = Cluster(pool("off", "10.0.0.0/24", disabled=True), pool("east", "10.1.0.0/24", node_selector="has(east)"))
    with pytest.raises(Exhausted, match=r"east has the nodeSelector has\(east\), off is disabled"):
        cluster.decide("h", families=(Family.V4,))


def test_when_all_is_held_the_error_says_how_full_each_pool_is() -> None:
    cluster = Cluster(pool("one", "10.0.0.0/31", block_size=31), pool("two", "10.1.0.0/32", block_size=32))
    for handle in "abc":
        cluster.give(handle)
    said = r"one \(10\.0\.0\.0/31\) has 2 of 2 held; pool two \(10\.1\.0\.0/32\) has 1 of 1 held; add a pool or free"
    with pytest.raises(Exhausted, match=said):
        cluster.decide("d")
    cluster.take_back("b")
    assert cluster.give("d")


def test_an_unreadable_block_is_neither_used_nor_made_anew() -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/30", block_size=30))
    books = cluster.hide(block("10.0.0.0/30", "a"))
    with pytest.raises(Exhausted, match="1 blocks that cannot be used"):
        assign(books, request("h"), cluster.now)
    with pytest.raises(Exhausted, match="IPAMBlock 10-0-0-0-30, which cannot be read"):
        assign(books, request("h", addresses=wanted("10.0.0.1")), cluster.now)


def test_what_a_handle_holds_in_an_unreadable_block_is_neither_granted_nor_replaced() -> None:
    cluster = Cluster(PODS)
    cluster.give("h")
    books = cluster.hide(block(home(), "a"))
    with pytest.raises(Exhausted, match="which cannot be read"):
        assign(books, request("h"), cluster.now)
    books = cluster.books
    books.see(handle_key("h"), None, 99)
    with pytest.raises(Exhausted, match="IPAMHandle h cannot be read"):
        assign(books, request("h"), cluster.now)


def test_an_address_in_another_spelling_is_held_and_one_in_two_makes_its_block_unreadable() -> None:
    odd = block("fd00::/126", "a", allocations={"FD00:0::0": "x"}, freed={"fd00:0::3": "2026-01-01T00:00:00Z"})
    cluster = Cluster(pool("six", "fd00::/126", block_size=126), odd)
    with pytest.raises(Exhausted, match="is held by x"):
        cluster.decide("h", addresses=wanted("fd00::"))
    assert [cluster.give(handle) for handle in "hij"] == [["fd00::1"], ["fd00::2"], ["fd00::3"]]
    assert cluster.block("fd00::/126").allocations["fd00::"] == "x"
    cluster.put(block("fd00::/126", "a", allocations={"FD00::": "x", "fd00::": "y"}))
    with pytest.raises(Exhausted, match="cannot be used"):
        cluster.decide("k")


# guards


@pytest.mark.parametrize(
    "change",
    [
        pool("pods", "10.0.0.0/28", block_size=30, disabled=True),
        node("a", moved="yes"),
        Namespace(metadata=Metadata(name="shop", labels={"team": "other"})),
        settings(strict_affinity=True),
        reservation("10.0.0.0/28"),
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_decision_on_what_has_changed_meanwhile_is_refused(change: IPPool | Node | Namespace, steps: int) -> None:
    """At each moment: the first phase of a claim, the second, and an address of an own block."""
    cluster = Cluster(PODS, node("a"), Namespace(metadata=Metadata(name="shop")))
    if steps == 2:
        cluster.give("x", namespace="shop")
    elif steps:
        cluster.carry_out(cluster.decide("h", namespace="shop"))
    late = cluster.decide("h", namespace="shop")
    assert cluster.world.holds(late)
    cluster.put(change)
    assert not cluster.world.txn(late)


def test_a_block_made_nobodys_meanwhile_refuses_what_was_decided_on_it() -> None:
    cluster = Cluster(PODS)
    cluster.give("x")
    late = cluster.decide("h")
    cluster.carry_out(release_affinity(cluster.books, "a", ip_network(home()), cluster.now))
    assert not cluster.world.txn(late)


def test_a_handle_whose_block_is_behind_it_in_the_books_forgets_nothing() -> None:
    """A handle read alone may be newer than the block that it names."""
    cluster = Cluster(PODS)
    cluster.give("x")
    books = cluster.books
    cluster.give("h")
    handle, revision = cluster.world.objects[handle_key("h")]
    assert isinstance(handle, IPAMHandle)
    books.see(handle.key, handle, revision)
    assert not cluster.world.txn(assign(books, request("h"), cluster.now))
    empty = Cluster(PODS).books
    empty.see(handle.key, handle, revision)
    begun = assign(empty, request("h"), cluster.now)
    assert begun.grant is None


def test_a_handle_whose_block_is_gone_gets_another_address() -> None:
    gone = IPAMHandle(
        metadata=Metadata(name="h"), spec=HandleSpec(handle_id="h", addresses={"10.0.0.1": "10.0.0.0/30"}, node="a")
    )
    cluster = Cluster(PODS, gone)
    assert len(cluster.give("h")) == 1
