"""What a runtime asks for, as steps that may each be done again.

    ADD    address <── IPAM ── wire the pod ── write its WorkloadEndpoint ── felix says `up` ── result
              └──────────────────────┴────────────────┴── anything fails: DEL's steps, then the error

    DEL    read the endpoint ── unwire ── endpoint away ── address free
    CHECK  endpoint, addresses, wire and felix: all as ADD left them
    STATUS the datastore answers and felix works on this node

A pod's name decides the name of its host interface and of its endpoint; its container's id, what IPAM knows it by. So
DEL finds everything that an ADD made, also one that was killed between two steps, and nothing of the container
that has taken the pod's place meanwhile. The address goes last: nobody gets it while the pod could still use it.

One pod is one process's at a time (`cni.lock`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_interface
from typing import Any, Final

import structlog

from cni import endpoint, lock, ready, spec, wiring
from cni.spec import Attachment, Call, Code, Command, Config, Device, Failure, Joined
from cni.wiring import GATEWAYS, Place, Wire
from core.addr import Address, Family, Interface, host_prefix
from core.errors import Conflict, Invalid, MuslinError, Unavailable
from core.names import workload_interface
from core.resources import FelixStatus, WorkloadEndpoint
from core.resources.status import SILENT_AFTER_S
from core.validate import validate
from datastore import objects
from datastore.api import ABSENT, Store
from datastore.ipam import thin as ipam

ATTEMPTS: Final = 5
"""How often an endpoint that somebody else has just written is read and written again."""

log = structlog.get_logger()


async def run(call: Call, store: Store) -> Mapping[str, Any] | None:
    """Do what is asked; what to print, if anything. Raises `Failure`, whatever went wrong."""
    try:
        if call.attachment is None:
            await _status(store, call.config)
            return None
        pod = _Pod(store, call.config, call.attachment)
        async with lock.held(lock.of_pod(pod.place.host)):
            if call.command is Command.ADD:
                return spec.result(await pod.add(), call.config.version)
            await (pod.remove() if call.command is Command.DEL else pod.check())
            return None
    except (MuslinError, OSError) as error:
        raise _failure(error) from error


def _failure(error: MuslinError | OSError) -> Failure:
    match error:
        case Failure():
            return error
        case Unavailable() | Conflict() | ready.NotProgrammed():
            code = Code.TRY_AGAIN
        case ipam.Exhausted():
            code = Code.NO_ADDRESS
        case wiring.NoNamespace():
            code = Code.CONTAINER
        case wiring.OwnNamespace():
            code = Code.NAMESPACE
        case Invalid():
            code = Code.CONFIG
        case _:
            code = Code.IO
    return Failure(code, str(error))


@dataclass(frozen=True, slots=True)
class _Found:
    """The endpoint in the pod's place, and the revision to write over it; None and ABSENT when there is none."""

    endpoint: WorkloadEndpoint | None
    revision: int


