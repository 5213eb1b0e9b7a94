"""policy-compile: from a cluster's state to a kernel that enforces it, at the start and while endpoints change.

    snapshot ── felix.desired ── policy compiled, rendered ── NftDriver ──> a table in a namespace of its own

100,000 endpoints, 10,000 policies, 200 pods on this node, as in `bench.busy_cluster`; the snapshot is there, nothing
else. Then batches of changes of remote endpoints (half get other labels, half another address) go through the compiler,
each batch to the end: the tables and the identity of every address are those of the new state. The peer compiles every
batch's state from nothing.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from msgspec.structs import replace

from bench.busy_cluster import NODE, cluster
from bench.model import Bench, Figures, Subjects, at_least, at_most
from core.names import Key
from core.reconcile import diff
from core.resources import WorkloadEndpoint
from core.snapshot import Snapshot
from felix.desired import desired
from felix.model import Config
from linux.model import Facts
from linux.netns import scratch_namespace
from linux.nft import NftDriver
from linux.nft_parts import Flattener
from linux.rights import require_net_admin
from policy.compile import Compiled, Compiler, compile

UPDATES: Final = "updates/s"

BENCH: Final = Bench(
    name="policy-compile",
    what="snapshot to kernel: 100,000 endpoints, 10,000 policies, 200 local pods (and endpoint updates/s after that)",
    unit="s",
    peer="from nothing every time",
    targets=(at_most(10, absolute=True), at_least(20_000, of=UPDATES, absolute=True)),
    runs=1,
)

PODS: Final = 100_000
BATCHES: Final = 5
BATCH: Final = 2_000
_NAMESPACES: Final = 499
"""Prime to the number of nodes, so that each node has pods of many."""

_ELSEWHERE: Final = int(IPv4Address("10.100.0.0"))


@contextmanager
def subjects() -> Iterator[Subjects]:
    """The cluster's snapshot, made once."""
    require_net_admin()
    resources = cluster(pods=PODS, policies=10_000, local=200, namespaces=_NAMESPACES)
    state = Snapshot().apply(1, [(each.key, each) for each in resources])
    local = [key for key, each in state.of(WorkloadEndpoint).items() if each.spec.node == NODE]

    def ours() -> Figures:
        compiler = Compiler()
        compiler.compile(state, local)
        return Figures(_start(state), {UPDATES: _updates(state, lambda after: compiler.compile(after, local))})

    def peer() -> Figures:
        return Figures(_start(state), {UPDATES: _updates(state, lambda after: compile(after, local), batches=1)})

    yield Subjects(ours, peer)


def _start(state: Snapshot) -> float:
    """Seconds from the snapshot to the kernel's word that all of the table is there."""
    config = Config(node=NODE, datastore="unix:/nowhere", run_dir=Path("/nowhere"))
    with scratch_namespace(), closing(NftDriver()) as driver:
        begun = time.perf_counter()
        whole = Flattener().flatten(desired(state, Facts(), config).nft)
        failed = asyncio.run(driver.apply(diff(whole, {})))
        took = time.perf_counter() - begun
    assert not failed, next(iter(failed.values()))
    return took


def _updates(state: Snapshot, compiled: Callable[[Snapshot], Compiled], batches: int = BATCHES) -> float:
    """Endpoint updates in a second of processor time."""
    rng, fresh, took = Random(1), count(_ELSEWHERE), 0.0
    remote = [key for key, each in state.of(WorkloadEndpoint).items() if each.spec.node != NODE]
    for _ in range(batches):
        changed = [_changed(state, key, fresh) for key in rng.sample(remote, BATCH)]
        state = state.apply(state.revision + 1, changed)
        gc.collect()  # what making the change left behind is not the compiler's
        begun = time.process_time()
        compiled(state)
        took += time.process_time() - begun
    return batches * BATCH / took


def _changed(state: Snapshot, key: Key, fresh: Iterator[int]) -> tuple[Key, WorkloadEndpoint]:
    endpoint = state.of(WorkloadEndpoint)[key]
    number = next(fresh)
    if number % 2:
        labels = {**endpoint.metadata.labels, "version": f"v{number % 7}"}
        return key, replace(endpoint, metadata=replace(endpoint.metadata, labels=labels))
    return key, replace(endpoint, spec=replace(endpoint.spec, ip_networks=[f"{IPv4Address(number)}/32"]))
