"""Named states and what must come of them: stability, closing what cannot be enforced, words for people."""

from __future__ import annotations

import re
import time
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from policy_cluster import key, namespace, packet, pod, resource, snapshot

from core.errors import NotFound
from core.names import Key
from core.nftables import join
from core.resources import Resource
from core.resources.network import WorkloadEndpoint
from core.resources.policy import Direction
from core.resources.policy import Rule as RuleManifest
from policy import identity
from policy.compile import Compiled, compile
from policy.evaluate import lookup
from policy.explain import explain
from policy.identity import Signature
from policy.model import Cause, Verdict
from policy.numbering import numbered
from policy.render import render
from policy.rules import convert_rules

WEB, DB, FAR = "10.0.0.1", "10.0.0.2", "192.0.2.9"
BASE: list[Resource] = [
    namespace("shop"),
    pod("shop", "web", [WEB, "fd00::1"], {"app": "web"}),
    pod("shop", "db", [DB, "fd00::2"], {"app": "db"}),
]
ENDS = [key("shop", "web"), key("shop", "db")]


def policy(name: str, *, ingress: Any = None, egress: Any = None, **spec: Any) -> Resource:
    rules = {word: given for word, given in (("ingress", ingress), ("egress", egress)) if given is not None}
    return resource(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": "app == 'db'", **spec, **rules},
        }
    )


def built(*policies: Resource) -> Compiled:
    return compile(snapshot([*BASE, *policies]), ENDS)


def into_db(compiled: Compiled, source: str, protocol: int = 6, **fields: Any) -> tuple[Verdict, Cause]:
    fields = {"sport": 1024, "dport": 80, **fields} if protocol in (6, 17) else fields
    asked = packet(source, DB, protocol, ingress=True, **fields)
    decision = lookup(compiled, ENDS[1], Direction.INGRESS, asked)
    return decision.verdict, decision.reason.cause


def test_no_policy_costs_no_lookup() -> None:
    compiled = built()
    ruleset = join(*render(compiled).values())
    for table in compiled.tables.values():
        assert table.constant is not None
        assert len(ruleset.chains[table.name].rules) == 1
    assert not any(name.startswith(("in-", "out-")) for name in ruleset.sets)


def test_an_edit_of_a_rule_makes_another_stack_and_leaves_the_one_there_is_alone() -> None:
    def with_port(port: int) -> Compiled:
        rule = {"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'web'"}}
        return built(policy("p", ingress=[{**rule, "destination": {"ports": [port]}}]))

    before, after = with_port(80), with_port(81)
    (old, out), (new, same) = before.chains[ENDS[1]], after.chains[ENDS[1]]
    assert old != new
    assert out == same
    assert old not in after.tables
    assert with_port(80).chains == before.chains


def test_endpoints_under_the_same_policies_share_a_stack() -> None:
    twin = pod("shop", "db2", ["10.0.0.3"], {"app": "db"})
    compiled = compile(snapshot([*BASE, twin, policy("p", ingress=[])]), [*ENDS, twin.key])
    assert compiled.chains[ENDS[1]] == compiled.chains[twin.key]
    assert compiled.chains[ENDS[0]] != compiled.chains[twin.key]


def test_a_policy_elsewhere_does_not_renumber_classes() -> None:
    rule = {"action": "Allow", "source": {"selector": "app == 'web'"}}
    other = {"action": "Allow", "source": {"nets": ["192.0.2.0/24"]}}
    one, two = built(policy("p", ingress=[rule])), built(policy("p", ingress=[rule]), policy("q", ingress=[other]))
    for address in (WEB, DB):
        assert one.identity.of(ip_address(address)) == two.identity.of(ip_address(address))


def test_an_endpoint_that_is_not_there_gets_no_chain() -> None:
    assert not compile(snapshot(BASE), [Key(WorkloadEndpoint.KIND, "shop", "gone")]).chains


