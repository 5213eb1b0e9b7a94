"""What agents say of themselves is written when it changes, again while it does not, and no more than that."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from core.errors import Invalid, Problem, Unavailable
from core.latest import Latest
from core.report import keep_reported
from core.resources.status import FelixState


class Shelf:
    """Where states are written; `away` is what a write ends with instead."""

    def __init__(self) -> None:
        self.written: list[FelixState] = []
        self.tried = 0
        self.away: Exception | None = None

    async def write(self, state: FelixState) -> None:
        self.tried += 1
        if self.away:
            raise self.away
        self.written.append(state)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - a list gives no event
                await asyncio.sleep(0.002)


@asynccontextmanager
async def reporting(shelf: Shelf, every_s: float = 60.0) -> AsyncIterator[Latest[FelixState]]:
    states: Latest[FelixState] = Latest()
    task = asyncio.create_task(keep_reported(states.get, shelf.write, pause_s=0.01, every_s=every_s))
    try:
        yield states
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_change_is_written_once_with_its_time() -> None:
    shelf = Shelf()
    async with reporting(shelf) as states:
        states.put(FelixState(programmed=1))
        await shelf.until(lambda: len(shelf.written) == 1)
        states.put(FelixState(programmed=1))
        states.put(FelixState(programmed=2))
        await shelf.until(lambda: len(shelf.written) == 2)
    assert [each.programmed for each in shelf.written] == [1, 2]
    assert all(each.reported.endswith("Z") for each in shelf.written)


async def test_what_does_not_change_is_written_again() -> None:
    shelf = Shelf()
    async with reporting(shelf, every_s=0.02) as states:
        states.put(FelixState(programmed=1))
        await shelf.until(lambda: len(shelf.written) >= 3)
    assert {each.programmed for each in shelf.written} == {1}


async def test_a_store_that_is_away_is_tried_again_in_silence_and_gets_the_newest() -> None:
    shelf = Shelf()
    shelf.away = Unavailable("nobody there")
    with structlog.testing.capture_logs() as lines:
        async with reporting(shelf, every_s=0.01) as states:
            states.put(FelixState(programmed=1))
            await shelf.until(lambda: shelf.tried > 3)
            states.put(FelixState(programmed=2, stale=True))
            tried = shelf.tried
            await shelf.until(lambda: shelf.tried > tried)
            shelf.away = None
            await shelf.until(lambda: bool(shelf.written))
    assert shelf.written[0].programmed == 2
    assert lines == []


async def test_what_lasts_is_said_once() -> None:
    shelf = Shelf()
    shelf.away = Invalid([Problem(why="too long")])
    with structlog.testing.capture_logs() as lines:
        async with reporting(shelf) as states:
            states.put(FelixState(programmed=1))
            await shelf.until(lambda: shelf.tried > 3)
            shelf.away = None
            await shelf.until(lambda: bool(shelf.written))
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("status.unwritten", "warning"),
        ("status.written", "info"),
    ]