class _Pod:
    """One interface of one container, and what is to be done about it."""

    def __init__(self, store: Store, config: Config, attachment: Attachment) -> None:
        self._store, self._config, self._attachment = store, config, attachment
        self._name = endpoint.name(config, attachment)
        self._handle = endpoint.handle(config, attachment)
        self.place = Place(
            host=workload_interface(attachment.namespace, attachment.pod),
            netns=attachment.netns,
            inside=attachment.interface,
        )

    async def add(self) -> Joined:
        """Join the pod; what it has. Asked again, the same."""
        wiring.require(self.place)
        self._refuse_unfit()
        found = await self._read()
        before = found.endpoint
        again = before is not None and endpoint.is_of(before, self._attachment)
        if before is not None and not again and before.spec.container_id == self._attachment.container:
            why = f"pod {self._attachment.namespace}/{self._attachment.pod} has an interface, {before.spec.endpoint}"
            raise Failure(Code.ENVIRONMENT, f"{why}; muslin gives a pod one")
        async with AsyncExitStack() as undo:
            if not again:  # a pod that works is not taken down because it is asked for once more
                undo.push_async_callback(self._undo)
            addresses = before.spec.addresses if before is not None and again else await self._addresses()
            wire = wiring.attach(self.place, addresses, self._config.mtu)
            revision = await self._write(found, addresses, wire)
            await ready.until_up(
                self._store,
                self._config.node,
                f"{self._attachment.namespace}/{self._name}",
                revision,
                self._config.wait_s,
            )
            undo.pop_all()
        log.info("cni.added", **self._who(), addresses=[str(each) for each in addresses])
        return self._joined(addresses, wire)

    async def remove(self) -> None:
        """Take the pod off; whatever of it is gone already is success."""
        found = await self._read()
        there = found.endpoint
        ours = there is not None and endpoint.is_of(there, self._attachment)
        if there is not None and not ours and there.spec.container_id == self._attachment.container:
            return  # this container's other interface, which stays
        wiring.detach(self.place, certain=ours or there is None)
        await self._forget()
        freed = await ipam.release(self._store, self._handle)
        log.info("cni.removed", **self._who(), addresses=[str(each) for each in freed])

    async def check(self) -> None:
        """Raise `Failure` with everything that is not as ADD left it."""
        wrong: list[str] = []
        found = (await self._read()).endpoint
        if found is None or not endpoint.is_of(found, self._attachment):
            raise Failure(Code.NOT_AS_ADDED, f"WorkloadEndpoint {self._attachment.namespace}/{self._name}: not there")
        expected = set(self._config.previous or ())
        held = {ip_interface(host_prefix(address)) for address in found.spec.addresses}
        if expected != held:
            wrong.append(f"the endpoint has {_listed(held)}, ADD gave {_listed(expected)}")
        if missing := expected - {
            ip_interface(host_prefix(each)) for each in await ipam.held_by(self._store, self._handle)
        }:
            wrong.append(f"{_listed(missing)}: not the container's in IPAM")
        wrong += self._wire_faults(expected)
        said = await objects.read(self._store, FelixStatus, self._config.node)
        endpoint_name = f"{self._attachment.namespace}/{self._name}"
        why = ready.why_not(said[0], endpoint_name, 0) if said else f"felix has never reported from {self._config.node}"
        if why:
            wrong.append(why)
        if wrong:
            raise Failure(Code.NOT_AS_ADDED, "; ".join(wrong))

    def _wire_faults(self, expected: set[Interface]) -> list[str]:
        wire = wiring.look(self.place)
        ends = f"{self.place.host} and {self.place.inside} in {self.place.netns}"
        if wire is None:
            return [f"{ends}: not there, or not the ends of one wire"]
        down = [f"{link.name} is down" for link in (wire.host, wire.pod) if not link.up]
        if missing := expected - set(wire.addresses):
            down.append(f"{self.place.inside} has not {_listed(missing)}")
        return down

    def _refuse_unfit(self) -> None:
        """Raise `Invalid` when the datastore would refuse the endpoint, before there is anything to undo."""
        if problems := validate(endpoint.endpoint(self._config, self._attachment, (), "")):
            raise Invalid(problems)

    async def _addresses(self) -> tuple[Address, ...]:
        node, namespace = self._config.node, self._attachment.namespace
        async with lock.held(lock.ADDRESSES):
            families = await ipam.families(self._store, node, namespace) or (Family.V4,)  # which says why there is none
            return tuple(
                [
                    await ipam.allocate(
                        self._store, ipam.Request(node=node, handle=self._handle, family=each, namespace=namespace)
                    )
                    for each in families
                ]
            )

    async def _write(self, found: _Found, addresses: tuple[Address, ...], wire: Wire) -> int:
        """Write the endpoint unless it is as it should be; the revision it has now."""
        for _ in range(ATTEMPTS):
            wanted = endpoint.endpoint(self._config, self._attachment, addresses, wire.pod.mac, found.endpoint)
            before = found.endpoint
            if before is not None and (before.spec, before.metadata.labels) == (wanted.spec, wanted.metadata.labels):
                return found.revision
            try:
                return await objects.write(self._store, wanted, found.revision)
            except Conflict:
                found = await self._read()
        raise Conflict(f"WorkloadEndpoint {self._attachment.namespace}/{self._name}", found.revision, None)

    async def _forget(self) -> None:
        """Delete the endpoint, if it is this container's."""
        for _ in range(ATTEMPTS):
            found = await self._read()
            if found.endpoint is None or not endpoint.is_of(found.endpoint, self._attachment):
                return
            try:
                await objects.delete(
                    self._store, WorkloadEndpoint, self._name, self._attachment.namespace, revision=found.revision
                )
            except Conflict:
                continue
            return
        raise Conflict(f"WorkloadEndpoint {self._attachment.namespace}/{self._name}", None, None)

    async def _undo(self) -> None:
        """DEL's steps, each tried even when the one before fails; a DEL that follows does what could not be done."""
        log.info("cni.undone", **self._who())
        try:
            wiring.detach(self.place, certain=True)
        except (MuslinError, OSError) as error:
            log.warning("cni.not_unwired", **self._who(), why=str(error))
        try:
            await self._forget()
            await ipam.release(self._store, self._handle)
        except MuslinError as error:
            log.warning("cni.not_forgotten", **self._who(), why=str(error))

    async def _read(self) -> _Found:
        found = await objects.read(self._store, WorkloadEndpoint, self._name, self._attachment.namespace)
        return _Found(*found) if found else _Found(None, ABSENT)

    def _joined(self, addresses: tuple[Address, ...], wire: Wire) -> Joined:
        return Joined(
            host=Device(name=wire.host.name, mac=wire.host.mac, mtu=wire.host.mtu),
            pod=Device(name=wire.pod.name, mac=wire.pod.mac, mtu=wire.pod.mtu, sandbox=self.place.netns),
            addresses=tuple(
                (ip_interface(host_prefix(address)), GATEWAYS[Family(address.version)]) for address in addresses
            ),
        )

    def _who(self) -> Mapping[str, str]:
        at = self._attachment
        return {"pod": f"{at.namespace}/{at.pod}", "container": at.container, "interface": self.place.host}


async def _status(store: Store, config: Config) -> None:
    """Raise `Failure` when an ADD would have to fail."""
    try:
        said = await objects.read(store, FelixStatus, config.node)
    except Unavailable as error:
        raise Failure(Code.NOT_AVAILABLE, str(error)) from error
    if said is None:
        raise Failure(Code.NOT_AVAILABLE, f"felix has never reported from node {config.node}; start it there")
    reported = said[0].status.reported
    age = (
        datetime.now(UTC) - datetime.fromisoformat(reported) if reported else timedelta.max
    )  # by this host's one clock
    if age > timedelta(seconds=SILENT_AFTER_S):
        raise Failure(Code.NOT_AVAILABLE, f"felix on node {config.node} last reported at {reported or 'no known time'}")


def _listed(addresses: set[Interface]) -> str:
    return ", ".join(sorted(map(str, addresses))) or "no address"
