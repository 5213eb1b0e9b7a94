"""A container runtime as runtimes are: what fails is removed until that succeeds, and a pod begins again.

ADD ── fails ──> DEL, until it succeeds ──> a new container of the pod ──> ADD ...
 └── succeeds: nobody else was told these addresses; a datagram that may pass does, one that may not does not
      └── ADD again, CHECK ──> DEL, until it succeeds, also of a namespace that is gone; and once more, late
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from survive_cluster import ALLOWED, DENIED, PATIENCE_S, Container, Machine

from linux import netns
from tests.cni.asking import Heard

TRY_AGAIN = 11
"""The code of what may be asked again; nothing else is answered, unless a test says so."""

AGAIN_S = 0.1
"""Between two tries."""

TRIES = 600

BUFFERED = 4096


@dataclass
class Told:
    """Whom a runtime was told that it has an address, over all nodes. Raises when two have one."""

    holders: dict[str, str] = field(default_factory=dict)
    ever: set[str] = field(default_factory=set)

    def given(self, container: Container, addresses: tuple[str, ...]) -> None:
        for each in addresses:
            holder = self.holders.setdefault(each, container.id)
            assert holder == container.id, f"{each} is {holder}'s, and was given to {container.id}"
        self.ever.update(addresses)

    def ended(self, container: Container) -> None:
        """It may be given to others from now on."""
        self.holders = {address: holder for address, holder in self.holders.items() if holder != container.id}


def addresses(heard: Heard) -> tuple[str, ...]:
    return tuple(each["address"].partition("/")[0] for each in heard.document["ips"])


@dataclass
class Runtime:
    """One node's. `failures` counts what was refused, by command and code; `made` is how many containers
    there were, `codes` what a failure may be."""

    machine: Machine
    told: Told
    chance: random.Random
    failures: Counter[tuple[str, int]] = field(default_factory=Counter)
    sentences: Counter[str] = field(default_factory=Counter)
    codes: frozenset[int] = frozenset({TRY_AGAIN})
    packets: int = 0
    made: int = 0
    _late: dict[str, Container] = field(default_factory=dict)

    def container(self, pod: str, namespace: str = "") -> Container:
        """A new container, in a new namespace unless one is given."""
        self.made += 1
        name = f"{self.made}"
        return Container(f"{self.made:08x}{self.machine.node}", namespace or self.machine.namespace(name), pod)

    async def added(self, pod: str, container: Container | None = None) -> tuple[Container, tuple[str, ...]]:
        """A pod that runs, however often it takes; and its addresses."""
        container = container or self.container(pod)
        for _ in range(TRIES):
            heard = await self.machine.call("ADD", container)
            if heard.status == 0:
                self.told.given(container, addresses(heard))
                return container, addresses(heard)
            self.failed("ADD", heard)
            await self.removed(container)
            container = self.container(pod, container.netns)
            await asyncio.sleep(AGAIN_S)
        raise AssertionError(f"{pod} was never added: {self.sentences}")

    async def removed(self, container: Container) -> None:
        """DEL, however often it takes."""
        self.told.ended(container)
        for _ in range(TRIES):
            heard = await self.machine.call("DEL", container)
            if heard.status == 0:
                return
            self.failed("DEL", heard)
            await asyncio.sleep(AGAIN_S)
        raise AssertionError(f"{container} was never removed: {self.sentences}")

    def failed(self, command: str, heard: Heard) -> None:
        said = heard.document
        self.failures[command, said["code"]] += 1
        self.sentences[f"{command}: {said['msg']}"] += 1
        assert said["code"] in self.codes, said

    async def live(self, pod: str, probe: Container) -> None:
        """A pod's life, from its beginning to its end. `probe` is another pod of the node, which stays."""
        late = self._late.pop(pod, None)
        async with asyncio.TaskGroup() as both:
            beginning = both.create_task(self.added(pod))
            if late is not None:  # of the container before this one: it has nothing any more
                both.create_task(self.removed(late))
        container, given = beginning.result()
        if self.chance.random() < 0.5:
            await self.require_policy(probe, container, given)
        if self.chance.random() < 0.2:
            await self.require_same(container, given)
        self.told.ended(container)
        if self.chance.random() < 0.3:
            self.machine.without(container.netns)  # the container is gone, and CNI_NETNS with it
        await self.removed(container)
        if container.netns in self.machine.made:
            self.machine.without(container.netns)
        if self.chance.random() < 0.2:
            self._late[pod] = container

    async def at_once(self, pod: str) -> None:
        """A runtime that is confused: two ADDs of a container at once, then an ADD and a DEL of it."""
        container = self.container(pod)
        both = await asyncio.gather(*(self.machine.call("ADD", container) for _ in range(2)))
        given = {addresses(each) for each in both if each.status == 0}
        assert len(given) <= 1, given
        for each in given:
            self.told.given(container, each)
        self.told.ended(container)
        await asyncio.gather(*(self.machine.call(command, container) for command in ("ADD", "DEL")))
        await self.removed(container)
        self.machine.without(container.netns)

    async def late(self) -> None:
        """The last of the late DELs."""
        for each in self._late.values():
            await self.removed(each)
        self._late = {}

    async def require_same(self, container: Container, given: tuple[str, ...]) -> None:
        """ADD again has the same addresses, and CHECK finds nothing, if they can be answered."""
        again = await self.machine.call("ADD", container)
        if again.status:
            self.failed("ADD", again)
            return
        assert addresses(again) == given
        checked = await self.machine.call("CHECK", container, prevResult=again.document)
        if checked.status:
            self.failed("CHECK", checked)

    async def require_policy(self, probe: Container, container: Container, given: tuple[str, ...]) -> None:
        """Of two datagrams, sent once, the one that the pod's policy lets in arrives, and the other does not."""
        loop = asyncio.get_running_loop()
        for address in given:
            with (
                _socket(probe.netns, address) as sender,
                _socket(container.netns, address, DENIED) as denied,
                _socket(container.netns, address, ALLOWED) as allowed,
            ):
                sender.sendto(b"not this", (address, DENIED))
                sender.sendto(b"this", (address, ALLOWED))
                async with asyncio.timeout(PATIENCE_S):
                    assert await loop.sock_recv(allowed, BUFFERED) == b"this"
                with contextlib.suppress(BlockingIOError):
                    raise AssertionError(f"{address} was reached at {DENIED}: {denied.recv(BUFFERED)!r}")
            self.packets += 1


@contextlib.contextmanager
def _socket(namespace: str, address: str, port: int = 0) -> Iterator[socket.socket]:
    """A datagram socket in a pod, at its address when it has a port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.open_socket(netns.path(namespace), family, socket.SOCK_DGRAM) as opened:
        if port:
            opened.bind((address, port))
        yield opened
