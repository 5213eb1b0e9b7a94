"""Beside the plugins that a runtime chains after ours: host ports by DNAT, and a queueing discipline on our interface.

portmap and bandwidth write tables and disciplines of their own. What they do to a packet, policy judges afterwards: by
the address that it goes to at last. Nothing of theirs is ours to change.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.felix.cluster import allow_from, deny
from tests.felix.host import HOST, ip, nft, says
from tests.felix.one_node import DB, WEB, Cluster

pytestmark = pytest.mark.kernel

POD, PORT = "10.0.0.2", 8080

SYSCTLS = {
    "ipv4/conf/{}/proxy_arp": "1",
    "ipv4/neigh/{}/proxy_delay": "0",
    "ipv4/conf/{}/route_localnet": "1",
    "ipv4/conf/{}/forwarding": "1",
    "ipv6/conf/{}/disable_ipv6": "0",
    "ipv6/conf/{}/proxy_ndp": "1",
    "ipv6/neigh/{}/proxy_delay": "0",
    "ipv6/conf/{}/forwarding": "1",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/accept_dad": "0",
}
"""calico.md 1.3, Host-side sysctls."""


def publish() -> None:
    """What portmap does for `hostPort: 8080, containerPort: 80`; a pod's calls to itself are masqueraded, too."""
    nft("add table ip hostports")
    for chain, hook, priority in (("in", "prerouting", -100), ("local", "output", -100), ("out", "postrouting", 100)):
        nft(f"add chain ip hostports {chain} {{ type nat hook {hook} priority {priority}; }}")
    for chain in ("in", "local"):
        nft(f"add rule ip hostports {chain} fib daddr type local tcp dport {PORT} dnat to {POD}:80")
    for source in (POD, "127.0.0.1"):
        nft(f"add rule ip hostports out ip saddr {source} ip daddr {POD} masquerade")


def shape() -> None:
    """What bandwidth does to the host's end of the wire."""
    argv = ["tc", "qdisc", "add", "dev", DB, "root", "tbf", "rate", "80mbit", "burst", "64kb", "latency", "25ms"]
    subprocess.run(argv, check=True)


def let_loopback_out() -> None:
    """What portmap sets so that the host can call a host port on 127.0.0.1."""
    Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")


def theirs() -> tuple[str, str]:
    """All that is the other plugins'."""
    queue = subprocess.run(["tc", "qdisc", "show", "dev", DB], capture_output=True, text=True, check=True).stdout
    return nft("list", "table", "ip", "hostports"), queue


def sysctls() -> dict[str, str]:
    return {path: Path("/proc/sys/net", path.format(DB)).read_text().strip() for path in SYSCTLS}


async def refused(cluster: Cluster) -> bool:
    return not await cluster.host.outside.reaches(HOST, PORT)


async def test_a_host_port_leads_to_the_pod_under_its_policy(cluster: Cluster) -> None:
    publish()
    await cluster.start()
    shape()
    assert sysctls() == SYSCTLS
    before = theirs()
    outside, pod, host = cluster.host.outside, cluster.db, cluster.host.place
    async with pod.echo(80):
        for caller in (outside, cluster.web, host, pod):  # at last: a pod calls itself by its node's port
            assert await says(await caller.connect(HOST, PORT), b"in") == b"in"
        let_loopback_out()
        assert await says(await host.connect("127.0.0.1", PORT), b"here") == b"here"

        await cluster.write(deny("all", "shop"))
        assert await refused(cluster)
        assert await host.reaches(HOST, PORT)
        await cluster.write(allow_from("db", "shop", "app == 'db'", "app == 'web'", 80, "TCP"))
        assert await refused(cluster)
        await cluster.remove(deny("all", "shop"))
        assert await refused(cluster)  # what is not allowed by the one that is left
    ip("link", "set", WEB, "down")
    ip("link", "set", WEB, "up")
    await cluster.programmed()
    assert theirs() == before
