"""What pods leave behind: in the datastore, in a node's kernel, in its agents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from survive_cluster import Cluster, Machine, until

from core.addr import contains
from core.resources import IPAMBlock, IPAMHandle, IPPool, WorkloadEndpoint
from datastore import objects
from datastore.api import Store
from linux import netns
from linux.conntrack import Conntrack

_PASSING = frozenset({"handle", "packets", "bytes"})
"""What of a table is another's each time it is written."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a node's kernel has of pods, and its table as it is."""

    interfaces: tuple[str, ...]
    routes: tuple[str, ...]
    flows: tuple[str, ...]
    table: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the datastore has of pods: names of endpoints and handles, and `ADDRESS HANDLE` of what is given."""

    endpoints: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


NOTHING = Stored()


async def stored(cluster: Cluster) -> Stored:
    async with cluster.store() as store:
        endpoints = tuple(str(each.key) for each in (await store.list({WorkloadEndpoint.KIND})).entries)
        handles = tuple(each.key.name for each in (await store.list({IPAMHandle.KIND})).entries)
        given = [
            f"{address} {handle}" for block in await blocks(store) for address, handle in block.spec.allocations.items()
        ]
    return Stored(endpoints, handles, tuple(sorted(given)))


async def blocks(store: Store) -> list[IPAMBlock]:
    names = [each.key.name for each in (await store.list({IPAMBlock.KIND})).entries]
    found = [await objects.read(store, IPAMBlock, name) for name in names]
    return [each[0] for each in found if each]


async def kernel(cluster: Cluster, machine: Machine) -> Kernel:
    """What there is now."""
    async with cluster.store() as store:
        names = [each.key.name for each in (await store.list({IPPool.KIND})).entries]
        pools = [found[0].spec.network for name in names if (found := await objects.read(store, IPPool, name))]
    routes = "".join(machine.run("ip", f"-{family}", "route", "show", "table", "all") for family in "46")
    with netns.inside(machine.place), Conntrack() as conntrack:
        flows = [
            str(flow) for flow in conntrack.flows() if any(contains(each, flow.original.destination) for each in pools)
        ]
    return Kernel(
        interfaces=tuple(sorted(machine.interfaces())),
        routes=tuple(line for line in routes.splitlines() if " mus" in line),
        flows=tuple(flows),
        table=table(machine),
    )


def table(machine: Machine) -> str:
    """The node's table, without what is another's each time: one line for each chain, rule, set."""
    listed = json.loads(machine.run("nft", "-j", "list", "table", "inet", "muslin"))["nftables"]
    return "\n".join(sorted(json.dumps(_lasting(each), sort_keys=True) for each in listed))


def _lasting(found: Any) -> Any:
    match found:
        case dict():
            return {
                key: sorted(map(_lasting, each), key=repr) if key == "elem" else _lasting(each)
                for key, each in found.items()
                if key not in _PASSING
            }
        case list():
            return [_lasting(each) for each in found]
    return found


async def require_nothing(cluster: Cluster, before: dict[str, Kernel]) -> None:
    """Nothing of any pod is left, soon; and `muslin ipam check` finds nothing."""
    left = await stored(cluster)
    assert left == NOTHING
    for machine in cluster.machines:
        was = before[machine.node]

        async def same(machine: Machine = machine, was: Kernel = was) -> bool:
            return await kernel(cluster, machine) == was

        try:
            await until(same)
        except TimeoutError:
            assert await kernel(cluster, machine) == was
    status, said = await cluster.muslin("ipam", "check")
    assert status == 0, said
