"""STATUS: whether an ADD could succeed now.

50  pods that run are fine, a new one could not be added: the datastore is away, no pool serves this node
51  pods that run may be cut off, too: felix is away, or not done with what it should program
"""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from cni.call import Means
from cni.conf import Conf
from cni.spec import Code, Failure
from core.addr import Family
from core.errors import Invalid, MuslinError
from core.manifest import decode
from core.names import Key
from core.resources import IPPool, Node
from datastore.api import ABSENT, Entry
from datastore.ipam.books import Books
from datastore.ipam.giving.pools import families, serving
from datastore.ipam.model import Owner, Request

_CONSULTED: Final = frozenset({IPPool.KIND, Node.KIND})

log = structlog.get_logger()


async def status(means: Means, conf: Conf) -> None:
    """Raise `Failure` when an ADD would have to fail."""
    try:
        listing = await means.store.list(_CONSULTED)
    except MuslinError as error:
        raise Failure(Code.NOT_AVAILABLE, str(error)) from error
    said = means.outcomes.said
    if said is None:
        raise Failure(Code.LIMITED, f"felix on node {means.node} is away; start it there")
    if not said.ready:
        why = "; ".join(said.problems) or "it is at work"
        raise Failure(Code.LIMITED, f"felix on node {means.node} is not ready: {why}")
    books = Books()
    for entry in listing.entries:
        _note(books, entry)
    books.caught_up(listing.revision)
    if why := _unserved(books, conf, means.node):
        raise Failure(Code.NOT_AVAILABLE, why)


def _note(books: Books, entry: Entry) -> None:
    """A pool for some namespaces serves somebody: its namespaceSelector says nothing of the node."""
    try:
        resource = decode(entry.key, entry.value)
    except Invalid as error:
        log.warning("cni.object_set_aside", object=str(entry.key), why=str(error))
        resource = None
    if isinstance(resource, IPPool):
        spec = msgspec.structs.replace(resource.spec, namespace_selector="")
        resource = msgspec.structs.replace(resource, spec=spec)
    books.see(entry.key, resource, entry.revision)


def _unserved(books: Books, conf: Conf, node: str) -> str:
    """Why a pod with no wishes of its own would get no address on the node; "" when it would."""
    if books.at(Key(Node.KIND, "", node)) == ABSENT:
        return f"there is no Node {node}; create it, or start the agent with its name"
    request = Request(handle="", owner=Owner(node=node), families=conf.ipam.families, pools=conf.ipam.pools)
    try:
        for family in families(books, request) or tuple(Family):
            found = serving(books, request, family)
            if not found.pools:
                refused = "; ".join(f"{name} {why}" for name, why in found.refused.items())
                return f"no IPPool gives IPv{int(family)} addresses on node {node}" + (refused and f": {refused}")
    except Invalid as error:
        return str(error)
    return ""
