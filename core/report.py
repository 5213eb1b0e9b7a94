"""Keep others informed: write an agent's state when it changes, and again before its silence is taken for its death.

    news() ── a state ──> changed, or `every_s` since the last write? ── stamped ──> write()
                                    ^                                                  │
                                    └────────── backoff, the newest state ── failed ───┘

A datastore that is away is tried again quietly: whoever follows it says so, once. What else stands in the way, or
lasts while the datastore seems to be there, is said once too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import structlog

from core import clock
from core.errors import MuslinError, Unavailable
from core.reconcile import Timing
from core.resources.status import REPORT_EVERY_S, FelixState, SpeakerState

T = TypeVar("T", FelixState, SpeakerState)

WRITE_S: Final = 10.0
"""How long one write may take, in seconds."""

REST: Final = 20.0
MOST_REST_S: Final = 1.0
"""After a write comes a rest of so many times as long, but of so many seconds at most: a datastore that is busy, or a
state that is large, is not made busier by telling all of it again for each pod of many that come."""

PATIENCE_S: Final = 20.0
"""How long a write may be refused, by a datastore that otherwise answers, before the log says so."""

log = structlog.get_logger()


async def keep_reported(
    news: Callable[[], Awaitable[T]],
    write: Callable[[T], Awaitable[object]],
    *,
    pause_s: float,
    every_s: float = REPORT_EVERY_S,
) -> None:
    """Write the states that `news` gives (it waits for the next one), for ever; two writes are `pause_s` apart,
    or more when a write takes long.

    `write` gets the state with its time in `reported`.
    """
    state, written, due = await news(), None, 0.0
    trouble = _Trouble(Timing(retry_s=pause_s, retry_max_s=max(pause_s, 3.0)))
    while True:
        wait = pause_s
        if state != written or time.monotonic() >= due:
            began = time.monotonic()
            try:
                async with asyncio.timeout(WRITE_S):
                    await write(msgspec.structs.replace(state, reported=clock.now()))
            except (MuslinError, TimeoutError) as error:
                wait = trouble.had(error, expected=state.stale)
            else:
                trouble.over()
                ended = time.monotonic()
                wait = max(pause_s, min(MOST_REST_S, REST * (ended - began)))
                written, due = state, ended + every_s
        await asyncio.sleep(wait)
        with contextlib.suppress(TimeoutError):  # no news, but it is time to say it again
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                state = await news()


class _Trouble:
    """Failed writes in a row, and whether the log has them."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._failures, self._since, self._said = 0, 0.0, False

    def had(self, error: Exception, *, expected: bool) -> float:
        """A write failed; how long to wait. `expected`: the datastore is known to be away."""
        now = time.monotonic()
        self._since = self._since if self._failures else now
        self._failures += 1
        away = isinstance(error, Unavailable | TimeoutError)
        if not self._said and not (away and (expected or now - self._since < PATIENCE_S)):
            self._said = True
            log.warning("status.unwritten", why=str(error) or "the datastore does not answer")
        return self._timing.backoff(self._failures)

    def over(self) -> None:
        """A write was made."""
        if self._said:
            log.info("status.written", failures=self._failures)
        self._failures, self._said = 0, False
