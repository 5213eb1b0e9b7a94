"""What containerd asks of a network: for kubelet's pods, over CRI, and for `ctr run --cni`."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from core.names import workload_interface
from tests.runtimes import image
from tests.runtimes.container import server
from tests.runtimes.site import Site, inside

pytestmark = pytest.mark.lab


async def test_annotations_of_a_pod_reach_ipam_and_the_kernel(runtimes: Site) -> None:
    annotations = {
        "cni.projectcalico.org/ipAddrs": '["10.246.77.7"]',
        "kubernetes.io/ingress-bandwidth": "8M",
        "kubernetes.io/egress-bandwidth": "16M",
    }
    pod = await runtimes.containerd.run("fixed", *server("fixed"), annotations=annotations)
    assert pod.address == "10.246.77.7"
    # what is limited is the wire's end on the node, and for the other direction a device beside it
    shapers = json.loads(inside(runtimes.node("node2"), "tc", "-j", "qdisc", "show"))
    rates = {each["dev"]: each["options"]["rate"] for each in shapers if each["kind"] == "tbf"}
    assert rates.pop(workload_interface("shop", "fixed")) == 8_000_000 / 8
    assert [*rates.values()] == [16_000_000 / 8]
    await runtimes.containerd.remove(pod)
    await runtimes.until_nothing_is_left()


async def test_a_pod_that_cannot_start_gives_its_address_back(runtimes: Site) -> None:
    config = runtimes.containerd.config("broken", "shop", sysctls={"net.there.is.none": "1"})
    with pytest.raises(grpc.aio.AioRpcError, match=r"there/is/none"):
        await runtimes.containerd.sandbox(config)
    await runtimes.until_nothing_is_left()


async def test_pods_outlive_containerd_and_are_removed_by_the_next(runtimes: Site) -> None:
    containerd = runtimes.containerd
    one, two = await asyncio.gather(*(containerd.run(name, *server(name)) for name in ("one", "two")))
    await one.serving()
    await containerd.kill()
    with one.connection(two.address, 80) as caller:
        caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert caller.recv(64).startswith(b"HTTP/1.1 200")
    await containerd.start()
    assert await one.fetches(two.address) == "two"
    await containerd.remove(one, two)
    await runtimes.until_nothing_is_left()


async def test_a_pod_that_is_stopped_twice(runtimes: Site) -> None:
    pod = await runtimes.containerd.run("twice")
    await runtimes.containerd.call("StopPodSandbox", pod_sandbox_id=pod.id)
    await runtimes.until_nothing_is_left()
    await runtimes.containerd.call("StopPodSandbox", pod_sandbox_id=pod.id)
    await runtimes.containerd.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    await runtimes.until_nothing_is_left()


async def test_a_container_that_ctr_runs(runtimes: Site) -> None:
    # in the foreground: what `ctr run --detach` has begun, no command of ctr takes off the network
    command = ("run", "--rm", "--cni", image.NAME, "plain", "ip", "-oneline", "addr", "show", "dev", "eth0")
    shown = await runtimes.containerd.ctr(*command)
    assert "inet 10.246." in shown
    assert "inet6 fd00:10:246:" in shown
    await runtimes.until_nothing_is_left()
