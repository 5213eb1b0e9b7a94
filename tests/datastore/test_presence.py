"""The server's log says, once, that its backend is away; and that it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from structlog.testing import capture_logs

from core.errors import Unavailable
from datastore import presence
from datastore.etcd import EtcdStore
from datastore.serve import serve


async def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to be")


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), task.exception()


async def test_a_server_whose_etcd_never_was_there_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        serving = asyncio.create_task(serve("etcd:127.0.0.1:1", [f"unix:{tmp_path}/s.sock"]))
        await eventually(lambda: bool(logs))
        await ended(serving)
    (said,) = logs
    assert said["event"] == "datastore.backend_away"
    assert "127.0.0.1:1" in said["why"]


async def test_each_outage_is_said_once(own_etcd) -> None:
    store = EtcdStore([own_etcd.endpoint], timeout_s=2)
    with capture_logs() as logs:

        def said() -> list[str]:
            return [log["event"].removeprefix("datastore.backend_") for log in logs]

        asked = 0

        class Counted:
            async def get(self, key: object) -> object:
                nonlocal asked
                asked += 1
                return await store.get(key)  # type: ignore[arg-type]

        telling = asyncio.create_task(presence.tell(Counted(), every_s=0.01))  # type: ignore[arg-type]
        await eventually(lambda: asked > 3)
        assert said() == []
        own_etcd.kill()
        await eventually(lambda: said() == ["away"])
        before = asked
        await eventually(lambda: asked > before + 5)
        await asyncio.to_thread(own_etcd.start)
        await eventually(lambda: len(said()) > 1)
        own_etcd.kill()
        await eventually(lambda: len(said()) > 2)
        await ended(telling)
    assert said() == ["away", "back", "away"]
    await store.close()


async def test_one_endpoint_of_several_is_no_outage(shared_etcd) -> None:
    store = EtcdStore(["127.0.0.1:1", shared_etcd.endpoint])
    asked: list[str] = []

    class Noted:
        async def get(self, key: object) -> object:
            try:
                found = await store.get(key)  # type: ignore[arg-type]
            except Unavailable:
                asked.append("away")
                raise
            asked.append("answered")
            return found

    with capture_logs() as logs:
        telling = asyncio.create_task(presence.tell(Noted(), every_s=0.01))  # type: ignore[arg-type]
        await eventually(lambda: len(asked) > 3)
        assert asked[:3] == ["away", "answered", "answered"]
        await ended(telling)
    assert logs == []
    await store.close()
