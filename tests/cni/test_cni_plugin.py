"""Pods of a real node: a real datastore and felix, namespaces, and the plugin as its agent calls it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from cni_node import NETWORK, NODE, Agent, Answer, Pod, Runtime, run, stopwatch, write

from cni import endpoint, wiring
from cni.arguments import Attachment
from cni.wiring import Furniture, Place
from core.names import workload_endpoint_name
from core.resources import IPPool, Metadata, NetworkPolicy, WorkloadEndpoint
from core.resources.network import IPPoolSpec
from core.resources.policy import Action, EntityRule, NetworkPolicySpec, Rule
from datastore import objects
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Owner, Request
from linux import netns
from linux.conntrack import Conntrack

NOTHING: tuple[list[str], list[str], list[str]] = ([], [], [])


def pings(namespace: str, address: str) -> bool:
    argv = netns.command(namespace, "ping", "-c1", "-W1", address)
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


SOON = {"policy_setup_timeout_seconds": 0.2}
APP = {"cni": {"labels": [{"key": "app", "value": "db"}]}}


def mac(pod: Pod) -> str:
    (link,) = json.loads(run(pod.netns, "ip", "-j", "link", "show", "eth0"))
    found: str = link["address"]
    return found


async def endpoint_of(runtime: Runtime, pod: str, namespace: str = "shop") -> WorkloadEndpoint:
    async with runtime.store() as store:
        found = await objects.read(store, WorkloadEndpoint, workload_endpoint_name(NODE, pod), namespace)
    assert found
    return found[0]


@contextlib.contextmanager
def stopped_felix(runtime: Runtime) -> Iterator[None]:
    runtime.felix.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        runtime.felix.send_signal(signal.SIGCONT)


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
    message = (await runtime.call("CHECK", pod, prevResult=added.document, **SOON)).document["msg"]
    for part in ("not the container's in IPAM", f"{pod.interface} is down", "was not programmed within 0.2 s"):
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


STEPS: dict[str, Callable[[tuple[list[str], list[str], list[str]]], bool]] = {
    "a wire": lambda left: bool(left[2]),
    "an endpoint": lambda left: bool(left[0]),
}


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
                    objects.put(endpoint.endpoint(NODE, at, grant.addresses, mac=endpoint.own_mac(handle)), 0)
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


async def test_what_is_there_and_not_ours_is_left_alone(runtime: Runtime) -> None:
    pod = runtime.container("taken")
    run(pod.netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    answer = await runtime.call("ADD", pod)
    assert (answer.status, answer.document["code"]) == (1, 5)
    assert "has an interface eth0 already" in answer.document["msg"]
    assert await runtime.left() == NOTHING
    assert "eth0" in run(pod.netns, "ip", "link", "show", "eth0")


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


async def test_a_pool_that_is_dry_says_so_and_serves_again(runtime: Runtime) -> None:
    pool = IPPool(metadata=Metadata(name="tiny"), spec=IPPoolSpec(cidr="10.61.0.0/30", block_size=30))
    await write(runtime.datastore, pool)
    ipam = {"ipv4_pools": ["tiny"], "assign_ipv4": "true", "assign_ipv6": "false"}
    pods = [runtime.container(f"dry-{number}") for number in range(5)]
    try:
        first = [await runtime.add(pod, ipam=ipam) for pod in pods[:4]]
        answer = await runtime.call("ADD", pods[4], ipam=ipam)
        assert (answer.status, answer.document["code"]) == (1, 100)
        assert "tiny" in answer.document["msg"]
        await runtime.remove(pods[0])
        assert (await runtime.add(pods[4], ipam=ipam)).addresses == first[0].addresses
        for pod in pods[1:]:
            await runtime.remove(pod)
    finally:
        async with runtime.store() as store:
            await objects.delete(store, IPPool, "tiny")
    assert await runtime.left() == NOTHING


async def test_connections_of_an_address_end_with_its_holder(runtime: Runtime) -> None:
    pod, peer = runtime.container("cut"), runtime.container("peer")
    added, at_peer = await runtime.add(pod), await runtime.add(peer)
    with pod.place(added) as caller:
        for here, there in zip(added.addresses, at_peer.addresses, strict=True):
            family = socket.AF_INET6 if ":" in here else socket.AF_INET
            sender = caller.open(socket.SOCK_DGRAM, here, 5555, family)
            sender.sendto(b"x", (there, 5556))
    assert tracked(runtime, added) == set(added.addresses)
    await runtime.remove(pod)
    assert tracked(runtime, added) == set()
    await runtime.remove(peer)


def tracked(runtime: Runtime, answer: Answer) -> set[str]:
    """Which of a pod's addresses the node tracks connections of."""
    wanted = set(map(ip_address, answer.addresses))
    with netns.inside(runtime.namespace), Conntrack() as table:
        return {str(flow.original.source) for flow in table.flows() if flow.original.source in wanted}


async def test_a_route_that_somebody_left_is_found(runtime: Runtime) -> None:
    pod = runtime.container("misled")
    ipam = {"assign_ipv4": True, "assign_ipv6": False}
    address = "10.60.0.77"
    run(runtime.namespace, "ip", "route", "add", address, "dev", "up0")
    answer = await runtime.call("ADD", pod, ipam=ipam, runtimeConfig={"ips": [address]})
    assert answer.document["code"] == 5
    assert f"the host's route to {address} is not the pod's" in answer.document["msg"]
    assert "dev up0" in answer.document["msg"]
    assert await runtime.left() == NOTHING

    run(runtime.namespace, "ip", "route", "del", address)
    run(runtime.namespace, "ip", "link", "add", "mus00000000001", "type", "veth", "peer", "name", "stale1")
    run(runtime.namespace, "ip", "link", "set", "mus00000000001", "up")
    run(runtime.namespace, "ip", "route", "add", address, "dev", "mus00000000001")
    added = await runtime.add(pod, ipam=ipam, runtimeConfig={"ips": [address]})
    assert pings(runtime.namespace, added.addresses[0])
    assert runtime.interfaces() == [pod.interface]
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING
