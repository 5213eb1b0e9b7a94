"""What an agent remembers between two decisions changes none of them."""

from __future__ import annotations

from random import Random

import pytest

from core.memo import Memo
from core.names import Key
from core.resources import Resource
from core.snapshot import Snapshot
from felix.desired import Judge, desired
from linux.model import Facts
from tests.felix.cluster import CONFIG, allow_from, facts, link, namespace, node, pod, pool, snapshot

EVERYTHING: list[Resource] = [
    node("a", "10.1.0.1/24"),
    node("b", "10.1.0.2/24"),
    namespace("shop"),
    pool("pods", "10.0.0.0/16"),
    pod("web", "10.0.0.1", app="web"),
    pod("db", "10.0.0.2", app="db"),
    pod("old", "10.0.0.2", app="db"),
    allow_from("p", "shop", "app == 'db'", "app == 'web'", 80, "TCP"),
    allow_from("q", "shop", "app == 'web'", "app == 'db'", 53, "UDP"),
]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_remembered_changes_nothing(seed: int) -> None:
    rng = Random(seed)
    judge, memo = Judge(CONFIG.node), Memo()
    state, seen = snapshot(EVERYTHING), facts()
    for _ in range(12):
        wanted = desired(state, seen, CONFIG, judge(state), memo)
        memo.forget()
        assert wanted == desired(state, seen, CONFIG)
        state, seen = changed(rng, state), facts(link("musweb", 7)) if rng.random() < 0.3 else seen


def changed(rng: Random, state: Snapshot) -> Snapshot:
    edits: list[tuple[Key, Resource | str | None]] = [
        (each.key, rng.choice([each, each, None, "spec: something is wrong"])) for each in rng.sample(EVERYTHING, 2)
    ]
    return state.apply(state.revision + 1, edits)


def test_one_policy_leaves_the_rest_as_it_was() -> None:
    judge, memo, seen = Judge(CONFIG.node), Memo(), facts()
    state = snapshot(EVERYTHING)
    before = desired(state, seen, CONFIG, judge(state), memo)
    memo.forget()
    edited = allow_from("p", "shop", "app == 'db'", "app == 'web'", 81, "TCP")
    state = state.apply(state.revision + 1, [(edited.key, edited)])
    after = desired(state, seen, CONFIG, judge(state), memo)
    other = {name for name, part in after.nft.items() if before.nft.get(name) is not part}
    assert after.nft != before.nft
    assert not other & {"frame", "nat", "nodes", "identify"}
    known = [name for name in after.nft if name.startswith("dispatch")]
    moved = {
        key for name in known for key, to in after.nft[name].elements.items() if before.nft[name].elements[key] != to
    }
    assert len([name for name in known if after.nft[name] is before.nft[name]]) == 1, "who is not concerned stays"
    assert {key.set for key in moved} == {"to-workload"}, "those whom it applies to go to another stack, one way"
    assert after.routes is before.routes
    assert isinstance(seen, Facts)
