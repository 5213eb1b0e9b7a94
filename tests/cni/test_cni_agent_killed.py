"""SIGKILL at every step of ADD and DEL, of executable and agent: nothing stays, and what comes next is right."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from agent_node import Container, Left, Site, site
from asking import until
from killing import the_datastore

NOTHING = Left()
MUCH = " " * (3 << 20)
"""More than a socket takes in while nobody reads."""


class World:
    """A node, and the process of its datastore."""

    def __init__(self, node: Site, store: subprocess.Popen[bytes]) -> None:
        self.node, self.store = node, store


@pytest.fixture(scope="module")
def the_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("killed")
    with the_datastore(folder) as (address, store), site(address, folder) as node:
        yield World(node, store)


@pytest.fixture
async def world(the_world: World) -> AsyncIterator[World]:
    """The node, with nothing on it before and after, and all of it running."""
    yield the_world
    await the_world.node.serving()
    await the_world.node.until(lambda left: left == NOTHING)


Process = asyncio.subprocess.Process
Step = Callable[[World, str, Container], AbstractAsyncContextManager[Process]]


@asynccontextmanager
async def question_under_way(world: World, command: str, container: Container) -> AsyncIterator[Process]:
    """The agent has not read anything, and the executable is in the middle of its question."""
    node = world.node
    with node.stopped(node.cni):
        conf = node.conf()[:-1] + MUCH.encode() + b"}"
        async with node.executable.begun(command, conf, **container.environment) as process:
            await until(lambda: _blocked(process.pid))
            yield process


def _blocked(pid: int) -> bool:
    """Whether a process waits in a system call and has a socket open."""
    try:
        open_now = [os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")]
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state == "S" and any(each.startswith("socket:") for each in open_now)


@asynccontextmanager
async def question_sent(world: World, command: str, container: Container) -> AsyncIterator[Process]:
    """The whole question lies in the socket, and the agent has not read it."""
    node = world.node
    with node.stopped(node.cni):
        async with node.begun(command, container) as process:
            await until(lambda: _blocked(process.pid))
            yield process


@asynccontextmanager
async def datastore_asked(world: World, command: str, container: Container) -> AsyncIterator[Process]:
    """The agent has begun, and the datastore does not answer: of an ADD, the wire is there and nothing else."""
    node = world.node
    with node.stopped(world.store):
        async with node.begun(command, container) as process:
            await until(lambda: _blocked(process.pid) and bool(node.interfaces()))
            yield process


@asynccontextmanager
async def felix_awaited(world: World, command: str, container: Container) -> AsyncIterator[Process]:
    """Everything is there, but felix has not programmed it."""
    node = world.node
    with node.stopped(node.felix):
        async with node.begun(command, container) as process:
            await node.until(lambda left: bool(left.endpoints and left.interfaces and left.addresses))
            yield process


@asynccontextmanager
async def unwired(world: World, command: str, container: Container) -> AsyncIterator[Process]:
    """A DEL's wire is gone just now; of the rest, whatever time has left."""
    async with world.node.begun(command, container) as process:
        await until(lambda: not world.node.interfaces())
        yield process


ADDING: list[Step] = [question_under_way, question_sent, datastore_asked, felix_awaited]
REMOVING: list[Step] = [question_under_way, question_sent, datastore_asked, unwired]


@pytest.mark.parametrize("step", ADDING)
async def test_an_add_whose_executable_is_killed_leaves_nothing(world: World, step: Step) -> None:
    container = world.node.container()
    async with step(world, "ADD", container) as process:
        process.kill()
        await process.wait()
    await world.node.until(lambda left: left == NOTHING)
    await world.node.remove(container)
    again = await world.node.add(container)
    assert len(again) == 2
    assert len((await world.node.left()).addresses) == 2
    await world.node.remove(container)


@pytest.mark.parametrize("step", REMOVING)
async def test_a_del_whose_executable_is_killed_is_done_by_the_next(world: World, step: Step) -> None:
    container = world.node.container()
    await world.node.add(container)
    async with step(world, "DEL", container) as process:
        process.kill()
        await process.wait()
    await world.node.remove(container)
    assert await world.node.left() == NOTHING


@pytest.mark.parametrize("after", ["ADD", "DEL"])
@pytest.mark.parametrize("step", ADDING)
async def test_an_add_whose_agent_is_killed_is_asked_again(world: World, step: Step, after: str) -> None:
    node, container = world.node, world.node.container()
    async with step(world, "ADD", container) as process:
        node.kill_cni()
        out, err = await process.communicate()
        assert (process.returncode, err) == (1, b"")
        assert b'"code": 11' in out
    node.start_cni()
    await node.serving()
    if after == "ADD":
        addresses = await node.add(container)
        left = await node.left()
        assert (len(addresses), len(left.addresses), len(left.handles), len(left.endpoints)) == (2, 2, 1, 1)
        assert left.interfaces == (container.interface,)
    await node.remove(container)
    assert await node.left() == NOTHING


@pytest.mark.parametrize("step", REMOVING)
async def test_a_del_whose_agent_is_killed_is_asked_again(world: World, step: Step) -> None:
    node, container = world.node, world.node.container()
    await node.add(container)
    async with step(world, "DEL", container) as process:
        node.kill_cni()
        out, _ = await process.communicate()
        assert process.returncode == 0 or b'"code": 11' in out
    node.start_cni()
    await node.serving()
    await node.remove(container)
    assert await node.left() == NOTHING


async def test_pods_that_run_do_not_notice_that_the_agent_is_killed(world: World) -> None:
    node, container = world.node, world.node.container()
    addresses = await node.add(container)
    node.kill_cni()
    heard = await node.call("DEL", container)
    assert heard.document["code"] == 11
    assert (await node.left()).interfaces == (container.interface,)
    node.start_cni()
    await node.serving()
    assert await node.add(container) == addresses
    await node.remove(container)


async def test_sixteen_at_once_with_the_agent_killed_in_the_middle(world: World) -> None:
    node = world.node
    containers = [node.container() for _ in range(16)]
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(node.call("ADD", each)) for each in containers]
        await until(lambda: len(node.interfaces()) >= 5)
        node.kill_cni()
    assert {call.result().status for call in calls} >= {1}
    node.start_cni()
    await node.serving()
    async with asyncio.TaskGroup() as group:
        added = [group.create_task(node.add(each)) for each in containers]
    assert len({address for each in added for address in each.result()}) == 32
    left = await node.left()
    assert (len(left.addresses), len(left.endpoints), len(left.interfaces)) == (32, 16, 16)
    async with asyncio.TaskGroup() as group:
        for each in containers:
            group.create_task(node.remove(each))
    assert await node.left() == NOTHING
