"""The contract of `datastore.api.Store`, held by every backend, directly and through gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from core.errors import Conflict, Invalid
from core.names import Key
from core.resources import CLASSES, IPPool, NetworkPolicy, Node, Profile
from datastore.api import (
    ABSENT,
    BATCH_EVENTS,
    PROGRESS,
    VALUE_BOUND,
    At,
    Changes,
    Compacted,
    Delete,
    Entry,
    Event,
    Put,
    Store,
    Synced,
    Unchanged,
    WatchItem,
)

POOL, NODE, POLICY = IPPool.KIND, Node.KIND, NetworkPolicy.KIND
KINDS = frozenset({POOL, NODE, POLICY})
ALL = frozenset(cls.KIND for cls in CLASSES)


def pool(name: str) -> Key:
    return Key(POOL, "", name)


def node(name: str) -> Key:
    return Key(NODE, "", name)


def policy(namespace: str, name: str) -> Key:
    return Key(POLICY, namespace, name)


async def state(store: Store) -> dict[Key, tuple[bytes, int]]:
    return {entry.key: (entry.value, entry.revision) for entry in (await store.list(ALL)).entries}


async def take(items: AsyncIterator[WatchItem], count: int) -> list[Event]:
    """The next `count` events; whatever has none is passed over, but not an end."""
    events: list[Event] = []
    async with asyncio.timeout(10):
        while len(events) < count:
            item = await anext(items)
            assert not isinstance(item, Compacted)
            if isinstance(item, Changes):
                events += item.events
    assert len(events) == count
    return events


async def until_synced(items: AsyncIterator[WatchItem]) -> tuple[list[Event], int]:
    events: list[Event] = []
    async with asyncio.timeout(10):
        async for item in items:
            match item:
                case Changes():
                    events += item.events
                case Synced(revision):
                    return events, revision
                case Compacted():
                    break
    raise AssertionError("the watch ended before it was synced")


# --- writes and reads -------------------------------------------------------------------------------------------------


async def test_an_empty_store_has_a_revision_and_nothing_else(store: Store) -> None:
    listing = await store.list(ALL)
    assert listing.revision >= 1
    assert listing.entries == ()
    assert await store.get(pool("a")) is None


async def test_what_is_put_is_read_back(store: Store) -> None:
    before = (await store.list(ALL)).revision
    revision = await store.txn([Put(pool("a"), b'{"x":1}')])
    assert revision > before
    assert await store.get(pool("a")) == Entry(pool("a"), b'{"x":1}', revision)
    listing = await store.list({POOL})
    assert (listing.revision, listing.entries) == (revision, (Entry(pool("a"), b'{"x":1}', revision),))


async def test_a_list_is_of_the_kinds_asked_for_in_the_order_of_paths(store: Store) -> None:
    keys = [policy("shop", "b"), pool("z"), node("n"), policy("shop", "a"), policy("bank", "z"), pool("a")]
    revision = await store.txn([Put(key, key.name.encode()) for key in keys])
    listing = await store.list({POOL, POLICY})
    assert [entry.key for entry in listing.entries] == sorted(
        (key for key in keys if key.kind != NODE), key=lambda key: key.path
    )
    assert listing.revision == revision
    assert (await store.list(frozenset())).entries == ()


async def test_a_long_list_comes_whole(store: Store) -> None:
    names = [f"n{number:05}" for number in range(1200)]
    for start in range(0, len(names), 100):
        await store.txn([Put(node(name), name.encode() * 100) for name in names[start : start + 100]])
    assert [entry.key.name for entry in (await store.list({NODE})).entries] == names
    async with aclosing(store.watch(0, {NODE})) as items:
        events, _ = await until_synced(items)
    assert [event.key.name for event in events] == names


async def test_revisions_grow_with_each_transaction_and_are_the_keys_last_change(store: Store) -> None:
    first = await store.txn([Put(pool("a"), b"1"), Put(pool("b"), b"1")])
    second = await store.txn([Put(pool("b"), b"2")])
    third = await store.txn([Put(pool("b"), b"2")])
    assert first < second < third
    assert await state(store) == {pool("a"): (b"1", first), pool("b"): (b"2", third)}


async def test_unicode_and_odd_names_survive(store: Store) -> None:
    keys = [pool("größe"), pool("名前"), pool("a b%2F.."), policy("ns", "🦔"), policy("ns", "_%")]
    await store.txn([Put(key, key.name.encode()) for key in keys])
    assert {key: value for key, (value, _) in (await state(store)).items()} == {key: key.name.encode() for key in keys}


async def test_a_large_value_survives_and_too_large_a_one_is_refused(store: Store) -> None:
    value = b'"' + b"x" * (VALUE_BOUND - 2) + b'"'
    await store.txn([Put(pool("a"), value)])
    entry = await store.get(pool("a"))
    assert entry is not None
    assert entry.value == value
    with pytest.raises(Invalid, match="an object may take"):
        await store.txn([Put(pool("b"), value + b" ")])


@pytest.mark.parametrize("value", [b"", b"\x00\xff\n", b"null"])
async def test_values_are_bytes(store: Store, value: bytes) -> None:
    await store.txn([Put(pool("a"), value)])
    assert {event.value for event in (await until_synced(store.watch(0, {POOL})))[0]} == {value}


# --- compares ---------------------------------------------------------------------------------------------------------


async def test_create_wants_absence(store: Store) -> None:
    first = await store.txn([Put(pool("a"), b"1", ABSENT)])
    with pytest.raises(Conflict) as caught:
        await store.txn([Put(pool("a"), b"2", ABSENT)])
    assert (caught.value.what, caught.value.expected, caught.value.actual) == ("IPPool a", 0, first)
    assert await state(store) == {pool("a"): (b"1", first)}


async def test_update_wants_its_revision(store: Store) -> None:
    first = await store.txn([Put(pool("a"), b"1")])
    second = await store.txn([Put(pool("a"), b"2", first)])
    with pytest.raises(Conflict) as caught:
        await store.txn([Put(pool("a"), b"3", first)])
    assert (caught.value.what, caught.value.expected, caught.value.actual) == ("IPPool a", first, second)
    with pytest.raises(Conflict) as caught:
        await store.txn([Put(pool("nobody"), b"3", first)])
    assert (caught.value.what, caught.value.expected, caught.value.actual) == ("IPPool nobody", first, None)
    assert await state(store) == {pool("a"): (b"2", second)}


async def test_delete_in_every_form(store: Store) -> None:
    revision = await store.txn([Put(pool(name), b"1") for name in "abc"])
    with pytest.raises(Conflict):
        await store.txn([Delete(pool("a"), revision - 1)])
    with pytest.raises(Conflict):
        await store.txn([Delete(pool("a"), ABSENT)])
    with pytest.raises(Conflict) as caught:
        await store.txn([Delete(pool("z"), revision)])
    assert caught.value.actual is None
    await store.txn([Delete(pool("a"), revision)])
    await store.txn([Delete(pool("b"))])
    assert list(await state(store)) == [pool("c")]


async def test_a_key_that_was_deleted_can_be_created_again(store: Store) -> None:
    first = await store.txn([Put(pool("a"), b"1", ABSENT)])
    await store.txn([Delete(pool("a"))])
    second = await store.txn([Put(pool("a"), b"2", ABSENT)])
    assert second > first
    with pytest.raises(Conflict):
        await store.txn([Put(pool("a"), b"3", first)])


async def test_deleting_what_is_not_there_succeeds_and_makes_no_revision(store: Store) -> None:
    revision = await store.txn([Put(pool("a"), b"1")])
    assert await store.txn([Delete(pool("z"))]) == revision
    assert await store.txn([Delete(pool("z"), ABSENT)]) == revision
    assert (await store.list(ALL)).revision == revision
    later = await store.txn([Delete(pool("z")), Put(pool("b"), b"1")])
    events, _ = await until_synced(store.watch(revision, ALL))
    assert events == [Event(pool("b"), b"1", later)]


async def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    first = await store.txn([Put(pool("a"), b"1"), Put(pool("b"), b"1")])
    with pytest.raises(Conflict, match="IPPool b: expected revision 0"):
        await store.txn([Put(pool("a"), b"2"), Delete(node("n")), Put(pool("b"), b"2", ABSENT), Put(node("m"), b"2")])
    assert await state(store) == {pool("a"): (b"1", first), pool("b"): (b"1", first)}
    assert (await store.list(ALL)).revision == first
    second = await store.txn([Delete(pool("a"), first), Put(node("m"), b"2", ABSENT), Put(pool("b"), b"2", first)])
    assert await state(store) == {node("m"): (b"2", second), pool("b"): (b"2", second)}


async def test_the_first_compare_that_fails_is_named(store: Store) -> None:
    revision = await store.txn([Put(pool("a"), b"1"), Put(pool("b"), b"1")])
    with pytest.raises(Conflict, match="IPPool b: "):
        await store.txn([Put(pool("a"), b"2", revision), Put(pool("b"), b"2", ABSENT), Put(pool("a2"), b"2", revision)])


async def test_an_empty_transaction_tells_the_revision(store: Store) -> None:
    revision = await store.txn([Put(pool("a"), b"1")])
    assert await store.txn([]) == revision
    assert await store.txn([], [Unchanged(POOL, revision)]) == revision
    with pytest.raises(Conflict):
        await store.txn([], [Unchanged(POOL, revision - 1)])


async def test_what_no_store_can_keep_is_refused_whole(store: Store) -> None:
    wrong = [Key(POOL, "", ""), Key(POOL, "", "a/b"), Key(POLICY, "", "a"), Key(POLICY, "x/y", "a"), pool("\ud800")]
    with pytest.raises(Invalid) as caught:
        await store.txn([Put(pool("a"), b"1"), *(Put(key, b"1") for key in wrong)])
    assert len(caught.value.problems) == len(wrong)
    with pytest.raises(Invalid, match="written twice"):
        await store.txn([Put(pool("a"), b"1"), Delete(pool("a"))])
    with pytest.raises(Invalid, match="use 0 or more"):
        await store.txn([Put(pool("a"), b"1", -1)])
    with pytest.raises(Invalid, match="use 0 or more"):
        await store.txn([], [Unchanged(POOL, -1)])
    assert await state(store) == {}


# --- guards -----------------------------------------------------------------------------------------------------------


async def test_a_guard_breaks_on_a_create_and_on_a_replacement_of_its_kind_only(store: Store) -> None:
    since = await store.txn([Put(pool("a"), b"1"), Put(node("n"), b"1")])
    await store.txn([Put(node("n"), b"2")], [Unchanged(POOL, since)])
    replaced = await store.txn([Put(pool("a"), b"2")], [Unchanged(POOL, since)])
    with pytest.raises(Conflict) as caught:
        await store.txn([Put(node("n"), b"3")], [Unchanged(POOL, since)])
    assert (caught.value.what, caught.value.expected, caught.value.actual) == ("any IPPool", since, replaced)
    await store.txn([Put(node("n"), b"3")], [Unchanged(POOL, replaced), Unchanged(POLICY, 0)])
    created = await store.txn([Put(pool("b"), b"1")])
    with pytest.raises(Conflict, match="any IPPool"):
        await store.txn([Put(node("n"), b"4")], [Unchanged(POLICY, 0), Unchanged(POOL, replaced)])
    assert (await state(store))[node("n")][0] == b"3"
    await store.txn([Delete(pool("b"))], [Unchanged(POOL, created)])


async def test_a_guard_on_a_kind_without_objects_holds(store: Store) -> None:
    await store.txn([Put(pool("a"), b"1", ABSENT)], [Unchanged(POOL, 0)])
    with pytest.raises(Conflict):
        await store.txn([Put(pool("b"), b"1", ABSENT)], [Unchanged(POOL, 0)])


async def test_a_guard_is_not_fooled_by_a_kind_with_a_longer_name(store: Store) -> None:
    await store.txn([Put(Key(Profile.KIND, "", "x"), b"1"), Put(node("x"), b"1"), Put(policy("a", "b"), b"1")])
    others = [kind for kind in ALL if kind not in {Profile.KIND, NODE, POLICY}]
    await store.txn([Put(pool("a"), b"1")], [Unchanged(kind, 0) for kind in others])


async def test_a_guard_of_an_object_breaks_on_its_deletion_and_on_its_replacement(store: Store) -> None:
    created = await store.txn([Put(pool("a"), b"1"), Put(pool("b"), b"1")])
    replaced = await store.txn([Put(pool("b"), b"2")], [At(pool("a"), created), Unchanged(POOL, created)])
    assert await store.txn([], [At(pool("b"), replaced)]) == replaced
    with pytest.raises(Conflict) as caught:
        await store.txn([Put(node("n"), b"1")], [At(pool("a"), created), At(pool("b"), created)])
    assert (caught.value.what, caught.value.expected, caught.value.actual) == ("IPPool b", created, replaced)
    await store.txn([Delete(pool("a"))], [At(pool("a"), created)])
    await store.txn([Put(node("n"), b"1")], [Unchanged(POOL, replaced)])
    with pytest.raises(Conflict) as caught:
        await store.txn([Put(node("n"), b"2")], [Unchanged(POOL, replaced), At(pool("a"), created)])
    assert (caught.value.what, caught.value.expected, caught.value.actual) == ("IPPool a", created, None)
    await store.txn([Put(pool("a"), b"1")])
    with pytest.raises(Conflict, match="IPPool a"):
        await store.txn([Put(node("n"), b"2")], [At(pool("a"), created)])
    assert (await state(store))[node("n")][0] == b"1"
    with pytest.raises(Invalid, match="use 0 or more"):
        await store.txn([], [At(pool("gone"), -1)])


async def test_a_guard_of_absence_breaks_when_the_object_is_made(store: Store) -> None:
    await store.txn([Put(pool("a"), b"1")], [At(pool("b"), ABSENT)])
    with pytest.raises(Conflict, match="IPPool a"):
        await store.txn([Put(node("n"), b"2")], [At(pool("a"), ABSENT)])


# --- watch ------------------------------------------------------------------------------------------------------------


async def test_a_watch_from_nothing_replays_the_present_then_is_synced_then_goes_on(store: Store) -> None:
    first = await store.txn([Put(pool("b"), b"1"), Put(pool("a"), b"1"), Put(pool("c"), b"1")])
    second = await store.txn([Delete(pool("c")), Put(pool("b"), b"2"), Put(node("n"), b"1")])
    async with aclosing(store.watch(0, {POOL})) as items:
        events, synced = await until_synced(items)
        assert events == [Event(pool("a"), b"1", first), Event(pool("b"), b"2", second)]
        assert synced == second
        third = await store.txn([Delete(pool("a"))])
        assert await take(items, 1) == [Event(pool("a"), None, third)]


async def test_a_watch_of_an_empty_store_is_synced_at_once(store: Store) -> None:
    revision = (await store.list(ALL)).revision
    for after in (0, revision):
        async with aclosing(store.watch(after, KINDS)) as items:
            assert await until_synced(items) == ([], revision)


async def test_a_watch_resumes_after_any_revision_with_everything_and_nothing_twice(store: Store) -> None:
    start = (await store.list(ALL)).revision
    made: list[Event] = []
    for number in range(16):
        key, other = pool(f"p{number % 4}"), node(f"n{number}")
        gone = number % 4 != number % 8
        revision = await store.txn([Delete(key) if gone else Put(key, b"%d" % number), Put(other, b"%d" % number)])
        made += [Event(key, None if gone else b"%d" % number, revision), Event(other, b"%d" % number, revision)]
    for after in (start, *sorted({event.revision for event in made})):
        async with aclosing(store.watch(after, KINDS)) as items:
            events, synced = await until_synced(items)
        assert sorted(events, key=str) == sorted((event for event in made if event.revision > after), key=str)
        assert [event.revision for event in events] == sorted(event.revision for event in events)
        assert synced == made[-1].revision


async def test_each_revision_comes_whole_in_one_batch(store: Store) -> None:
    start = (await store.list(ALL)).revision
    sizes = [1, 60, 3, 100, 100]
    for size in sizes[:3]:
        await store.txn([Put(pool(f"p{number}"), b"x" * 1000) for number in range(size)])
    seen: dict[int, int] = {}
    async with aclosing(store.watch(start, KINDS)) as items, asyncio.timeout(10):
        for size in sizes[3:]:
            await store.txn([Put(node(f"n{number}"), b"x" * 1000) for number in range(size)])
        while sum(seen.values()) < sum(sizes):
            item = await anext(items)
            if isinstance(item, Changes):
                for revision in sorted({event.revision for event in item.events}):
                    assert revision not in seen, "a revision came in two batches"
                    seen[revision] = sum(event.revision == revision for event in item.events)
                assert item.revision >= max((event.revision for event in item.events), default=0)
    assert list(seen.values()) == sizes


async def test_a_replay_in_batches_can_be_resumed_from_each_of_them(store: Store) -> None:
    count = BATCH_EVENTS * 2 + 150
    for start in range(0, count, 50):
        await store.txn([Put(node(f"n{number:05}"), b"1") for number in range(start, start + 50)])
    async with aclosing(store.watch(0, {NODE})) as items, asyncio.timeout(10):
        item = await anext(items)
    assert isinstance(item, Changes)
    assert len(item.events) < count
    await store.txn([Delete(item.events[0].key), Put(item.events[1].key, b"2")])
    seen = {event.key: event.value for event in item.events}
    events, _ = await until_synced(store.watch(item.revision, {NODE}))
    seen |= {event.key: event.value for event in events}
    assert {key: value for key, value in seen.items() if value is not None} == {
        key: value for key, (value, _) in (await state(store)).items()
    }


async def test_a_watcher_of_quiet_kinds_is_told_how_far_the_store_is(store: Store) -> None:
    start = await store.txn([Put(pool("a"), b"1")])
    async with aclosing(store.watch(start, {POOL})) as items, asyncio.timeout(20):
        assert isinstance(await anext(items), Synced)
        progress = asyncio.ensure_future(anext(items))
        for number in range(PROGRESS + 1):
            last = await store.txn([Put(node("busy"), b"%d" % number)])
        item = await progress
    assert isinstance(item, Changes)
    assert item.events == ()
    assert start < item.revision <= last


async def test_many_watchers_see_the_same(store: Store) -> None:
    start = (await store.list(ALL)).revision
    watches = [store.watch(start, kinds) for kinds in (KINDS, KINDS, KINDS, frozenset({POOL}), frozenset({POOL}))]
    tasks = [asyncio.ensure_future(take(items, 100 if index < 3 else 50)) for index, items in enumerate(watches)]
    for number in range(50):
        await store.txn([Put(pool(f"p{number}"), b"1"), Put(node(f"n{number}"), b"1")])
    seen = await asyncio.gather(*tasks)
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == seen[4] == [event for event in seen[0] if event.key.kind == POOL]
    for items in watches:
        await items.aclose()


async def test_a_watcher_that_was_closed_leaves_the_others_alone(store: Store) -> None:
    start = (await store.list(ALL)).revision
    staying, leaving = store.watch(start, KINDS), store.watch(start, KINDS)
    await until_synced(staying)
    await until_synced(leaving)
    await store.txn([Put(pool("a"), b"1")])
    await take(leaving, 1)
    await leaving.aclose()
    await store.txn([Put(pool("b"), b"1")])
    assert [event.key.name for event in await take(staying, 2)] == ["a", "b"]
    await staying.aclose()


# --- compaction -------------------------------------------------------------------------------------------------------


async def test_compaction_forgets_history_and_keeps_the_present(store: Store) -> None:
    first = await store.txn([Put(pool("a"), b"1"), Put(pool("b"), b"1")])
    second = await store.txn([Put(pool("a"), b"2")])
    third = await store.txn([Delete(pool("b"))])
    fourth = await store.txn([Put(pool("c"), b"4")])
    await store.compact(third)
    assert await state(store) == {pool("a"): (b"2", second), pool("c"): (b"4", fourth)}
    events, _ = await until_synced(store.watch(second, KINDS))
    assert events == [Event(pool("b"), None, third), Event(pool("c"), b"4", fourth)]
    async with asyncio.timeout(10):
        items = [item async for item in store.watch(first, KINDS)]
    assert items == [Compacted(second)]
    events, _ = await until_synced(store.watch(0, KINDS))
    assert events == [Event(pool("a"), b"2", second), Event(pool("c"), b"4", fourth)]


async def test_compacting_twice_is_compacting_once_and_the_future_cannot_be_forgotten(store: Store) -> None:
    await store.txn([Put(pool("a"), b"1")])
    last = await store.txn([Put(pool("a"), b"2")])
    for before in (last, last, last - 1, 0, -5):
        await store.compact(before)
    await store.compact(last + 1)
    with pytest.raises(Invalid, match="cannot forget history"):
        await store.compact(last + 100)
    assert await until_synced(store.watch(last, KINDS)) == ([], last)


async def test_a_watcher_ahead_of_the_store_must_list_again(store: Store) -> None:
    revision = await store.txn([Put(pool("a"), b"1")])
    async with asyncio.timeout(10):
        items = [item async for item in store.watch(revision + 1000, KINDS)]
    assert [type(item) for item in items] == [Compacted]
    assert items[0].revision <= revision


async def test_a_watcher_that_is_caught_up_survives_a_compaction(store: Store) -> None:
    start = (await store.list(ALL)).revision
    async with aclosing(store.watch(start, KINDS)) as items:
        await until_synced(items)
        for number in range(5):
            last = await store.txn([Put(pool("a"), b"%d" % number)])
        await take(items, 5)
        await store.compact(last)
        await store.txn([Put(pool("a"), b"end")])
        assert [event.value for event in await take(items, 1)] == [b"end"]


# --- concurrency ------------------------------------------------------------------------------------------------------


async def test_concurrent_writers_lose_no_increment(store: Store) -> None:
    key = node("counter")
    await store.txn([Put(key, b"0", ABSENT)])

    async def writer() -> int:
        conflicts = 0
        for _ in range(10):
            while True:
                entry = await store.get(key)
                assert entry is not None
                try:
                    await store.txn([Put(key, b"%d" % (int(entry.value) + 1), entry.revision)])
                    break
                except Conflict:
                    conflicts += 1
        return conflicts

    async with asyncio.timeout(30):
        await asyncio.gather(*(writer() for _ in range(8)))
    entry = await store.get(key)
    assert entry is not None
    assert entry.value == b"80"


async def test_of_two_guarded_writers_one_wins(store: Store) -> None:
    since = (await store.list({POOL})).revision

    async def write(name: str) -> bool:
        try:
            await store.txn([Put(pool(name), b"1", ABSENT)], [Unchanged(POOL, since)])
        except Conflict:
            return False
        return True

    assert sum(await asyncio.gather(*(write(f"p{number}") for number in range(12)))) == 1
    assert len((await store.list({POOL})).entries) == 1
