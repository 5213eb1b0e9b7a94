"""Felix on a real kernel: real pods, real packets, a real store, and an agent that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.breaker import RELEASE
from core.errors import Unavailable
from core.names import workload_interface
from core.reconcile import Plan
from core.resources import FelixStatus
from core.resources.network import EncapMode
from datastore.api import Delete
from datastore.client import GrpcStore
from felix.agent import CLOSED, Agent, cleanup, run
from felix.quarrel import PATIENCE
from linux.alone import alone as only_one
from linux.nft import NftDriver
from tests.felix.cluster import allow_from, deny, felix, node, pod, pool
from tests.felix.host import HOST, OUTSIDE, PATIENCE_S, counted, dropped, first_datagram, ip, nft, says, until
from tests.felix.one_node import DB, WEB, Cluster

pytestmark = pytest.mark.kernel


async def test_pods_talk_once_they_are_programmed_and_not_before(cluster: Cluster) -> None:
    web, db = cluster.web, cluster.db
    async with db.echo(80), db.echo(81, "fd00::2"):
        await cluster.start()
        state = await cluster.programmed()
        assert {name: each.state for name, each in state.endpoints.items()} == {
            "shop/a-k8s-web-eth0": "up",
            "shop/a-k8s-db-eth0": "up",
        }
        assert await says(await web.connect("10.0.0.2", 80), b"four") == b"four"
        assert await says(await web.connect("fd00::2", 81), b"six") == b"six"


async def test_a_pod_without_endpoint_is_cut_off_both_ways(cluster: Cluster) -> None:
    ghost, interface = cluster.host.pod("ghost", "10.0.0.9"), workload_interface("shop", "ghost")
    await cluster.start()
    # Everything that could let it through by itself, but for its place in felix's table:
    ip("route", "add", "10.0.0.9", "dev", interface)
    host_answers(interface)
    async with cluster.db.echo(80), ghost.echo(80):
        assert await cluster.web.reaches("10.0.0.2", 80)
        assert not await ghost.reaches("10.0.0.2", 80)
        assert dropped("check-source") > 0
        assert not await cluster.web.reaches("10.0.0.9", 80)
        seen = counted("deny/unprogrammed-interface")
        assert seen > 0
        nft("add", "element", "inet", "muslin", "sources4", f'{{ "{interface}" . 10.0.0.9 }}')
        assert not await ghost.reaches(OUTSIDE, 80)
        assert counted("deny/unprogrammed-interface") > seen
        await cluster.write(pod("ghost", "10.0.0.9"))
        assert await ghost.reaches("10.0.0.2", 80)
        assert await cluster.web.reaches("10.0.0.9", 80)


def wire_by_hand() -> None:
    """Routes to both pods on a host that forwards: all it takes where no table forbids it."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for interface, address in ((WEB, "10.0.0.1"), (DB, "10.0.0.2")):
        ip("route", "add", address, "dev", interface)
        host_answers(interface)


def host_answers(interface: str) -> None:
    """What felix sets for a pod's interface so that its next hop resolves."""
    for name, value in (("conf", "proxy_arp"), ("neigh", "proxy_delay")):
        Path(f"/proc/sys/net/ipv4/{name}/{interface}/{value}").write_text("1" if name == "conf" else "0")


async def test_a_spoofed_source_is_dropped(cluster: Cluster) -> None:
    await cluster.start()
    receiver, outside = cluster.db.udp("10.0.0.2", 53), cluster.host.outside.udp(OUTSIDE, 53)
    ip("-n", cluster.web.namespace, "addr", "add", "10.0.0.77/32", "dev", "eth0")
    liar = cluster.web.udp("10.0.0.77")
    liar.sendto(b"lie", (OUTSIDE, 53))
    liar.sendto(b"lie", ("10.0.0.2", 53))
    ip("-n", cluster.web.namespace, "addr", "add", "10.0.0.2/32", "dev", "eth0")  # the other pod's own address
    cluster.web.udp("10.0.0.2").sendto(b"lie", (OUTSIDE, 53))
    ip("-n", cluster.web.namespace, "addr", "del", "10.0.0.2/32", "dev", "eth0")
    honest = cluster.web.udp("10.0.0.1")
    honest.sendto(b"truth", (OUTSIDE, 53))
    honest.sendto(b"truth", ("10.0.0.2", 53))
    assert await first_datagram(receiver) == (b"truth", "10.0.0.1")
    assert await first_datagram(outside) == (b"truth", HOST)
    assert dropped("check-source") == 3


