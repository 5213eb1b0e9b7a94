"""A container that runs, whichever runtime made it: where it is, and what to have it do."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address

from core.names import workload_interface
from linux import netns
from tests.runtimes.machine import PATIENCE_S, Machine, Said, until

ANSWERED_S = 2
"""How long an answer is waited for; after that somebody has dropped the packets."""

ECHO = 7
SERVE = f"echo {{name}} > /www/index.html; nc -ll -p {ECHO} -e cat & exec httpd -f -h /www -p 80"
"""The shell's words for a web server that says its name, and for one that says everything back."""


def server(name: str) -> tuple[str, ...]:
    """The command of a container that serves its name over HTTP, and an echo."""
    return ("/bin/sh", "-c", SERVE.format(name=name))


@dataclass(frozen=True, slots=True)
class Container:
    """A container: its pod, the runtime's id of what has the network namespace, and the addresses it was given."""

    machine: Machine
    namespace: str
    name: str
    id: str
    netns: str
    addresses: tuple[str, ...]
    ask: Callable[..., Awaitable[Said]]

    @property
    def interface(self) -> str:
        """Its end on the node."""
        return workload_interface(self.namespace, self.name)

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return next(each for each in self.addresses if ip_address(each).version == 4)

    async def run(self, *command: str) -> str:
        """Run a command inside, through the runtime; its output."""
        said = await self.ask(*command)
        assert said.status == 0, f"{self.name}$ {command}: {said.err}{said.out}"
        return said.out

    async def pings(self, address: str) -> bool:
        return (await self.ask("ping", "-c1", f"-W{ANSWERED_S}", address)).status == 0

    async def fetches(self, address: str, port: int = 80) -> str:
        """What a web server says to it; empty when there is no answer in time."""
        # not busybox's wget: linked statically, as Debian has it, it cannot look up even a number
        request = rf"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w{ANSWERED_S} " + f"{address} {port}"
        said = await self.ask("/bin/sh", "-c", request)
        return said.out.partition("\r\n\r\n")[2].strip()

    async def serving(self) -> Container:
        """Itself, as soon as its web server listens: nobody tells when a command has come so far."""

        async def listens() -> bool:
            return await self.fetches("127.0.0.1") == self.name

        await until(listens, f"{self.name} to serve")
        return self

    def connection(self, address: str, port: int) -> socket.socket:
        """A TCP connection that begins inside."""
        made = netns.open_socket(self.netns, socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(PATIENCE_S)
        made.connect((address, port))
        return made
