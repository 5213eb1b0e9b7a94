"""Two nodes of a lab, podman on one and containerd on the other, and muslin between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.resources import IPAMBlock, WorkloadEndpoint
from lab import cluster as clusters
from lab import ip
from lab.cluster import Cluster
from lab.store import opened, read
from linux import netns
from tests.runtimes import image
from tests.runtimes.container import ECHO, Container
from tests.runtimes.containerd import Containerd
from tests.runtimes.machine import PATIENCE_S, Machine, Said, machine, remove_groups, until
from tests.runtimes.podman import Podman

HOUSE = Path(__file__).parents[2]
EXAMPLES = HOUSE / "examples" / "cni"
NODES = ("node1", "node2")
NETWORK = "k8s-pod-network"


@dataclass
class Site:
    """The lab, and the machines and runtimes on its nodes."""

    lab: Cluster
    machines: dict[str, Machine]
    podman: Podman
    containerd: Containerd
    scratch: Path

    def node(self, name: str) -> str:
        """The network namespace of a node, or of a host outside."""
        return self.lab.namespace(name)

    def offer(self, example: str) -> None:
        """Make one of the example networks known on node1."""
        self.machines["node1"].write(f"/etc/cni/net.d/{example}", (EXAMPLES / example).read_bytes())

    def connection(self, host: str, address: str, port: int) -> socket.socket:
        """A TCP connection from a host of the lab."""
        made = netns.open_socket(self.node(host), socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(PATIENCE_S)
        made.connect((address, port))
        return made

    async def echoed(self, container: Container, content: bytes) -> float:
        """Seconds until a container has said all of it back to its own node."""
        with self.connection(container.machine.name, container.address, ECHO) as opened:
            began = time.monotonic()
            sending = asyncio.create_task(asyncio.to_thread(opened.sendall, content))
            heard = 0
            while heard < len(content):
                part = len(await asyncio.to_thread(opened.recv, 1 << 16))
                assert part, f"{container.name} hung up after {heard} bytes"
                heard += part
            await sending
            return time.monotonic() - began

    async def until_ready(self) -> None:
        """Wait until every agent of both nodes does its work."""
        await self.lab.until_programmed()
        await self.lab.until_peered()
        for each in self.machines.values():
            await until(lambda each=each: answers(each), f"the CNI agent of {each.name}")

    async def apply(self, manifest: str) -> None:
        """`muslin apply`. A pod that begins afterwards is up only when its node has it."""
        await self._manifest("apply", manifest)

    async def delete(self, manifest: str) -> None:
        await self._manifest("delete", manifest)

    async def _manifest(self, verb: str, manifest: str) -> None:
        file = self.scratch / "manifest.yaml"
        file.write_text(manifest)
        await (self.lab.apply(file) if verb == "apply" else self.lab.delete(file))

    async def left(self) -> dict[str, list[str]]:
        """What is there of pods: in the datastore, and in the nodes' kernels."""
        given = self.podman.given | self.containerd.given
        async with opened(self.lab.socket) as store:
            endpoints = [
                f"{each.metadata.namespace}/{each.metadata.name}" for each in await read(store, WorkloadEndpoint)
            ]
            handles = [name for each in await read(store, IPAMBlock) for name in each.spec.allocations.values()]
        found = {"endpoints": endpoints, "addresses": handles}
        for node in NODES:
            links = json.loads(inside(self.node(node), "ip", "-j", "link", "show"))
            found[f"links of {node}"] = [
                each["ifname"]
                for each in links
                if each["ifname"].startswith(("mus", "bwp")) and each["ifname"] != "muslin.ipip"
            ]
            found[f"routes of {node}"] = [
                str(net)
                for version in (4, 6)
                for net, each in ip.routes(self.node(node), version).items()
                if each["dev"].startswith("mus")
            ]
            rules = inside(self.node(node), "nft", "list", "ruleset")
            found[f"rules of {node}"] = [each for each in given if each in rules]
        return {what: names for what, names in found.items() if names}

    async def checked(self) -> None:
        """`muslin ipam check` finds nothing."""
        said = await self.lab.muslin("ipam", "check")
        assert said.code == 0, said

    async def until_nothing_is_left(self) -> None:
        """Wait until no trace is left of any pod."""
        seen: dict[str, list[str]] = {}

        async def nothing() -> bool:
            nonlocal seen
            seen = await self.left()
            return not seen

        try:
            await until(nothing, "nothing to be left", 15)
        except AssertionError as late:
            raise AssertionError(f"{late}: {seen}") from None


async def answers(machine: Machine) -> bool:
    """Whether the network's plugin says that it could make a pod now."""
    return (await plugin(machine, "STATUS")).status == 0


async def plugin(machine: Machine, command: str, **environment: str) -> Said:
    """A run of the plugin, as by a runtime that asks of its own accord."""
    config = shlex.quote(json.dumps({"cniVersion": "1.1.0", "name": NETWORK, "type": "muslin"}))
    script = f"echo {config} | /opt/cni/bin/muslin"
    return await machine.ask(
        "sh", "-c", script, env={"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin", **environment}
    )


def inside(namespace: str, *argv: str) -> str:
    """What a command says in a network namespace."""
    done = subprocess.run(netns.command(netns.path(namespace), *argv), capture_output=True, text=True, check=True)
    return done.stdout


@contextlib.contextmanager
def site(scratch: Path) -> Iterator[Site]:
    """Everything up; everything down."""
    name = f"rt{os.getpid()}"
    lab = asyncio.run(clusters.up(EXAMPLES / "topology.yaml", lambda _: None, name=name))
    try:
        with contextlib.ExitStack() as stack:
            machines = {
                node: stack.enter_context(machine(node, lab.namespace(node), scratch / node, lab.run_dir("cni", node)))
                for node in NODES
            }
            first, second = machines.values()
            made = Site(lab, machines, Podman(first), Containerd(second), scratch)
            asyncio.run(_prepare(made))
            yield made
    finally:
        asyncio.run(clusters.down(name))
        remove_groups()


async def _prepare(made: Site) -> None:
    for each in made.machines.values():
        image.make(each.scratch / "run" / "image.tar")
        # Debian's plugins, which muslin's are chained with, beside ours: containerd looks into one folder
        await each.run("sh", "-c", "ln -s /usr/lib/cni/* /opt/cni/bin/")
        await each.run(sys.executable, "-P", "-m", "cli", "cni", "install", env={"PYTHONPATH": str(HOUSE)})
    await made.until_ready()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.podman.prepare("/run/image.tar"))
        tasks.create_task(made.containerd.prepare("/run/image.tar"))
