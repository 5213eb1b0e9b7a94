"""A pod whose Pod or Namespace was written a moment ago: ADD goes by what is so, not by what was heard last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing

import pytest
from cni_node import NODE, PATIENCE_S, Agent, Answer, Pod, Runtime, write

from core import resources
from core.manifest import decode
from core.names import workload_endpoint_name
from core.resources import IPPool, Metadata, Namespace, WorkloadEndpoint
from core.resources.network import IPPoolSpec
from datastore import objects
from datastore.api import Changes, Delete

POOLS = "cni.projectcalico.org/ipv4pools"
NAME = "web"


def told(annotations: dict[str, str] | None = None, on: str = NODE, name: str = NAME, **labels: str) -> resources.Pod:
    """The Pod."""
    metadata = Metadata(name=name, namespace="shop", labels=labels, annotations=annotations or {})
    return resources.Pod(metadata=metadata, spec={"nodeName": on})


@pytest.fixture
def late(runtime: Runtime) -> Iterator[Agent]:
    """An agent that can be made to hear no more."""
    with Agent(runtime.namespace, runtime.datastore, runtime.folder / "run") as made:
        yield made


@pytest.fixture
async def pod(runtime: Runtime) -> AsyncIterator[Pod]:
    """The pod's container; what was written of it goes at the end, and its second pool."""
    second = IPPool(metadata=Metadata(name="second"), spec=IPPoolSpec(cidr="10.62.0.0/24", assignment_mode="Manual"))
    await write(runtime.datastore, second)
    made = runtime.container(NAME)
    yield made
    await runtime.remove(made)
    async with runtime.store() as store:
        await store.txn([Delete(told().key), Delete(told(name="other").key), Delete(second.key)])
        await objects.write(store, Namespace(metadata=Metadata(name="shop")))
    assert await runtime.left() == ([], [], [])


async def stored(runtime: Runtime, pod: Pod) -> WorkloadEndpoint:
    """The pod's endpoint."""
    async with runtime.store() as store:
        found = await objects.read(store, WorkloadEndpoint, workload_endpoint_name(NODE, pod.name), "shop")
    assert found
    return found[0]


async def add(runtime: Runtime, agent: Agent, pod: Pod) -> Answer:
    return await runtime.ask(pod.environment("ADD"), runtime.config(), agent)


async def labels_at_first(runtime: Runtime, agent: Agent, pod: Pod) -> Mapping[str, str]:
    """The labels with which ADD writes the endpoint: the node's other agent may change them at once."""
    async with runtime.store() as store:
        before = (await store.list({WorkloadEndpoint.KIND})).revision
        assert (await add(runtime, agent, pod)).status == 0
        async with aclosing(store.watch(before, {WorkloadEndpoint.KIND})) as items:
            first = await anext(items)
    assert isinstance(first, Changes)
    event = first.events[0]
    assert event.value
    return decode(event.key, event.value).metadata.labels


async def heard(runtime: Runtime, agent: Agent, pod: Pod, last: resources.Pod) -> None:
    """Return when `agent` has heard of `last`: it brings its labels to the endpoint that the pod has meanwhile."""
    await write(runtime.datastore, told(name=pod.name, before="yes"))
    assert (await add(runtime, agent, pod)).status == 0
    await write(runtime.datastore, last)
    async with asyncio.timeout(PATIENCE_S):
        while last.metadata.labels.items() - (await stored(runtime, pod)).metadata.labels.items():  # noqa: ASYNC110 - the agent writes when it has heard
            await asyncio.sleep(0.005)
    await runtime.remove(pod)
    await agent.hear_no_more()


async def test_a_pod_that_was_not_heard_of(runtime: Runtime, late: Agent, pod: Pod) -> None:
    other = told(name="other", app="other")
    await heard(runtime, late, runtime.container("other"), other)
    await write(runtime.datastore, told(app="web"))
    assert (await labels_at_first(runtime, late, pod))["app"] == "web"


async def test_a_pod_that_was_bound_to_another_node_when_it_was_heard_of(
    runtime: Runtime, late: Agent, pod: Pod
) -> None:
    await write(runtime.datastore, told(on="elsewhere", app="web"))
    assert (await labels_at_first(runtime, late, pod))["app"] == "web"


async def test_a_pod_that_changed_since_it_was_heard_of(runtime: Runtime, late: Agent, pod: Pod) -> None:
    await heard(runtime, late, pod, told(app="web"))
    await write(runtime.datastore, told({POOLS: '["second"]'}, role="db"))
    labels = await labels_at_first(runtime, late, pod)
    assert (labels.get("role"), labels.get("app")) == ("db", None)
    answer = await add(runtime, late, pod)
    assert answer.addresses[0].startswith("10.62.")


async def test_a_pod_that_is_gone_since_it_was_heard_of(runtime: Runtime, late: Agent, pod: Pod) -> None:
    await heard(runtime, late, pod, told(app="web"))
    async with runtime.store() as store:
        await objects.delete(store, resources.Pod, NAME, "shop")
    assert "app" not in await labels_at_first(runtime, late, pod)


async def test_a_namespace_that_changed_since_it_was_heard_of(runtime: Runtime, late: Agent, pod: Pod) -> None:
    await heard(runtime, late, pod, told(app="web"))
    await write(runtime.datastore, Namespace(metadata=Metadata(name="shop", annotations={POOLS: '["second"]'})))
    answer = await add(runtime, late, pod)
    assert answer.status == 0
    assert answer.addresses[0].startswith("10.62.")


@pytest.mark.parametrize("asked", ['["there-is-none"]', "no list"])
async def test_what_was_only_heard_is_no_reason_to_refuse(runtime: Runtime, late: Agent, pod: Pod, asked: str) -> None:
    await heard(runtime, late, pod, told({POOLS: asked}, app="web"))
    refused = await add(runtime, late, pod)
    assert refused.status == 1
    assert f"Pod shop/{NAME}" in refused.document["msg"]
    await write(runtime.datastore, told(app="web"))
    assert (await add(runtime, late, pod)).status == 0
