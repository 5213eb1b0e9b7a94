"""Why Services of type LoadBalancer have not what they ask for, from one listing: for people. Pure.

It is decided once more as the server does it, and what comes of that is said; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from core.errors import Invalid
from core.resources import BY_KIND, IPAMHandle, IPPool, KubeControllersConfiguration, Service
from datastore.ipam.balancing.plan import SETTINGS, Context, Give, Wait, judge
from datastore.ipam.balancing.wishes import handle_of, ours
from datastore.ipam.books import KINDS, Books, handle_key
from datastore.ipam.giving.assign import assign
from datastore.ipam.listing.holders import AUDITED, Holdings
from datastore.ipam.model import Exhausted

SHOWN: Final = 20
"""Services that are told of by name."""


def waiting(seen: Holdings, now: datetime) -> Iterator[str]:
    """A sentence for each Service that waits, and one for those beyond the first few."""
    found = 0
    for said in _each(seen, now):
        found += 1
        if found <= SHOWN:
            yield said
    if found > SHOWN:
        yield f"{found - SHOWN} more Services wait for an address"


def _each(seen: Holdings, now: datetime) -> Iterator[str]:
    settings = seen.of(KubeControllersConfiguration).get(SETTINGS)
    pools = [held.resource for held in seen.of(IPPool).values()]
    context = Context.of(pools, settings.resource if settings is not None else None, seen.unread.keys())
    books: Books | None = None
    for key, held in sorted(seen.of(Service).items()):
        service = held.resource
        if not ours(service):
            continue
        handle = seen.of(IPAMHandle).get(handle_key(handle_of(key.namespace, key.name)))
        due = judge(key, service, handle.resource if handle is not None else None, context)
        why = ""
        if isinstance(due, Wait):
            why = due.why
        elif isinstance(due, Give):
            books = books or _books(seen)
            why = _refused(books, due, now)
        if why:
            yield f"Service {key.namespace}/{key.name} waits for an address: {why}"


def _refused(books: Books, due: Give, now: datetime) -> str:
    try:
        assign(books, due.request, now)
    except (Exhausted, Invalid) as error:
        return str(error)
    return "it can have one, and `muslin datastore` is about to give it; its log says more if it does not"


def _books(seen: Holdings) -> Books:
    books = Books()
    for kind in KINDS & AUDITED:
        for key, held in seen.of(BY_KIND[kind]).items():
            books.see(key, held.resource, held.revision)
    for key, entry in seen.unread.items():
        if key.kind in KINDS:
            books.see(key, None, entry.revision)
    books.caught_up(seen.revision)
    return books
