"""Which things a selector matches, kept up to date one thing and one selector at a time.

    thing ── labels ──> Group ── marks ──> the selectors that match all things of the group
                          ^ v
    selectors by a label that whatever they match must have; groups by label and value

Things with the same labels are one *group*, asked once for all of them: a deployment's thousand pods cost what one
costs. A group inherits labels (its namespace's, ...) from a *source*, which many groups share. A new group asks the
selectors that one of its labels leads to, a new selector the groups that one of its required labels leads to; neither
asks everything, unless nothing is required. Where labels cannot be told a selector has two readings (`policy.doubt`),
and each reading has a mark of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, TypeAlias, TypeVar

from core.labels import Labelled, Unknown
from core.selector import And, Compare, Has, In, Node, Not, Or, Selector

Labels = Mapping[str, str]
Marks: TypeAlias = frozenset[int]
NO_MARKS: Final[Marks] = frozenset()

_T = TypeVar("_T")

FEW: Final = 8
"""Candidates so few that it does not pay to look for fewer."""


class Effective(Mapping[str, str]):
    """A thing's own labels over those that it inherits, neither of them copied."""

    __slots__ = ("_inherited", "_own")

    def __init__(self, own: Labels, inherited: Labels) -> None:
        self._own, self._inherited = own, inherited

    def __getitem__(self, key: str) -> str:
        found = self._own.get(key)
        return self._inherited[key] if found is None else found

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """As of any mapping."""
        found = self._own.get(key)
        return self._inherited.get(key, default) if found is None else found

    def __contains__(self, key: object) -> bool:
        return key in self._own or key in self._inherited

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (key for key in self._inherited if key not in self._own)

    def __len__(self) -> int:
        return len(self._own.keys() | self._inherited.keys())


@dataclass(eq=False, slots=True)
class Source:
    """Labels that groups inherit, and those groups."""

    labels: Labels
    groups: set[Group] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Group:
    """Things with the same labels and named ports (name, protocol, number), such as `thing` (None: it cannot be read).

    `unknown` are labels that nobody can tell; without `sure`, neither can anybody tell whether the things' addresses
    carry any. `marks` are the readings of selectors that match. `size` counts what is in the group.
    """

    thing: Labelled | None
    own: Labels
    source: Source
    ports: tuple[tuple[str, int, int], ...] = ()
    unknown: Unknown | None = None
    sure: bool = True
    marks: Marks = NO_MARKS
    size: int = 0

    @property
    def labels(self) -> Labels:
        """All of them."""
        return Effective(self.own, self.source.labels)

    @property
    def doubtful(self) -> bool:
        """Whether something of it cannot be told."""
        return self.unknown is not None or not self.sure


@dataclass(eq=False, slots=True)
class _Reading:
    """One reading of a selector in use; `anchor` says by which label it is found, and with which values."""

    mark: int
    selector: Selector
    possibly: bool
    anchor: tuple[str, frozenset[str] | None] | None
    uses: int = 0

    def holds(self, group: Group) -> bool:
        if group.unknown is None:
            return (self.possibly or group.sure) and self.selector.matches(group.labels)
        surely, perhaps = readings(self.selector, group.labels, group.unknown)
        return perhaps if self.possibly else surely and group.sure


