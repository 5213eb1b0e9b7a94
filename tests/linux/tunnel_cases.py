"""The tunnel driver on a kernel that has ipip. Run by test_tunnels.py, where there is one."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from core.names import IPIP_DEVICE
from core.reconcile import Reconciler
from linux import rights
from linux.tunnels import Tunnel, TunnelDriver

TUNNEL = Tunnel(local=ip_address("192.0.2.1"), mtu=1480, addresses=(ip_interface("10.0.0.64/32"),))


def sh(line: str) -> str:
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout


class Programmed:
    """A reconciler over the real driver."""

    def __init__(self) -> None:
        self.driver = TunnelDriver()
        self.reconciler = Reconciler(self.driver)

    async def reach(self, tunnel: Tunnel | None) -> None:
        desired = {} if tunnel is None else {IPIP_DEVICE: tunnel}
        self.reconciler.set_desired(desired, 1)
        self.reconciler.distrust()
        progress = await self.reconciler.step()
        assert progress.healthy, progress
        assert await self.driver.read() == desired


@pytest.fixture
async def kernel() -> AsyncIterator[Programmed]:
    programmed = Programmed()
    yield programmed
    programmed.driver.close()


def test_the_kernel_has_ipip() -> None:
    assert rights.has_ipip()


async def test_a_tunnel_is_made_changed_and_removed(kernel: Programmed) -> None:
    await kernel.reach(TUNNEL)
    shown = sh(f"ip -d link show {IPIP_DEVICE}")
    assert "ipip ipip remote any local 192.0.2.1 ttl 64 tos inherit pmtudisc" in shown
    writes = kernel.reconciler.progress.writes
    await kernel.reach(TUNNEL)
    assert kernel.reconciler.progress.writes == writes
    await kernel.reach(replace(TUNNEL, mtu=1400))
    assert sh(f"ip -br link show {IPIP_DEVICE}").split()[0].startswith(IPIP_DEVICE)
    await kernel.reach(replace(TUNNEL, addresses=(ip_interface("10.0.0.65/32"), ip_interface("10.0.0.66/32"))))
    await kernel.reach(replace(TUNNEL, local=ip_address("192.0.2.2")))
    await kernel.reach(None)
    assert IPIP_DEVICE not in sh("ip link")


async def test_a_change_of_mtu_or_address_keeps_the_device(kernel: Programmed) -> None:
    await kernel.reach(TUNNEL)
    before = sh(f"ip -o link show {IPIP_DEVICE}").split(":")[0]
    await kernel.reach(replace(TUNNEL, mtu=1400, addresses=()))
    assert sh(f"ip -o link show {IPIP_DEVICE}").split(":")[0] == before


@pytest.mark.parametrize(
    "line",
    [
        "ip link set {0} down",
        "ip link del {0}",
        "ip link set {0} mtu 1300",
        "ip addr flush dev {0}",
        "ip addr add 192.0.2.77/32 dev {0}",
        "ip tunnel change {0} mode ipip local 192.0.2.1 ttl 32",
        "ip link del {0} && ip link add {0} type dummy",
        "ip link del {0} && ip link add {0} type ipip local 192.0.2.1 remote 192.0.2.9",
    ],
)
async def test_drift_is_seen_and_healed(kernel: Programmed, line: str) -> None:
    await kernel.reach(TUNNEL)
    sh(line.format(IPIP_DEVICE))
    assert await kernel.driver.read() != {IPIP_DEVICE: TUNNEL}
    await kernel.reach(TUNNEL)


async def test_tunl0_of_another_owner_is_left_alone(kernel: Programmed) -> None:
    await kernel.reach(TUNNEL)
    sh("ip link set tunl0 up && ip addr add 10.9.9.9/32 dev tunl0")
    await kernel.reach(replace(TUNNEL, local=ip_address("192.0.2.2")))
    await kernel.reach(None)
    assert "10.9.9.9" in sh("ip addr show tunl0")
