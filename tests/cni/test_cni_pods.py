"""What Kubernetes knows of a pod, on a real node: what its Pod and Namespace ask for, and what becomes of changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cni_node import NODE, Pod, Runtime, run, write

from core import resources
from core.names import workload_endpoint_name
from core.resources import IPPool, Metadata, Namespace, NetworkPolicy, ServiceAccount, WorkloadEndpoint
from core.resources.network import IPPoolSpec
from core.resources.policy import Action, EntityRule, NetworkPolicySpec, Rule
from datastore import objects
from datastore.api import Delete

PREFIX = "cni.projectcalico.org/"
PATIENCE_S = 10.0


def kubernetes(name: str, *, annotations: dict[str, Any] | None = None, **labels: str) -> resources.Pod:
    """A Pod object."""
    noted = {
        PREFIX + key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (annotations or {}).items()
    }
    containers = [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]
    spec = {"nodeName": NODE, "serviceAccountName": "builder", "containers": containers}
    return resources.Pod(metadata=Metadata(name=name, namespace="shop", labels=labels, annotations=noted), spec=spec)


@pytest.fixture
async def cluster(runtime: Runtime) -> AsyncIterator[Runtime]:
    """The node's cluster with a second pool; what a test put there of Kubernetes goes at its end."""
    pool = IPPool(metadata=Metadata(name="second"), spec=IPPoolSpec(cidr="10.62.0.0/24", assignment_mode="Manual"))
    account = ServiceAccount(metadata=Metadata(name="builder", namespace="shop"))
    await write(runtime.datastore, pool, account)
    yield runtime
    async with runtime.store() as store:
        there = await store.list({resources.Pod.KIND, NetworkPolicy.KIND, ServiceAccount.KIND})
        await store.txn([*(Delete(each.key) for each in there.entries), Delete(pool.key)])
        await store.txn([objects.put(Namespace(metadata=Metadata(name="shop")))])
    assert await runtime.left() == ([], [], [])


async def endpoint(runtime: Runtime, pod: Pod) -> WorkloadEndpoint:
    async with runtime.store() as store:
        found = await objects.read(store, WorkloadEndpoint, workload_endpoint_name(NODE, pod.name), "shop")
    assert found
    return found[0]


async def until(runtime: Runtime, pod: Pod, true: Callable[[WorkloadEndpoint], bool]) -> WorkloadEndpoint:
    async with asyncio.timeout(PATIENCE_S):
        while not true(found := await endpoint(runtime, pod)):  # noqa: ASYNC110 - the agent writes when it has seen it
            await asyncio.sleep(0.005)
    return found


async def test_the_endpoint_is_as_its_pod_says_and_goes_on_to_be(cluster: Runtime) -> None:
    await write(cluster.datastore, kubernetes("web", app="web"))
    pod = cluster.container("web")
    await cluster.add(pod, args={"cni": {"labels": [{"key": "tier", "value": "front"}]}})
    found = await endpoint(cluster, pod)
    assert {"app": "web", "tier": "front"}.items() <= found.metadata.labels.items()
    assert found.metadata.labels["projectcalico.org/serviceaccount"] == "builder"
    assert found.spec.profiles == ["kns.shop", "ksa.shop.builder"]
    assert [(each.name, each.port) for each in found.spec.ports] == [("http", 8080)]

    await write(cluster.datastore, kubernetes("web", role="db"))
    found = await until(cluster, pod, lambda each: each.metadata.labels.get("role") == "db")
    assert "app" not in found.metadata.labels
    assert found.metadata.labels["tier"] == "front"

    async with cluster.store() as store:
        await objects.delete(store, resources.Pod, "web", "shop")
        await write(cluster.datastore, kubernetes("other", app="x"))
    assert (await endpoint(cluster, pod)).metadata.labels["role"] == "db"
    await cluster.remove(pod)


