"""A pool's end: at once, with its last address, or not while nobody can tell; and what routes it until then."""

from __future__ import annotations

from pathlib import Path

import ipam_audit_world as w

from bgp.telling.originate import originated
from core.manifest import encode
from core.names import Key
from core.resources import IPAMBlock, IPPool, Resource
from core.snapshot import Snapshot
from datastore.api import Unchanged
from datastore.ipam.listing.ending import Ending, ending, terminating
from datastore.ipam.listing.holders import Held
from datastore.ipam.model import Remove, Write

NOW = "2026-01-31T12:00:00Z"
PODS = Key(IPPool.KIND, "", "pods")


async def end_of(folder: Path, state: dict[Key, Resource], raw: dict[Key, bytes] | None = None) -> Ending:
    store = await w.stored(folder, state, raw or {})
    try:
        seen = await w.holdings(store)
    finally:
        await store.close()
    held: Held[IPPool] = seen.of(IPPool)[PODS]
    return ending(held, seen, NOW)


async def test_a_pool_in_use_is_marked_once(tmp_path: Path) -> None:
    end = await end_of(tmp_path, w.sound())
    assert not end.over
    assert sorted(end.held) == ["10.244.0.1", "10.244.0.2", "10.244.0.3"]
    (change,) = end.step.changes
    assert isinstance(change, Write)
    assert encode(change.resource) == encode(terminating(w.pool(), NOW))


async def test_a_pool_that_is_marked_stays_as_it_is(tmp_path: Path) -> None:
    again = await end_of(tmp_path, w.changed(terminating(w.pool(), NOW)))
    assert (again.over, again.step.changes) == (False, ())


async def test_an_empty_pool_goes_with_its_blocks_and_claims_and_no_others(tmp_path: Path) -> None:
    state = w.changed(w.block(w.A, "a"), w.claim("b", "10.244.9.0/26"), w.block("10.99.0.0/26", "a"))
    end = await end_of(tmp_path, state)
    assert end.over
    assert all(isinstance(change, Remove) for change in end.step.changes)
    names = sorted(change.key.name for change in end.step.changes if isinstance(change, Remove))
    assert names == [
        "10-244-0-0-26",
        "10-244-0-64-26",
        "a-10-244-0-0-26",
        "b-10-244-0-64-26",
        "b-10-244-9-0-26",
        "pods",
    ]
    assert [type(guard) for guard in end.step.guards] == [Unchanged], "a block may be made meanwhile"


async def test_no_block_of_a_marked_pool_can_be_made_meanwhile(tmp_path: Path) -> None:
    late = await end_of(tmp_path, w.changed(w.block(w.A, "a"), terminating(w.pool(), NOW)))
    assert (late.over, late.step.guards) == (True, ())


async def test_a_block_that_cannot_be_read_may_be_of_it(tmp_path: Path) -> None:
    state = w.changed(w.block(w.A, "a"))
    end = await end_of(tmp_path, state, {Key(IPAMBlock.KIND, "", "odd"): b"{"})
    assert not end.over
    assert end.waits == "IPAMBlock odd cannot be read and may be of it; mend or delete that"


def test_what_ends_is_routed_and_told_as_before() -> None:
    """`disabled` takes a pool's routes back, as in Calico; being deleted does not."""
    live = Snapshot().apply(1, list(w.sound().items()))
    ends = Snapshot().apply(1, list(w.changed(terminating(w.pool(), NOW)).items()))
    off = Snapshot().apply(1, list(w.changed(w.pool(disabled=True)).items()))
    told = [{str(prefix) for prefix in originated(each, "a").own} for each in (live, ends, off)]
    assert told[0] == told[1]
    assert w.A in told[0]
    assert w.A not in told[2]