async def test_policy_flips_for_new_connections_at_once(cluster: Cluster) -> None:
    web, db = cluster.web, cluster.db
    await cluster.start()
    async with db.echo(80), db.echo(81):
        closed, opened = deny("all", "shop"), allow_from("db", "shop", "app == 'db'", "app == 'web'", 81, "TCP")
        leave = deny("all", "shop", "app == 'db'")
        await cluster.write(closed)
        assert not await web.reaches("10.0.0.2", 80)
        await cluster.remove(closed)
        await cluster.write(opened, leave)
        assert [await web.reaches("10.0.0.2", port) for port in (80, 81)] == [False, True]
        await cluster.remove(leave)
        await cluster.remove(opened)
        assert [await web.reaches("10.0.0.2", port) for port in (80, 81)] == [True, True]


async def test_a_profile_that_is_missing_denies(cluster: Cluster) -> None:
    await cluster.write(pod("db", "10.0.0.2", namespace="shop", profiles=("absent",)))
    await cluster.start()
    async with cluster.db.echo(80):
        assert not await cluster.web.reaches("10.0.0.2", 80)


async def test_to_the_host_only_as_configured_and_from_it_always(cluster: Cluster) -> None:
    await cluster.start()
    here = cluster.host.place
    async with here.echo(8080), cluster.db.echo(80):
        assert not await cluster.web.reaches(HOST, 8080)
        await cluster.write(deny("all", "shop"))
        assert await here.reaches("10.0.0.2", 80)
        await cluster.write(felix(default_endpoint_to_host_action="Accept"))
        assert not await cluster.web.reaches(HOST, 8080)  # its own egress policy comes first
        await cluster.remove(deny("all", "shop"))
        assert await cluster.web.reaches(HOST, 8080)


async def test_the_outside_sees_the_host_and_pods_see_each_other(cluster: Cluster) -> None:
    await cluster.start()
    outside, inside = cluster.host.outside.udp(OUTSIDE, 53), cluster.db.udp("10.0.0.2", 53)
    sender = cluster.web.udp("10.0.0.1")
    sender.sendto(b"out", (OUTSIDE, 53))
    sender.sendto(b"in", ("10.0.0.2", 53))
    assert await first_datagram(outside) == (b"out", HOST)
    assert await first_datagram(inside) == (b"in", "10.0.0.1")


@contextlib.contextmanager
def monitors(folder: Path) -> Iterator[Callable[[], str]]:
    """Everything that changes in this namespace's routes, links' addresses and nftables, as text."""
    started = []
    for name, argv in (("route", ["ip", "monitor", "route"]), ("nft", ["nft", "monitor"])):
        with open(folder / name, "wb") as out:
            started.append(subprocess.Popen(argv, stdout=out))
    try:
        yield lambda: (folder / "route").read_text() + (folder / "nft").read_text()
    finally:
        for each in started:
            each.terminate()
            each.wait()


