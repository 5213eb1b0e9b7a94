"""containerd on a machine, as kubelet drives it: pods over the Container Runtime Interface."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from lab import processes
from lab.processes import Process
from tests.runtimes import image
from tests.runtimes.container import Container
from tests.runtimes.machine import GROUP, PATIENCE_S, Machine, Said, until

wire, services = grpc.protos_and_services("tests/runtimes/cri.proto")
"""Messages and stubs, made from the file beside this one as the tests begin."""

SETTINGS = f"""
version = 2
# what a pod's first container is made of; its registry is never asked, because the image is there
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image.NAME}"
  restrict_oom_score_adj = true # who may not lower it cannot start a sandbox without
"""

_attempts = itertools.count()


@dataclass
class Containerd:
    """containerd, and the pods that were asked of it."""

    machine: Machine
    process: Process = field(init=False)
    given: set[str] = field(default_factory=set)
    """Every address that a pod has had."""

    async def prepare(self, archive: str) -> None:
        """Settings, the daemon, the image in the namespaces of CRI's containers and of our own `ctr`'s."""
        self.machine.write("/etc/containerd/config.toml", SETTINGS)
        await self.start()
        for namespace in ("k8s.io", GROUP):
            await self.ctr("image", "import", archive, namespace=namespace)

        async def known() -> bool:
            taken = 'labels."io.cri-containerd.image"==managed'
            return bool(await self.ctr("image", "ls", "--quiet", taken, namespace="k8s.io"))

        await until(known, "CRI to have heard of the image")

    async def start(self) -> None:
        self.process = self.machine.start("containerd")

        async def ready() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):  # it answers before it is initialized, with an error
                conditions = (await self.call("Status")).status.conditions
                return all(each.status for each in conditions)
            return False

        await until(ready, "containerd to be ready, and to have read the network's configuration")

    async def kill(self) -> None:
        """kill -9 of the daemon; containers and their shims go on."""
        self.process.signal(signal.SIGKILL)
        processes.stop([self.process])
        await until(lambda: not self.process.alive(), "containerd to be gone")

    async def ctr(self, *words: str, namespace: str = GROUP) -> str:
        """`ctr`, in a namespace whose name is its control group's as well."""
        return await self.machine.run("ctr", "--namespace", namespace, *words)

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator[Any]:
        socket = Path(f"{self.machine.root}/run/containerd/containerd.sock")
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            yield services.RuntimeServiceStub(channel)

    async def call(self, method: str, **fields: object) -> Any:
        """One call of the interface: `RunPodSandbox` takes a RunPodSandboxRequest."""
        async with self._stub() as stub:
            return await getattr(stub, method)(getattr(wire, f"{method}Request")(**fields), timeout=PATIENCE_S)

    def config(
        self,
        name: str,
        namespace: str,
        *,
        ports: Mapping[int, int] | None = None,
        annotations: Mapping[str, str] | None = None,
        sysctls: Mapping[str, str] | None = None,
    ) -> Any:
        """A pod, as kubelet describes it; `ports` are the host's to the pod's."""
        mapped = [wire.PortMapping(host_port=host, container_port=own) for host, own in (ports or {}).items()]
        return wire.PodSandboxConfig(
            metadata=wire.PodSandboxMetadata(
                name=name, uid=f"{name}-uid", namespace=namespace, attempt=next(_attempts)
            ),
            hostname=name,
            port_mappings=mapped,
            annotations=annotations or {},
            linux=wire.LinuxPodSandboxConfig(cgroup_parent=f"/{GROUP}/pods", sysctls=sysctls or {}),
        )

    async def sandbox(self, config: Any) -> str:
        """A pod's sandbox, which has its network; raises grpc.aio.AioRpcError."""
        found: str = (await self.call("RunPodSandbox", config=config)).pod_sandbox_id
        return found

    async def run(self, name: str, *command: str, namespace: str = "shop", **more: Any) -> Container:
        """A pod of one container that runs."""
        config = self.config(name, namespace, **more)
        sandbox = await self.sandbox(config)
        container = wire.ContainerConfig(
            metadata=wire.ContainerMetadata(name=name), image=wire.ImageSpec(image=image.NAME), command=command
        )
        made = await self.call("CreateContainer", pod_sandbox_id=sandbox, config=container, sandbox_config=config)
        await self.call("StartContainer", container_id=made.container_id)
        status = await self.call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)

        async def ask(*words: str) -> Said:
            done = await self.call("ExecSync", container_id=made.container_id, cmd=words)
            return Said(done.exit_code, done.stdout.decode(), done.stderr.decode())

        (space,) = (
            each["path"]
            for each in json.loads(status.info["info"])["runtimeSpec"]["linux"]["namespaces"]
            if each["type"] == "network"
        )
        networking = status.status.network
        addresses = (networking.ip, *(each.ip for each in networking.additional_ips))
        self.given.update(addresses)
        netns = f"{self.machine.root}{space.removeprefix('/var')}"  # /var/run leads to /run, but from our root to ours
        return Container(self.machine, namespace, name, sandbox, netns, addresses, ask)

    async def remove(self, *pods: Container) -> None:
        """Stop and remove pods, with their containers."""
        for pod in pods:
            await self.call("StopPodSandbox", pod_sandbox_id=pod.id)
            await self.call("RemovePodSandbox", pod_sandbox_id=pod.id)

    async def remove_all(self) -> None:
        for each in (await self.call("ListPodSandbox")).items:
            await self.call("StopPodSandbox", pod_sandbox_id=each.id)
            await self.call("RemovePodSandbox", pod_sandbox_id=each.id)
