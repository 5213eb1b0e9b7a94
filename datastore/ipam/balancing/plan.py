"""What to do next about Services' addresses, from one state of the store. Pure; it costs what changed since the last.

    Service ── ours, and asks ──┬── wants what it has not, has what does not fit, or does not say so ──> Give
            │                   └── what it asks for cannot be read ───────────────────────────────────> Wait
            └── not (any more), or gone ── it has a handle ─────────────────────────────────────────────> Take

    block of the load balancers, empty ── its pool ends, or nobody used it for a while ──> Spare: block and claim go

Each of the first three compares with the Service as it was seen; a Service of which nobody knows what it says now loses
nothing. Two servers that plan the same do no harm: one of them is refused, and plans again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from typing import Final, TypeAlias

from core.addr import Address, Family, contains, overlap
from core.errors import Invalid
from core.names import Key
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    KubeControllersConfiguration,
    Resource,
    Service,
)
from core.resources.ipam import LOAD_BALANCER, AffinityState
from core.snapshot import Snapshot
from datastore.ipam import block as blocks
from datastore.ipam.balancing.ingress import addresses, telling
from datastore.ipam.balancing.wishes import Wish, asks, balances, handle_of, ours, request, served, service_of, wish
from datastore.ipam.model import Remove, Request, Step

SETTINGS: Final = Key(KubeControllersConfiguration.KIND, "", "default")


NO_POOL: Final = "there is no IPPool whose allowedUses is [LoadBalancer]; make one"


@dataclass(frozen=True, slots=True, eq=False)
class Give:
    """That a Service is to have what `request` asks for, and to say so.

    One that says that it has addresses, and holds none, is to have those if they can be had (`adopting`): traffic may
    be under way to them, as when it comes from another cluster's backup.
    """

    service: Service
    request: Request
    context: Context
    adopting: Request | None = None

    @property
    def key(self) -> Key:
        """The Service."""
        return self.service.key

    def told(self, held: Collection[Address]) -> Service:
        """The Service as it says that it has `held`. No address of a LoadBalancer pool that it does not hold stays."""
        return telling(self.service, held, self.context.balanced)


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """That what the handle of a Service holds is to be free; `service` None: there is none any more."""

    key: Key
    handle: str
    service: Service | None
    told: Service | None


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """Why a Service gets nothing before it says something else."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Spare:
    """A block or a claim of the load balancers that nobody needs; `at_once` when its pool is at its end."""

    key: Key
    revision: int
    at_once: bool
    step: Step