async def test_a_restart_writes_nothing_and_no_packet_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.write(allow_from("db", "shop", "app == 'db'", "app == 'web'", 80, "TCP"))
    await cluster.start()
    async with cluster.db.echo(80):
        running = await cluster.web.connect("10.0.0.2", 80)
        with monitors(tmp_path) as changes:
            await hearing(changes)
            await cluster.stop()
            assert await says(running, b"without felix") == b"without felix"
            assert await cluster.web.reaches("10.0.0.2", 80)
            await cluster.start()
            assert await says(running, b"with felix") == b"with felix"
            ip("route", "add", "198.51.100.1", "dev", "eth0")
            nft("add", "table", "inet", "canary-end")
            await until(lambda: "198.51.100.1" in changes() and "canary-end" in changes())
            marks = ("192.0.2.", "198.51.100.", "canary", "# new generation")
            assert [line for line in changes().splitlines() if not any(mark in line for mark in marks)] == []


async def hearing(changes: Callable[[], str]) -> None:
    """Make small changes until both monitors tell of one: what comes after this they will not miss."""
    async with asyncio.timeout(PATIENCE_S):
        for number in itertools.count(1):
            ip("route", "add", f"192.0.2.{number}", "dev", "eth0")
            nft("add", "table", "inet", f"canary{number}")
            await asyncio.sleep(0.05)
            if "192.0.2." in changes() and "canary" in changes():
                return


async def test_what_others_take_away_is_put_back(cluster: Cluster) -> None:
    await cluster.start()
    ip("route", "del", "10.0.0.2")
    await until(lambda: "10.0.0.2" in ip("route", "show", "proto", "200"))
    nft("flush", "chain", "inet", "muslin", "check-source")
    await until(lambda: "sources4" in nft("list", "chain", "inet", "muslin", "check-source"))
    nft("delete", "table", "inet", "muslin")
    await until(lambda: "muslin" in nft("list", "tables"))
    await until(lambda: WEB in nft("list", "map", "inet", "muslin", "to-workload"))


async def test_a_link_that_comes_late_and_goes_early(cluster: Cluster) -> None:
    await cluster.write(pod("late", "10.0.0.5"))
    await cluster.start()
    state = await cluster.programmed()
    assert state.endpoints["shop/a-k8s-late-eth0"].state == "pending"
    late = cluster.host.pod("late", "10.0.0.5")
    await cluster.status(lambda state: state.endpoints["shop/a-k8s-late-eth0"].state == "up")
    async with late.echo(80):
        assert await cluster.web.reaches("10.0.0.5", 80)
    ip("link", "del", workload_interface("shop", "late"))
    await cluster.status(lambda state: state.endpoints["shop/a-k8s-late-eth0"].state == "pending")
    assert "10.0.0.5" not in ip("route", "show", "proto", "200")


async def test_a_kernel_without_ipip_says_so_and_carries_the_rest(cluster: Cluster) -> None:
    await cluster.start()
    await cluster.write(pool("pods", "10.0.0.0/16", nat_outgoing=True, ipip_mode=EncapMode.ALWAYS))
    state = await cluster.status(lambda state: any("ipip" in problem for problem in state.problems))
    assert any("pods" in problem for problem in state.problems)
    async with cluster.db.echo(80):
        assert await cluster.web.reaches("10.0.0.2", 80)


async def test_before_the_first_snapshot_only_the_frame_is_written_and_no_packet_passes(
    cluster: Cluster, tmp_path: Path
) -> None:
    web, db, outside = cluster.web, cluster.db, cluster.host.outside
    wire_by_hand()
    ip("-n", outside.namespace, "route", "add", "10.0.0.0/16", "via", HOST)
    before = ip("route"), ip("link")
    nowhere = GrpcStore(f"unix:{tmp_path}/nobody")
    with pytest.raises(Unavailable):
        await nowhere.list({FelixStatus.KIND})
    async with web.echo(80), db.echo(80), outside.echo(80):
        ways = ((web, "10.0.0.2"), (db, "10.0.0.1"), (web, OUTSIDE), (outside, "10.0.0.1"))
        assert [await place.reaches(to, 80) for place, to in ways] == [True] * 4, "the kernel forwards it all by itself"
        with contextlib.closing(Agent(cluster.config, nowhere)) as agent:
            serving = asyncio.create_task(agent.serve())
            await until(lambda: "table inet muslin" in nft("list", "tables"))
            assert [await place.reaches(to, 80) for place, to in ways] == [False] * 4
            assert dropped("check-source") > 0
            assert counted("deny/unprogrammed-interface") > 0
            assert not serving.done()
            assert (ip("route"), ip("link")) == before
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
    await nowhere.close()


