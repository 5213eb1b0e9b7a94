"""One malformed object, or one bug, is that object's trouble: runtimes are answered, other pods are followed."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from asking import door, install, until
from structlog.testing import capture_logs

from cni import endpoint
from cni.arguments import Attachment
from cni.collector import Collector
from cni.follow_pods import Pair, bring_up
from cni.model import Answer, Config, Question
from cni.thread import Threads, in_thread
from core import resources
from core.names import Key
from core.resources import Metadata, WorkloadEndpoint
from datastore import objects
from datastore.client import GrpcStore

_CLONE_NEWNET = 0x40000000

ODD_PORTS: list[dict[str, Any]] = [
    {"containerPort": 80, "name": "a", "protocol": ["TCP"]},
    {"containerPort": 80, "name": "a", "hostPort": "8080"},
    {"containerPort": 80, "name": "a", "hostIP": 7},
    {"containerPort": True, "name": "a"},
    {"name": "a"},
]


def kubernetes(name: str, ports: list[dict[str, Any]] | None = None) -> resources.Pod:
    spec = {"containers": [{"ports": ports or []}]}
    return resources.Pod(metadata=Metadata(name=name, namespace="shop", labels={"app": name}), spec=spec)


def bare(name: str) -> WorkloadEndpoint:
    """As ADD wrote it when there was no Pod."""
    at = Attachment(container=f"c-{name}", netns="", interface="eth0", namespace="shop", pod=name)
    return endpoint.endpoint("n1", at, (), network="net", mac="02:00:00:00:00:01")


@pytest.mark.parametrize("odd", ODD_PORTS)
def test_a_port_that_does_not_read_as_one_is_left_out(odd: dict[str, Any]) -> None:
    good = {"containerPort": 8080, "name": "http", "protocol": "TCP"}
    found = endpoint.as_pod_says(bare("web"), kubernetes("web", [odd, good]))
    assert [(each.name, each.port) for each in found.spec.ports] == [("http", 8080)]


async def test_labels_that_could_not_be_written_in_an_outage_are_written_after_it(
    datastore: str, tmp_path: Path
) -> None:
    found: dict[Key, Pair] = {bare(name).key: (bare(name), kubernetes(name)) for name in ("web", "db")}
    settled: dict[Key, Pair] = {}
    away, there = GrpcStore(f"unix:{tmp_path}/nobody", timeout_s=0.5), GrpcStore(datastore)
    async with contextlib.AsyncExitStack() as stack:
        for store in (away, there):
            stack.push_async_callback(store.close)
        await there.txn([objects.put(each) for pair in found.values() for each in pair])
        assert not await bring_up(away, found, settled)
        assert not settled
        assert await bring_up(there, found, settled)
        assert settled == found
        for name in ("web", "db"):
            read = await objects.read(there, WorkloadEndpoint, bare(name).key.name, "shop")
            assert read
            assert read[0].metadata.labels["app"] == name


async def test_a_bug_in_a_scan_is_told_and_the_collector_goes_on(datastore: str, tmp_path: Path) -> None:
    asked = 0

    def busy() -> Iterable[str]:
        nonlocal asked
        asked += 1
        raise RuntimeError("who is busy is not known")

    store = GrpcStore(datastore)
    config = Config(node="n1", datastore=datastore, run_dir=tmp_path, leak_grace_s=0.02)
    collector = Collector(config, store, busy)
    running = asyncio.create_task(collector.run())
    try:
        await until(lambda: asked > 2 or running.done())
        assert not running.done()
        assert "who is busy is not known" in collector.trouble
    finally:
        running.cancel()
        await asyncio.wait([running])
        await store.close()


async def test_a_bug_about_a_question_that_is_no_text_is_answered(tmp_path: Path) -> None:
    async def wrong(question: Question) -> Answer:
        raise RuntimeError("oh")

    executable = install(tmp_path)
    with capture_logs():
        async with door(executable.socket, wrong):
            for _ in range(2):
                heard = await executable.run("ADD", b'{"cniVersion": "\xff"}')
                assert heard.status == 1
                assert heard.document["code"] == 999


async def test_a_thread_that_is_stuck_in_a_pods_namespace_does_nothing_there() -> None:
    def where() -> str:
        return os.readlink("/proc/thread-self/ns/net")

    def strand() -> str:
        assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
        return where()

    with Threads(1, "cni") as threads:
        home = where()
        assert await in_thread(threads, where) == home
        assert await in_thread(threads, strand) != home
        assert await in_thread(threads, where) == home
