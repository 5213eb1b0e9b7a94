"""ADD: join a pod, or find that it is joined already.

    Pod, Namespace ──> wish ──> address + handle + endpoint, one transaction ──┐
    make the wire (a thread) ──────────────────────────────────────────────────┴─┬─> furnish the pod's end ──┐
                                                                                 └─> felix says `up` ────────┤
        result <── the host leads to the pod <── connections of former holders cut <─────────────────────────┘

    anything fails, or nobody waits any more  ──> wire, endpoint and address are taken back, if the wire is ours

Pod and Namespace are taken as they were last heard of, and the endpoint is written as if there were none. That it is
otherwise is seen by the conflict; then all is read. The same container's endpoint is kept as it is, a former
container's of the pod is replaced at the revision at which it was read. No refusal rests on what was only heard. A wire
that stood before is that of a pod that works (ADD is asked once more, or an agent died after it was made): what fails
then takes nothing away, and the DEL that a runtime owes for a failed ADD does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_interface
from typing import Final

import structlog

from cni import endpoint, gates, wiring
from cni.annotations import Wish, askers, wish
from cni.around import Around, known, read
from cni.call import ATTEMPTS, Call, Found
from cni.result import Device, Joined
from cni.spec import Code, Failure
from cni.thread import in_thread, to_the_end
from cni.wiring import GATEWAYS, Furniture, Wire
from core.addr import Address, Family, host_prefix
from core.errors import Conflict, Invalid, MuslinError
from core.manifest import decode
from core.names import WORKLOAD_PREFIX
from core.resources import Pod, WorkloadEndpoint
from core.validate import validate
from datastore import objects
from datastore.api import Operation
from datastore.ipam.model import Exhausted, Grant, Owner, Request
from linux.route_query import Way, Ways, way_to

UNDO_WHY: Final = "ADD failed"

log = structlog.get_logger()


async def add(call: Call) -> Joined:
    """Join the pod; what it has. Asked again, the same. Raises `MuslinError`, `OSError`, or a group of them."""
    adding = _Adding(call)
    try:
        return await adding.run()
    except BaseException:
        if adding.wire is None or adding.wire.made:
            await to_the_end(adding.undo())
        raise


class _Adding:
    """One ADD under way. `wire` is None until there is one."""

    def __init__(self, call: Call) -> None:
        self._call, self._means = call, call.means
        self.wire: Wire | None = None
        self._pod: Pod | None = None
        self._wish = Wish()
        self._mac = ""

    async def run(self) -> Joined:
        """All of it."""
        async with asyncio.TaskGroup() as both:
            wiring_task = both.create_task(in_thread(self._means.makers, self._attach), name="wire")
            granting = both.create_task(self._grant(), name="addresses")
        wire, (grant, revision) = wiring_task.result(), granting.result()
        furniture = Furniture(
            addresses=grant.addresses,
            routes=wiring.routes_of(grant.addresses, self._call.conf.ipam.routes),
            forward=self._call.conf.ip_forward,
        )
        async with asyncio.TaskGroup() as both:
            furnishing = in_thread(self._means.makers, wiring.furnish, self._call.place, wire, furniture, self._mac)
            both.create_task(furnishing, name="furnish")
            both.create_task(self._until_ready(revision, wire), name="felix")
        await self._means.flows.cut(grant.addresses)
        await self._require_route(grant.addresses, wire)
        log.info("cni.added", **self._call.who, addresses=[str(each) for each in grant.addresses])
        return self._joined(furniture, wire)

    async def undo(self) -> None:
        """DEL's steps, each tried even when the one before fails; a DEL that follows does what could not be done."""
        call = self._call
        log.info("cni.undone", **call.who)
        try:
            await in_thread(self._means.threads, wiring.detach, call.place, certain=self.wire is not None)
        except (MuslinError, OSError) as error:
            log.warning("cni.not_unwired", **call.who, why=str(error))
        try:
            await call.give_back(UNDO_WHY)
        except MuslinError as error:
            log.warning("cni.not_given_back", **call.who, why=str(error))

    def _attach(self) -> Wire:
        """In a thread; what it made is known also to an ADD that has been cancelled meanwhile."""
        self.wire = wiring.attach(self._call.place, self._call.conf.mtu, endpoint.own_mac(self._call.handle))
        return self.wire

    async def _grant(self) -> tuple[Grant, int]:
        """The addresses, and the revision of the endpoint that has them."""
        call, at, store = self._call, self._call.at, self._call.means.store
        around = known(self._means.pods, at.namespace, at.pod) or await read(store, at.namespace, at.pod)
        found = Found()
        for _ in range(ATTEMPTS):
            try:
                return await self._granted(around, found)
            except (Conflict, Exhausted, Failure, Invalid):
                seen, found_before = around, found
                around, found = await asyncio.gather(read(store, at.namespace, at.pod), call.found())
                if (around.guards, found.revision) == (seen.guards, found_before.revision):
                    raise
        raise Conflict(str(call.key), None, found.revision)

    async def _granted(self, around: Around, found: Found) -> tuple[Grant, int]:
        """As `_grant`, by what is known. Raises `Conflict` when it is not so any more."""
        call, at = self._call, self._call.at
        self._pod = around.pod
        annotations = around.namespace.metadata.annotations if around.namespace else {}
        own = {**call.conf.asked.annotations, **(around.pod.metadata.annotations if around.pod else {})}
        self._wish = wish(call.conf, at, own, annotations)
        self._mac = self._wish.mac or endpoint.own_mac(call.handle)
        if problems := validate(self.endpoint(())):
            raise Invalid(problems)  # before anything is written
        if call.is_beside(found) and found.endpoint:
            network = found.endpoint.metadata.annotations.get(endpoint.NETWORK, call.conf.name)
            where = f"{found.endpoint.spec.endpoint} of the network {network}"
            why = f"pod {at.namespace}/{at.pod} has an interface, {where}"
            raise Failure(Code.ENVIRONMENT, f"{why}; muslin gives a pod one")
        writing = _Writing(self, found)
        try:
            grant, revision = await self._means.ledger.assign(self._request(), writing, around.guards)
        except (Exhausted, Invalid) as error:
            asking = askers(call.conf, at, own, annotations)
            if not asking:
                raise
            code = Code.NO_ADDRESS if isinstance(error, Exhausted) else Code.CONFIG
            raise Failure(code, f"{error} (asked for by {asking})") from error
        return grant, (revision if writing.writes else found.revision)

    def _request(self) -> Request:
        call, wish = self._call, self._wish
        owner = Owner(
            node=self._means.node,
            namespace=call.at.namespace,
            pod=call.at.pod,
            container=call.at.container,
            interface=call.place.host,
        )
        return Request(
            handle=call.handle,
            owner=owner,
            families=None if wish.addresses else wish.families,
            pools=wish.pools,
            addresses=wish.addresses,
            needs_node=True,
        )

    def endpoint(self, addresses: Sequence[Address], there: WorkloadEndpoint | None = None) -> WorkloadEndpoint:
        """What it should be. The runtime's labels of `there`, the same container's, stay when it gives none now."""
        ours = there is not None and endpoint.is_of(there, self._call.conf.name, self._call.at)
        kept = endpoint.runtime_labels(there) if ours and there is not None else {}
        return endpoint.endpoint(
            self._means.node,
            self._call.at,
            addresses,
            network=self._call.conf.name,
            mac=self._mac,
            pod=self._pod,
            runtime_labels=self._call.conf.asked.labels or kept,
            sources=self._wish.sources,
        )

    async def _until_ready(self, revision: int, wire: Wire) -> None:
        """Felix first: before it, nothing of the pod's can be reached."""
        wait_s = self._call.conf.wait_s
        if wait_s:
            await self._means.outcomes.until_up(self._call.name, revision, wait_s, link=wire.host.index)
        await gates.until_open(self._call.conf.gates, wait_s)

    async def _require_route(self, addresses: Sequence[Address], wire: Wire) -> None:
        """Raise unless the host leads to the pod: a route that somebody else left would send its packets elsewhere."""
        if not self._call.conf.wait_s:
            return
        with Ways({wire.host.index: wire.host.name}) as ways:
            astray = [address for address in addresses if ways.to(address).device != wire.host.name]
        for address in astray:
            way = way_to(address)
            if not await self._removed_stale(way):
                where = f"{way.prefix or address} {'dev ' + way.device if way.device else way.kind}"
                why = f"the host's route to {address} is not the pod's but somebody else's: {where} metric {way.metric}"
                raise MuslinError(f"{why}, protocol {way.protocol}; remove it")

    async def _removed_stale(self, way: Way) -> bool:
        """Whether the route led to a former pod's interface, which no endpoint has any more, and is gone with it."""
        if not way.device.startswith(WORKLOAD_PREFIX):
            return False
        for entry in (await self._means.store.list({WorkloadEndpoint.KIND})).entries:
            if way.device.encode() not in entry.value:
                continue
            try:
                found = decode(entry.key, entry.value)
            except Invalid:  # it may be the one
                return False
            assert isinstance(found, WorkloadEndpoint)
            if (found.spec.node, found.spec.interface_name) == (self._means.node, way.device):
                return False
        log.warning("cni.stale_interface", **self._call.who, stale=way.device)
        await in_thread(self._means.threads, wiring.detach, replace(self._call.place, host=way.device), certain=True)
        return True

    def _joined(self, furniture: Furniture, wire: Wire) -> Joined:
        pod = Device(name=wire.pod.name, mac=self._mac, mtu=self._call.conf.mtu, sandbox=self._call.at.netns)
        return Joined(
            host=Device(name=wire.host.name, mac=wiring.HOST_MAC, mtu=self._call.conf.mtu),
            pod=pod,
            addresses=tuple(
                (ip_interface(host_prefix(each)), GATEWAYS[Family(each.version)]) for each in furniture.addresses
            ),
            routes=tuple((each, GATEWAYS[Family(each.version)]) for each in furniture.routes),
        )


class _Writing:
    """What is written along with the addresses: the endpoint, unless it is as it should be."""

    def __init__(self, adding: _Adding, found: Found) -> None:
        self._adding, self._found = adding, found
        self.writes = False

    def __call__(self, grant: Grant) -> Sequence[Operation]:
        there = self._found.endpoint
        wanted = self._adding.endpoint(grant.addresses, there)
        self.writes = there is None or not endpoint.same(there, wanted)
        return [objects.put(wanted, self._found.revision)] if self.writes else []
