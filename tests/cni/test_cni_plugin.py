"""The plugin as runtimes call it: a process each time, on a node with a real datastore and a real felix."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cni_node import NETWORK, NODE, Answer, Pod, Runtime, run, stopwatch, write

from core.names import workload_endpoint_name
from core.resources import Metadata, NetworkPolicy, WorkloadEndpoint
from core.resources.policy import Action, EntityRule, NetworkPolicySpec, Rule
from datastore import objects
from linux import netns

NOTHING: tuple[list[str], list[str], list[str]] = ([], [], [])


def pings(namespace: str, address: str) -> bool:
    argv = netns.command(namespace, "ping", "-c1", "-W1", address)
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


APP = {"cni": {"labels": [{"key": "app", "value": "db"}]}}


async def test_two_pods_talk_and_leave_nothing(runtime: Runtime) -> None:
    web, db = runtime.container("web"), runtime.container("db")
    at_web, at_db = await runtime.add(web), await runtime.add(db, args=APP)
    assert at_web.document["interfaces"] == [
        {"name": web.interface, "mac": "ee:ee:ee:ee:ee:ee"},
        {"name": "eth0", "mac": mac(web), "sandbox": f"/run/netns/{web.netns}"},
    ]
    assert [each["gateway"] for each in at_web.document["ips"]] == ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"]
    assert [each["dst"] for each in at_web.document["routes"]] == ["0.0.0.0/0", "::/0"]
    with web.place(at_web) as caller, db.place(at_db) as server:
        for address in at_db.addresses:
            assert pings(web.netns, address)
            async with server.echo(8080, address):
                assert await caller.reaches(address, 8080)

    assert await runtime.add(db) == at_db, "ADD again is not the same"
    async with runtime.store() as store:
        found = await objects.read(store, WorkloadEndpoint, workload_endpoint_name(NODE, "db"), "shop")
    assert found
    assert found[0].metadata.labels["app"] == "db"
    assert found[0].spec.profiles == ["kns.shop", "ksa.shop.default"]

    for pod in (web, db, db, db):
        await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_policy_is_in_force_when_add_returns(runtime: Runtime) -> None:
    rule = Rule(action=Action.ALLOW, protocol="TCP", destination=EntityRule(ports=[9090]))
    spec = NetworkPolicySpec(selector="app == 'db'", ingress=[rule])
    await write(runtime.datastore, NetworkPolicy(metadata=Metadata(name="db", namespace="shop"), spec=spec))
    try:
        web, db = runtime.container("web"), runtime.container("db")
        at_web, at_db = await asyncio.gather(runtime.add(web), runtime.add(db, args=APP))
        with web.place(at_web) as caller, db.place(at_db) as server:
            for address in at_db.addresses:
                async with server.echo(8080, address), server.echo(9090, address):
                    assert not await caller.reaches(address, 8080)
                    assert await caller.reaches(address, 9090)
        await asyncio.gather(runtime.remove(web), runtime.remove(db))
    finally:
        async with runtime.store() as store:
            await objects.delete(store, NetworkPolicy, "db", "shop")
    assert await runtime.left() == NOTHING


def mac(pod: Pod) -> str:
    (link,) = json.loads(run(pod.netns, "ip", "-j", "link", "show", "eth0"))
    found: str = link["address"]
    return found


async def test_check_finds_what_is_not_as_add_left_it(runtime: Runtime) -> None:
    pod = runtime.container("checked")
    added = await runtime.add(pod)
    assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    run(pod.netns, "ip", "addr", "del", f"{added.addresses[0]}/32", "dev", "eth0")
    answer = await runtime.call("CHECK", pod, prevResult=added.document)
    assert answer.document["code"] == 101
    assert f"eth0 has not {added.addresses[0]}/32" in answer.document["msg"]
    assert await runtime.add(pod) == added
    assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    await runtime.remove(pod)
    assert (await runtime.call("CHECK", pod, prevResult=added.document)).document["code"] == 101


async def test_a_pod_whose_namespace_is_gone_is_removed(runtime: Runtime) -> None:
    pod = runtime.container("gone")
    await runtime.add(pod)
    netns.delete(pod.netns)
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_ten_at_once(runtime: Runtime) -> None:
    pods = [runtime.container(f"many-{number}") for number in range(10)]
    answers = await asyncio.gather(*(runtime.add(pod) for pod in pods))
    given = [address for answer in answers for address in answer.addresses]
    assert len(set(given)) == 20
    assert len({answer.addresses[0].rpartition(".")[0] for answer in answers}) == 1
    assert pings(pods[0].netns, answers[9].addresses[0])
    await asyncio.gather(*(runtime.remove(pod) for pod in pods))
    assert await runtime.left() == NOTHING


STEPS: dict[str, Callable[[tuple[list[str], list[str], list[str]]], bool]] = {
    "an address": lambda left: bool(left[1]),
    "a wire": lambda left: bool(left[2]),
    "an endpoint": lambda left: bool(left[0]),
}


@pytest.mark.parametrize("step", STEPS)
async def test_killed_when_there_is(runtime: Runtime, step: str) -> None:
    pod = runtime.container("killed")
    runtime.felix.send_signal(signal.SIGSTOP)  # so that no ADD ends before it is killed
    try:
        async with runtime.begun("ADD", pod) as process:
            await runtime.until(STEPS[step])
            process.kill()
            await process.wait()
        assert await runtime.left() != NOTHING
        await runtime.remove(pod)
        assert await runtime.left() == NOTHING
    finally:
        runtime.felix.send_signal(signal.SIGCONT)


async def test_an_add_after_a_killed_one_gives_the_address_it_had(runtime: Runtime) -> None:
    pod = runtime.container("again")
    runtime.felix.send_signal(signal.SIGSTOP)
    try:
        async with runtime.begun("ADD", pod) as process:
            await runtime.until(STEPS["an endpoint"])
            process.kill()
    finally:
        runtime.felix.send_signal(signal.SIGCONT)
    async with runtime.store() as store:
        found = await objects.read(store, WorkloadEndpoint, workload_endpoint_name(NODE, "again"), "shop")
    assert found
    assert (await runtime.add(pod)).addresses == tuple(map(str, found[0].spec.addresses))
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_without_felix_add_fails_in_time_and_undoes_what_it_did(runtime: Runtime) -> None:
    pod = runtime.container("unprogrammed")
    runtime.felix.send_signal(signal.SIGSTOP)
    try:
        elapsed = stopwatch()
        answer = await runtime.call("ADD", pod, policy_setup_timeout_seconds=0.3)
        assert elapsed() < 5
        assert (answer.status, answer.document["code"]) == (1, 11)
        assert "not programmed within 0.3 s: felix on n1 has come to revision" in answer.document["msg"]
        assert await runtime.left() == NOTHING

        async with runtime.begun("ADD", pod) as process:
            await runtime.until(STEPS["an endpoint"])
            process.terminate()
            out, _ = await process.communicate()
        assert json.loads(out)["code"] == 11
        assert await runtime.left() == NOTHING
    finally:
        runtime.felix.send_signal(signal.SIGCONT)


async def test_without_a_datastore_the_runtime_is_told_to_try_again(runtime: Runtime) -> None:
    pod = runtime.container("storeless")
    for command in ("ADD", "DEL"):
        answer = await runtime.call(command, pod, datastore=f"unix:{runtime.folder}/nothing.sock")
        assert (answer.status, answer.document["code"]) == (1, 11)
        assert "is away" in answer.document["msg"]
    assert (await runtime.call("STATUS", pod, cniVersion="1.1.0", datastore="unix:/none")).document["code"] == 50
    assert (await runtime.call("STATUS", pod, cniVersion="1.1.0", node="n9")).document["code"] == 50
    assert await runtime.call("STATUS", pod, cniVersion="1.1.0") == Answer(0, {})
    assert await runtime.left() == NOTHING


async def test_the_del_of_a_pods_former_container_does_not_touch_the_next(runtime: Runtime) -> None:
    former, following = runtime.container("db-0"), runtime.container("db-0")
    at_former = await runtime.add(former)
    at_following = await runtime.add(following)
    assert set(at_former.addresses).isdisjoint(at_following.addresses)
    await runtime.remove(former)
    assert all(pings(runtime.namespace, address) for address in at_following.addresses)
    assert await runtime.call("CHECK", following, prevResult=at_following.document) == Answer(0, {})
    assert (await runtime.left())[1] == [f"{NETWORK}.{following.container}"] * 2
    await runtime.remove(following)
    assert await runtime.left() == NOTHING


async def test_what_is_there_and_not_ours_is_left_alone(runtime: Runtime) -> None:
    pod = runtime.container("taken")
    run(pod.netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    answer = await runtime.call("ADD", pod)
    assert (answer.status, answer.document["code"]) == (1, 5)
    assert "has an interface eth0 already" in answer.document["msg"]
    assert await runtime.left() == NOTHING
    assert "eth0" in run(pod.netns, "ip", "link", "show", "eth0")

    for path, code in (("/run/netns/there-is-none", 3), (f"/run/netns/{runtime.namespace}", 8)):
        lost = Pod("lost", "c1", path.rpartition("/")[2])
        answer = await runtime.call("ADD", lost)
        assert (answer.status, answer.document["code"]) == (1, code)
    assert await runtime.left() == NOTHING


async def test_a_container_without_a_pod_is_one_in_the_default_namespace(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = runtime.container("unused")
    plain = pod.environment("ADD") | {"CNI_ARGS": ""}
    monkeypatch.setattr(Pod, "environment", lambda _, command: plain | {"CNI_COMMAND": command})
    await runtime.add(pod)
    name = workload_endpoint_name(NODE, pod.container)
    assert (await runtime.left())[0] == [f"WorkloadEndpoint default/{name}"]
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_a_del_waits_for_the_add_of_its_pod(runtime: Runtime) -> None:
    pod = runtime.container("hasty")
    runtime.felix.send_signal(signal.SIGSTOP)
    try:
        async with runtime.begun("ADD", pod) as adding, runtime.begun("DEL", pod) as removing:
            await runtime.until(STEPS["an endpoint"])
            assert not removing.done()
            runtime.felix.send_signal(signal.SIGCONT)
            assert (await adding).status == 0
            assert await removing == Answer(0, {})
    finally:
        runtime.felix.send_signal(signal.SIGCONT)
    assert await runtime.left() == NOTHING
