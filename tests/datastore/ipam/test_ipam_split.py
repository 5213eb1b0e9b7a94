"""A pool in n: as it was but for its range, in one transaction, and not where a block would lie in two."""

from __future__ import annotations

from pathlib import Path

import ipam_audit_world as w
import pytest

from core.errors import Conflict, Invalid
from core.manifest import encode
from core.names import Key
from core.resources import IPAMBlock, IPPool, Resource
from datastore.api import At, Delete, Put
from datastore.ipam.listing.holders import KINDS, Held, Holdings
from datastore.ipam.listing.split import children, split
from datastore.ipam.writing import operations
from datastore.sqlite import SqliteStore

NOW = "2026-01-31T12:00:00Z"


def pool_of(seen: Holdings, name: str = "pods") -> Held[IPPool]:
    return seen.of(IPPool)[Key(IPPool.KIND, "", name)]


@pytest.mark.parametrize(
    ("cidr", "parts", "cidrs"),
    [
        ("10.244.0.0/16", 2, ["10.244.0.0/17", "10.244.128.0/17"]),
        ("10.244.0.0/16", 4, ["10.244.0.0/18", "10.244.64.0/18", "10.244.128.0/18", "10.244.192.0/18"]),
        ("fd00:10::/64", 2, ["fd00:10::/65", "fd00:10:0:0:8000::/65"]),
    ],
)
def test_children_are_as_the_pool_was(cidr: str, parts: int, cidrs: list[str]) -> None:
    whole = w.pool(cidr=cidr, nat_outgoing=True, node_selector="rack == '1'")
    made = list(children(whole, parts, NOW))
    assert [each.spec.cidr for each in made] == cidrs
    assert [each.metadata.name for each in made] == [f"split-pods-{number}" for number in range(parts)]
    assert {(each.spec.nat_outgoing, each.spec.node_selector) for each in made} == {(True, "rack == '1'")}
    assert len({each.metadata.uid for each in made} | {whole.metadata.uid}) == parts + 1


async def against(tmp_path: Path, parts: int, *put: Resource, raw: dict[Key, bytes] | None = None) -> list[str]:
    """Why the pool `pods` is not split."""
    store = await w.stored(tmp_path, w.changed(*put), raw or {})
    try:
        seen = await w.holdings(store)
    finally:
        await store.close()
    with pytest.raises(Invalid) as caught:
        split(pool_of(seen), parts, seen, NOW)
    return [str(each) for each in caught.value.problems]


@pytest.mark.parametrize("parts", [0, 1, 3, -2])
async def test_parts_are_a_power_of_two(tmp_path: Path, parts: int) -> None:
    assert await against(tmp_path, parts) == [
        f"IPPool/pods: it cannot become {parts} equal pools; say a power of two: 2, 4, 8, ..."
    ]


async def test_a_part_holds_a_block(tmp_path: Path) -> None:
    small = w.pool("small", "10.99.0.0/25")
    store = await w.stored(tmp_path, w.changed(small))
    try:
        seen = await w.holdings(store)
    finally:
        await store.close()
    assert len(split(pool_of(seen, "small"), 2, seen, NOW).changes) == 3
    with pytest.raises(Invalid, match="a /27 of it would be smaller than its blocks"):
        split(pool_of(seen, "small"), 4, seen, NOW)


async def test_a_block_lies_in_one_part(tmp_path: Path) -> None:
    wide = w.block("10.244.0.0/16", "a")
    (said,) = await against(tmp_path, 2, wide)
    assert said == (
        "IPPool/pods: IPAMBlock 10-244-0-0-16 (10.244.0.0/16) is larger than a /17 of it: it would lie in several pools"
    )
    key = Key(IPAMBlock.KIND, "", "odd")
    (tmp_path / "again").mkdir()
    (said,) = await against(tmp_path / "again", 2, raw={key: b"{"})
    assert said.startswith("IPPool/pods: IPAMBlock odd cannot be read")


async def test_names_are_free_and_the_pool_stays(tmp_path: Path) -> None:
    (said,) = await against(tmp_path, 2, w.pool("split-pods-1", "10.99.0.0/16"))
    assert said == "IPPool/pods: there is an IPPool split-pods-1 already; delete or rename that first"


async def test_a_pool_at_its_end_is_not_split(tmp_path: Path) -> None:
    (said,) = await against(tmp_path, 2, w.ended(w.pool()))
    assert said == "IPPool/pods: it is being deleted since 2026-01-30T12:00:00Z"


async def test_too_many_parts_are_refused_before_the_store_does(tmp_path: Path) -> None:
    (said,) = await against(tmp_path, 128)
    assert said == "IPPool/pods: it cannot become 128 pools at once, but 64; split those again"


async def test_who_gives_an_address_meanwhile_decides_again(tmp_path: Path) -> None:
    """Either order is sound: an allocation guards the pool and comes late after it; the split minds no blocks."""
    store: SqliteStore = await w.stored(tmp_path, w.sound())
    try:
        seen = Holdings(await store.list(KINDS))
        held = pool_of(seen)
        step = split(held, 2, seen, NOW)
        before = w.block("10.244.1.0/26", "a")
        await store.txn([Put(before.key, encode(before))], [At(held.resource.key, held.revision)])
        await store.txn(operations(step.changes), step.guards)
        late = w.block("10.244.2.0/26", "a")
        with pytest.raises(Conflict):
            await store.txn([Put(late.key, encode(late))], [At(held.resource.key, held.revision)])
        after = Holdings(await store.list(KINDS))
        assert sorted(key.name for key in after.of(IPPool)) == ["six", "split-pods-0", "split-pods-1"]
        assert before.key in after.of(IPAMBlock)
        await store.txn([Delete(before.key)])
    finally:
        await store.close()