async def test_cleanup_removes_what_is_ours_and_nothing_else(cluster: Cluster) -> None:
    await cluster.start()
    nft("add", "table", "inet", "other")
    await cluster.stop()
    assert ip("route", "show", "proto", "200")
    await cleanup()
    assert nft("list", "tables") == "table inet other\n"
    assert ip("route", "show", "proto", "200") == ""
    assert "default via" in ip("route")


async def test_policies_that_vanish_together_are_held_until_somebody_says_so(cluster: Cluster) -> None:
    policies = [deny(f"p{number}", "shop", "app == 'db'") for number in range(60)]
    await cluster.start()
    await cluster.write(*policies)
    async with cluster.db.echo(80):
        await cluster.store.txn([Delete(each.key) for each in policies])
        state = await cluster.status(lambda state: any("60 of 60 policies" in problem for problem in state.problems))
        assert not state.ready
        assert not await cluster.web.reaches("10.0.0.2", 80)
        await cluster.write(node("a", f"{HOST}/24", **{RELEASE: "now"}))
        assert await cluster.web.reaches("10.0.0.2", 80)


async def test_from_disk_a_bare_host_is_programmed_and_a_standing_one_left_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.start()
    await cluster.stop()
    nowhere = GrpcStore(f"unix:{tmp_path}/nobody")

    async def alone(waiting: Callable[[], bool], wait_s: float) -> None:
        with contextlib.closing(Agent(cluster.config, nowhere)) as agent:
            serving = asyncio.create_task(agent.serve())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await until(waiting)
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

    nft("flush", "chain", "inet", "muslin", "check-source")  # as if the table were newer than the disk
    await alone(lambda: "sources4" in nft("list", "chain", "inet", "muslin", "check-source"), 0.7)
    assert "sources4" not in nft("list", "chain", "inet", "muslin", "check-source")
    await cleanup()
    with contextlib.closing(NftDriver()) as rules:  # as an earlier felix leaves it that never saw a snapshot
        assert not await rules.apply(Plan(upsert=CLOSED, delete={}))
    await alone(lambda: "10.0.0.2" in ip("route", "show", "proto", "200"), PATIENCE_S)
    assert "sources4" in nft("list", "chain", "inet", "muslin", "check-source")
    await nowhere.close()


async def test_a_second_felix_in_one_network_namespace_is_refused(cluster: Cluster) -> None:
    with only_one("felix"), pytest.raises(Unavailable, match="another felix runs in this network namespace"):
        await run(cluster.config)
    assert "muslin" not in nft("list", "tables")


async def test_somebody_who_undoes_every_repair_is_named_and_not_answered_at_once(cluster: Cluster) -> None:
    await cluster.start()
    repaired = 0

    async def undo() -> None:
        nonlocal repaired
        while True:
            nft("flush", "chain", "inet", "muslin", "check-source")
            await until(lambda: "sources4" in nft("list", "chain", "inet", "muslin", "check-source"))
            repaired += 1

    undoing = asyncio.create_task(undo())
    state = await cluster.status(lambda state: any("again and again" in problem for problem in state.problems))
    assert any("nft (process" in problem and "table inet muslin" in problem for problem in state.problems)
    before = repaired
    assert before >= PATIENCE
    await asyncio.wait([undoing], timeout=1.2)
    assert repaired - before < 8, "each repair waits longer than the one before"
    undoing.cancel()
    await cluster.status(lambda state: not state.problems)
    assert "sources4" in nft("list", "chain", "inet", "muslin", "check-source")
