"""A change of policy is whole or not there: packets are sent all the while, each a flow of its own.

Hundreds of edits of every kind go through the datastore and both felixes. A port that every version of the policy
allows must lose no packet, and one that every version denies must let none through; also while a felix is killed, is
away, and starts again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from core.names import Key
from core.resources import Namespace, Resource, WorkloadEndpoint
from tests.packets.cases import begin, cases, resource
from tests.packets.ground import Ground
from tests.packets.streams import streams

pytestmark = pytest.mark.kernel

EDITS = 240
SETTLED_EVERY = 6
"""After so many edits a version is waited for; between, felix may take several at once, as it likes."""

OPEN, SHUT, OTHER = 4000, 4001, 4002
PAIRS = {("x/a", "y/a"): (OPEN, SHUT), ("y/a", "x/c"): (OPEN, SHUT), ("x/b", "x/a"): (OPEN, SHUT)}

Rule = dict[str, Any]


class Editor:
    """A cluster's policy that is edited at random. Whatever it makes of it, OPEN is open between x and y, SHUT shut."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self._random = random.Random(seed)
        self._plain = begin(cases()[-1].topology, ground.place)
        self._edits = [self._rewrite, self._noise, self._quiet, self._tier, self._set, self._label, self._swap]
        self._kubernetes = False
        self._extra: dict[Key, Resource] = {}
        self._rewrite()

    def edit(self) -> dict[Key, Resource]:
        """One edit; the whole cluster after it."""
        self._random.choice(self._edits)()
        return {**self._plain, **self._core, **self._extra}

    def _rewrite(self) -> None:
        """The policy itself: other rules, in another order, with peers said in another way."""
        written = [self._kubernetes_policy(home) for home in "xy"] if self._kubernetes else [self._calico_policy()]
        self._core = {each.key: each for each in written}

    def _swap(self) -> None:
        """One kind of policy for another, in one transaction."""
        self._kubernetes = not self._kubernetes
        self._rewrite()

    def _calico_policy(self) -> Resource:
        peers = ["all()", "has(ns)", "ns in {'x', 'y'}", "ns != 'z'", "team == 'red'"]
        ports = [[OPEN], [f"{OPEN - 3}:{OPEN}"], [1, 2, OPEN], [f"{OPEN}:{OPEN}", OTHER]]
        several = [
            self._allow(self._random.choice(peers), self._random.choice(ports)),
            self._allow("ns == 'z'", [OTHER]),
            {"action": "Deny", "protocol": "UDP", "destination": {"ports": [SHUT]}},
            {"action": "Deny", "protocol": "UDP", "destination": {"ports": [f"{OTHER + 1}:5000"]}},
            {"action": "Allow", "protocol": "TCP"},
        ]
        rules = [several[0], *self._random.sample(several[1:], self._random.randint(0, 4))]
        self._random.shuffle(rules)
        egress = [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [OPEN, OTHER]}}]
        selector = self._random.choice(["all()", "has(projectcalico.org/namespace)", "!has(nothing)"])
        spec = {"selector": selector, "order": self._random.randint(1, 9), "ingress": rules, "egress": egress}
        return _calico("GlobalNetworkPolicy", "core", {**spec, "types": ["Ingress", "Egress"]})

    def _allow(self, namespaces: str, ports: list[int | str]) -> Rule:
        source = {"namespaceSelector": namespaces}
        return {"action": "Allow", "protocol": "UDP", "source": source, "destination": {"ports": ports}}

    def _kubernetes_policy(self, home: str) -> Resource:
        peers = self._random.choice(
            [[], [{"namespaceSelector": {}}], [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]]
        )
        ports = self._random.choice([[(OPEN, None)], [(OPEN - 5, OPEN)], [(OPEN, None), (OTHER, OTHER + 9)]])
        said = [{"protocol": "UDP", "port": low, **({"endPort": high} if high else {})} for low, high in ports]
        spec = {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": said}],
            "egress": [{"ports": said}],
        }
        metadata = {"name": "core", "namespace": home}
        return resource(
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
        )

    def _noise(self) -> None:
        """A new policy, or another in its place, that speaks of other ports."""
        action = self._random.choice(["Allow", "Deny"])
        rule = {"action": action, "protocol": "UDP", "destination": {"ports": [self._random.randint(5000, 6000)]}}
        labels = self._random.choice(["app == 'web'", "has(pod)", "pod in {'a', 'c'}", "ns == 'x'"])
        spec = {"selector": labels, "order": self._random.randint(0, 10), "ingress": [rule], "egress": [rule]}
        self._put(_calico("GlobalNetworkPolicy", f"noise-{self._random.randint(0, 5)}", spec))

    def _quiet(self) -> None:
        """One of what was added goes; what is in a tier goes before its tier."""
        gone = [key for key, each in self._extra.items() if key.kind.name != "Tier"]
        if gone:
            del self._extra[self._random.choice(gone)]

    def _tier(self) -> None:
        """A tier before the default one, which passes what it leaves open and shuts SHUT itself, or not."""
        shut = {"action": "Deny", "protocol": "UDP", "destination": {"ports": [SHUT]}}
        rules = [*([shut] if self._random.random() < 0.5 else []), {"action": "Pass"}]
        self._put(_calico("Tier", "edge", {"order": self._random.randint(1, 500)}))
        spec = {"tier": "edge", "selector": "all()", "ingress": rules, "egress": rules}
        self._put(_calico("GlobalNetworkPolicy", f"edge.{self._random.randint(0, 2)}", spec))

    def _set(self) -> None:
        """A network set over pods' own addresses, which moves them to other classes."""
        nets = [f"10.65.{self._random.randint(1, 3)}.{self._random.randint(8, 15)}/32" for _ in range(3)]
        nets.append(f"fd00:65:{self._random.randint(1, 3)}::/64")
        self._put(_calico("GlobalNetworkSet", "some", {"nets": nets}, {"set": self._random.choice("ab")}))
        rule = {"action": "Allow", "protocol": "UDP", "source": {"selector": "set == 'a'"}}
        spec = {"selector": "all()", "order": 7, "ingress": [{**rule, "destination": {"ports": [OTHER]}}]}
        self._put(_calico("GlobalNetworkPolicy", "from-set", {**spec, "types": ["Ingress"]}))

    def _label(self) -> None:
        """A label of a pod or a namespace that no policy needs for OPEN or SHUT."""
        key = self._random.choice(
            [key for key, each in self._plain.items() if isinstance(each, WorkloadEndpoint | Namespace)]
        )
        old = self._plain[key]
        labels = {**old.metadata.labels, "mood": self._random.choice(["good", "bad"])}
        if isinstance(old, WorkloadEndpoint) and old.spec.node and "app" in labels:
            labels["app"] = self._random.choice(["web", "db"])
        self._plain[key] = replace(old, metadata=replace(old.metadata, labels=labels))

    def _put(self, written: Resource) -> None:
        self._extra[written.key] = written


