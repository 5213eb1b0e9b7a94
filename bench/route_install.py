"""route-install: 100,000 host routes into an empty table, from muslin's own values, against `ip -batch`.

Ours is timed from the plan that a reconciler would hand over to the last acknowledgement; the peer's input is a file
written beforehand. Both end with the same routes, which is checked each time.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Network
from typing import Final

from bench.model import Bench, Subjects, at_least
from core.reconcile import Plan
from core.routing import Metric, RouteProtocol
from linux.model import NextHop, Route, RouteKey
from linux.netns import scratch_namespace
from linux.rights import require_net_admin
from linux.routes import RouteDriver

BENCH: Final = Bench(
    name="route-install",
    what="100,000 host routes into the kernel",
    unit="routes/s",
    peer="ip -batch",
    targets=(at_least(1.5),),
)

ROUTES: Final = 100_000
_FIRST: Final = int(IPv4Network("10.0.0.0/8").network_address)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """In a namespace of its own, with a veth pair to route to."""
    require_net_admin()
    with scratch_namespace(), tempfile.NamedTemporaryFile("w", suffix=".batch") as batch:
        for line in ("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up"):
            subprocess.run(["ip", *line.split()], check=True)
        device = socket.if_nametoindex("v0")
        keys = [RouteKey(IPv4Network((_FIRST + n, 32)), Metric.LOCAL) for n in range(ROUTES)]
        for key in keys:
            batch.write(f"route add {key.destination} dev v0 proto {RouteProtocol.FELIX} metric {key.metric}\n")
        batch.flush()
        with closing(RouteDriver(RouteProtocol.FELIX)) as driver:

            def ours() -> float:
                plan = Plan({key: Route(next_hops=(NextHop(device),)) for key in keys}, {})
                begun = time.perf_counter()
                failed = asyncio.run(driver.apply(plan))
                took = time.perf_counter() - begun
                assert not failed
                return _checked(driver, took)

            def peer() -> float:
                begun = time.perf_counter()
                subprocess.run(["ip", "-batch", batch.name], check=True)
                return _checked(driver, time.perf_counter() - begun)

            yield Subjects(ours, peer)


def _checked(driver: RouteDriver, took: float) -> float:
    """Routes a second, once all are seen in the kernel; the table is empty again afterwards."""
    found = asyncio.run(driver.read())
    assert len(found) == ROUTES, f"{len(found)} routes in the kernel instead of {ROUTES}"
    failed = asyncio.run(driver.apply(Plan({}, found)))
    assert not failed
    return ROUTES / took
