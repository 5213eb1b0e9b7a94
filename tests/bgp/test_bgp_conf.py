"""Generated configurations: as they were read by a person, and as ExaBGP's own parser takes them.

After a change that is meant, write the goldens anew with `MUSLIN_GOLDEN=write pytest tests/bgp/test_bgp_conf.py`, and
read the difference.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from bgp.exabgp.conf import render
from bgp.model import Session, Speaker

GOLDEN = Path(__file__).with_name("golden")

TOR = Session(
    name="BGPPeer/tor",
    peer=ip_address("10.9.0.1"),
    port=179,
    local=ip_address("10.9.0.2"),
    local_as=64512,
    remote_as=65001,
    hold_s=90,
    restart_s=120,
)
GUARDED = replace(
    TOR, peer=ip_address("10.9.1.1"), port=1790, local=None, local_as=4200000000, hold_s=9, restart_s=0, ttl_hops=1
)
SIX = replace(TOR, peer=ip_address("fd09::1"), local=ip_address("fd09::2"), remote_as=64512, passive=True)

SECRET = replace(TOR, peer=ip_address("10.9.2.1"), password="""it's "a" {secret}; # \\ ü""", local_as=4200000001)

CASES = {"none": (), "tor": (TOR,), "several": (TOR, GUARDED, SIX), "password": (TOR, SECRET)}


def rendered(sessions: tuple[Session, ...]) -> str:
    listen = (ip_address("0.0.0.0"), ip_address("::"))
    speaker = Speaker(router_id=IPv4Address("10.9.0.2"), as_number=64512, port=179, listen=listen, sessions=sessions)
    return render(speaker, ["/usr/bin/env", "bridge.py", "/run/bridge.sock"])


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    path, text = GOLDEN / f"{case}.conf", rendered(CASES[case])
    if os.environ.get("MUSLIN_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_no_password_as_it_is() -> None:
    assert SECRET.password not in rendered((SECRET,))
    assert SECRET.password not in repr(SECRET)


def test_exabgp_takes_them() -> None:
    files = [str(path) for path in sorted(GOLDEN.glob("*.conf"))]
    assert len(files) == len(CASES)
    done = subprocess.run(
        [sys.executable, "-m", "exabgp", "validate", "-n", *files], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("neighbor  ") == sum(map(len, CASES.values()))
