"""Later changes of Pods, brought to this node's endpoints: labels, named ports, service account.

    datastore ── Pod, WorkloadEndpoint ──> snapshot ──> pairs ──> those that differ: read again, written as they are

An endpoint is written by ADD from the Pod as it was then; policy goes by the endpoint. A Pod that is gone, or that
cannot be read, changes nothing: the pod may run for a while yet, under the policy that it had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, TypeAlias

import structlog

from cni import endpoint
from core import manifest
from core.errors import Conflict, Invalid, MuslinError, Unavailable
from core.latest import Latest
from core.names import Key, workload_endpoint_name
from core.resources import Pod, Resource, WorkloadEndpoint
from core.snapshot import Snapshot
from core.thrift import Decode
from core.validate import validate
from datastore import objects
from datastore.api import Store
from datastore.follow import follow

ATTEMPTS: Final = 10
RETRY_S: Final = 0.5
"""How often a write that is lost to others or to an outage is tried, and how long after an outage (seconds)."""

Pair: TypeAlias = tuple[WorkloadEndpoint, Pod]

log = structlog.get_logger()


async def follow_pods(store: Store, node: str) -> None:
    """Keep the endpoints of `node` as their Pods say, until cancelled. Errors of the store are waited out."""
    latest: Latest[Snapshot] = Latest()
    async with asyncio.TaskGroup() as group:
        following = follow(store, (Pod, WorkloadEndpoint), latest, None, decode=of_node(node))
        group.create_task(following, name="follow pods")
        group.create_task(_keep(store, node, latest), name="keep labels")


def of_node(node: str) -> Decode:
    """Reads what may concern `node`, and keeps nothing else: a cluster has a hundred times as many pods."""
    ours = workload_endpoint_name(node, "").removesuffix("-eth0")

    def decode(key: Key, value: bytes) -> Resource | None:
        if key.kind == WorkloadEndpoint.KIND and not key.name.startswith(ours):
            return None
        found = manifest.decode(key, value)
        if isinstance(found, Pod) and (found.spec or {}).get("nodeName", node) != node:
            return None
        return found

    return decode


async def _keep(store: Store, node: str, latest: Latest[Snapshot]) -> None:
    settled: Mapping[Key, Pair] = {}
    while True:
        snapshot = await latest.get()
        if not snapshot.stale:
            settled = await _bring_up(store, pairs(snapshot, node), settled)


def pairs(snapshot: Snapshot, node: str) -> Mapping[Key, Pair]:
    """The endpoints of `node` whose Pods are known, with these. Pure."""
    found = {}
    for key, each in snapshot.of(WorkloadEndpoint).items():
        pod = snapshot.get(Pod, each.spec.pod, key.namespace)
        if pod is not None and each.spec.node == node and each.spec.container_id:
            found[key] = (each, pod)
    return found


async def _bring_up(store: Store, found: Mapping[Key, Pair], settled: Mapping[Key, Pair]) -> Mapping[Key, Pair]:
    """Write what is not as its Pod says; what need not be looked at again."""
    for key, (there, pod) in found.items():
        before = settled.get(key)
        if before is not None and before[0] is there and before[1] is pod:
            continue
        if not endpoint.same(there, endpoint.as_pod_says(there, pod)):
            why = await _write(store, there)
            if why:
                log.warning("cni.labels_not_followed", object=str(key), why=why)
    return found


async def _write(store: Store, there: WorkloadEndpoint) -> str:
    """Write it as its Pod says now, if it is its container's still; why it cannot be written, "" when all is well."""
    for _ in range(ATTEMPTS):
        try:
            read, pod = await asyncio.gather(
                objects.read(store, WorkloadEndpoint, there.key.name, there.key.namespace),
                objects.read(store, Pod, there.spec.pod, there.key.namespace),
            )
            if read is None or pod is None or read[0].spec.container_id != there.spec.container_id:
                return ""  # another one by now, which the next snapshot shows
            wanted = endpoint.as_pod_says(read[0], pod[0])
            if endpoint.same(wanted, read[0]):
                return ""
            if problems := validate(wanted):
                return str(Invalid(problems))
            await objects.write(store, wanted, read[1])
        except Unavailable:
            await asyncio.sleep(RETRY_S)
        except Conflict:
            continue
        except MuslinError as error:
            return str(error)
        else:
            log.info("cni.labels_followed", object=str(there.key))
            return ""
    return "others write it all the time, or the datastore is away"
