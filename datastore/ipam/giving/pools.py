"""Which pools may serve a request, and where in a pool a node looks for a new block.

A pool that was asked for, by name or CIDR, serves whatever its selectors and its assignmentMode say; one that was not,
when its nodeSelector takes the node and its namespaceSelector (if there is one) the namespace, and it is Automatic. In
either case it must be in order: readable, not disabled, not being deleted, and for the use in question.

Each node starts its search at a place of its own, made from its name, so that nodes seldom want the same block and each
comes back to the same part of the pool (anchors: 40 nodes that start together).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from core import selector
from core.addr import Address, Family, Network, contains
from core.errors import Invalid, Problem
from core.labels import namespace_itself
from core.names import Key
from core.resources import EncapMode, IPPool, Namespace, Node, Resource
from core.selector import SelectorError
from datastore.api import Guard
from datastore.ipam import block as blocks
from datastore.ipam.books import Books
from datastore.ipam.model import ON_NODES, Request, Use


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The pools that may serve a request in one family, best first, and why each other one of the family may not."""

    pools: tuple[IPPool, ...]
    refused: Mapping[str, str]


def families(books: Books, request: Request) -> tuple[Family, ...]:
    """The families that `request` is about: those it names, or that its addresses or pools are of, or any that serves.

    Raises `Invalid` as `serving`, and for two addresses of one family.
    """
    if request.addresses:
        own = tuple(sorted(Family(address.version) for address in request.addresses))
        if len(set(own)) < len(own):
            texts = ", ".join(map(str, request.addresses))
            raise Invalid([Problem(what=request.handle, why=f"asks for {texts}; at most one of a family can be had")])
        return own
    if request.families is not None:
        return tuple(sorted(set(request.families)))
    return tuple(each for each in Family if request.pools.get(each) or serving(books, request, each).pools)


def serving(books: Books, request: Request, family: Family) -> Serving:
    """The pools for new addresses of `request` in `family`. Raises `Invalid` naming a pool asked for and not there."""
    asked = request.pools.get(family)
    refused: dict[str, str] = {}
    fit: list[IPPool] = []
    if asked:
        for pool in _asked_for(books, request, family, asked, refused):
            _sort_out(pool, _out_of_order(pool, request.use), fit, refused)
    else:
        refused |= dict.fromkeys(books.unreadable(IPPool.KIND), "cannot be read")
        for pool in books.pools(family):
            _sort_out(pool, _out_of_order(pool, request.use) or _not_meant(books, request, pool), fit, refused)
    return Serving(pools=tuple(fit), refused=refused)


def serving_address(books: Books, request: Request, address: Address) -> Serving:
    """The pool of an address that is asked for by itself: any in order, and among those asked for if any are."""
    family = Family(address.version)
    refused: dict[str, str] = {}
    fit: list[IPPool] = []
    asked = request.pools.get(family)
    within = _asked_for(books, request, family, asked, refused) if asked else books.pools(family)
    for pool in within:
        if contains(blocks.network(pool), address):
            _sort_out(pool, _out_of_order(pool, request.use), fit, refused)
    return Serving(pools=tuple(fit), refused=refused)


def relied_on(books: Books, request: Request) -> tuple[Guard, ...]:
    """The guards that the node and the namespace are as they were when pools were chosen. The pool's is its user's."""
    if request.owner.virtual:
        return ()  # pools of load balancers choose nobody by labels
    guards = books.present(Key(Node.KIND, "", request.owner.node))
    if request.owner.namespace:
        guards += books.present(Key(Namespace.KIND, "", request.owner.namespace))
    return guards


def free_ranges(books: Books, pool: IPPool, node: str) -> Iterator[Network]:
    """Ranges of `pool`, one block each, in the order in which `node` tries them: no block has a part of them, and no
    reservation all of them.

    Blocks left from a pool of other block sizes are respected. Nothing while a block's range cannot be told.
    """
    network, length = blocks.network(pool), pool.spec.block_length
    if books.unplaced() or books.taken_within(network) >= network.num_addresses:
        return
    count: int = 1 << (length - network.prefixlen)
    size: int = 1 << (network.max_prefixlen - length)
    first = int(network.network_address)
    start = int.from_bytes(hashlib.sha256(f"{node} {network}".encode()).digest()[:8]) % count
    # Each step but one passes all that one block or one reservation takes, however much that is: a pool of any size
    # costs no more than those.
    number = 0
    while number < count:
        place = (start + number) % count
        found = ip_network((first + place * size, length))
        taken = books.taken_around(found)
        if taken is None:
            yield found
            number += 1
        else:
            behind = (int(taken.network_address) + taken.num_addresses - first) // size
            number += max(1, min(behind, count) - place)


def _asked_for(
    books: Books, request: Request, family: Family, asked: tuple[str, ...], refused: dict[str, str]
) -> list[IPPool]:
    found: list[IPPool] = []
    problems: list[Problem] = []
    for text in dict.fromkeys(asked):
        pool = next((each for each in books.pools(family) if named(each, text)), None)
        if pool is not None:
            found.append(pool)
        elif text in books.unreadable(IPPool.KIND):
            refused[text] = "cannot be read"
        else:
            other = books.pool(text)
            why = "does not exist" if other is None else f"is not of IPv{family}"
            problems.append(Problem(what=f"IPPool {text}", why=f"{why}, and {request.handle} asks for it"))
    if problems:
        raise Invalid(problems)
    return found


def named(pool: IPPool, text: str) -> bool:
    """Whether somebody who asks for `text`, a name or a CIDR, means `pool`."""
    try:
        return text == pool.metadata.name or ("/" in text and ip_network(text) == blocks.network(pool))
    except ValueError:
        return False


def _sort_out(pool: IPPool, why: str, fit: list[IPPool], refused: dict[str, str]) -> None:
    if why:
        refused[pool.metadata.name] = why
    else:
        fit.append(pool)


def _out_of_order(pool: IPPool, use: Use) -> str:
    """Why a pool gives nothing to anybody of this use; "" when it does."""
    spec = pool.spec
    if pool.metadata.deletion_timestamp:
        return "is being deleted"
    if spec.disabled:
        return "is disabled"
    uses = spec.allowed_uses or ON_NODES
    if use not in uses:
        return f"is for {', '.join(uses)} only"
    if use is Use.TUNNEL and spec.ipip_mode is EncapMode.NEVER:
        return "does not tunnel"
    return ""


def _not_meant(books: Books, request: Request, pool: IPPool) -> str:
    """Why a pool that was not asked for does not serve this owner; "" when it does."""
    spec, owner = pool.spec, request.owner
    if spec.assignment_mode == "Manual":
        return "is Manual: it serves those who ask for it"
    why = _unselected(books, "nodeSelector", spec.node_selector, Node, owner.node)
    if why or not spec.namespace_selector:
        return why
    return _unselected(books, "namespaceSelector", spec.namespace_selector, Namespace, owner.namespace)


def _unselected(books: Books, field: str, text: str, cls: type[Resource], name: str) -> str:
    try:
        chosen = selector.parse(text)
    except SelectorError:
        return f"has a {field} that cannot be read"
    if chosen.everything:
        return ""
    seen = books.find(cls, Key(cls.KIND, "", name)) if name else None
    if seen is not None and seen.resource is None:
        return f"has a {field}, and {seen.key} cannot be read"
    labels = {} if seen is None or seen.resource is None else dict(seen.resource.metadata.labels)
    if cls is Namespace and name:
        labels = namespace_itself(labels, name)
    return "" if chosen.matches(labels) else f"has the {field} {text}"
