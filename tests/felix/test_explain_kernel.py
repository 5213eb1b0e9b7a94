"""explain on a node: its kernel's route and connections, and a real packet followed to where it ends."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

import pytest

from cli import store
from cli.explain import Answer, ask, end
from cli.watching import FOLLOWED
from core.errors import MuslinError
from core.resources import Resource
from core.snapshot import Snapshot
from tests.felix.cluster import allow_from, deny, felix, node, pod
from tests.felix.host import HOST, OUTSIDE, ip, nft
from tests.felix.one_node import Cluster
from tests.felix.test_cut_kernel import listening, tcp

pytestmark = pytest.mark.kernel

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    """Run in a new thread, which begins in the namespace of this one; the loop goes on meanwhile."""
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, found)

    threading.Thread(target=run).start()
    return await done


async def told(
    cluster: Cluster, source: str, destination: str, port: int | None = 80, protocol: int = 6, *, trace: bool = True
) -> Answer:
    state = await store.read(cluster.store, FOLLOWED)
    snapshot = Snapshot().apply(state.revision, [(key, each.resource) for key, each in state.objects.items()])
    ends = end(snapshot, source, "--from"), end(snapshot, destination, "--to")
    meant = (
        ip_address(source) if "/" not in source else None,
        ip_address(destination) if "/" not in destination else None,
    )
    answer = await aside(lambda: ask(snapshot, ends, protocol, port, meant, trace=trace))
    assert "muslin-trace" not in nft("list", "tables")
    assert json.loads(json.dumps(answer.document()))["verdict"] == answer.lines()[-1]
    return answer


def outcome(answer: Answer) -> str:
    assert answer.account is not None
    return answer.account.outcome


def only(port: int) -> Resource:
    return allow_from("only", "shop", "app == 'db'", "app == 'web'", port, "TCP")


async def test_the_route_and_the_connections_of_this_node(cluster: Cluster) -> None:
    await cluster.start()
    await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    await tcp(cluster.web, cluster.db, "10.0.0.2", 81)
    lines = (await told(cluster, "shop/web", "shop/db", trace=False)).lines()
    (kernel,) = (line for line in lines if line.startswith("kernel of a: "))
    assert kernel.startswith("kernel of a: 10.0.0.2/32 dev mus")
    assert kernel.endswith("written by felix, metric 100")
    (connection,) = (line for line in lines if line.startswith("connection: "))
    assert "-> 10.0.0.2:80 protocol 6 ESTABLISHED" in connection
    assert "connections: none now" in (await told(cluster, "shop/db", "shop/web", 81, trace=False)).lines()
    assert "kernel of a: unreachable" not in lines


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
async def test_a_packet_that_is_allowed_is_followed_to_its_answer(cluster: Cluster, address: str) -> None:
    await cluster.start()
    source = "10.0.0.1" if "." in address else "fd00::1"
    async with listening(cluster.db, address, 80):
        answer = await told(cluster, source, address)
        assert outcome(answer).startswith("connected after ")
        assert answer.account is not None
        assert "filter-forward" in {step.chain for step in answer.account.steps}
        assert "filter-forward" in {step.chain for step in answer.account.back}
        assert answer.lines()[-1] == "Allow"
    assert outcome(await told(cluster, source, address)).startswith("refused after ")
    assert outcome(await told(cluster, source, address, 9, 17)).startswith("refused after ")
    assert outcome(await told(cluster, source, address, None, 1 if "." in address else 58)).startswith(
        "answered after "
    )


async def test_who_denies_is_named_policy_or_another_table(cluster: Cluster) -> None:
    await cluster.write(only(81))
    await cluster.start()
    async with listening(cluster.db, "10.0.0.2", 80), listening(cluster.db, "10.0.0.2", 81):
        denied = await told(cluster, "shop/web", "shop/db", 80)
        assert outcome(denied).startswith("dropped by muslin: ingress of ")
        assert "NetworkPolicy shop/only" in outcome(denied)
        assert denied.document()["trace"]["decision"]["tier"] == "default"
        assert "no answer" in (denied.account.heard.word if denied.account else "")
        assert outcome(await told(cluster, "shop/web", "shop/db", 81)).startswith("connected")
        nft("table inet theirs { chain f { type filter hook forward priority 5; tcp dport 81 counter drop; }; }")
        stopped = outcome(await told(cluster, "shop/web", "shop/db", 81))
        assert stopped.startswith("dropped by table inet theirs, which is not muslin's, chain f: tcp dport 81 counter")
        nft("flush table inet theirs; add rule inet theirs f tcp sport 81 counter drop")
        assert outcome(await told(cluster, "shop/web", "shop/db", 81)).startswith(
            "the answer was dropped by table inet"
        )


async def test_a_node_that_is_behind_the_datastore_is_told_by_its_kernel(cluster: Cluster) -> None:
    await cluster.write(only(81))
    await cluster.start()
    await cluster.stop()
    await cluster.write(allow_from("more", "shop", "app == 'db'", "app == 'web'", 80, "TCP"))
    behind = await told(cluster, "shop/web", "shop/db", 80)
    assert behind.lines()[-1] == "Allow"
    assert outcome(behind).startswith("dropped by muslin: ")
    assert "by what is in this node's kernel (chain denied)" in outcome(behind)
    assert "default" in outcome(behind)


async def test_an_egress_that_is_denied_and_a_node_that_may_not_be_talked_to(cluster: Cluster) -> None:
    await cluster.start()
    own = await told(cluster, "shop/web", "node/a", 8080)
    assert own.lines()[-1] == "Deny"
    assert "defaultEndpointToHostAction" in outcome(own)
    await cluster.write(felix(default_endpoint_to_host_action="Accept"), deny("web", "shop", "app == 'web'"))
    denied = await told(cluster, "shop/web", HOST, 8080)
    assert outcome(denied).startswith("dropped by muslin: egress of ")
    assert "NetworkPolicy shop/web in tier default, egress rule 0" in outcome(denied)
    async with listening(cluster.db, "10.0.0.2", 80):
        host = await told(cluster, "node/a", "shop/db", 80)
        assert outcome(host).startswith("connected")
        assert "what node a itself sends to its own pods is not policed" in host.lines()


async def test_where_no_table_drops_it_the_kernel_or_the_other_end_is_named(cluster: Cluster) -> None:
    await cluster.start()
    ip("route", "add", "blackhole", "203.0.113.0/24")
    lost = outcome(await told(cluster, "shop/web", "203.0.113.7"))
    assert "the route to 203.0.113.7 is blackhole" in lost
    ip("-n", cluster.host.outside.namespace, "route", "add", "blackhole", HOST)
    silent = outcome(await told(cluster, "shop/web", OUTSIDE, 9))
    assert "nothing here dropped it: look at the other end" in silent


async def test_a_packet_can_only_be_sent_where_its_pod_is(cluster: Cluster) -> None:
    await cluster.write(node("b", "10.1.0.9/24"), pod("far", "10.0.9.9", on="b"))
    await cluster.start()
    with pytest.raises(MuslinError, match="run this on node b"):
        await told(cluster, "shop/far", "shop/db")
    with pytest.raises(MuslinError, match=r"from a pod or a node of the cluster, and 192\.0\.2\.1 is neither"):
        await told(cluster, "192.0.2.1", "shop/db")
    with pytest.raises(MuslinError, match="protocol 47 it cannot"):
        await told(cluster, "shop/web", "shop/db", None, 47)
