"""A one-slot channel: the writer never waits, the reader sees the newest value.

Between two tasks of an agent stands one of these and never a queue: what is programmed is a function of the
current state, so a value nobody has read yet may be replaced by a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds at most one unread value. One reader at a time; any number of writers in the same event loop."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._unread = asyncio.Event()

    def put(self, value: T) -> None:
        """Replace whatever is unread with `value`."""
        self._value = value
        self._unread.set()

    async def get(self) -> T:
        """Wait for a value nobody has read yet, and take it."""
        await self._unread.wait()
        self._unread.clear()
        assert self._value is not None
        return self._value

    def peek(self) -> T | None:
        """The newest value, read or not; None before the first."""
        return self._value

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            yield await self.get()
