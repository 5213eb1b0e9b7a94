"""Questions that stand in a real datastore: answered once, or again and again, and never brought back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from msgspec.structs import replace

from bgp.paths.learnt import Learnt
from bgp.reporting.answer import Answers
from bgp.reporting.report import Outlook
from core.latest import Latest
from core.resources import CalicoNodeStatus, Metadata
from core.resources.node_status import CalicoNodeStatusSpec
from core.resources.status import SpeakerState
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from datastore.follow import follow

Hook = Callable[[], Awaitable[None]]


class Desk:
    """Answers for node `a`, fed with what the store holds; `before` runs while an answer is on its way."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.looked = 0
        self.before: Hook | None = None

    async def look(self) -> Outlook:
        self.looked += 1
        if self.before:
            await self.before()
        return Outlook(speaker=None, state=SpeakerState(ready=True, sessions=[]))

    async def ask(self, name: str = "q", **spec: object) -> None:
        kind = CalicoNodeStatus.KIND
        given = CalicoNodeStatusSpec(**{"node": "a", "classes": ["Agent"], "update_period_seconds": 0, **spec})  # type: ignore[arg-type]
        found = await objects.read(self.store, CalicoNodeStatus, name)
        status = found[0].status if found else None
        question = CalicoNodeStatus(
            api_version=kind.api_version, kind=kind.name, metadata=Metadata(name=name), spec=given, status=status
        )
        await objects.write(self.store, question)

    async def read(self, name: str = "q") -> CalicoNodeStatus | None:
        found = await objects.read(self.store, CalicoNodeStatus, name)
        return found[0] if found else None

    async def run(self) -> None:
        answers = Answers(self.store, "a", Learnt(), self.look)
        snapshots: Latest[Snapshot] = Latest()
        async with asyncio.TaskGroup() as group:
            group.create_task(follow(self.store, (CalicoNodeStatus,), snapshots, None))
            group.create_task(answers.run())
            async for snapshot in snapshots:
                answers.ask(snapshot)

    async def answered(self, name: str = "q", but: str = "") -> CalicoNodeStatus:
        """Wait for an answer other than the one of the time `but`."""
        deadline = time.monotonic() + 10
        while True:
            found = await self.read(name)
            if found and found.status and found.status.last_updated not in ("", but):
                return found
            assert time.monotonic() < deadline, "not answered"
            await asyncio.sleep(0.02)


@pytest.fixture
async def desk(datastore: str) -> AsyncIterator[Desk]:
    store = GrpcStore(datastore)
    desk = Desk(store)
    task = asyncio.create_task(desk.run())
    yield desk
    task.cancel()
    await asyncio.wait([task])
    await store.close()


async def test_a_question_is_answered_once_and_only_by_whom_it_asks(desk: Desk) -> None:
    await desk.ask("other", node="b")
    await desk.ask()
    found = await desk.answered()
    assert found.status is not None
    assert found.status.agent is not None
    assert (found.status.bgp, found.status.routes) == (None, None)
    await desk.ask("later")
    await desk.answered("later")
    assert desk.looked == 2, "the first was not answered again when the second came"
    other = await desk.read("other")
    assert other is not None
    assert other.status is None


async def test_who_starts_again_does_not_answer_again(desk: Desk, datastore: str) -> None:
    await desk.ask()
    await desk.answered()
    again = Desk(desk.store)
    task = asyncio.create_task(again.run())
    await desk.ask("new")
    await again.answered("new")
    task.cancel()
    await asyncio.wait([task])
    assert again.looked <= 1, "only the new one, if the other desk was not faster"


async def test_another_question_under_the_same_name_is_answered(desk: Desk) -> None:
    await desk.ask()
    await desk.answered()
    await desk.ask(classes=["BGP"])
    deadline = time.monotonic() + 10
    while True:
        found = await desk.read()
        assert found is not None
        assert found.status is not None
        if found.status.bgp is not None:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert found.status.agent is None


async def test_a_period_brings_answer_after_answer(desk: Desk) -> None:
    await desk.ask(update_period_seconds=1)
    first = await desk.answered()
    assert first.status is not None
    second = await desk.answered(but=first.status.last_updated)
    assert second.status is not None
    assert second.status.last_updated > first.status.last_updated
    assert second.spec == first.spec


async def test_a_question_that_is_taken_back_meanwhile_stays_away(desk: Desk) -> None:
    async def take_back() -> None:
        await objects.delete(desk.store, CalicoNodeStatus, "q")

    desk.before = take_back
    await desk.ask()
    deadline = time.monotonic() + 10
    while not desk.looked:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    desk.before = None
    await desk.ask("next")
    await desk.answered("next")
    assert await desk.read() is None


async def test_labels_of_a_question_survive_its_answer(desk: Desk) -> None:
    await desk.ask("q", node="b")
    found = await desk.read()
    assert found is not None
    labelled = replace(found.metadata, labels={"team": "net"})
    await objects.write(desk.store, replace(found, metadata=labelled, spec=replace(found.spec, node="a")))
    assert (await desk.answered()).metadata.labels == {"team": "net"}
