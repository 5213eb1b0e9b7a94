"""The one-slot channel and the snapshot: newest wins, and states share what did not change."""

import asyncio

import pytest

from core.latest import Latest
from core.names import Key, Kind
from core.resources import CLASSES, IPPool, Metadata, Namespace, parse_path
from core.resources.network import IPPoolSpec
from core.snapshot import Snapshot


async def test_the_reader_sees_the_newest_value_only_once() -> None:
    slot: Latest[int] = Latest()
    assert slot.peek() is None
    slot.put(1)
    slot.put(2)
    assert (slot.peek(), await slot.get(), slot.peek()) == (2, 2, 2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slot.get(), 0.01)


async def test_a_waiting_reader_is_woken_and_iteration_goes_on() -> None:
    slot: Latest[int] = Latest()
    seen: list[int] = []

    async def read() -> None:
        async for value in slot:
            seen.append(value)
            if value == 3:
                return

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(read())
        for value in (1, 2, 3):
            slot.put(value)
            await asyncio.sleep(0)
    assert seen[-1] == 3
    assert seen == sorted(set(seen))


def pool(name: str, cidr: str = "10.0.0.0/16") -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr))


def test_a_snapshot_follows_changes_and_the_old_one_stays() -> None:
    shop = Namespace(metadata=Metadata(name="shop"))
    first = Snapshot(stale=True).apply(3, [(pool("a").key, pool("a")), (shop.key, shop)])
    second = first.apply(4, [(pool("a").key, None), (pool("b").key, pool("b"))])
    assert (first.revision, first.stale, list(first.of(IPPool))) == (3, False, [pool("a").key])
    assert (second.revision, list(second.of(IPPool))) == (4, [pool("b").key])
    assert second.get(IPPool, "a") is None
    assert second.get(IPPool, "b") == pool("b")
    assert second.tables[Namespace.KIND] is first.tables[Namespace.KIND]
    with pytest.raises(TypeError):
        first.tables[IPPool.KIND][pool("c").key] = pool("c")  # type: ignore[index]


def test_an_object_that_cannot_be_read_is_left_out_and_named_until_it_can() -> None:
    key = pool("a").key
    broken = Snapshot().apply(1, [(key, pool("a"))]).apply(2, [(key, "cidr is missing")])
    assert (broken.get(IPPool, "a"), broken.problems) == (None, {key: "cidr is missing"})
    mended = broken.apply(3, [(key, pool("a"))])
    assert (mended.get(IPPool, "a"), mended.problems) == (pool("a"), {})
    assert broken.apply(3, [(key, None)]).problems == {}


@pytest.mark.parametrize("kind", [pytest.param(cls.KIND, id=str(cls.KIND)) for cls in CLASSES])
def test_a_key_is_found_again_by_its_path(kind: Kind) -> None:
    key = Key(kind, "shop" if kind.namespaced else "", "a.b-c")
    assert parse_path(key.path) == key


@pytest.mark.parametrize("path", ["", "/muslin/", "/muslin/projectcalico.org/ippools", "/muslin/x/y/z", "ippools/a"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not the path of a muslin object"):
        parse_path(path)
