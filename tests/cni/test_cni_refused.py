"""What ADD refuses, and that nothing is lost by it."""

from __future__ import annotations

from cni_node import NODE, NOTHING, Runtime, pings, write

from core.resources import Metadata, Namespace, Node, Pod
from datastore import objects


async def test_another_network_does_not_take_a_containers_interface_over(runtime: Runtime) -> None:
    pod = runtime.container("twice")
    added = await runtime.add(pod)
    answer = await runtime.call("ADD", pod, name="other")
    assert (answer.status, answer.document["code"]) == (1, 4)
    assert "has an interface, eth0 of the network k8s-pod-network; muslin gives a pod one" in answer.document["msg"]
    assert (await runtime.call("DEL", pod, name="other")).status == 0, "as a runtime does after an ADD that failed"
    assert await runtime.add(pod) == added
    assert all(pings(runtime.namespace, each) for each in added.addresses)
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_a_node_that_has_been_removed_gives_no_address(runtime: Runtime) -> None:
    pod = runtime.container("lost")
    async with runtime.store() as store:
        await objects.delete(store, Node, NODE)
        try:
            answer = await runtime.call("ADD", pod)
        finally:
            await write(runtime.datastore, Node(metadata=Metadata(name=NODE)))
    assert (answer.status, answer.document["code"]) == (1, 100)
    assert f"there is no Node {NODE}; create it" in answer.document["msg"]
    await runtime.add(pod)
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_who_asks_for_what_cannot_be_had_is_named(runtime: Runtime) -> None:
    """The pod of a Namespace's annotation, or of the configuration's list, has nothing in it that could be wrong."""
    pod = runtime.container("picky")
    key = "cni.projectcalico.org/ipv4pools"
    try:
        await write(runtime.datastore, Namespace(metadata=Metadata(name="shop", annotations={key: '["nowhere"]'})))
        message = (await runtime.call("ADD", pod)).document["msg"]
        assert message.endswith(f"(asked for by Namespace shop: {key})")
    finally:
        await write(runtime.datastore, Namespace(metadata=Metadata(name="shop")))
    answer = await runtime.call("ADD", pod, ipam={"ipv4_pools": ["nowhere"]})
    assert answer.document["code"] == 7
    assert answer.document["msg"].endswith("(asked for by the network configuration: ipam.ipv4_pools)")
    asking = Pod(
        metadata=Metadata(
            name="picky", namespace="shop", annotations={"cni.projectcalico.org/ipAddrs": '["192.0.2.1"]'}
        )
    )
    async with runtime.store() as store:
        await objects.write(store, asking)
        try:
            answer = await runtime.call("ADD", pod)
        finally:
            await objects.delete(store, Pod, "picky", "shop")
    assert answer.document["code"] == 100
    assert "(asked for by Pod shop/picky: cni.projectcalico.org/ipAddrs)" in answer.document["msg"]
    assert await runtime.left() == NOTHING