def test_icmp_types_and_logs_wait_for_the_packet() -> None:
    compiled = built(
        policy(
            "p",
            ingress=[
                {"action": "Log"},
                {"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}},
                {"action": "Allow", "protocol": "TCP", "source": {"ports": [1024]}},
            ],
        )
    )
    assert into_db(compiled, FAR, 1, icmp=(8, 0))[0] is Verdict.ALLOW
    assert into_db(compiled, FAR, 1, icmp=(0, 0))[0] is Verdict.DENY
    assert into_db(compiled, FAR, 1) == (Verdict.DENY, Cause.UNREADABLE)
    assert into_db(compiled, FAR, sport=1024)[0] is Verdict.ALLOW
    assert into_db(compiled, FAR, sport=1025) == (Verdict.DENY, Cause.END_OF_TIER)
    rules = [rule for chain in join(*render(compiled).values()).chains.values() for rule in chain.rules]
    assert 'log prefix "muslin default/shop/p: "' in rules
    assert any(re.fullmatch("icmp type 8 meta mark set meta mark .* goto decided", rule) for rule in rules)


def test_a_pass_that_waits_for_the_packet_carries_the_next_tier() -> None:
    tier = resource(
        {"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "first"}, "spec": {"order": 1}}
    )
    passing = {"action": "Pass", "protocol": "TCP", "source": {"ports": [7]}}
    compiled = built(tier, policy("p", tier="first", ingress=[passing]), policy("q", ingress=[{"action": "Allow"}]))
    assert into_db(compiled, FAR, sport=7) == (Verdict.ALLOW, Cause.RULE)
    assert into_db(compiled, FAR, sport=8) == (Verdict.DENY, Cause.END_OF_TIER)


def test_classes_beyond_the_mark_are_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    given = policy("p", ingress=[{"action": "Deny", "source": {"nets": [f"{WEB}/32"]}}, {"action": "Allow"}])
    whole = built(given)
    sources = (WEB, FAR, DB)
    assert {into_db(whole, source)[0] for source in sources} == {Verdict.ALLOW, Verdict.DENY}
    for most in (1, 2):
        monkeypatch.setattr(identity, "MOST_CLASSES", most)
        compiled = built(given)
        assert compiled.lost == 3 - most
        for source in sources:
            classed = compiled.identity.of(ip_address(source)) != 0
            allowed = classed and into_db(whole, source)[0] is Verdict.ALLOW
            assert (into_db(compiled, source)[0] is Verdict.ALLOW) == allowed


def test_class_numbers_survive_newcomers() -> None:
    old = [Signature(4, frozenset({f"peer {n}"})) for n in range(100)]
    before, after = (
        numbered({each: each.digest() for each in given}, identity.MOST_CLASSES)
        for given in (old, [*old, Signature(4, frozenset({"new"}))])
    )
    assert len(set(before.values())) == 100
    assert sum(before[each] != after[each] for each in old) <= 1


def test_explain_names_policy_and_rule() -> None:
    state = snapshot(
        [*BASE, policy("guard", ingress=[{"action": "Deny", "protocol": "TCP", "destination": {"ports": [5432]}}])]
    )
    denied = explain(state, ENDS[0], ENDS[1], 6, 5432)
    assert denied.verdict is Verdict.DENY
    assert denied.ingress is not None
    assert denied.ingress.reason.policy == Key(policy("guard").KIND, "shop", "guard")
    assert denied.ingress.reason.rule == 0
    assert denied.lines == (
        f"egress of {ENDS[0]}: Allow: profile kns.shop, egress rule 0 (all traffic)",
        f"ingress of {ENDS[1]}: Deny: NetworkPolicy shop/guard in tier default, ingress rule 0 (TCP to port 5432)",
        "Deny",
    )
    assert explain(state, ENDS[1], ENDS[0], 6, 80).verdict is Verdict.ALLOW
    assert explain(state, ip_address(FAR), ENDS[1], 6, 5432).egress is None
    assert explain(state, ENDS[1], ENDS[1], 6, 5432).verdict is Verdict.ALLOW


def test_the_end_of_a_tier_names_the_policies_that_made_it_a_denial() -> None:
    state = snapshot([*BASE, policy("b", ingress=[]), policy("a", ingress=[]), policy("out", types=["Egress"])])
    denied = explain(state, ENDS[0], ENDS[1], 6, 5432)
    assert denied.ingress is not None
    assert [each.name for each in denied.ingress.reason.policies] == ["a", "b"]
    said = "end of tier default: no ingress rule matched in NetworkPolicy shop/a, NetworkPolicy shop/b"
    assert str(denied.ingress.reason) == said
    many = snapshot([*BASE, *(policy(f"p{n:02}", ingress=[]) for n in range(12))])
    ingress = explain(many, ENDS[0], ENDS[1], 6, 5432).ingress
    assert ingress is not None
    assert len(ingress.reason.policies) == 12
    assert str(ingress.reason).endswith("NetworkPolicy shop/p07 and 4 more")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({}, "all traffic"),
        ({"protocol": "TCP", "destination": {"ports": [80, "90:99", "http"]}}, "TCP to port 80, 90-99, http"),
        ({"protocol": 47, "ipVersion": 6}, "IPv6 protocol 47"),
        ({"protocol": "ICMP", "icmp": {"type": 3, "code": 1}}, "ICMP type 3 code 1"),
        ({"notProtocol": "UDP"}, "anything but UDP"),
        (
            {"source": {"nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"]}},
            "from within 10.0.0.0/8, outside 10.1.0.0/16",
        ),
        (
            {"protocol": "UDP", "source": {"selector": "app == 'web'", "namespaceSelector": "all()", "notPorts": [53]}},
            'UDP from (has(pcns.projectcalico.org/name) && app == "web") any port but 53',
        ),
        ({"source": {"notSelector": "has(bad)"}}, "from not (has(bad))"),
    ],
)
def test_a_rule_in_few_words(rule: dict[str, Any], says: str) -> None:
    given = msgspec.convert({"action": "Allow", **rule}, RuleManifest)
    (found,), closed = convert_rules([(0, given)], "")
    assert not closed
    assert str(found.match) == says


