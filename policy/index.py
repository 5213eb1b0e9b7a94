"""Find what a selector matches without asking everything: by the labels a match must have.

The seam for a faster, incremental index: callers know only `matching`. Where labels cannot be told a selector has two
readings (`policy.doubt`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from core.labels import Unknown
from core.selector import And, Compare, Has, In, Node, Not, Or, Requirements, Selector

Labels = Mapping[str, str]

ALL_KNOWN: Final[Mapping[int, Unknown]] = MappingProxyType({})


class LabelIndex:
    """Things by position, each with its labels; `unknown` are the labels of those that nobody can tell."""

    def __init__(self, labels: Sequence[Labels], unknown: Mapping[int, Unknown] = ALL_KNOWN) -> None:
        self._labels = labels
        self._unknown = unknown
        self._known = [position for position in range(len(labels)) if position not in unknown]
        self._with: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position in self._known:
            for label, value in labels[position].items():
                self._with[label][value].append(position)

    def matching(self, selector: Selector, *, possibly: bool = False) -> list[int]:
        """Positions of everything `selector` surely matches, or `possibly` does."""
        if selector.everything:
            return list(range(len(self._labels)))
        candidates = self._candidates(selector.requirements())
        found = [position for position in candidates if selector.matches(self._labels[position])]
        for position, unknown in self._unknown.items():
            surely, perhaps = readings(selector, self._labels[position], unknown)
            if perhaps if possibly else surely:
                found.append(position)
        return found

    def _candidates(self, requirements: Requirements) -> Sequence[int]:
        """The shortest list that one required label gives; everything when no label is sure."""
        best: list[list[int]] | None = None
        size = len(self._labels)
        for label, values in requirements.items():
            held = self._with.get(label, {})
            found = list(held.values()) if values is None else [held[value] for value in values if value in held]
            total = sum(map(len, found))
            if best is None or total < size:
                best, size = found, total
        if best is None:
            return self._known
        return [position for positions in best for position in positions]


def readings(selector: Selector, labels: Labels, unknown: Unknown | None) -> tuple[bool, bool]:
    """Whether a thing surely matches, and whether it possibly does, when the keys in `unknown` may have any value."""
    if unknown is None:
        found = selector.matches(labels)
        return found, found
    return _readings(selector.root, labels, unknown)


def _readings(node: Node, labels: Labels, unknown: Unknown) -> tuple[bool, bool]:
    match node:
        case Not(term):
            surely, perhaps = _readings(term, labels, unknown)
            return not perhaps, not surely
        case And(terms) | Or(terms):
            of_terms = [_readings(term, labels, unknown) for term in terms]
            every = all if isinstance(node, And) else any
            return every(surely for surely, _ in of_terms), every(perhaps for _, perhaps in of_terms)
        case Has(label) | Compare(label) | In(label) if label in unknown:
            return False, True
    found = node.matches(labels)
    return found, found
