"""What felix's table counts, and what it tells of the packets it denies, on a real kernel."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest
from msgspec.structs import replace

from core.metrics import exposed
from core.resources import Metadata, NetworkPolicy, StagedNetworkPolicy
from core.resources.policy import Action, EntityRule, Rule
from core.resources.staged import StagedAction, StagedNetworkPolicySpec
from felix.metrics import Metrics
from tests.felix.cluster import allow_from, deny, pod
from tests.felix.host import PATIENCE_S, counted, until
from tests.felix.one_node import DB, WEB, Cluster

pytestmark = pytest.mark.kernel

ALLOWED = "allow/in/default/networkpolicies/shop/web/0"
DENIED = "deny/in/default/end-of-tier"


async def test_every_decision_counts_and_goes_on_counting_when_rules_change(cluster: Cluster) -> None:
    await cluster.write(allow_from("web", "shop", "app == 'db'", "app == 'web'", 80, "TCP"))
    await cluster.start()
    async with cluster.db.echo(80), cluster.db.echo(81):
        assert await cluster.web.reaches("10.0.0.2", 80)
        assert not await cluster.web.reaches("10.0.0.2", 81)
        assert counted(ALLOWED) == 1
        denied = counted(DENIED)
        assert denied > 0
        await cluster.write(with_port(allow_from("web", "shop", "app == 'db'", "app == 'web'", 80, "TCP"), 8080))
        assert await cluster.web.reaches("10.0.0.2", 80)
        assert counted(ALLOWED) == 2
        assert counted(DENIED) == denied


def with_port(policy: NetworkPolicy, port: int) -> NetworkPolicy:
    """The policy with one more port in its first rule, and a rule more behind it."""
    (rule,) = policy.spec.ingress or ()
    wider = replace(rule, destination=replace(rule.destination, ports=[*rule.destination.ports, port]))
    more = Rule(action=Action.ALLOW, protocol="UDP", source=EntityRule(nets=["192.0.2.0/24"]))
    return replace(policy, spec=replace(policy.spec, ingress=[wider, more]))


async def test_a_denied_packet_is_told_with_the_rule_that_denied_it(cluster: Cluster) -> None:
    await cluster.write(deny("shut", "shop", "app == 'db'"))
    await cluster.start()
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "denied", "--watch", "--for", str(PATIENCE_S), "-o", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert watching.stdout
    assert watching.stderr
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert b"watching" in await watching.stderr.readline()
            assert not await cluster.web.reaches("10.0.0.2", 80)
            event = json.loads(await watching.stdout.readline())
    finally:
        watching.kill()
        await watching.wait()
    assert (event["source"], event["destination"], event["destinationPort"]) == ("10.0.0.1", "10.0.0.2", 80)
    assert (event["protocol"], event["in"], event["out"]) == ("TCP", WEB, DB)
    assert (event["direction"], event["policy"], event["rule"]) == ("Ingress", "networkpolicies/shop/shut", 0)


async def test_prometheus_reads_each_decision_with_its_labels(cluster: Cluster) -> None:
    metrics = Metrics()
    try:
        await cluster.write(deny("shut", "shop", "app == 'db'"))
        await cluster.start()
        assert not await cluster.web.reaches("10.0.0.2", 80)
        text = exposed(metrics.families()).decode()
    finally:
        metrics.close()
    labels = {
        "direction": "ingress",
        "plane": "workload",
        "policy": "networkpolicies/shop/shut",
        "reason": "",
        "rule": "0",
        "staged": "false",
        "tier": "default",
        "verdict": "deny",
    }
    said = "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
    found = [line for line in text.splitlines() if line.startswith("muslin_felix_policy_packets_total{")]
    (line,) = [line for line in found if sorted(re.findall(r'\w+="[^"]*"', line)) == sorted(said[1:-1].split(","))]
    assert float(line.rsplit(" ", 1)[1]) > 0


async def test_an_endpoint_that_comes_does_not_reset_what_was_counted(cluster: Cluster) -> None:
    await cluster.write(deny("shut", "shop", "app == 'db'"))
    await cluster.start()
    assert not await cluster.web.reaches("10.0.0.2", 80)
    name = "deny/in/default/networkpolicies/shop/shut/0"
    before = counted(name)
    assert before > 0
    third = cluster.host.pod("third", "10.0.0.3")
    await cluster.write(pod("third", "10.0.0.3", app="db"))
    assert counted(name) == before
    assert not await third.reaches("10.0.0.1", 80)
    await until(lambda: counted("deny/out/default/networkpolicies/shop/shut/0") > 0)


async def test_a_staged_policy_is_counted_and_not_enforced(cluster: Cluster) -> None:
    enforced = deny("shut", "shop", "app == 'db'")
    staged = StagedNetworkPolicy(
        metadata=Metadata(name="shut", namespace="shop"),
        spec=StagedNetworkPolicySpec(
            staged_action=StagedAction.SET, selector="app == 'db'", ingress=[Rule(action=Action.DENY)]
        ),
    )
    await cluster.write(staged)
    await cluster.start()
    name = "pending/deny/in/default/stagednetworkpolicies/shop/shut/0"
    async with cluster.db.echo(80):
        assert await cluster.web.reaches("10.0.0.2", 80)
        assert counted(name) == 1
        assert counted("allow/in/profile/kns.shop/0") == 1
        await cluster.write(enforced)
        assert not await cluster.web.reaches("10.0.0.2", 80)
        seen = counted("deny/in/default/networkpolicies/shop/shut/0")
        assert seen > 0
        await cluster.write(
            replace(staged, spec=replace(staged.spec, staged_action=StagedAction.DELETE, selector="", ingress=None))
        )
        assert not await cluster.web.reaches("10.0.0.2", 80)
        assert counted("deny/in/default/networkpolicies/shop/shut/0") > seen
        assert counted("pending/allow/in/profile/kns.shop/0") > 0