def test_a_pod_denied_everything_counts_it() -> None:
    parts = render(built(policy("p", ingress=[])))
    counters = {name for part in parts.values() for name in part.counters}
    assert "deny/in/default/end-of-tier" in counters


def test_explain_wants_ends_that_can_meet() -> None:
    with pytest.raises(NotFound, match="family"):
        explain(snapshot(BASE), ip_address(FAR), ip_address("2001:db8::1"), 6, 80)
    with pytest.raises(NotFound, match="there is no"):
        explain(snapshot(BASE), Key(WorkloadEndpoint.KIND, "shop", "gone"), ENDS[0], 6, 80)


def test_a_large_cluster_compiles_in_seconds() -> None:
    state: list[Resource] = [namespace(f"n{n}", {"team": f"t{n % 10}"}) for n in range(50)]
    for n in range(10_000):
        labels = {"app": f"a{n % 200}", "tier": ("web", "db", "api")[n % 3]}
        state.append(pod(f"n{n % 50}", f"p{n}", [f"10.0.{n >> 8}.{n & 255}"], labels))
    local = [each.key for each in state[50:150]]
    for n in range(1_000):
        allow = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80 + n % 100]}}
        state.append(
            resource(
                {
                    "apiVersion": "projectcalico.org/v3",
                    "kind": "NetworkPolicy",
                    "metadata": {"name": f"p{n}", "namespace": f"n{n % 50}"},
                    "spec": {
                        "selector": "tier == 'web'" if n % 5 else "all()",
                        "ingress": [{**allow, "source": {"selector": f"app == 'a{n % 200}'"}}],
                        "egress": [{"action": "Deny", "destination": {"nets": [f"172.16.{n % 256}.0/24"]}}],
                    },
                }
            )
        )
    given = snapshot(state)
    start = time.process_time()
    render(compile(given, local))
    assert time.process_time() - start < 6
