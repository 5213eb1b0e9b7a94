"""Find what a selector matches without asking everything: by the labels a match must have.

The seam for a faster, incremental index: callers know only `matching`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from core.selector import Requirements, Selector

Labels = Mapping[str, str]


class LabelIndex:
    """Things by position, each with its labels."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self._labels = labels
        self._with: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position, each in enumerate(labels):
            for label, value in each.items():
                self._with[label][value].append(position)

    def matching(self, selector: Selector) -> list[int]:
        """Positions of everything `selector` matches."""
        if selector.everything:
            return list(range(len(self._labels)))
        candidates = self._candidates(selector.requirements())
        return [position for position in candidates if selector.matches(self._labels[position])]

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
            return range(len(self._labels))
        return [position for positions in best for position in positions]