async def test_policy_follows_a_pods_labels(cluster: Runtime) -> None:
    await write(cluster.datastore, kubernetes("db", app="db"))
    rule = Rule(action=Action.ALLOW, protocol="TCP", destination=EntityRule(ports=[9090]))
    spec = NetworkPolicySpec(selector="closed == 'yes'", ingress=[rule])
    await write(cluster.datastore, NetworkPolicy(metadata=Metadata(name="closed", namespace="shop"), spec=spec))
    web, db = cluster.container("web-2"), cluster.container("db")
    at_web, at_db = await cluster.add(web), await cluster.add(db)
    with web.place(at_web) as caller, db.place(at_db) as server:
        async with server.echo(8080, at_db.addresses[0]):
            assert await caller.reaches(at_db.addresses[0], 8080)
            await write(cluster.datastore, kubernetes("db", app="db", closed="yes"))
            async with asyncio.timeout(PATIENCE_S):
                while await caller.reaches(at_db.addresses[0], 8080):
                    pass
    for pod in (web, db):
        await cluster.remove(pod)


async def test_addresses_and_mac_that_a_pod_asks_for(cluster: Runtime) -> None:
    asked = {"ipAddrs": ["10.62.0.7", "fd60::77"], "hwAddr": "02:00:00:00:00:77"}
    await write(cluster.datastore, kubernetes("picky", annotations=asked))
    pod = cluster.container("picky")
    added = await cluster.add(pod)
    assert added.addresses == ("10.62.0.7", "fd60::77")
    (link,) = json.loads(run(pod.netns, "ip", "-j", "link", "show", "eth0"))
    assert link["address"] == added.document["interfaces"][1]["mac"] == "02:00:00:00:00:77"
    assert (await endpoint(cluster, pod)).spec.mac == "02:00:00:00:00:77"
    assert await cluster.add(pod) == added
    assert (await cluster.call("CHECK", pod, prevResult=added.document)).status == 0
    await cluster.remove(pod)


async def test_pools_of_the_pod_the_namespace_and_the_configuration(cluster: Runtime) -> None:
    conf = {"ipam": {"assign_ipv6": "false", "ipv4_pools": ["second"]}}
    pod = cluster.container("pooled")

    async def block() -> str:
        added = await cluster.add(pod, **conf)
        await cluster.remove(pod)
        return ".".join(added.addresses[0].split(".")[:2])

    assert await block() == "10.62"
    annotations = {PREFIX + "ipv4pools": '["10.60.0.0/24"]'}
    await write(cluster.datastore, Namespace(metadata=Metadata(name="shop", annotations=annotations)))
    assert await block() == "10.60"
    await write(cluster.datastore, kubernetes("pooled", annotations={"ipv4pools": ["second"]}))
    assert await block() == "10.62"
    by_runtime = {"io.kubernetes.cri.pod-annotations": {PREFIX + "ipFamilies": '["IPv6"]'}}
    added = await cluster.add(pod, runtimeConfig=by_runtime)
    assert [":" in each for each in added.addresses] == [True]
    await cluster.remove(pod)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"ipv4pools": ["there-is-none"]}, 7, "there-is-none"),
    ({"ipAddrs": "10.62.0.7"}, 7, "Pod shop/wrong: cni.projectcalico.org/ipAddrs"),
    ({"floatingIPs": ["192.0.2.1"]}, 7, "feature_control.floating_ips"),
    ({"ipAddrs": ["192.0.2.1"]}, 100, "192.0.2.1"),
]


async def test_what_a_pod_cannot_have(cluster: Runtime) -> None:
    pod = cluster.container("wrong")
    for asked, code, said in BAD:
        await write(cluster.datastore, kubernetes("wrong", annotations=asked))
        answer = await cluster.call("ADD", pod)
        assert (answer.status, answer.document["code"]) == (1, code), answer
        assert said in answer.document["msg"]
        assert await cluster.left() == ([], [], [])
