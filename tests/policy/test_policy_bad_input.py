"""Objects as large and as twisted as a manifest can be: refused, or compiled within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import yaml
from policy_cluster import key, namespace, packet, pod, resource, snapshot

from core.errors import Invalid
from core.manifest import load
from core.names import Key
from core.resources import Profile, Resource
from core.resources.policy import Direction
from core.selector import DEEPEST, MOST_CHARACTERS, parse
from policy.compile import Compiled, compile
from policy.evaluate import lookup
from policy.identity import MOST_CLASSES
from policy.model import Verdict
from policy.render import render

WEB, DB, FAR = "10.0.0.1", "10.0.0.2", "203.0.113.5"
BOUND_S = 60.0
"""Far above what any of these takes, and far below what one that explodes would."""


async def bounded(*more: Resource, labels: dict[str, str] | None = None) -> Compiled:
    """The cluster compiled, and rendered, within the bound."""
    cluster = [namespace("shop"), pod("shop", "web", [WEB, "fd00::1"], labels), pod("shop", "db", [DB], {"app": "db"})]

    def work() -> Compiled:
        compiled = compile(snapshot([*cluster, *more]), [key("shop", "db"), key("shop", "web")])
        render(compiled)
        return compiled

    async with asyncio.timeout(BOUND_S):
        return await asyncio.to_thread(work)


def into_db(compiled: Compiled, source: str, port: int = 80) -> Verdict:
    asked = packet(source, DB, 6, ingress=True, sport=40000, dport=port)
    return lookup(compiled, key("shop", "db"), Direction.INGRESS, asked).verdict


def calico(kind: str, name: str, labels: dict[str, str] | None = None, **spec: Any) -> Resource:
    metadata = {"name": name, "labels": labels or {}}
    return resource({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})


def kubernetes(rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "k", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": rules},
    }


def block(number: int) -> str:
    return f"172.{16 + number // 4096}.{number // 16 % 256}.{number % 16 * 16}/28"


MANY: list[Callable[[int], dict[str, Any]]] = [
    lambda number: {"ports": [{"port": number + 1}]},
    lambda number: {"from": [{"ipBlock": {"cidr": block(number)}}]},
    lambda number: {"from": [{"ipBlock": {"cidr": block(number)}}], "ports": [{"port": number + 1}]},
    lambda number: {"from": [{"podSelector": {"matchLabels": {"app": f"x{number}"}}}], "ports": [{"port": 80}]},
]


@pytest.mark.parametrize("rule", MANY, ids=["ports", "blocks", "blocks-and-ports", "selectors"])
async def test_ten_thousand_rules_of_kubernetes(rule: Callable[[int], dict[str, Any]]) -> None:
    """Kubernetes sets no limit, so neither is one refused."""
    compiled = await bounded(resource(kubernetes([rule(number) for number in range(10_000)])))
    assert into_db(compiled, FAR, 20_000) is Verdict.DENY
    assert compiled.identity.classes <= 10_010
    assert not compiled.lost


def test_ten_thousand_rules_of_calico_are_refused_as_calico_does() -> None:
    given = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "g"},
        "spec": {"ingress": [{"action": "Allow"}] * 10_000},
    }
    with pytest.raises(Invalid) as caught:
        load(yaml.dump(given, Dumper=yaml.CSafeDumper), "f")
    assert [problem.path for problem in caught.value.problems] == ["spec.ingress"]


async def test_ten_thousand_rules_kept_all_the_same_compile() -> None:
    """A store may hold what an older server took."""
    nets = [f"10.{number // 256}.{number % 256}.0/24" for number in range(10_000)]
    rules = [{"action": ("Deny", "Pass", "Allow")[n % 3], "source": {"nets": [net]}} for n, net in enumerate(nets)]
    compiled = await bounded(calico("GlobalNetworkPolicy", "g", ingress=[*rules, {"action": "Deny"}]))
    assert into_db(compiled, "10.0.3.1") is Verdict.DENY
    assert into_db(compiled, "10.0.2.1") is Verdict.ALLOW


# Selectors


def nested(depth: int, wrap: Callable[[str, int], str]) -> str:
    text = "has(a)"
    for level in range(depth):
        text = wrap(text, level)
    return text


WRAPS: list[Callable[[str, int], str]] = [
    lambda text, level: f"({text})",
    lambda text, level: f"!({text})",
    lambda text, level: f"(a&&{text})".replace("a&&", "has(a)&&") if level % 2 else f"({text}||!has(b))",
    lambda text, level: f"!(!has(c)||{text})",
]


@pytest.mark.parametrize("wrap", WRAPS, ids=["parentheses", "negations", "and-or", "not-or"])
async def test_selectors_nested_a_hundred_deep(wrap: Callable[[str, int], str]) -> None:
    """Whatever walks the tree: parsing, matching, rewriting, indexing, and telling what cannot be told."""
    text = nested(DEEPEST, wrap)
    assert parse(parse(text).canonical).canonical == parse(text).canonical
    rules = [{"action": "Allow", "source": {"selector": text, "namespaceSelector": text}}]
    deep = calico("GlobalNetworkPolicy", "g", selector=text, namespaceSelector=text, ingress=rules, egress=rules)
    await bounded(deep, labels={"a": "1"})
    profile = calico("Profile", "p", labelsToApply={"a": "1"})
    web = pod("shop", "web", [WEB], profiles=["p"])
    state = snapshot([namespace("shop"), web, pod("shop", "db", [DB]), deep, profile])
    doubtful = state.apply(2, [(Key(Profile.KIND, "", "p"), "cannot be read")])
    compile(doubtful, [key("shop", "db"), key("shop", "web")])
    with pytest.raises(ValueError, match="parentheses inside one another"):
        parse(nested(DEEPEST + 1, lambda text, _: f"({text})"))


def test_a_selector_as_long_as_allowed() -> None:
    exclaimed = "!" * (MOST_CHARACTERS - 6) + "has(a)"
    assert parse(exclaimed).canonical == "has(a)"
    assert parse("!" + exclaimed).matches({}) is True
    listed = " || ".join(f"a=='{number}'" for number in range(86))
    assert len(listed) <= MOST_CHARACTERS
    assert parse(listed).matches({"a": "85"})
    given = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "n"},
        "spec": {"selector": "!" + exclaimed},
    }
    with pytest.raises(Invalid, match="at most 1024"):
        load(yaml.safe_dump(given), "f")


@pytest.mark.parametrize("text", ["(" * 100_000, "!" * 100_000, "a in {" + "'x'," * 50_000, "has(" + "a" * 100_000])
def test_a_selector_that_never_ends_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="column"):
        parse(text)


# Labels and prefixes


async def test_ten_thousand_labels_on_one_endpoint() -> None:
    labels = {f"label-{number}": str(number) for number in range(10_000)}
    rules = [
        {"action": "Allow", "source": {"selector": f"label-{number} == '{number}' && has(label-{number + 1})"}}
        for number in range(0, 1_000, 2)
    ]
    compiled = await bounded(calico("GlobalNetworkPolicy", "g", ingress=rules), labels=labels)
    assert into_db(compiled, WEB) is Verdict.ALLOW
    assert into_db(compiled, FAR) is Verdict.DENY


async def test_thousands_of_prefixes_around_one_another() -> None:
    """The same addresses in prefixes of every length, in sets, in rules and in exceptions."""
    sets = [
        calico(
            "GlobalNetworkSet",
            f"s{number}",
            {"n": str(number % 50)},
            nets=[f"10.{number // 256}.{number % 256}.0/{length}" for length in range(8, 25)],
        )
        for number in range(300)
    ]
    rules = [
        {
            "action": ("Deny", "Allow")[number % 2],
            "source": {
                "selector": f"n == '{number % 50}'",
                "notNets": [f"10.{number}.0.0/{length}" for length in range(16, 33)],
            },
        }
        for number in range(200)
    ]
    compiled = await bounded(*sets, calico("GlobalNetworkPolicy", "g", ingress=rules))
    assert compiled.identity.classes <= MOST_CLASSES
    assert into_db(compiled, FAR) is Verdict.DENY
    assert into_db(compiled, "10.1.5.9") is Verdict.DENY


async def test_as_many_nets_and_ports_as_rules_may_have() -> None:
    nets = [f"10.{first}.{second}.0/24" for first, second in product(range(16), range(16))]
    rules = [
        {
            "action": ("Deny", "Allow")[number % 2],
            "protocol": "TCP",
            "source": {"nets": [f"{net[:-2]}{16 + (number + place) % 9}" for place, net in enumerate(nets)]},
            "destination": {"ports": [number * 60 + port * 2 + 1 for port in range(50)]},
        }
        for number in range(100)
    ]
    compiled = await bounded(calico("GlobalNetworkPolicy", "g", ingress=rules))
    assert into_db(compiled, FAR) is Verdict.DENY
    assert compiled.identity.classes <= MOST_CLASSES