class LabelIndex:
    """Groups and readings of selectors, each knowing the others that it meets. `touched`: groups with other marks."""

    def __init__(self) -> None:
        self.groups: set[Group] = set()
        self.touched: set[Group] = set()
        self.doubtful: set[Group] = set()
        self._sources: set[Source] = set()
        self._inherit: dict[str, dict[str, set[Source]]] = defaultdict(lambda: defaultdict(set))
        self._own: dict[str, dict[str, set[Group]]] = defaultdict(lambda: defaultdict(set))
        self._readings: dict[tuple[str, bool], _Reading] = {}
        self._anchored: dict[str, dict[str | None, dict[int, _Reading]]] = defaultdict(lambda: defaultdict(dict))
        self._free: dict[int, _Reading] = {}
        self._next = 0
        self._shared: dict[Marks, Marks] = {}

    def mark(self, selector: Selector, *, possibly: bool = False) -> int:
        """The mark of a reading in use. Raises KeyError when it is not."""
        return self._readings[selector.canonical, possibly].mark

    def use(self, selector: Selector, *, possibly: bool = False) -> int:
        """Mark what `selector` matches, until it is as often dropped."""
        name = (selector.canonical, possibly)
        found = self._readings.get(name)
        if found is None:
            self._next += 1
            found = self._readings[name] = _Reading(self._next, selector, possibly, self._anchor(selector))
            for place in self._places(found):
                place[found.mark] = found
            for group in [group for group in self._candidates(selector) if found.holds(group)]:
                self._set(group, group.marks | {found.mark})
        found.uses += 1
        return found.mark

    def drop(self, selector: Selector, *, possibly: bool = False) -> None:
        """Undo one `use`."""
        name = (selector.canonical, possibly)
        found = self._readings[name]
        found.uses -= 1
        if not found.uses:
            del self._readings[name]
            self._unplace(found)
            for group in [group for group in self._candidates(selector) if found.mark in group.marks]:
                self._set(group, group.marks - {found.mark})

    def add(self, group: Group) -> None:
        """A new group; its marks are found."""
        self.groups.add(group)
        if group.doubtful:
            self.doubtful.add(group)
        if group.source not in self._sources:
            self._sources.add(group.source)
            for key, value in group.source.labels.items():
                self._inherit[key][value].add(group.source)
        group.source.groups.add(group)
        for key, value in group.own.items():
            self._own[key][value].add(group)
        asked = self._readings.values() if group.unknown is not None else self._led_to(group)
        self._set(group, NO_MARKS.union([each.mark for each in asked if each.holds(group)]))

    def remove(self, group: Group) -> None:
        """Forget a group."""
        self.groups.discard(group)
        self.touched.discard(group)
        self.doubtful.discard(group)
        group.source.groups.discard(group)
        if not group.source.groups:
            self._sources.discard(group.source)
            for key, value in group.source.labels.items():
                _discard(self._inherit, key, value, group.source)
        for key, value in group.own.items():
            _discard(self._own, key, value, group)

    def _set(self, group: Group, marks: Marks) -> None:
        if marks != group.marks:
            if len(self._shared) > 2 * len(self.groups) + 1000:
                self._shared = {each.marks: each.marks for each in self.groups}
            group.marks = self._shared.setdefault(marks, marks)
            self.touched.add(group)

    def _anchor(self, selector: Selector) -> tuple[str, frozenset[str] | None] | None:
        """The required label that the fewest others are anchored at."""
        best, size = None, 0
        for label, values in selector.requirements().items():
            others = self._anchored.get(label, {})
            count = sum(len(others.get(value, ())) for value in ((None,) if values is None else values))
            if best is None or count < size:
                best, size = (label, values), count
        return best

    def _places(self, reading: _Reading) -> Iterable[dict[int, _Reading]]:
        if reading.anchor is None:
            return (self._free,)
        label, values = reading.anchor
        return [self._anchored[label][value] for value in ((None,) if values is None else values)]

    def _unplace(self, reading: _Reading) -> None:
        for place in self._places(reading):
            del place[reading.mark]
        label, values = reading.anchor or ("", frozenset())
        held = self._anchored.get(label, {})
        for value in [value for value in ((None,) if values is None else values) if not held.get(value)]:
            held.pop(value, None)
        if not held:
            self._anchored.pop(label, None)

    def _led_to(self, group: Group) -> list[_Reading]:
        found = list(self._free.values())
        for key, value in chain(group.own.items(), group.source.labels.items()):
            anchored = self._anchored.get(key)
            if anchored:
                found += chain(anchored.get(value, {}).values(), anchored.get(None, {}).values())
        return found

    def _candidates(self, selector: Selector) -> Iterable[Group]:
        """The groups that the most telling required label leads to; everything when no label is sure."""
        best: list[set[Group]] | None = None
        size = 0
        for label, values in selector.requirements().items():
            own, inherit = self._own.get(label, {}), self._inherit.get(label, {})
            sources = set(chain.from_iterable(_with(inherit, values)))
            if best is not None and len(sources) >= size:
                continue  # no source is without groups
            found = [*_with(own, values), *(source.groups for source in sources)]
            total = sum(map(len, found))
            if best is None or total < size:
                best, size = found, total
            if size <= FEW:
                break
        if best is None:
            return self.groups
        return set(chain(self.doubtful, *best))


def _with(table: Mapping[str, set[_T]], values: frozenset[str] | None) -> Iterable[set[_T]]:
    return table.values() if values is None else [table[value] for value in values if value in table]


def _discard(table: dict[str, dict[str, set[_T]]], key: str, value: str, thing: _T) -> None:
    held = table[key][value]
    held.discard(thing)
    if not held:
        del table[key][value]
        if not table[key]:
            del table[key]


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
