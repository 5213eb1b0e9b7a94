"""What IPAM's kinds may say: Calico's own manifests load as they are, and what is refused is refused at its field."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from core.errors import Invalid
from core.manifest import encode, load, render, to_yaml
from core.resources import IPAMConfiguration

CALICO = """
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata:
  name: my-ipreservation-1
spec:
  reservedCIDRs:
    - 192.168.2.3
    - 10.0.2.3/32
    - cafe:f00d::/123
---
apiVersion: projectcalico.org/v3
kind: IPAMConfiguration
metadata:
  name: default
spec:
  strictAffinity: false
  maxBlocksPerHost: 4
  kubeVirtVMAddressPersistence: Enabled
---
apiVersion: projectcalico.org/v3
kind: BlockAffinity
metadata:
  name: node-a-10-244-7-0-26
spec:
  cidr: 10.244.7.0/26
  deleted: "false"
  node: node-a
  state: confirmed
"""


def test_calicos_own_manifests_load_and_read_back() -> None:
    loaded = load(CALICO, "calico.yaml")
    assert [each.metadata.name for each in loaded] == ["my-ipreservation-1", "default", "node-a-10-244-7-0-26"]
    printed = to_yaml([render(each) for each in loaded])
    assert [encode(each) for each in load(printed, "printed.yaml")] == [encode(each) for each in loaded]


def test_the_older_name_of_the_settings_is_taken() -> None:
    (settings,) = load(CALICO.split("---")[1].replace("IPAMConfiguration", "IPAMConfig"), "old.yaml")
    assert isinstance(settings, IPAMConfiguration)
    assert render(settings)["kind"] == "IPAMConfiguration"


def test_a_pod_as_kubernetes_has_it_loads() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web"}], "serviceAccountName": "till"},
        "status": {"phase": "Running"},
    }
    (loaded,) = load(yaml.safe_dump(pod), "pod.yaml")
    assert loaded.service_account == "till"


def problems(kind: str, spec: dict[str, Any], name: str = "default") -> list[str]:
    """What is refused, each with its path."""
    group = "muslin.io/v1" if kind == "IPAMRecord" else "projectcalico.org/v3"
    given = {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec}
    try:
        load(yaml.safe_dump(given), "given.yaml")
    except Invalid as invalid:
        return [f"{each.path}: {each.why}" for each in invalid.problems]
    return []


BLOCK = {"cidr": "10.0.0.0/26", "affinity": "host:n1"}
RECORD = {"address": "10.0.0.1", "handleID": "k8s.c", "until": "2026-01-31T12:00:00Z"}
HANDLE = {"handleID": "k8s.c", "addresses": {"10.0.0.1": "10.0.0.0/26"}}
AFFINITY = {"state": "confirmed", "node": "n1", "cidr": "10.0.0.0/26"}
STAMP = "2026-01-31T12:00:00.000123Z"


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("IPAMBlock", BLOCK | {"freed": {"10.0.0.1": STAMP}, "allocations": {"10.0.0.2": "h"}}),
        ("IPAMBlock", {"cidr": "fd00::/122", "allocations": {"fd00::1": "h"}}),
        ("IPAMBlock", BLOCK | {"borrowers": {"10.0.0.9": "n2"}}),
        ("BlockAffinity", AFFINITY | {"deleted": False}),
        ("BlockAffinity", AFFINITY | {"state": "pendingDeletion", "cidr": "fd00::/122"}),
        ("IPAMHandle", HANDLE | {"node": "n1", "since": STAMP}),
        ("IPAMHandle", {"handleID": "h", "addresses": {}}),
        ("IPReservation", {}),
        ("IPAMConfiguration", {"strictAffinity": True, "autoAllocateBlocks": False, "ipCooldownSeconds": 1200}),
        ("IPAMRecord", RECORD),
    ],
)
def test_what_is_accepted(kind: str, spec: dict[str, Any]) -> None:
    assert problems(kind, spec) == []


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("IPAMBlock", {"cidr": "10.0.0.1/26"}, "spec.cidr: '10.0.0.1/26' has host bits"),
        ("IPAMBlock", BLOCK | {"affinity": "n1"}, "spec.affinity: 'n1' is not host:NODE"),
        ("IPAMBlock", BLOCK | {"affinity": "host:N_1"}, "spec.affinity: 'N_1' is not a name"),
        ("IPAMBlock", BLOCK | {"allocations": {"10.0.0.64": "h"}}, 'spec.allocations["10.0.0.64"]: is not within'),
        ("IPAMBlock", BLOCK | {"allocations": {"fd00::1": "h"}}, "spec.allocations"),
        ("IPAMBlock", BLOCK | {"freed": {"10.0.0.64": STAMP}}, 'spec.freed["10.0.0.64"]: is not within'),
        ("IPAMBlock", BLOCK | {"freed": {"10.0.0.1": "noon"}}, "spec.freed[\"10.0.0.1\"]: 'noon' is not a time"),
        ("IPAMBlock", BLOCK | {"freed": {"10.0.0.1": "2026-01-31T12:00:00"}}, 'spec.freed["10.0.0.1"]: '),
        ("BlockAffinity", AFFINITY | {"state": "mine"}, "spec.state: "),
        ("BlockAffinity", AFFINITY | {"node": ""}, "spec.node: '' is not a name"),
        ("BlockAffinity", AFFINITY | {"cidr": "10.0.0.0"}, "spec.cidr: "),
        ("BlockAffinity", AFFINITY | {"type": "rack"}, "spec.type: 'rack' is not one of host, virtual"),
        ("BlockAffinity", AFFINITY | {"deleted": "perhaps"}, "spec.deleted: 'perhaps' is neither"),
        ("IPAMHandle", HANDLE | {"handleID": ""}, "spec.handleID: "),
        ("IPAMHandle", HANDLE | {"since": "noon"}, "spec.since: "),
        (
            "IPAMHandle",
            HANDLE | {"addresses": {"10.0.1.1": "10.0.0.0/26"}},
            'spec.addresses["10.0.1.1"]: is not within',
        ),
        ("IPReservation", {"reservedCIDRs": ["10.0.0.0/26", "10.0.0.1/26"]}, "spec.reservedCIDRs[1]: "),
        ("IPReservation", {"reservedCIDRs": ["::1", "::1"]}, "spec.reservedCIDRs[1]: '::1' is given twice"),
        ("IPAMConfiguration", {"autoAllocateBlocks": False}, "spec.autoAllocateBlocks: cannot be false while"),
        ("IPAMConfiguration", {"maxBlocksPerHost": -1}, "spec.maxBlocksPerHost: -1 is not within"),
        ("IPAMConfiguration", {"ipCooldownSeconds": 1201}, "spec.ipCooldownSeconds: 1201 is not within 0 to 1200"),
        ("IPAMConfiguration", {"kubeVirtVMAddressPersistence": "yes"}, "spec.kubeVirtVMAddressPersistence: 'yes' is"),
        ("IPAMRecord", RECORD | {"address": "10.0.0.0/26"}, "spec.address: "),
        ("IPAMRecord", RECORD | {"until": ""}, "spec.until: "),
        ("IPAMRecord", RECORD | {"handleID": ""}, "spec.handleID: is required"),
    ],
)
def test_what_is_refused(kind: str, spec: dict[str, Any], said: str) -> None:
    (only,) = problems(kind, spec)
    assert only.startswith(said)


def test_there_is_one_set_of_settings() -> None:
    assert problems("IPAMConfiguration", {}, "mine") == [
        "metadata.name: 'mine' is not 'default': a cluster has one, of that name"
    ]
