"""What is not where it should be: each stage of a prefix's way, held against the one before it. Pure.

    own prefixes ── told ──> ExaBGP has acknowledged them          desired adverts against acknowledged ones
    remote blocks ── heard ──> some peer tells us, and we take it  the datastore against what is learnt
    what we take ── kernel ──> it is routed                        desired routes against those read just now

Things on their way are no differences. One counts after it has stood for STANDING_S; while others that have stood as
long go away (10,000 adverts are being told, one after the other), or its stage is known to be moving, after MOVING_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_network
from typing import Final, TypeAlias, TypeVar

from bgp.model import Maintenance
from bgp.telling.adverts import Advert, Told
from core.prefix import Prefix
from core.resources import IPAMBlock, IPPool, Node
from core.resources.status import Difference
from core.routing import Carrier, carriers
from core.snapshot import Snapshot
from linux.model import NextHop, Route

STANDING_S: Final = 3.0
"""How long a difference must have stood before it counts, in seconds."""

MOVING_S: Final = 30.0
"""The same while its stage is moving, in seconds."""

MOST_SHOWN: Final = 100
"""Differences that a status names; it counts the others."""

TOLD: Final = "told"
HEARD: Final = "heard"
KERNEL: Final = "kernel"
STAGES: Final = (TOLD, HEARD, KERNEL)

K = TypeVar("K")
V = TypeVar("V")

Spell: TypeAlias = Callable[[NextHop], str]
"""A next hop as a person reads it: its device has a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One moment of a node. `expected` are remote blocks with the node each belongs to, `refused` says why what is
    heard is not taken. `routes` are what should be in the kernel, `kernel` what is. `errors` say why an
    advert or a route was not taken by who should. `moving` are stages in which much is known to be on its way."""

    wanted: Mapping[Advert, Told] = field(default_factory=dict)
    acknowledged: Mapping[Advert, Told] = field(default_factory=dict)
    expected: Mapping[Prefix, str] = field(default_factory=dict)
    refused: Callable[[Prefix], str] = lambda _: ""
    routes: Mapping[Prefix, Route] = field(default_factory=dict)
    kernel: Mapping[Prefix, Route] = field(default_factory=dict)
    errors: Mapping[Advert | Prefix, str] = field(default_factory=dict)
    moving: frozenset[str] = frozenset()


def expected(snapshot: Snapshot, node: str) -> Mapping[Prefix, str]:
    """The remote blocks that only BGP can bring to `node`, each with its owner.

    A block of a Fallback pool has its tunnel, one of an owner that is drained or tells nobody is not missed.
    """
    local = snapshot.get(Node, node)
    if local is None:
        return {}
    pools = [Prefix.of(pool.spec.network) for pool in snapshot.of(IPPool).values() if _only_bgp(pool, local)]
    nodes = snapshot.of(Node).items()
    tell = {pool.version: {key.name for key, each in nodes if _tells(each, pool.version)} - {node} for pool in pools}
    found: dict[Prefix, str] = {}
    for block in snapshot.of(IPAMBlock).values():
        prefix, owner = _prefix(block.spec.cidr), block.spec.node
        if owner not in tell.get(prefix.version, ()):
            continue
        if prefix.length == 8 * len(prefix.packed) and not block.spec.allocations:
            continue  # a block of one address is told while the address is taken
        if any(prefix.length >= pool.length and prefix.cut(pool.length) == pool for pool in pools):
            found[prefix] = owner
    return found


@lru_cache(maxsize=1 << 16)
def _prefix(cidr: str) -> Prefix:
    """Blocks come again with every change of any of them."""
    return Prefix.of(ip_network(cidr))


def _tells(node: Node, version: int) -> bool:
    drained = node.spec.bgp is not None and node.spec.bgp.maintenance == Maintenance.WITHDRAWN
    return not drained and node.address(version) is not None


def _only_bgp(pool: IPPool, local: Node) -> bool:
    """Whether blocks of the pool are told, and nothing but BGP brings them here: no mode's use of BGP depends on where
    the owner is, so any node stands for it."""
    exported = not pool.spec.disabled and not pool.spec.disable_bgp_export
    reach = local.address(pool.spec.network.version) is not None
    return exported and reach and carriers(pool, local, local) == {Carrier.BGP}


def differences(view: View, spell: Spell) -> Iterator[Difference]:
    """Everything that is not where it should be at this moment, on its way or not."""
    for advert in _unlike(view.wanted, view.acknowledged):
        if advert.prefix is not None:
            why = view.errors.get(advert, "ExaBGP has not acknowledged it")
            yield Difference(stage=TOLD, prefix=str(advert.prefix), peer=str(advert.peer), why=why)
    for prefix, owner in view.expected.items():
        if prefix not in view.routes and not _covered(prefix, view.routes):
            yield Difference(stage=HEARD, prefix=str(prefix), node=owner, why=view.refused(prefix))
    for key in _unlike(view.routes, view.kernel):
        yield _misrouted(key, view, spell)
    for key in view.kernel.keys() - view.routes.keys():
        why = f"the kernel has it through {_spelt(view.kernel[key], spell)}, and nothing asks for it"
        yield Difference(stage=KERNEL, prefix=str(key), why=why)


def _unlike(wanted: Mapping[K, V], actual: Mapping[K, V]) -> Iterator[K]:
    return (key for key, value in wanted.items() if actual.get(key) != value)


def _covered(prefix: Prefix, routes: Mapping[Prefix, Route]) -> bool:
    """Whether a wider prefix stands for it: a router may tell a rack's blocks as one."""
    return any(prefix.cut(length) in routes for length in range(prefix.length - 1, 0, -1))


