"""What felix says of its endpoints over the host's socket: whole, then what changed, and believed while it is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import endpoint_feed
from core.endpoint_feed import SOCKET, Feed, NotProgrammed, Outcomes, why_not
from core.errors import Unsupported
from core.resources.status import EndpointState, FelixState

PATIENCE_S = 10.0

FELIX = """
import asyncio, sys
from pathlib import Path
from core.endpoint_feed import Feed
from core.resources.status import EndpointState, FelixState

async def main() -> None:
    feed = Feed()
    feed.tell(FelixState(decided=int(sys.argv[2]), endpoints={"shop/web": EndpointState(state="up")}))
    await feed.serve(Path(sys.argv[1]))

asyncio.run(main())
"""


def up(link: int = 0) -> EndpointState:
    return EndpointState(state="up", link=link)


@contextlib.asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in works]
    try:
        yield
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def felix(path: Path, decided: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that says, over the socket, that shop/web is up."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FELIX, str(path), str(decided))
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_said(outcomes: Outcomes, wanted: FelixState | None) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while outcomes.said != wanted:  # noqa: ASYNC110 - `said` is a property: nobody is told that it changes
            await asyncio.sleep(0.005)


async def test_a_pod_waits_for_the_revision_the_state_and_the_link(tmp_path: Path) -> None:
    feed, outcomes = Feed(), Outcomes(tmp_path / SOCKET)
    async with running(feed.serve(tmp_path / SOCKET), outcomes.run()):
        waiting = asyncio.create_task(outcomes.until_up("shop/web", 15, PATIENCE_S, link=8))
        said = [
            FelixState(decided=14, endpoints={"shop/web": up(8)}),
            FelixState(decided=15),
            FelixState(decided=15, endpoints={"shop/web": EndpointState(state="pending", reason="it is down")}),
            FelixState(decided=16, endpoints={"shop/web": up(7)}),
            FelixState(decided=16, endpoints={"shop/web": up(8), "shop/db": up(9)}, problems=["p"]),
        ]
        for each in said[:-1]:
            feed.tell(each)
            await until_said(outcomes, each)
            assert not waiting.done()
        feed.tell(said[-1])
        async with asyncio.timeout(PATIENCE_S):
            await waiting
        assert outcomes.said == said[-1]


async def test_who_is_up_already_is_not_waited_for(tmp_path: Path) -> None:
    feed, outcomes = Feed(), Outcomes(tmp_path / SOCKET)
    feed.tell(FelixState(decided=3, endpoints={"shop/web": up()}))
    async with running(feed.serve(tmp_path / SOCKET), outcomes.run()):
        await outcomes.until_up("shop/web", 3, PATIENCE_S)
        await outcomes.until_up("shop/web", 3, 0.0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "felix on this node has not decided anything yet"),
        (FelixState(decided=12), "felix has come to revision 12 of 15"),
        (
            FelixState(decided=12, stale=True),
            "felix has come to revision 12 of 15; the datastore is away, it says",
        ),
        (FelixState(decided=15), "felix does not know shop/web"),
        (
            FelixState(decided=15, endpoints={"shop/web": EndpointState(state="error", reason="in no IPPool")}),
            "error: in no IPPool",
        ),
        (FelixState(decided=15, endpoints={"shop/web": up(7)}), "felix has not seen interface 8 yet, but 7"),
    ],
)
async def test_the_error_is_felixs_last_word(tmp_path: Path, said: FelixState | None, why: str) -> None:
    feed, outcomes = Feed(), Outcomes(tmp_path / SOCKET)
    if said:
        feed.tell(said)
    async with running(feed.serve(tmp_path / SOCKET), outcomes.run()):
        await until_said(outcomes, said)
        async with asyncio.timeout(PATIENCE_S):
            while outcomes.why_not("shop/web", 15, 8) != why:  # noqa: ASYNC110 - not connected yet
                await asyncio.sleep(0.005)
        with pytest.raises(NotProgrammed, match=f"within 0.01 s: {why}"):
            await outcomes.until_up("shop/web", 15, 0.01, link=8)


async def test_a_felix_that_is_not_there_is_away(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / SOCKET)
    async with running(outcomes.run()):
        with pytest.raises(NotProgrammed, match="felix on this node is away"):
            await outcomes.until_up("shop/web", 1, 0.05)


async def test_a_killed_felix_is_not_believed_and_the_next_is(tmp_path: Path) -> None:
    path = tmp_path / SOCKET
    outcomes = Outcomes(path)
    async with running(outcomes.run()):
        async with felix(path, 7) as first:
            await outcomes.until_up("shop/web", 7, PATIENCE_S)
            first.send_signal(signal.SIGKILL)
            await until_said(outcomes, None)
            assert path.exists()  # what it left behind; the next one replaces it
            waiting = asyncio.create_task(outcomes.until_up("shop/web", 7, PATIENCE_S))
        async with felix(path, 5):  # from an older snapshot on disk
            await until_said(outcomes, FelixState(decided=5, endpoints={"shop/web": up()}))
            assert not waiting.done()
        async with felix(path, 8):
            await waiting


async def test_the_socket_is_its_owners_and_a_file_in_its_place_goes(tmp_path: Path) -> None:
    path = tmp_path / "run" / SOCKET
    path.parent.mkdir()
    path.write_text("left by nobody knows whom")
    feed, outcomes = Feed(), Outcomes(path)
    feed.tell(FelixState(decided=1))
    async with running(feed.serve(path), outcomes.run()):
        await until_said(outcomes, FelixState(decided=1))
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not path.exists()


async def test_a_socket_that_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await Feed().serve(tmp_path / ("x" * 120))
    assert caught.group_contains(Unsupported, match="is it short")


async def test_one_that_does_not_read_is_let_go_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_feed, "PATIENCE_S", 0.2)
    path = tmp_path / SOCKET
    feed, outcomes = Feed(), Outcomes(path)
    many = {f"shop/pod-{number}": EndpointState(state="error", reason="x" * 100) for number in range(10_000)}
    feed.tell(FelixState(decided=1, endpoints=many))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        async with running(feed.serve(path), outcomes.run()):
            async with asyncio.timeout(PATIENCE_S):
                while not path.exists():  # noqa: ASYNC110 - a file tells nobody
                    await asyncio.sleep(0.005)
            deaf.connect(str(path))
            for decided in range(2, 30):
                feed.tell(FelixState(decided=decided, endpoints=many))
                await until_said(outcomes, FelixState(decided=decided, endpoints=many))
            async with asyncio.timeout(PATIENCE_S):
                while feed.listeners > 1:  # noqa: ASYNC110 - it is counted, not told
                    await asyncio.sleep(0.005)
            assert outcomes.said is not None


async def test_listeners_that_leave_are_forgotten_and_too_many_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_feed, "MOST_LISTENERS", 2)
    path = tmp_path / SOCKET
    feed = Feed()
    feed.tell(FelixState(decided=1))
    async with running(feed.serve(path)), asyncio.timeout(PATIENCE_S):
        while not path.exists():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.005)
        talks = [await asyncio.open_unix_connection(path) for _ in range(2)]
        for reader, _ in talks:
            assert b'"decided":1' in await reader.readline()
        reader, writer = await asyncio.open_unix_connection(path)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        for _, each in talks:
            each.close()
        while feed.listeners:  # noqa: ASYNC110 - it is counted, not told
            await asyncio.sleep(0.005)


async def test_nonsense_from_the_other_end_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / SOCKET
    asked = asyncio.Semaphore(0)

    async def lie(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"state": 1}\n')
        asked.release()
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(lie, path)
    outcomes = Outcomes(path)
    async with server, running(outcomes.run()), asyncio.timeout(PATIENCE_S):
        await asked.acquire()
        await asked.acquire()
        assert outcomes.said is None


NAMES = st.sampled_from(["a/x", "a/y", "b/x", "b/y"])
STATES = st.builds(
    FelixState,
    decided=st.integers(1, 3),
    endpoints=st.dictionaries(NAMES, st.builds(EndpointState, state=st.sampled_from(["up", "error"]))),
    problems=st.lists(st.sampled_from(["p", "q"]), max_size=2),
    stale=st.booleans(),
)


@given(st.lists(STATES, min_size=1, max_size=6))
def test_differences_add_up_to_the_state(states: list[FelixState]) -> None:
    heard: FelixState | None = None
    before: FelixState | None = None
    for state in states:
        heard = endpoint_feed.after(heard, endpoint_feed.difference(before, state))
        before = state
        assert heard == state


def test_no_link_asked_for_is_any_link() -> None:
    assert why_not(FelixState(decided=1, endpoints={"a/x": up(4)}), "a/x", 1) == ""
