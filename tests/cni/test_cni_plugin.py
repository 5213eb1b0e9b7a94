"""Pods of a real node: a real datastore and felix, namespaces, and the plugin as its agent calls it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess

import pytest
from cni_node import (
    NETWORK,
    NODE,
    NOTHING,
    PATIENCE_S,
    STEPS,
    Agent,
    Answer,
    Pod,
    Runtime,
    pings,
    run,
    stopped_felix,
    write,
)

from core.names import workload_endpoint_name
from core.resources import Metadata, NetworkPolicy, WorkloadEndpoint
from core.resources.policy import Action, EntityRule, NetworkPolicySpec, Rule
from datastore import objects
from datastore.ipam.ledger import Ledger
from linux import netns

SOON = {"policy_setup_timeout_seconds": 0.2}
APP = {"cni": {"labels": [{"key": "app", "value": "db"}]}}


async def endpoint_of(runtime: Runtime, pod: str, namespace: str = "shop") -> WorkloadEndpoint:
    async with runtime.store() as store:
        found = await objects.read(store, WorkloadEndpoint, workload_endpoint_name(NODE, pod), namespace)
    assert found
    return found[0]


async def test_two_pods_talk_and_leave_nothing(runtime: Runtime) -> None:
    web, db = runtime.container("web"), runtime.container("db")
    at_web, at_db = await runtime.add(web), await runtime.add(db, args=APP)
    with web.place(at_web) as caller, db.place(at_db) as server:
        for address in at_db.addresses:
            assert pings(web.netns, address)
            async with server.echo(8080, address):
                assert await caller.reaches(address, 8080)

    assert await runtime.add(db) == at_db, "ADD again is not the same"
    found = await endpoint_of(runtime, "db")
    assert found.metadata.labels["app"] == "db"
    assert found.spec.profiles == ["kns.shop", "ksa.shop.default"]
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


async def test_the_first_packet_to_a_new_pod_arrives(runtime: Runtime) -> None:
    """One that is lost is sent again after a second, which `reaches` does not wait for."""
    web = runtime.container("caller")
    at_web = await runtime.add(web)
    with web.place(at_web) as caller:
        for number in range(15):
            pod = runtime.container(f"new-{number}")
            added = await runtime.add(pod)
            with pod.place(added) as server:
                for address in added.addresses:
                    async with server.echo(8080, address):
                        assert await caller.reaches(address, 8080)
            await runtime.remove(pod)
    await runtime.remove(web)
    assert await runtime.left() == NOTHING


SPOILERS: dict[str, tuple[tuple[str, ...], str]] = {
    "an address": (("addr", "del", "{four}/32", "dev", "eth0"), "eth0 has not {four}/32"),
    "a route": (("-6", "route", "del", "default"), "eth0 has no route to ::/0"),
    "the pod's MAC": (("link", "set", "eth0", "address", "02:00:00:00:00:09"), "eth0 has the MAC address 02:00:"),
    "the link": (("link", "set", "eth0", "down"), "eth0 is down"),
}


async def test_check_finds_what_is_not_as_add_left_it(runtime: Runtime) -> None:
    pod = runtime.container("checked")
    added = await runtime.add(pod)
    assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    for argv, said in SPOILERS.values():
        run(pod.netns, "ip", *(word.format(four=added.addresses[0]) for word in argv))
        answer = await runtime.call("CHECK", pod, prevResult=added.document, **SOON)
        assert answer.document["code"] == 101
        assert said.format(four=added.addresses[0]) in answer.document["msg"]
        assert await runtime.add(pod) == added
        assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    other = {**added.document, "ips": [{"address": "10.60.0.99/32", "interface": 1}]}
    answer = await runtime.call("CHECK", pod, prevResult=other)
    assert "ADD gave 10.60.0.99/32" in answer.document["msg"]
    await runtime.remove(pod)
    assert (await runtime.call("CHECK", pod, prevResult=added.document)).document["code"] == 101


async def test_check_tells_all_that_is_wrong_at_once(runtime: Runtime) -> None:
    pod = runtime.container("broken")
    added = await runtime.add(pod)
    async with runtime.store() as store:
        await Ledger(store).release(f"{NETWORK}.{pod.container}", "a test")
    run(runtime.namespace, "ip", "link", "set", pod.interface, "down")
    message = ""
    async with asyncio.timeout(PATIENCE_S):
        while "was not programmed within 0.2 s" not in message:  # felix has yet to see the link go down
            message = (await runtime.call("CHECK", pod, prevResult=added.document, **SOON)).document["msg"]
    for part in ("not the container's in IPAM", f"{pod.interface} is down"):
        assert part in message
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


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
    assert pings(pods[0].netns, answers[9].addresses[0])
    await asyncio.gather(*(runtime.remove(pod) for pod in pods))
    assert await runtime.left() == NOTHING


async def test_calls_for_one_pod_go_in_the_order_in_which_they_came(runtime: Runtime) -> None:
    pod, following = runtime.container("ordered"), runtime.container("ordered")
    first, again = await asyncio.gather(runtime.add(pod), runtime.add(pod))
    assert first == again
    _, after = await asyncio.gather(runtime.remove(pod), runtime.add(following))
    assert (await runtime.left())[1] == [f"{NETWORK}.{following.container}"] * 3
    assert await runtime.call("CHECK", following, prevResult=after.document) == Answer(0, {})
    await runtime.remove(following)
    assert await runtime.left() == NOTHING


CHAIN: dict[str, dict[str, object]] = {
    "portmap": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    "bandwidth": {
        "bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**5, "egressRate": 10**6, "egressBurst": 10**5}
    },
    "tuning": {},
}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
async def test_the_cni_projects_own_plugins_follow_in_the_chain(runtime: Runtime, version: str) -> None:
    pod = runtime.container("chained")
    result = (await runtime.add(pod, cniVersion=version)).document
    for kind, asked in CHAIN.items():
        conf = {"cniVersion": version, "name": NETWORK, "type": kind, "runtimeConfig": asked}
        result = json.loads(chained(runtime, "ADD", pod, {**conf, "prevResult": result}))
        assert await runtime.call("CHECK", pod, cniVersion=version, prevResult=result) == Answer(0, {})
    for kind in reversed(CHAIN):
        conf = {"cniVersion": version, "name": NETWORK, "type": kind, "runtimeConfig": CHAIN[kind]}
        chained(runtime, "DEL", pod, {**conf, "prevResult": result})
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


def chained(runtime: Runtime, command: str, pod: Pod, conf: dict[str, object]) -> str:
    """A plugin of /usr/lib/cni, run as a runtime runs it."""
    argv = netns.command(f"/run/netns/{runtime.namespace}", f"/usr/lib/cni/{conf['type']}")
    environment = {**os.environ, **pod.environment(command), "CNI_PATH": "/usr/lib/cni"}
    done = subprocess.run(argv, input=json.dumps(conf), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


async def test_an_add_that_is_not_to_wait_for_felix_does_not(runtime: Runtime) -> None:
    pod = runtime.container("impatient")
    with stopped_felix(runtime):
        added = await runtime.add(pod, policy_setup_timeout_seconds=0)
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(pings, runtime.namespace, added.addresses[0]):
            pass
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


HOST_SYSCTLS = {
    "ipv4/conf/{}/proxy_arp": "1",
    "ipv4/neigh/{}/proxy_delay": "0",
    "ipv4/conf/{}/route_localnet": "1",
    "ipv4/conf/{}/forwarding": "1",
    "ipv6/conf/{}/disable_ipv6": "0",
    "ipv6/conf/{}/accept_dad": "0",
    "ipv6/conf/{}/proxy_ndp": "1",
    "ipv6/conf/{}/forwarding": "1",
    "ipv6/conf/{}/accept_ra": "0",
}


async def test_both_ends_are_set_as_they_must_be(runtime: Runtime) -> None:
    for allowed in (False, True):
        pod = runtime.container("set-up")
        await runtime.add(pod, container_settings={"allow_ip_forwarding": allowed})
        for key, value in HOST_SYSCTLS.items():
            file = f"/proc/sys/net/{key.format(pod.interface)}"
            assert run(runtime.namespace, "cat", file).strip() == value, file
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            assert run(pod.netns, "cat", f"/proc/sys/net/{key}").strip() == str(int(allowed))
        await runtime.remove(pod)


async def test_an_add_waits_for_its_gates(runtime: Runtime) -> None:
    opened = False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.0 204 fine\r\n\r\n" if opened else b"HTTP/1.0 503 not yet\r\n\r\n")
        await writer.drain()
        writer.close()

    with netns.inside(runtime.namespace):
        listener = socket.create_server(("10.9.0.1", 0))
    url = f"http://10.9.0.1:{listener.getsockname()[1]}/ready"
    async with await asyncio.start_server(answer, sock=listener):
        pod = runtime.container("gated")
        given = {"readiness_gates": [url], "policy_setup_timeout_seconds": 1}
        shut = await runtime.call("ADD", pod, **given)
        assert (shut.status, shut.document["code"]) == (1, 11)
        assert f"{url}: status 503" in shut.document["msg"]
        assert await runtime.left() == NOTHING
        opened = True
        assert (await runtime.call("ADD", pod, **given)).status == 0
    await runtime.remove(pod)


async def test_without_a_datastore_the_runtime_is_told_to_try_again(runtime: Runtime) -> None:
    pod = runtime.container("storeless")
    with Agent(runtime.namespace, f"unix:{runtime.folder}/nothing.sock", runtime.folder / "run") as lonely:
        for command in ("ADD", "DEL"):
            answer = await runtime.ask(pod.environment(command), runtime.config(), lonely)
            assert (answer.status, answer.document["code"]) == (1, 11)
            assert "is away" in answer.document["msg"]
        answer = await runtime.ask(pod.environment("STATUS"), runtime.config(cniVersion="1.1.0"), lonely)
        assert answer.document["code"] == 50
    with Agent(runtime.namespace, runtime.datastore, runtime.folder / "nowhere") as unguarded:
        answer = await runtime.ask(pod.environment("STATUS"), runtime.config(cniVersion="1.1.0"), unguarded)
        assert answer.document["code"] == 51
        answer = await runtime.ask(pod.environment("ADD"), runtime.config(policy_setup_timeout_seconds=1), unguarded)
        assert answer.document["code"] == 11
        assert "felix on this node is away" in answer.document["msg"]
    assert await runtime.left() == NOTHING


async def test_the_del_of_a_pods_former_container_does_not_touch_the_next(runtime: Runtime) -> None:
    former, following = runtime.container("db-0"), runtime.container("db-0")
    at_former = await runtime.add(former)
    at_following = await runtime.add(following)
    assert set(at_former.addresses).isdisjoint(at_following.addresses)
    await runtime.remove(former)
    assert all(pings(runtime.namespace, address) for address in at_following.addresses)
    assert await runtime.call("CHECK", following, prevResult=at_following.document) == Answer(0, {})
    await runtime.remove(following)
    assert await runtime.left() == NOTHING


async def test_a_del_waits_for_the_add_of_its_pod(runtime: Runtime) -> None:
    pod = runtime.container("hasty")
    with stopped_felix(runtime):
        async with runtime.begun("ADD", pod) as adding:
            await runtime.until(STEPS["an endpoint"])
            async with runtime.begun("DEL", pod) as removing:
                await asyncio.wait([removing], timeout=0.1)
                assert not removing.done()
                runtime.felix.send_signal(signal.SIGCONT)
                assert (await adding).status == 0
                assert await removing == Answer(0, {})
    assert await runtime.left() == NOTHING