Due: TypeAlias = Give | Take | Wait


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What decides for all Services at once."""

    pools: tuple[IPPool, ...]
    unreadable: frozenset[str]
    able: frozenset[Family]
    only_requested: bool
    unknown: bool

    @classmethod
    def of(
        cls, pools: Collection[IPPool], settings: KubeControllersConfiguration | None, problems: AbstractSet[Key]
    ) -> Context:
        """From the pools, the settings and the objects that cannot be read."""
        return cls(
            pools=tuple(pool for pool in pools if balances(pool)),
            unreadable=frozenset(key.name for key in problems if key.kind == IPPool.KIND),
            able=served(pools),
            only_requested=settings is not None and settings.only_requested,
            unknown=SETTINGS in problems,
        )

    def balanced(self, address: Address) -> bool:
        """Whether an address is of a LoadBalancer pool."""
        return any(contains(blocks.network(pool), address) for pool in self.pools)


def revision(of: Resource) -> int:
    """At which revision an object of a followed snapshot was last written."""
    return int(of.metadata.resource_version)


class Unmoved:
    """Whether a snapshot has the same objects of some kinds as the one before: most of what is heard is about pods."""

    def __init__(self, *classes: type[Resource]) -> None:
        self._classes = classes
        self._before: tuple[object, ...] = ()

    def __call__(self, snapshot: Snapshot) -> bool:
        """Also notes it."""
        tables: tuple[object, ...] = (snapshot.problems, *(snapshot.of(cls) for cls in self._classes))
        before, self._before = self._before, tables
        return tables == before


class Planner:
    """Remembers what it decided for each Service: the same again, the very same object, while nothing it goes by has
    changed."""

    def __init__(self) -> None:
        self._unmoved = Unmoved(Service, IPAMHandle, IPPool, KubeControllersConfiguration)
        self._plan: list[Due] = []
        self._context: Context | None = None
        self._from: tuple[object, ...] = ()
        self._known: dict[Key, tuple[Service | None, IPAMHandle | None, Context, Due | None]] = {}

    def plan(self, snapshot: Snapshot) -> list[Due]:
        """What is to be done, in no order."""
        if not self._unmoved(snapshot):
            self._plan = self._made(snapshot)
        return self._plan

    def _made(self, snapshot: Snapshot) -> list[Due]:
        context = self._in(snapshot)
        handles = {key: handle for handle in snapshot.of(IPAMHandle).values() if (key := _service_of(handle))}
        named = {handle.spec.handle_id: handle for handle in snapshot.of(IPAMHandle).values()}
        services = snapshot.of(Service)
        known: dict[Key, tuple[Service | None, IPAMHandle | None, Context, Due | None]] = {}
        about = [key for key, service in services.items() if service.spec.type == "LoadBalancer" or key in handles]
        for key in (*about, *(handles.keys() - services.keys() - snapshot.problems.keys())):
            service = services.get(key)
            handle = handles.get(key) or named.get(handle_of(key.namespace, key.name))
            before = self._known.get(key)
            if before is not None and before[0] is service and before[1] is handle and before[2] is context:
                known[key] = before
            else:
                known[key] = service, handle, context, _survived(key, service, handle, context)
        self._known = known
        return [due for _, _, _, due in known.values() if due is not None]

    def _in(self, snapshot: Snapshot) -> Context:
        pools, settings = snapshot.of(IPPool), snapshot.of(KubeControllersConfiguration)
        problems = frozenset(key for key in snapshot.problems if key.kind == IPPool.KIND or key == SETTINGS)
        made_from = (pools, settings, problems)
        if self._context is None or made_from != self._from:
            self._context = Context.of(pools.values(), settings.get(SETTINGS), problems)
            self._from = made_from
        return self._context


def _survived(key: Key, service: Service | None, handle: IPAMHandle | None, context: Context) -> Due | None:
    """As `judge`; a Service at which that fails disables itself and no other."""
    try:
        return judge(key, service, handle, context)
    except Exception as error:
        return Wait(key, f"{key} cannot be judged: {error!r}")


def judge(key: Key, service: Service | None, handle: IPAMHandle | None, context: Context) -> Due | None:
    """What is to be done about one Service; None: it has what it asks for, or nothing and asks for nothing."""
    held = tuple(map(ip_address, handle.spec.addresses)) if handle is not None else ()
    asking = service is not None and ours(service) and (context.unknown or not context.only_requested or asks(service))
    if service is None or not asking:
        if handle is None:
            return None
        told = telling(service, (), lambda each: each in held) if service is not None else None
        return Take(key, handle.spec.handle_id, service, told)
    if context.unknown and handle is None:
        return Wait(key, f"{SETTINGS} cannot be read, so no Service is given an address; apply it again")
    if handle is None and not context.pools and not context.unreadable:
        return Wait(key, NO_POOL)  # nobody has to look into the store for that
    try:
        wanted = wish(service, context.able, held)
    except Invalid as invalid:
        return Wait(key, str(invalid))
    return _wanted(service, wanted, held, context)


def _wanted(service: Service, wanted: Wish, held: tuple[Address, ...], context: Context) -> Give | None:
    instead = tuple(each for each in held if not wanted.fits(each, context.pools, context.unreadable))
    left = [each for each in held if each not in instead]
    if not instead and not wanted.missing(left) and telling(service, held, context.balanced) is service:
        return None
    return Give(
        service, request(service, wanted, instead), context, None if held else _adopting(service, wanted, context)
    )


def _adopting(service: Service, wanted: Wish, context: Context) -> Request | None:
    said: dict[int, Address] = {}
    for address in addresses(service):
        if context.balanced(address) and wanted.fits(address, context.pools, context.unreadable):
            said.setdefault(address.version, address)
    if not said or wanted.addresses:
        return None
    return replace(request(service, wanted, ()), addresses=tuple(said.values()), families=None)


def spares(snapshot: Snapshot, now: datetime) -> Iterator[Spare]:
    """Empty blocks of the load balancers, and claims that came to nothing. One whose addresses rest is not empty."""
    settings = snapshot.get(IPAMConfiguration, "default")
    rested = blocks.rested_since(now, settings.spec.ip_cooldown_seconds if settings is not None else 0)
    blind = any(key.kind == IPPool.KIND for key in snapshot.problems)
    claims = {held.spec.network: held for held in snapshot.of(BlockAffinity).values() if mine(held)}
    there = {held.spec.network: held for held in snapshot.of(IPAMBlock).values() if mine(held)}
    for network, block in there.items():
        around = [pool for pool in snapshot.of(IPPool).values() if overlap(blocks.network(pool), network)]
        ends = all(pool.terminating for pool in around) if around else not blind
        if block.spec.allocations or (not ends and blocks.resting(block, rested)):
            continue
        both = [each for each in (block, claims.get(network)) if each is not None]
        yield Spare(block.key, revision(block), ends, _without(*both))
    dark = any(key.kind == IPAMBlock.KIND for key in snapshot.problems)
    for network, claim in claims.items():
        if network not in there and not (dark and claim.spec.state is AffinityState.CONFIRMED):
            yield Spare(claim.key, revision(claim), at_once=False, step=_without(claim))


def ended(snapshot: Snapshot) -> list[Key]:
    """LoadBalancer pools that are being deleted and have no block of the load balancers any more."""
    networks = [block.spec.network for block in snapshot.of(IPAMBlock).values()]
    return [
        key
        for key, pool in snapshot.of(IPPool).items()
        if pool.terminating and balances(pool) and not any(overlap(pool.spec.network, each) for each in networks)
    ]


def mine(held: IPAMBlock | BlockAffinity) -> bool:
    """Whether a block or a claim is the load balancers'."""
    return held.spec.owner == LOAD_BALANCER


def _without(*gone: Resource) -> Step:
    return Step(changes=tuple(Remove(each.key, revision(each)) for each in gone))


def _service_of(handle: IPAMHandle) -> Key | None:
    spec = handle.spec
    return service_of(spec.handle_id, spec.namespace, spec.service)
