"""A cluster of Services of type LoadBalancer: pools and Services written, and what the store says of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from core.addr import Address, contains
from core.errors import Conflict
from core.manifest import decode
from core.resources import IPPool, KubeControllersConfiguration, Metadata, Service
from core.resources.controllers import Controllers, KubeControllersSpec, LoadBalancerController
from core.resources.ipam import LOAD_BALANCER
from core.resources.service import ServicePort, ServiceSpec
from datastore import objects
from datastore.api import Store
from datastore.ipam.balancing.balancer import balance
from datastore.ipam.balancing.ingress import addresses
from datastore.ipam.balancing.wishes import handle_of
from tests.datastore import ipam_ground
from tests.datastore.ipam_ground import DEADLINE_S, Said

ANNOTATION = "projectcalico.org/"


def balanced(name: str, cidr: str, **fields: object) -> IPPool:
    """A pool for load balancers."""
    return ipam_ground.pool(name, cidr, allowed_uses=["LoadBalancer"], **fields)


def service(
    name: str, status: Mapping[str, Any] | None = None, *, asks: Mapping[str, str] = {}, **spec: Any
) -> Service:
    """A Service of type LoadBalancer in `shop`; `asks` are annotations without their prefix."""
    made = {"type": "LoadBalancer", "ports": [ServicePort(port=80)], "cluster_ip": "10.96.0.10", **spec}
    annotations = {f"{ANNOTATION}{word}": text for word, text in asks.items()}
    metadata = Metadata(name=name, namespace="shop", annotations=annotations)
    return Service(metadata=metadata, spec=ServiceSpec(**made), status=status)


def assigning(word: str) -> KubeControllersConfiguration:
    """The settings."""
    controllers = Controllers(load_balancer=LoadBalancerController(assign_ips=word))
    return KubeControllersConfiguration(
        metadata=Metadata(name="default"), spec=KubeControllersSpec(controllers=controllers)
    )


def ingress(*texts: str) -> Mapping[str, Any]:
    """A status that says these."""
    return {"loadBalancer": {"ingress": [{"ip": text} for text in texts]}}


@asynccontextmanager
async def balancing(*stores: Store, idle_s: float = 60.0) -> AsyncIterator[None]:
    """As servers do it, one for each store."""
    tasks = [asyncio.create_task(balance(store, idle_s=idle_s)) for store in stores]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until(condition: Callable[[], Awaitable[object]], what: str = "") -> None:
    """Wait until `condition` holds."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it does not come: {what}") from None


async def services(store: Store) -> dict[str, Service]:
    """By name."""
    entries = (await store.list({Service.KIND})).entries
    found = (decode(entry.key, entry.value) for entry in entries)
    return {each.metadata.name: each for each in found if isinstance(each, Service)}


async def told(store: Store) -> dict[str, list[str]]:
    """The addresses that each Service says it has."""
    return {name: list(map(str, addresses(each))) for name, each in (await services(store)).items()}


async def says(store: Store, want: Mapping[str, Sequence[str]]) -> None:
    """Wait until each of these Services says that it has these addresses."""

    async def so() -> bool:
        found = await told(store)
        return all(found.get(name) == list(texts) for name, texts in want.items())

    await until(so, f"{want}, but {await told(store)}")


async def agreed(store: Store, pools: Sequence[IPPool]) -> dict[str, tuple[Address, ...]]:
    """What Services hold, by name: what they say, each address once, of these pools, in blocks of no node."""
    said, found = await Said.by(store), await services(store)
    names = {handle_of("shop", name): name for name in found}
    held = {names[handle]: of for handle, of in said.by_handle.items() if handle in names}
    assert not [handle for handle in said.by_handle if handle.startswith("lb-") and handle not in names]
    every = [address for of in held.values() for address in of]
    assert len(set(every)) == len(every)
    assert {name: set(addresses(each)) for name, each in found.items() if addresses(each)} == {
        name: set(of) for name, of in held.items()
    }
    assert all(any(contains(pool.spec.network, address) for pool in pools) for address in every)
    for block in said.blocks:
        if any(contains(pool.spec.network, block.spec.network) for pool in pools):
            assert block.spec.affinity == LOAD_BALANCER
            assert not block.spec.borrowers
    return held


async def write(store: Store, name: str, change: Callable[[Service], Service]) -> None:
    """Change a Service as a person does, whoever writes it meanwhile."""
    for _ in range(50):
        found = await objects.read(store, Service, name, "shop")
        assert found is not None
        try:
            await store.txn([objects.put(change(found[0]), found[1])])
        except Conflict:
            continue
        return
    raise AssertionError(f"{name} is written by others all the time")
