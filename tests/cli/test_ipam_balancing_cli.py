"""A Service of type LoadBalancer from the command line to its address and back, over a real `muslin datastore`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Muslin, Said

CLUSTER = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: lb
spec:
  cidr: 198.51.100.0/28
  blockSize: 30
  allowedUses: [LoadBalancer]
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  annotations: {projectcalico.org/loadBalancerIPs: '["198.51.100.5"]'}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
"""

LATE = """
apiVersion: v1
kind: Service
metadata: {name: late, namespace: shop}
spec:
  type: LoadBalancer
  ipFamilies: [IPv6]
  ports: [{port: 80}]
"""


@pytest.fixture
def datastore(new_datastore: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of this test's own, whose blocks nobody else has to clear away; `check` does not wait for a second look."""
    monkeypatch.setattr("cli.ipam_check.SECOND_LOOK_S", 0.0)
    return new_datastore


def until(muslin: Muslin, words: str, wanted: Callable[[Said], bool]) -> Said:
    """Run a command until it says what is wanted."""
    deadline = time.monotonic() + 30
    while not wanted(said := muslin(words)):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said


def test_a_service_gets_its_address_and_gives_it_back(muslin: Muslin, tmp_path: Path) -> None:
    file, late = tmp_path / "cluster.yaml", tmp_path / "late.yaml"
    file.write_text(CLUSTER)
    late.write_text(LATE)
    assert muslin(f"apply -f {file}").code == 0
    until(muslin, "get services -A", lambda said: "198.51.100.5" in said.out)
    found = json.loads(muslin("get service web -n shop -o json").out)
    assert found["status"] == {"loadBalancer": {"ingress": [{"ip": "198.51.100.5"}]}}

    assert "service/shop/web unchanged" in muslin(f"apply -f {file}").out.replace("svc/", "service/")
    shown = muslin("ipam show --blocks").out
    assert "virtual:load-balancer" in shown
    assert "1 (6%)" in shown
    one = json.loads(muslin("ipam show --ip 198.51.100.5 -o json").out)
    assert (one["service"], one["usedBy"], one["claim"]) == (
        "shop/web",
        ["Service shop/web"],
        "load-balancer confirmed",
    )
    assert "shop/web" in muslin("ipam show --ip 198.51.100.5").out

    assert muslin(f"apply -f {late}").code == 0
    checked = muslin("ipam check")
    assert checked.code == 0
    assert "Service shop/late waits for an address: no IPv6 address for Service shop/late: " in checked.err
    kept = muslin("ipam release --ip 198.51.100.5")
    assert (kept.code, "Service shop/web uses it" in kept.err) == (1, True)

    ends = muslin("delete ippool lb")
    assert "198.51.100.5" in ends.out + ends.err
    assert muslin("delete service web -n shop").code == 0
    until(muslin, "get ippools", lambda said: "198.51.100.0" not in said.out)
    assert "Service shop/web" in muslin("ipam history 198.51.100.5").out
    assert muslin("ipam check").code == 0


def test_an_address_that_is_taken_by_force_is_given_to_the_service_again(muslin: Muslin, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER.replace("  annotations: {projectcalico.org/loadBalancerIPs: '[\"198.51.100.5\"]'}\n", ""))
    assert muslin(f"apply -f {file}").code == 0
    said = until(muslin, "get services -A -o json", lambda said: '"ip"' in said.out)
    (service,) = json.loads(said.out)["items"]
    (had,) = service["status"]["loadBalancer"]["ingress"]
    assert muslin(f"ipam release --ip {had['ip']} --force").code == 0
    until(muslin, f"ipam show --ip {had['ip']}", lambda said: "SERVICE" in said.out and "shop/web" in said.out)
    past = json.loads(muslin(f"ipam history {had['ip']} -o json").out)["holders"]
    assert [(each["service"], each["why"]) for each in past] == [("web", ""), ("web", "ipam release")]
    assert muslin("ipam check").code == 0
