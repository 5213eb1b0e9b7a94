"""What an allocation was made from is guarded by its transaction, which it may share with others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from core.errors import Conflict
from core.names import Key
from core.resources import Metadata, Namespace
from datastore import objects
from datastore.api import ABSENT, At, Operation
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Grant
from datastore.sqlite import SqliteStore
from tests.datastore.ipam_ground import Said, pod, pool, put


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


async def test_a_guard_that_does_not_hold_stops_those_who_brought_it_and_nobody_else(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/24"))
    shop, made = Namespace(metadata=Metadata(name="shop")), Key(Namespace.KIND, "", "made")
    at = await put(store, shop)
    ledger = Ledger(store)
    await ledger.assign(pod("first", "a"))
    before = (await store.list(set())).revision

    def along(name: str) -> Callable[[Grant], list[Operation]]:
        return lambda found: [objects.put(Namespace(metadata=Metadata(name=f"of-{name}")), ABSENT)]

    guards = {"right": At(shop.key, at), "wrong": At(shop.key, at - 1), "new": At(made, ABSENT)}
    names = {f"{kind}-{number}": guard for kind, guard in guards.items() for number in range(4)}
    said = await asyncio.gather(
        *(ledger.assign(pod(name, "a"), along(name), [guard]) for name, guard in names.items()), return_exceptions=True
    )
    refused = [str(each.what) for each in said if isinstance(each, Conflict)]
    assert refused == ["Namespace shop"] * 4
    assert {each[1] for each in said if isinstance(each, tuple)} == {before + 1}, "one transaction for the others"
    assert set((await Said.by(store)).by_handle) == {
        "first",
        *(f"{kind}-{number}" for kind in ("right", "new") for number in range(4)),
    }

    await put(store, Namespace(metadata=Metadata(name="made")))
    with pytest.raises(Conflict, match="Namespace made"):
        await ledger.assign(pod("late", "a"), along("late"), [At(made, ABSENT)])
    assert "late" not in (await Said.by(store)).by_handle