def _calico(kind: str, name: str, spec: dict[str, Any], labels: dict[str, str] | None = None) -> Resource:
    metadata = {"name": name, **({"labels": labels} if labels else {})}
    return resource({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})


def upsets(ground: Ground, *, killed: bool) -> Iterator[None]:
    """What happens to the felixes after each edit: nothing, or each is killed once and comes back later."""
    for number in range(EDITS):
        if killed and number in (60, 150):
            ground.kill("n1" if number == 60 else "n2")
        if killed and number in (90, 180):
            ground.start("n1" if number == 90 else "n2")
        yield


@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed"])
def test_no_packet_meets_half_a_policy(two_nodes: Ground, *, killed: bool) -> None:
    editor = Editor(two_nodes, seed=7 + killed)
    two_nodes.settle(editor.edit())
    seen = set()
    with streams(two_nodes, PAIRS) as running:
        for number, _ in enumerate(upsets(two_nodes, killed=killed)):
            revision = two_nodes.write({**two_nodes.base(), **editor.edit()})
            away = killed and (60 <= number < 90 or 150 <= number < 180)
            if number % SETTLED_EVERY == 0 and not away:
                two_nodes.await_programmed(revision)
            seen.add(revision)
        two_nodes.await_programmed(max(seen))
    assert len(seen) > EDITS // 2, "most edits changed nothing"
    assert not {str(each): each.lost[:20] for each in running if each.port == OPEN and each.lost}
    assert not {str(each): len(each.arrived) for each in running if each.port == SHUT and each.arrived}
    assert min(each.sent for each in running) > 1000


def test_streams_get_through_where_nothing_forbids_them(two_nodes: Ground) -> None:
    """The control of the test above: what it expects to be silent is so by policy, and not because nothing is heard."""
    two_nodes.settle(begin(cases()[-1].topology, two_nodes.place))
    with streams(two_nodes, PAIRS) as running:
        two_nodes.await_programmed(0)
        while min(each.sent for each in running) < 200:
            two_nodes.await_programmed(0)
    assert not {str(each): each.lost for each in running if each.lost}
