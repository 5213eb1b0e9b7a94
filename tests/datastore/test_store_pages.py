"""Listing a part at a time, by every backend, directly and through gRPC."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from core.names import Key
from core.resources import CLASSES, IPPool
from datastore.api import BATCH_EVENTS, Put, Store

ALL = frozenset(cls.KIND for cls in CLASSES)
KINDS = frozenset({IPPool.KIND})


async def test_pages_hold_what_a_list_does(store: Store) -> None:
    async with asyncio.timeout(30):
        async with aclosing(store.pages(ALL)) as pages:
            assert [page.entries async for page in pages] == [()], "one part, of nothing"
        many = [Put(Key(IPPool.KIND, "", f"p{number}"), b"{}") for number in range(BATCH_EVENTS + 5)]
        for start in range(0, len(many), 100):
            await store.txn(many[start : start + 100])
        listing = await store.list(KINDS)
        async with aclosing(store.pages(KINDS)) as pages:
            parts = [page async for page in pages]
        assert {page.revision for page in parts} == {listing.revision}
        assert tuple(entry for page in parts for entry in page.entries) == listing.entries
        async with aclosing(store.pages(KINDS)) as pages:
            await anext(pages)
        assert await store.list(KINDS) == listing, "one that is closed early disturbs nobody"
