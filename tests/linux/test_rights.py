"""What is missing is said in one sentence, with the remedy."""

from __future__ import annotations

import ctypes
import os
from ipaddress import ip_address, ip_interface

import pytest

from core.errors import MuslinError, Unsupported
from core.names import IPIP_DEVICE
from core.reconcile import Plan
from linux import libnftables, netns, rights
from linux.tunnels import Tunnel, TunnelDriver

pytestmark = pytest.mark.kernel


def test_root_with_its_tools_is_enough() -> None:
    rights.require_net_admin()
    rights.require_tools(["ip", "nft"])
    rights.require_nftables()


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unsupported, match="apt-get install nftables"):
        rights.require_tools(["nft"])
    with pytest.raises(Unsupported, match="iproute2"):
        netns.create(f"muslin-never-{os.getpid()}")
    monkeypatch.setattr(libnftables, "_LIBRARY", "libnftables-of-nowhere.so")
    with pytest.raises(Unsupported, match="install the package nftables"):
        rights.require_nftables()


def test_no_right_to_change_the_network_is_said() -> None:
    """In a child that gives its capabilities up."""
    child = os.fork()
    if child == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, nothing)
        try:
            rights.require_net_admin()
        except MuslinError as error:
            os._exit(0 if "run it as root" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_ipip_is_there_or_its_absence_is_an_error_of_that_tunnel_alone() -> None:
    driver = TunnelDriver()
    tunnel = Tunnel(local=ip_address("192.0.2.1"), mtu=1480, addresses=(ip_interface("10.0.0.64/32"),))
    assert await driver.read() == {}
    failed = await driver.apply(Plan({IPIP_DEVICE: tunnel}, {}))
    if rights.has_ipip():
        assert failed == {}
        assert await driver.read() == {IPIP_DEVICE: tunnel}
    else:
        assert isinstance(failed[IPIP_DEVICE], Unsupported)
        assert "this kernel has no ipip" in str(failed[IPIP_DEVICE])
        assert await driver.read() == {}
    driver.close()


async def test_a_tunnel_is_never_ipv6_nor_somebody_elses() -> None:
    driver = TunnelDriver()
    plan = Plan(
        {
            IPIP_DEVICE: Tunnel(local=ip_address("fd00::1"), mtu=1480),
            "tunl0": Tunnel(local=ip_address("192.0.2.1"), mtu=1480),
        },
        {},
    )
    failed = await driver.apply(plan)
    assert set(failed) == {IPIP_DEVICE, "tunl0"}
    assert "fd00::1 is not one" in str(failed[IPIP_DEVICE])
    driver.close()
