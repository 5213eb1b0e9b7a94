"""Sysctls of a network namespace: read, written, and refused by name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from core.reconcile import Plan, Reconciler
from linux.sysctl import SysctlDriver

pytestmark = pytest.mark.kernel

FORWARD = "net/ipv4/ip_forward"
PORTS = "net/ipv4/ip_local_port_range"
PROXY = "net/ipv4/conf/a0.100/proxy_arp"


def kernel(key: str, value: str = "") -> str:
    """Set a sysctl behind the driver's back, or say what it is."""
    path = Path("/proc/sys", key)
    if value:
        path.write_text(value)
    return path.read_text()


@pytest.fixture
def device() -> None:
    subprocess.run(["ip", "link", "add", "a0.100", "type", "veth", "peer", "name", "a1"], check=True)


@pytest.mark.usefixtures("device")
async def test_reads_and_writes_only_what_is_watched() -> None:
    driver = SysctlDriver()
    desired = {FORWARD: "1", PORTS: "40000 50000", PROXY: "1"}
    driver.watch(desired)
    reconciler = Reconciler(driver)
    reconciler.set_desired(desired, 1)
    assert (await reconciler.step()).healthy
    assert await driver.read() == desired
    kernel(FORWARD, "0")
    assert (await driver.read())[FORWARD] == "0"
    reconciler.distrust()
    assert (await reconciler.step()).healthy
    assert kernel(FORWARD) == "1\n"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("net/ipv4/conf/gone/proxy_arp", "1", "its device is gone"),
        (FORWARD, "maybe", "cannot be set to 'maybe'"),
        ("../../etc/hostname", "x", "not a path"),
        ("", "x", "not a path"),
    ],
)
async def test_a_bad_key_fails_alone(key: str, value: str, why: str) -> None:
    driver = SysctlDriver()
    driver.watch([key, FORWARD])
    assert FORWARD in await driver.read()
    failed = await driver.apply(Plan({key: value, PORTS: "40000 50001"}, {}))
    assert set(failed) == {key}
    assert why in str(failed[key])
    assert kernel(PORTS).split() == ["40000", "50001"]
