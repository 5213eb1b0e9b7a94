"""Prefixes that a pod may send from besides its own addresses, on a real kernel."""

from __future__ import annotations

import pytest
from msgspec import structs

from tests.felix.cluster import pod
from tests.felix.guarded import (
    FAR,
    FAR6,
    HERE,
    Guarded,
)
from tests.felix.host import Place, first_datagram, ip, nft, until

pytestmark = pytest.mark.kernel


async def test_a_pod_may_send_from_prefixes_that_it_was_given(node: Guarded) -> None:
    honest = pod("web", "10.0.0.1", "fd00::1")
    given = ["10.77.0.0/24", "fd77::/64"]
    await node.write(structs.replace(honest, spec=structs.replace(honest.spec, allow_spoofed_source_prefixes=given)))
    await node.start()
    for address in ("10.77.0.7", "10.78.0.7"):
        ip("-n", node.web.namespace, "addr", "add", f"{address}/32", "dev", "eth0")
        ip("-n", node.db.namespace, "addr", "add", f"{address}/32", "dev", "eth0")
    for address in ("fd77::7", "fd78::7"):
        ip("-n", node.web.namespace, "addr", "add", f"{address}/128", "dev", "eth0", "nodad")
        ip("-n", node.db.namespace, "addr", "add", f"{address}/128", "dev", "eth0", "nodad")
    four, six = node.far.udp(FAR, 53), node.far.udp(FAR6, 53)

    def send(place: Place, source: str, text: bytes) -> None:
        place.udp(source).sendto(text, (FAR6 if ":" in source else FAR, 53))

    for source in ("10.78.0.7", "fd78::7"):
        send(node.web, source, b"lie")
    for source in ("10.77.0.7", "fd77::7"):
        send(node.db, source, b"lie")
        send(node.web, source, b"borrowed")
    assert await first_datagram(four) == (b"borrowed", "10.77.0.7")
    assert await first_datagram(six) == (b"borrowed", "fd77::7")
    await node.write(
        structs.replace(honest, spec=structs.replace(honest.spec, allow_spoofed_source_prefixes=["10.77.0.0/28"]))
    )
    send(node.web, "fd77::7", b"lie")
    send(node.web, "10.77.0.7", b"still")
    send(node.web, "fd00::1", b"own")
    assert await first_datagram(four) == (b"still", "10.77.0.7")
    assert await first_datagram(six) == (b"own", "fd00::1")
    await node.write(honest)
    await until(lambda: "spoofs4" not in nft("list", "table", "inet", "muslin"))
    send(node.web, "10.77.0.7", b"lie")
    send(node.web, "10.0.0.1", b"own")
    assert await first_datagram(four) == (b"own", HERE), "its own addresses are of a pool with natOutgoing"
