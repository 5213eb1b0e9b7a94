"""CHECK looks for itself at all that a pod's packets need, and a second ADD mends it."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from cni_node import NOTHING, PATIENCE_S, Answer, Pod, Runtime, pings, run, stopped_felix


async def check(runtime: Runtime, pod: Pod, added: Answer) -> str:
    """What CHECK says; "" when all is well."""
    answer = await runtime.call("CHECK", pod, prevResult=added.document)
    assert answer.status in (0, 1), answer
    assert answer.status == 0 or answer.document["code"] == 101, answer
    return str(answer.document.get("msg", ""))


@pytest.mark.parametrize(
    ("where", "words", "said"),
    [
        ("pod", "ip route del 169.254.1.1", "eth0 has no route to 169.254.1.1/32"),
        ("pod", "ip route del default", "eth0 has no route to 0.0.0.0/0"),
        ("host", "ip link set {host} address 02:00:00:00:00:99", "not ee:ee:ee:ee:ee:ee"),
        ("host", "ip addr del fe80::ecee:eeff:feee:eeee/64 dev {host}", "not the pod's gateway fe80::ecee:eeff:fe"),
    ],
)
async def test_what_somebody_took_away_is_found_and_mended(runtime: Runtime, where: str, words: str, said: str) -> None:
    pod = runtime.container("checked")
    added = await runtime.add(pod)
    assert await check(runtime, pod, added) == ""
    run(pod.netns if where == "pod" else runtime.namespace, *words.format(host=pod.interface).split())
    assert said in await check(runtime, pod, added)
    assert await runtime.add(pod) == added
    assert await check(runtime, pod, added) == ""
    assert all(pings(runtime.namespace, each) for each in added.addresses)
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING


async def test_what_felix_sees_to_is_looked_at_too(runtime: Runtime) -> None:
    pod = runtime.container("watched")
    added = await runtime.add(pod)
    four = next(each for each in added.addresses if ip_address(each).version == 4)
    with stopped_felix(runtime):
        run(runtime.namespace, "ip", "route", "del", four)
        run(runtime.namespace, "sh", "-c", f"echo 0 > /proc/sys/net/ipv4/conf/{pod.interface}/proxy_arp")
        found = await check(runtime, pod, added)
        assert f"the node leads to {four} by blackhole, not by {pod.interface}" in found
        assert f"{pod.interface} is not the pod's gateway 169.254.1.1" in found
    async with asyncio.timeout(PATIENCE_S):
        while f"leads to {four}" in await check(runtime, pod, added):  # noqa: ASYNC110 - felix tells nobody of it
            await asyncio.sleep(0.01)
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING
