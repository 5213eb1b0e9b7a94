"""The edge of IPAM: carries decisions out against a store, many to a transaction, and decides a lost one again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from datastore.api import Operation, Store
from datastore.ipam.model import Grant, Request

Along: TypeAlias = Callable[[Grant], Sequence[Operation]]
"""What is to be written in the same transaction as the addresses, once they are known: an endpoint, a Node."""


class Ledger:
    """One process's hand in the cluster's addresses. Keeps books, so that most decisions need no read.

    Calls may be made at once and share transactions. Safe beside any number of other ledgers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def assign(self, request: Request, along: Along | None = None) -> tuple[Grant, int]:
        """The addresses of `request.handle`, given now if it has none, and the revision at which that stood.

        What it has already is kept. With `along` the handle is written each time, with what it returns. Raises
        `Exhausted`, `Invalid` (a pool asked for is not there), `Unavailable`, or `Conflict` when too many races
        were lost or something in `along` is not at its revision.
        """
        raise NotImplementedError

    async def release(self, handle: str, why: str, along: Sequence[Operation] = ()) -> Grant:
        """Free all that `handle` holds, and write `along` with it; what it held. None is a success.

        `why` goes into the addresses' records. Raises `Unavailable` or `Conflict`, as `assign`.
        """
        raise NotImplementedError

    async def held_by(self, handle: str) -> Grant:
        """What `handle` holds, as the store has it now."""
        raise NotImplementedError
