"""podman on a machine, with its CNI back-end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.runtimes import image
from tests.runtimes.container import Container
from tests.runtimes.machine import GROUP, Machine, Said

SETTINGS = """
[network]
network_backend = "cni"            # Debian's default, too, but for a machine that has netavark
default_network = "k8s-pod-network"
cni_plugin_dirs = ["/opt/cni/bin"] # where `muslin cni install` puts it; Debian's own are in /usr/lib/cni

[engine]
runtime = "runc"                   # crun refuses a machine with both versions of control groups
cgroup_manager = "cgroupfs"        # there is no systemd here to ask
events_logger = "file"

[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"] # a container here may not raise what its parent has
"""


@dataclass
class Podman:
    """podman, its images and containers."""

    machine: Machine
    given: set[str] = field(default_factory=set)
    """Every address that a container has had."""

    async def prepare(self, archive: str) -> None:
        """Settings and the image."""
        self.machine.write("/etc/containers/containers.conf", SETTINGS)
        await self.machine.run("podman", "load", "--quiet", "--input", archive)

    async def ask(self, name: str, *command: str, options: tuple[str, ...] = ()) -> Said:
        """Try to start a container."""
        # busybox pings through a raw socket, which podman does not give by itself (containerd does)
        own = ("--detach", "--name", name, "--cap-add=NET_RAW", f"--cgroup-parent=/{GROUP}/podman")
        return await self.machine.ask("podman", "run", *own, *options, image.NAME, *command)

    async def run(self, name: str, *command: str, options: tuple[str, ...] = ()) -> Container:
        """A container that runs."""
        said = await self.ask(name, *command, options=options)
        assert said.status == 0, said.err
        return await self.find(name)

    async def find(self, name: str) -> Container:
        """A container that is there."""
        found = await self.inspect(name)
        networking = found["NetworkSettings"]
        (joined,) = networking["Networks"].values()

        async def ask(*command: str) -> Said:
            return await self.machine.ask("podman", "exec", name, *command)

        addresses = tuple(each for each in (joined["IPAddress"], joined["GlobalIPv6Address"]) if each)
        self.given.update(addresses)
        netns = f"{self.machine.root}{networking['SandboxKey']}"
        return Container(self.machine, "default", name, found["Id"], netns, addresses, ask)

    async def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(await self.machine.run("podman", "inspect", "--type", "container", name))
        assert isinstance(found, dict)
        return found

    async def remove(self, *names: str) -> None:
        await self.machine.run("podman", "rm", "--force", "--time", "0", *names)

    async def remove_all(self) -> None:
        await self.machine.run("podman", "rm", "--all", "--force", "--time", "0")
