"""Packets logged to a group: one socket at a time hears of them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from core.errors import Unavailable
from linux.nflog import Logged, logged

pytestmark = pytest.mark.kernel

GROUP = 4711


async def test_a_second_listener_is_told_that_there_is_one() -> None:
    async with contextlib.aclosing(logged(GROUP)) as first, contextlib.aclosing(logged(GROUP)) as second:
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)  # the first one binds before it waits
        with pytest.raises(Unavailable, match="another process listens"):
            await anext(second)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert isinstance(await waiting, Logged)