def _misrouted(key: Prefix, view: View, spell: Spell) -> Difference:
    there = view.kernel.get(key)
    why = "the kernel has no route" if there is None else f"the kernel's route goes through {_spelt(there, spell)}"
    why += f"; it should go through {_spelt(view.routes[key], spell)}"
    if error := view.errors.get(key):
        why += f": {error}"
    return Difference(stage=KERNEL, prefix=str(key), why=why)


def _spelt(route: Route, spell: Spell) -> str:
    return " and ".join(map(spell, route.next_hops)) or route.type.name.lower()


_Key: TypeAlias = tuple[str, str, str]


class Standing:
    """Which differences have stood long enough to count, from one look to the next. Times are of any steady clock."""

    def __init__(self) -> None:
        self._since: dict[_Key, float] = {}
        self._gone: deque[tuple[float, str, float]] = deque()  # when seen to be gone, of which stage, since when
        self.found: tuple[Difference, ...] = ()

    def look(self, seen: Sequence[Difference], moving: frozenset[str], now: float) -> bool:
        """Take in what differs now; whether what counts has changed."""
        present = {_key(each): each for each in seen}
        for key in self._since.keys() - present.keys():
            self._gone.append((now, key[0], self._since.pop(key)))
        while self._gone and self._gone[0][0] <= now - STANDING_S:
            self._gone.popleft()
        for key in present:
            self._since.setdefault(key, now)
        oldest: dict[str, float] = {}
        for _, stage, since in self._gone:
            oldest[stage] = min(since, oldest.get(stage, since))
        counted = tuple(
            each
            for key, each in present.items()
            if now - self._since[key] >= _patience(key, self._since, oldest, moving)
        )
        before, self.found = self.found, tuple(sorted(counted, key=_order))
        return before != self.found

    def clear(self) -> None:
        """Forget everything: there is nothing to hold anything against."""
        self._since.clear()
        self._gone.clear()
        self.found = ()


def _patience(
    key: _Key, since: Mapping[_Key, float], oldest_gone: Mapping[str, float], moving: frozenset[str]
) -> float:
    """How long a difference must have stood: longer while others that are as old go away."""
    stage = key[0]
    works = stage in oldest_gone and oldest_gone[stage] <= since[key]
    return MOVING_S if works or stage in moving else STANDING_S


def _key(difference: Difference) -> _Key:
    return difference.stage, difference.prefix, difference.peer


def _order(difference: Difference) -> tuple[int, str, str]:
    return STAGES.index(difference.stage), difference.prefix, difference.peer
