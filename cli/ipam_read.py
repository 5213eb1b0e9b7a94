"""What the ipam commands read: one listing, seen as an audit sees it and as a decision does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from core.addr import Address, host_prefix
from core.errors import Conflict, Invalid, Problem
from core.manifest import decode
from core.resources import IPPool
from core.values import address as parse_address
from datastore.api import Listing, Store
from datastore.ipam import books
from datastore.ipam.books import Books
from datastore.ipam.listing import holders
from datastore.ipam.listing.holders import Held, Holdings
from datastore.ipam.listing.uses import Uses
from datastore.ipam.model import Step
from datastore.ipam.writing import operations

ATTEMPTS: Final = 8
"""How often a change is decided again when somebody else wrote in between."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Scene:
    """One state of the store, from both sides."""

    seen: Holdings
    uses: Uses
    books: Books

    @classmethod
    def of(cls, listing: Listing) -> Scene:
        """From a listing of what both are read from."""
        seen = Holdings(listing)
        return cls(seen, Uses(seen), _books(listing))

    def pool_of(self, address: Address) -> Held[IPPool] | None:
        """The pool around an address."""
        return self.seen.pool_of(host_prefix(address))


async def read(store: Store) -> Scene:
    """The scene as the store is now."""
    return Scene.of(await store.list(holders.AUDITED | books.KINDS))


async def decided(store: Store, decide: Callable[[Scene], tuple[_T, Step]]) -> _T:
    """Read, decide, carry the step out; again when somebody wrote in between. What `decide` said of the last step."""
    for attempt in range(1, ATTEMPTS + 1):
        said, step = decide(await read(store))
        try:
            if step.changes:
                await store.txn(operations(step.changes), step.guards)
        except Conflict:
            if attempt == ATTEMPTS:
                raise
        else:
            return said
    raise AssertionError("the last attempt returns or raises")


def checked_address(text: str) -> Address:
    """An address that a person gave; `Invalid` when it is none."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise Invalid([Problem(what=text, why=str(error))]) from None


def _books(listing: Listing) -> Books:
    found = Books()
    for entry in listing.entries:
        if entry.key.kind in books.KINDS:
            try:
                found.see(entry.key, decode(entry.key, entry.value), entry.revision)
            except Invalid:
                found.see(entry.key, None, entry.revision)
    found.caught_up(listing.revision)
    return found
