"""What is begun and not ended: failed, given up, or cut off by a crash. Nothing is left, or it is completed."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from cni_node import (
    NETWORK,
    NODE,
    NOTHING,
    STEPS,
    Answer,
    Pod,
    Runtime,
    pings,
    run,
    stopped_felix,
    stopwatch,
)

from cni import endpoint, wiring
from cni.arguments import Attachment
from cni.wiring import Furniture, Place
from datastore import objects
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Owner, Request
from linux import netns


@pytest.mark.parametrize("step", STEPS)
async def test_nobody_waits_any_more_when_there_is(runtime: Runtime, step: str) -> None:
    pod = runtime.container("given-up")
    with stopped_felix(runtime):
        async with runtime.begun("ADD", pod) as adding:
            await runtime.until(STEPS[step])
            adding.cancel()
            await runtime.until(lambda left: left == NOTHING)
        assert "eth0" not in run(pod.netns, "ip", "link")


async def test_given_up_at_any_moment(runtime: Runtime) -> None:
    pods = [runtime.container(f"moment-{number}") for number in range(20)]
    for number, pod in enumerate(pods):
        async with runtime.begun("ADD", pod) as adding:
            done, _ = await asyncio.wait([adding], timeout=number * 0.0015)
        if done or pod.container in runtime.agent.unheard:
            await runtime.remove(pod)
    await runtime.until(lambda left: left == NOTHING)
    added = await runtime.add(pods[0])
    assert pings(runtime.namespace, added.addresses[0])
    await runtime.remove(pods[0])
    for pod in pods:
        await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def half_made(runtime: Runtime, pod: Pod, *steps: str) -> None:
    """What an agent leaves that is killed in the middle of an ADD."""
    handle = f"{NETWORK}.{pod.container}"
    at = Attachment(
        container=pod.container, netns=f"/run/netns/{pod.netns}", interface="eth0", namespace="shop", pod=pod.name
    )
    with netns.inside(runtime.namespace), pod.opened() as there:
        place = Place(host=pod.interface, inside="eth0", path=at.netns, netns=there)
        if "wire" in steps:
            wire = wiring.attach(place, 1480, endpoint.own_mac(handle))
        if "addresses" in steps:
            some = Furniture(addresses=(ip_address("10.60.0.250"),), routes=())
            wiring.furnish(place, wire, some, endpoint.own_mac(handle))
    if "endpoint" in steps:
        async with runtime.store() as store:
            owner = Owner(node=NODE, namespace="shop", pod=pod.name, container=pod.container, interface=pod.interface)
            await Ledger(store).assign(
                Request(handle=handle, owner=owner),
                lambda grant: [
                    objects.put(
                        endpoint.endpoint(NODE, at, grant.addresses, network=NETWORK, mac=endpoint.own_mac(handle)),
                        0,
                    )
                ],
            )


HALVES = [("wire",), ("endpoint",), ("wire", "endpoint"), ("wire", "addresses", "endpoint")]


@pytest.mark.parametrize("steps", HALVES, ids="+".join)
async def test_after_a_crash_with(runtime: Runtime, steps: tuple[str, ...]) -> None:
    lost, again = runtime.container("lost"), runtime.container("again")
    await half_made(runtime, lost, *steps)
    await runtime.remove(lost)
    assert await runtime.left() == NOTHING

    await half_made(runtime, again, *steps)
    added = await runtime.add(again)
    assert pings(runtime.namespace, added.addresses[0])
    assert await runtime.call("CHECK", again, prevResult=added.document) == Answer(0, {})
    assert set(run(again.netns, "ip", "-4", "-o", "addr", "show", "eth0").split()) >= {f"{added.addresses[0]}/32"}
    assert "10.60.0.250" not in run(again.netns, "ip", "-4", "-o", "addr", "show", "eth0")
    await runtime.remove(again)
    assert await runtime.left() == NOTHING


async def test_without_felix_add_fails_in_time_and_undoes_what_it_did(runtime: Runtime) -> None:
    pod = runtime.container("unprogrammed")
    with stopped_felix(runtime):
        elapsed = stopwatch()
        answer = await runtime.call("ADD", pod, policy_setup_timeout_seconds=0.3)
        assert elapsed() < 5
        assert (answer.status, answer.document["code"]) == (1, 11)
        assert "not programmed within 0.3 s: felix has come to revision" in answer.document["msg"]
        assert await runtime.left() == NOTHING


async def test_what_is_there_and_not_ours_is_left_alone(runtime: Runtime) -> None:
    pod = runtime.container("taken")
    run(pod.netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    answer = await runtime.call("ADD", pod)
    assert (answer.status, answer.document["code"]) == (1, 5)
    assert "has an interface eth0 already" in answer.document["msg"]
    assert await runtime.left() == NOTHING
    assert "eth0" in run(pod.netns, "ip", "link", "show", "eth0")


async def test_a_del_that_does_not_name_the_pod_takes_it_off(runtime: Runtime) -> None:
    pod = runtime.container("named-once")
    await runtime.add(pod)
    unnamed = {**pod.environment("DEL"), "CNI_ARGS": "", "CNI_NETNS": ""}
    for _ in range(2):
        assert await runtime.ask(unnamed, runtime.config()) == Answer(0, {})
    assert await runtime.left() == NOTHING
