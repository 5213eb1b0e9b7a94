"""A table that comes in parts, as the flat mappings that `NftDriver` is given; a part that is the same is not redone.

    { "frame": Ruleset, "stack-1": Ruleset, ... }  ──Flattener──>  Parts({ "frame": {...}, "stack-1": {...}, ... })

The digest of a chain covers the types of the sets that its rules name. They may be in any part: when one of them
changes its type, the chains of other parts that name it are made anew too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from core.nftables import Ruleset, Set
from core.parts import Parts
from linux.nft_objects import Object, Value, flatten, sets_named


@dataclass(frozen=True, slots=True)
class _Part:
    """A part, what it became, and the sets of other parts that it names."""

    ruleset: Ruleset
    flat: Mapping[Object, Value]
    abroad: frozenset[str]


class Flattener:
    """Flattens one state of a table after another; remembers the last."""

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}
        self._sets: dict[str, Set] = {}

    def flatten(self, table: Mapping[str, Ruleset]) -> Parts[Object, Value]:
        """The state `table`, whose parts are disjoint. Costs what the parts hold that are not the last state's."""
        last, self._parts = self._parts, {}
        new = {name: part for name, part in table.items() if name not in last or last[name].ruleset is not part}
        gone = [last[name].ruleset for name in last if name in new or name not in table]
        stale = self._retype(gone, new.values())
        for name, part in table.items():
            kept = last.get(name)
            if name in new or kept is None or not stale.isdisjoint(kept.abroad):
                named = sets_named(part.chains.values()) - part.sets.keys()
                kept = _Part(part, flatten(part, self._sets), named)
            self._parts[name] = kept
        return Parts({name: part.flat for name, part in self._parts.items()})

    def _retype(self, gone: Iterable[Ruleset], new: Iterable[Ruleset]) -> set[str]:
        """Bring the sets of the whole table up to date; returns the names of those that are not what they were."""
        before = dict(chain.from_iterable(each.sets.items() for each in gone))
        for name in before:
            del self._sets[name]
        after = dict(chain.from_iterable(each.sets.items() for each in new))
        self._sets.update(after)
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
