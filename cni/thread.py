"""Work in a thread that is always waited for: a wire that is half made must not go on being made after its undoing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(threads: Executor, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What `work` returns, done by one of `threads`. A cancellation is raised when it is at its end, not before."""
    return await to_the_end(asyncio.get_running_loop().run_in_executor(threads, partial(work, *args, **named)))


async def to_the_end(work: Awaitable[T]) -> T:
    """What `work` comes to; it is not cancelled with its caller, who hears of the cancellation afterwards."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # heard, so that nobody complains that it was not
    raise cancelled
