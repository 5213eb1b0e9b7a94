"""Later changes of Pods, brought to this node's endpoints: labels, named ports, service account.

    datastore ── Pod, Namespace, WorkloadEndpoint ──> snapshot ─┬─> pairs ──> those that differ: read again, written
                                                               └─> `cni.around`, for ADD

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
from core.resources import Namespace, Pod, Resource, WorkloadEndpoint
from core.snapshot import Snapshot
from core.thrift import Decode
from core.validate import validate
from datastore import objects
from datastore.api import Store
from datastore.follow import follow

ATTEMPTS: Final = 10
RETRY_S: Final = 0.5
"""How often a write that is lost to others is tried at once, and after how many seconds all that could not be made."""

Pair: TypeAlias = tuple[WorkloadEndpoint, Pod]

log = structlog.get_logger()


async def follow_pods(store: Store, node: str, latest: Latest[Snapshot]) -> None:
    """Keep the endpoints of `node` as their Pods say, and `latest` as the store is, until cancelled. Errors of the
    store are waited out."""
    async with asyncio.TaskGroup() as group:
        kinds = (Pod, Namespace, WorkloadEndpoint)
        following = follow(store, kinds, latest, None, decode=of_node(node), revised=True)
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
    settled: dict[Key, Pair] = {}
    while True:
        snapshot = await latest.get()
        while not snapshot.stale and not await bring_up(store, pairs(snapshot, node), settled):
            await asyncio.sleep(RETRY_S)
            snapshot = latest.peek() or snapshot


def pairs(snapshot: Snapshot, node: str) -> Mapping[Key, Pair]:
    """The endpoints of `node` whose Pods are known, with these. Pure."""
    found = {}
    for key, each in snapshot.of(WorkloadEndpoint).items():
        pod = snapshot.get(Pod, each.spec.pod, key.namespace)
        if pod is not None and each.spec.node == node and each.spec.container_id:
            found[key] = (each, pod)
    return found


async def bring_up(store: Store, found: Mapping[Key, Pair], settled: dict[Key, Pair]) -> bool:
    """Write what is not as its Pod says. `settled` is what need not be looked at again; whether all is in it now."""
    for key in settled.keys() - found.keys():
        del settled[key]
    for key, (there, pod) in found.items():
        before = settled.get(key)
        if before is not None and before[0] is there and before[1] is pod:
            continue
        try:
            done = endpoint.same(there, endpoint.as_pod_says(there, pod)) or await _written(store, there)
        except Unavailable:
            return False
        except Exception:  # of one pod; the others are followed, and runtimes answered
            log.exception("cni.bug", object=str(key))
            done = True
        if done:
            settled[key] = (there, pod)
    return settled.keys() == found.keys()


async def _written(store: Store, there: WorkloadEndpoint) -> bool:
    """Write it as its Pod says now, if it is its container's still; False when others were faster each time.

    Raises `Unavailable`.
    """
    for _ in range(ATTEMPTS):
        try:
            read, pod = await asyncio.gather(
                objects.read(store, WorkloadEndpoint, there.key.name, there.key.namespace),
                objects.read(store, Pod, there.spec.pod, there.key.namespace),
            )
            if read is None or pod is None or read[0].spec.container_id != there.spec.container_id:
                return True  # another one by now, which the next snapshot shows
            wanted = endpoint.as_pod_says(read[0], pod[0])
            if endpoint.same(wanted, read[0]):
                return True
            if problems := validate(wanted):
                raise Invalid(problems)
            await objects.write(store, wanted, read[1])
        except Conflict:
            continue
        except Unavailable:
            raise
        except MuslinError as error:
            log.warning("cni.labels_not_followed", object=str(there.key), why=str(error))
        else:
            log.info("cni.labels_followed", object=str(there.key))
        return True
    return False
