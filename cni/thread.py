"""Work in a thread that is always waited for: a wire that is half made must not go on being made after its undoing.

And that begins at home: a thread that could not leave a pod's network namespace would make the next pod's wire there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from linux.netns import Home

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """Threads that begin each work in the network namespace in which this is made; raises OSError where one cannot."""

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, name)
        self._home = Home()

    def submit(self, work: Callable[P, T], /, *args: P.args, **named: P.kwargs) -> Future[T]:
        """As every executor's."""
        return super().submit(self._from_home, partial(work, *args, **named))

    def _from_home(self, work: Callable[[], T]) -> T:
        self._home.come()
        return work()


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
