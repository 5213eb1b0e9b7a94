"""The datastore is away, or says nothing, and the CNI agent is told to end, in the middle of ADDs and DELs.

Each call ends within a bound, with an answer that says to ask again; the pods that run notice nothing, and what
the runtime asks again afterwards is done.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import pytest_asyncio
from survive_cluster import Cluster, Container, Machine, cluster, node, pool, until
from survive_left import NOTHING, Kernel, kernel, require_nothing, stored
from survive_runtime import Runtime, Told

from core.names import workload_interface
from tests.cni.asking import Heard

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

LONG = os.environ.get("MUSLIN_SOAK") == "long"
KILLED_S, SILENT_S = (32.0, 32.0) if LONG else (3.0, 13.0)
"""How long the datastore is away; when it says nothing, longer than any answer of it is waited for."""

Away = Callable[[Cluster], AbstractAsyncContextManager[None]]

ANSWER_S = 45.0
"""No call may take longer, however long the datastore is away."""

STALE_S = 2.0
"""Felix's first rounds, on what it has on its disk, are over by then."""

AGAIN = 11


class Home:
    """A node, and its kernel before its first pod."""

    def __init__(self, made: Cluster, machine: Machine, before: Kernel) -> None:
        self.made, self.machine, self.before = made, machine, before
        self.runtime = Runtime(machine, Told(), random.Random(5))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def the_home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    pools = (pool("pods", "10.62.0.0/24"), pool("six", "fd62::/112"))
    async with cluster(tmp_path_factory.mktemp("outage"), node("n1"), *pools) as made:
        machine = made.machine("n1")
        machine.start()
        await machine.serving()
        yield Home(made, machine, await kernel(made, machine))


@pytest_asyncio.fixture(loop_scope="module")
async def home(the_home: Home) -> AsyncIterator[Home]:
    """The node, all of which runs, without any pod before and after."""
    yield the_home
    await the_home.machine.serving()
    assert await stored(the_home.made) == NOTHING
    await require_nothing(the_home.made, {"n1": the_home.before})


@asynccontextmanager
async def killed(made: Cluster) -> AsyncIterator[None]:
    """There is no datastore."""
    await made.datastore.kill()
    yield
    await made.datastore_started()


@asynccontextmanager
async def silent(made: Cluster) -> AsyncIterator[None]:
    """The datastore is there and says nothing, as when the network between drops all packets."""
    with made.datastore.stopped():
        yield


@pytest.mark.parametrize(("away", "away_s"), [(killed, KILLED_S), (silent, SILENT_S)])
async def test_a_datastore_that_is_away_is_told_and_survived(home: Home, away: Away, away_s: float) -> None:
    machine, runtime = home.machine, home.runtime
    stays = [await runtime.added(f"stays-{number}") for number in range(3)]
    goes = [(await runtime.added(f"goes-{number}"))[0] for number in range(8)]
    comes = [runtime.container(f"comes-{number}") for number in range(16)]
    adds = asyncio.gather(*(_timed(machine, "ADD", each) for each in comes))
    dels = asyncio.gather(*(_timed(machine, "DEL", each) for each in goes))
    await until(lambda: _some(machine, comes))
    began = time.monotonic()
    async with away(home.made):
        for each, given in stays[1:]:
            await runtime.require_policy(stays[0][0], each, given)
        late = runtime.container("late")
        heard, took = await _timed(machine, "ADD", late)
        assert heard.document["code"] == AGAIN
        assert "datastore" in heard.document["msg"]
        await asyncio.sleep(away_s - (time.monotonic() - began))
    answered = [*await adds, *await dels]
    assert max(took, *(each for _, each in answered)) < ANSWER_S
    assert {each.document["code"] for each, _ in answered if each.status} <= {AGAIN}
    print(
        f"\n{sum(1 for each, _ in answered if each.status)} failed, at most {max(each for _, each in answered):.1f} s"
    )
    await machine.serving()
    for (answer, _), each in zip(answered, comes, strict=False):
        if answer.status == 0:
            assert (await machine.call("CHECK", each, prevResult=answer.document)).status == 0
    for each in (*comes, *goes, late, *(one for one, _ in stays)):
        await runtime.removed(each)


async def _timed(machine: Machine, command: str, container: Container) -> tuple[Heard, float]:
    began = time.monotonic()
    heard = await machine.call(command, container)
    return heard, time.monotonic() - began


async def _some(machine: Machine, comes: Sequence[Container]) -> bool:
    """Whether the first of the pods that begin have a wire."""
    return not set(machine.interfaces()).isdisjoint(workload_interface("shop", each.pod) for each in comes)


@pytest.mark.parametrize("felix", ["works", "hangs"])
async def test_an_agent_that_is_told_to_end_finishes_or_undoes_what_it_does(home: Home, felix: str) -> None:
    machine, runtime = home.machine, home.runtime
    containers = [runtime.container(f"pod-{number}") for number in range(32)]
    if felix == "hangs":
        os.kill(machine.felix.pid, signal.SIGSTOP)
    calls = asyncio.gather(*(machine.call("ADD", each) for each in containers))
    await until(lambda: _some(machine, containers[8:]))
    try:
        assert await machine.cni.end(signal.SIGTERM) == 0
    finally:
        os.kill(machine.felix.pid, signal.SIGCONT)
    answers = list(zip(containers, await calls, strict=True))
    added = [each for each, heard in answers if heard.status == 0]
    assert {heard.document["code"] for _, heard in answers if heard.status} <= {AGAIN}
    assert (felix == "works") or not added
    left = await stored(home.made)
    assert len(left.handles) == len(left.endpoints) == len(added)
    assert len(left.addresses) == 2 * len(added)
    assert set(machine.interfaces()) == {workload_interface("shop", each.pod) for each in added}

    machine.cni.start()
    await machine.serving()
    for each, heard in answers:
        if heard.status == 0:
            assert (await machine.call("CHECK", each, prevResult=heard.document)).status == 0
    for each in containers:
        await runtime.removed(each)


async def test_a_pod_is_not_called_broken_because_felix_is_away(home: Home) -> None:
    machine, runtime = home.machine, home.runtime
    container, _ = await runtime.added("pod")
    added = (await machine.call("ADD", container)).document
    await machine.felix.kill()
    said = (await machine.call("CHECK", container, prevResult=added)).document
    assert (said["code"], "felix on this node is away" in said["msg"]) == (AGAIN, True), said
    machine.felix.start()
    await machine.serving()
    assert (await machine.call("CHECK", container, prevResult=added)).status == 0
    await runtime.removed(container)


async def test_a_felix_that_starts_without_a_datastore_leaves_the_newest_pods_as_they_are(home: Home) -> None:
    machine, runtime = home.machine, home.runtime
    probe, _ = await runtime.added("probe")
    pods = await asyncio.gather(*(runtime.added(f"new-{number}") for number in range(8)))
    await home.made.datastore.kill()
    await machine.felix.kill()
    said = len(machine.felix.said())
    machine.felix.start()

    async def away() -> bool:
        return any(each["event"] == "datastore.away" for each in machine.felix.said()[said:])

    await until(away)
    began = time.monotonic()
    while time.monotonic() - began < STALE_S:
        await asyncio.gather(*(runtime.require_policy(probe, each, given) for each, given in pods))
    await home.made.datastore_started()
    await machine.serving()
    await asyncio.gather(*(runtime.require_policy(probe, each, given) for each, given in pods))
    for each in (probe, *(each for each, _ in pods)):
        await runtime.removed(each)
