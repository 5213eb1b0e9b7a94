"""The kernel's table is a function of the objects, not of how they came: any order, in parts, twice, by detours."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from core.names import NFT_TABLE, Key
from core.resources import Resource, Tier
from linux import netns
from tests.packets.cases import Case, begin, cases, change
from tests.packets.ground import NODES, Ground

pytestmark = pytest.mark.kernel

CASES = ("ports-named", "peers-both", "sets-overlap", "tier-three", "lists-union", "blocks-two-policies", "seq-many")
"""Whose first steps are taken together; no two write the same object."""

TRIED = 6

FENCES = {"cut", "cut-forward", "cut-input", "cut-output"} | {
    f"cut{version}{what}" for version in (4, 6) for what in ("", "-pods", "-hidden")
}
"""What holds connections that felix has ended: they tell of those connections, and not of the objects."""


def objects(ground: Ground) -> tuple[dict[Key, Resource], dict[Key, Resource]]:
    """The cluster without policy, and what is added to it."""
    chosen: list[Case] = [case for case in cases() if case.id in CASES]
    assert len(chosen) == len(CASES)
    plain = begin(chosen[0].topology, ground.place)
    added: dict[Key, Resource] = {}
    for case in chosen:
        step = next(each for each in case.steps if len(change({}, each, ground.place)))
        added |= change({}, step, ground.place)
    tiers = {key: each for key, each in added.items() if isinstance(each, Tier)}  # a policy is refused before its tier
    return {**plain, **tiers}, {key: each for key, each in added.items() if key not in tiers}


def table(node: str, ground: Ground) -> list[str]:
    """The whole table as nft lists it, without handles and counts, a line for each thing in it."""
    argv = netns.command(ground.space(node), "nft", "-j", "list", "table", "inet", NFT_TABLE)
    listed = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)["nftables"]
    told = [each for each in listed if not FENCES.intersection(_names(each))]
    return sorted(json.dumps(_bare(each), sort_keys=True) for each in told)


def _names(entry: Mapping[str, Any]) -> Iterator[str]:
    """What an entry is called, and the chain that it is in."""
    for thing in entry.values():
        yield from (str(thing[key]) for key in ("name", "chain") if key in thing)


def _bare(part: Any) -> Any:
    if isinstance(part, dict):
        kept = {key: value for key, value in part.items() if key not in ("handle", "packets", "bytes", "metainfo")}
        return {
            key: sorted((_bare(each) for each in value), key=repr) if key == "elem" else _bare(value)
            for key, value in kept.items()
        }
    return [_bare(each) for each in part] if isinstance(part, list) else part


@pytest.mark.parametrize("seed", range(TRIED))
def test_tables_do_not_tell_how_the_objects_came(seed: int, two_nodes: Ground) -> None:
    plain, added = objects(two_nodes)
    two_nodes.settle({**plain, **added})
    wanted = {node: table(node, two_nodes) for node in NODES}
    two_nodes.settle(plain)
    chance = random.Random(seed)
    order = list(added)
    chance.shuffle(order)
    written: dict[Key, Resource] = {}
    while order:
        part, order = order[: (size := chance.randint(1, 5))], order[size:]
        written |= {key: added[key] for key in part}
        two_nodes.settle({**plain, **written})
        if chance.random() < 0.3 and order:  # a detour: something that was written goes, and comes again later
            gone = chance.choice(sorted(written))
            del written[gone]
            order.append(gone)
        if chance.random() < 0.3:  # the same once more
            two_nodes.held = {}
            two_nodes.settle({**plain, **written})
    two_nodes.settle({**plain, **added})
    for node in NODES:
        found = table(node, two_nodes)
        assert not [line for line in found if line not in wanted[node]]
        assert found == wanted[node]
