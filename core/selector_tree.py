"""The tree of a label selector: frozen nodes, asked with labels; each knows its canonical text (`core.selector`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

Labels: TypeAlias = Mapping[str, str]

Requirements: TypeAlias = Mapping[str, frozenset[str] | None]
"""Label to the values one of which it must have; None: it must be there with any value."""


class Node(Protocol):
    """One node of the tree."""

    def matches(self, labels: Labels) -> bool:
        """Whether `labels` satisfy it."""

    def requirements(self) -> Requirements:
        """What any labels that match must have; empty when nothing is sure."""

    def __str__(self) -> str:
        """Canonical text."""


@dataclass(frozen=True, slots=True)
class All:
    """`all()`: everything."""

    def matches(self, labels: Labels) -> bool:
        return True

    def requirements(self) -> Requirements:
        return {}

    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class Global:
    """`global()`: as a test, everything. A rule's namespaceSelector reads it as "has no namespace"."""

    def matches(self, labels: Labels) -> bool:
        return True

    def requirements(self) -> Requirements:
        return {}

    def __str__(self) -> str:
        return "global()"


@dataclass(frozen=True, slots=True)
class Has:
    """`has(label)`."""

    label: str

    def matches(self, labels: Labels) -> bool:
        return self.label in labels

    def requirements(self) -> Requirements:
        return {self.label: None}

    def __str__(self) -> str:
        return f"has({self.label})"


_COMPARE: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "==": str.__eq__,
    "!=": str.__ne__,
    "contains": str.__contains__,
    "starts with": str.startswith,
    "ends with": str.endswith,
}


@dataclass(frozen=True, slots=True)
class Compare:
    """`label OPERATOR "value"`, the operator spelt as the canonical text has it."""

    label: str
    operator: str
    value: str

    def matches(self, labels: Labels) -> bool:
        found = labels.get(self.label)
        if found is None:
            return self.operator == "!="
        return _COMPARE[self.operator](found, self.value)

    def requirements(self) -> Requirements:
        if self.operator == "!=":
            return {}
        return {self.label: frozenset({self.value}) if self.operator == "==" else None}

    def __str__(self) -> str:
        return f"{self.label} {self.operator} {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """`label in {...}`, or `not in`."""

    label: str
    values: frozenset[str]
    negated: bool = False

    def matches(self, labels: Labels) -> bool:
        return (labels.get(self.label) in self.values) is not self.negated

    def requirements(self) -> Requirements:
        return {} if self.negated else {self.label: self.values}

    def __str__(self) -> str:
        values = ", ".join(_quoted(value) for value in sorted(self.values))
        return f"{self.label} {'not in' if self.negated else 'in'} {{{values}}}"


@dataclass(frozen=True, slots=True)
class Not:
    """`!term`."""

    term: Node

    def matches(self, labels: Labels) -> bool:
        return not self.term.matches(labels)

    def requirements(self) -> Requirements:
        return {}

    def __str__(self) -> str:
        return f"!{self.term}"


@dataclass(frozen=True, slots=True)
class And:
    """`(term && term ...)`."""

    terms: tuple[Node, ...]

    def matches(self, labels: Labels) -> bool:
        return all(term.matches(labels) for term in self.terms)

    def requirements(self) -> Requirements:
        sure: dict[str, frozenset[str] | None] = {}
        for term in self.terms:
            for label, values in term.requirements().items():
                before = sure.get(label)
                sure[label] = values if before is None else before if values is None else before & values
        return sure

    def __str__(self) -> str:
        return f"({' && '.join(map(str, self.terms))})"


@dataclass(frozen=True, slots=True)
class Or:
    """`(term || term ...)`."""

    terms: tuple[Node, ...]

    def matches(self, labels: Labels) -> bool:
        return any(term.matches(labels) for term in self.terms)

    def requirements(self) -> Requirements:
        first, *others = (term.requirements() for term in self.terms)
        sure = dict(first)
        for other in others:
            for label in list(sure):
                if label not in other:
                    del sure[label]
                    continue
                before, values = sure[label], other[label]
                sure[label] = None if before is None or values is None else before | values
        return sure

    def __str__(self) -> str:
        return f"({' || '.join(map(str, self.terms))})"


def _quoted(value: str) -> str:
    quote = "'" if '"' in value else '"'
    if quote in value:
        raise ValueError(f"{value!r} holds both kinds of quotes and cannot stand in a selector")
    return f"{quote}{value}{quote}"
