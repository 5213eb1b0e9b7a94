"""KubeControllersConfiguration: Calico's own manifest is taken as it is, and a wrong word is refused with its path."""

from __future__ import annotations

import pytest

from core.errors import Invalid
from core.manifest import decode, encode, load
from core.resources import KubeControllersConfiguration

CALICO = """
apiVersion: projectcalico.org/v3
kind: KubeControllersConfiguration
metadata:
  name: default
spec:
  logSeverityScreen: Info
  healthChecks: Enabled
  etcdV3CompactionPeriod: 10m
  prometheusMetricsPort: 9094
  controllers:
    node:
      reconcilerPeriod: 5m
      leakGracePeriod: 15m
      syncLabels: Enabled
      hostEndpoint:
        autoCreate: Disabled
    policy:
      reconcilerPeriod: 5m
    workloadEndpoint:
      reconcilerPeriod: 5m
    serviceAccount:
      reconcilerPeriod: 5m
    namespace:
      reconcilerPeriod: 5m
    loadBalancer:
      assignIPs: WORD
"""


@pytest.mark.parametrize(("word", "only"), [("AllServices", False), ("RequestedServicesOnly", True)])
def test_calicos_own_manifest_is_taken_and_kept_as_it_is(word: str, only: bool) -> None:
    (found,) = load(CALICO.replace("WORD", word), "calico.yaml")
    assert isinstance(found, KubeControllersConfiguration)
    assert found.only_requested is only
    assert b'"leakGracePeriod":"15m"' in encode(found)
    assert decode(found.key, encode(found)) == found


@pytest.mark.parametrize("spec", ["{}", "{controllers: {}}", "{controllers: {loadBalancer: {}}}"])
def test_without_a_word_all_services_are_meant(spec: str) -> None:
    head = CALICO.partition("spec:")[0]
    (found,) = load(f"{head}spec: {spec}", "given.yaml")
    assert isinstance(found, KubeControllersConfiguration)
    assert not found.only_requested


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("WORD", "Some", "spec.controllers.loadBalancer.assignIPs: 'Some' is not one of AllServices"),
        ("name: default", "name: other", "metadata.name: 'other' is not 'default'"),
        ("loadBalancer:", "loadBalancers:", "unknown field 'loadBalancers'"),
    ],
)
def test_what_is_wrong_is_refused_at_its_field(before: str, after: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        load(CALICO.replace(before, after).replace("WORD", "AllServices"), "calico.yaml")
