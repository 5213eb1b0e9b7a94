"""Label selectors, Calico's grammar: text to a frozen tree, asked with labels.

    or      := and { "||" and }
    and     := term { "&&" term }
    term    := { "!" } ( "(" or ")" | test )
    test    := "all()" | "global()" | "has(" LABEL ")"
             | LABEL ( "==" | "!=" | "contains" | "starts with" | "ends with" ) STRING
             | LABEL ( "in" | "not in" ) "{" [ STRING { "," STRING } [","] ] "}"
    LABEL   := one or more of A-Z a-z 0-9 _ . / -
    STRING  := '...' or "..." without escapes; the other quote may stand inside

White space is space and tab. A word is an operator only where an operator can stand: `in in {'x'}` asks the label
`in`. A label that is absent fails every test but `!=` and `not in`. The blank selector is `all()`.

A selector is its canonical text: two that differ in spacing, quotes, needless parentheses or the order of a set are
equal, and so share whatever is built for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from core.errors import Invalid, Problem
from core.selector_tree import All, And, Compare, Global, Has, In, Labels, Node, Not, Or, Requirements

__all__ = [
    "DEEPEST",
    "MOST_CHARACTERS",
    "All",
    "And",
    "Compare",
    "Global",
    "Has",
    "In",
    "Labels",
    "Node",
    "Not",
    "Or",
    "Requirements",
    "Selector",
    "SelectorError",
    "conjunction",
    "everything",
    "parse",
    "rewrite",
]

MOST_CHARACTERS: Final = 1024
"""Longest selector a manifest may hold. `parse` itself also reads the longer ones that rewriting makes."""

MOST_LABEL_CHARACTERS: Final = 512

DEEPEST: Final = 100
"""Most parentheses inside one another; more is refused, so that no selector can exhaust the stack."""

LABEL_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-")


class SelectorError(Invalid, ValueError):
    """A selector does not parse; says at which column (from 1) and why."""


@dataclass(frozen=True, eq=False)
class Selector:
    """A parsed selector. Equal, and equal in hash, to every other with the same canonical text."""

    root: Node

    @cached_property
    def canonical(self) -> str:
        """Re-rendered text, which parses to an equal selector."""
        return str(self.root)

    def matches(self, labels: Labels) -> bool:
        """Whether a thing with these labels is selected."""
        return self.root.matches(labels)

    def requirements(self) -> Requirements:
        """Labels that whatever matches must have: what an index may look up instead of asking everything.

        Only what is sure is in it; a label with no values left means that nothing can match.
        """
        return self.root.requirements()

    @property
    def everything(self) -> bool:
        """Whether this is plain `all()`."""
        return isinstance(self.root, All)

    def __and__(self, other: Selector) -> Selector:
        """Both."""
        return conjunction((self, other))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __str__(self) -> str:
        return self.canonical


def everything() -> Selector:
    """The selector of every thing: `all()`."""
    return _EVERYTHING


def conjunction(selectors: Iterable[Selector]) -> Selector:
    """What all of `selectors` match; `all()` when there are none."""
    terms: list[Node] = []
    for selector in selectors:
        terms.extend(selector.root.terms if isinstance(selector.root, And) else (selector.root,))
    kept = tuple(dict.fromkeys(term for term in terms if not isinstance(term, All)))
    return Selector(_joined(And, kept)) if kept else _EVERYTHING


def rewrite(selector: Selector, change: Callable[[Node], Node]) -> Selector:
    """The selector with every test (`all()`, `has()`, a comparison...) replaced by `change` of it."""
    return Selector(_rewritten(selector.root, change))


@lru_cache(maxsize=16384)
def parse(text: str) -> Selector:
    """The selector that `text` spells, remembered for the next time. Raises `SelectorError`."""
    return Selector(_Parser(text).whole())


_EVERYTHING: Final = Selector(All())


def _joined(kind: type[And] | type[Or], terms: tuple[Node, ...]) -> Node:
    return terms[0] if len(terms) == 1 else kind(terms)


def _rewritten(node: Node, change: Callable[[Node], Node]) -> Node:
    if isinstance(node, Not):
        return Not(_rewritten(node.term, change))
    if isinstance(node, And | Or):
        return type(node)(tuple(_rewritten(term, change) for term in node.terms))
    return change(node)


class _Parser:
    """Recursive descent over the characters; every step moves forward, so time grows with length only."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        self._space()
        if self._at == len(self._text):
            return All()
        node = self._or()
        if self._at < len(self._text):
            raise self._error("expected && or || or the end")
        return node

    def _or(self) -> Node:
        terms = [self._and()]
        while self._take("||"):
            terms.append(self._and())
        return _joined(Or, tuple(terms))

    def _and(self) -> Node:
        terms = [self._term()]
        while self._take("&&"):
            terms.append(self._term())
        return _joined(And, tuple(terms))

    def _term(self) -> Node:
        negated = False
        while self._take("!"):
            negated = not negated
        if self._take("("):
            self._depth += 1
            if self._depth > DEEPEST:
                raise self._error(f"more than {DEEPEST} parentheses inside one another")
            node = self._or()
            if not self._take(")"):
                raise self._error("expected && or || or the closing parenthesis")
            self._depth -= 1
        else:
            node = self._test()
        if not negated:
            return node
        return node.term if isinstance(node, Not) else Not(node)

    def _test(self) -> Node:
        start = self._at
        label = self._word()
        if not label:
            raise self._error("expected a label, has(...), all() or a parenthesis")
        if self._text.startswith("(", self._at):
            return self._call(label, start)
        if len(label) > MOST_LABEL_CHARACTERS:
            self._at = start
            raise self._error(f"a label of {len(label)} characters; at most {MOST_LABEL_CHARACTERS}")
        self._space()
        operator = self._operator(label)
        if operator in ("in", "not in"):
            return In(label, self._set(), negated=operator == "not in")
        return Compare(label, operator, self._string())

    def _call(self, name: str, start: int) -> Node:
        if name not in ("has", "all", "global"):
            self._at = start
            raise self._error(f"no function {name}(); there are has(label), all() and global()")
        self._take("(")
        label = self._word() if name == "has" else ""
        if name == "has" and not label:
            raise self._error("has() needs a label, without quotes")
        if len(label) > MOST_LABEL_CHARACTERS:
            raise self._error(f"a label of {len(label)} characters; at most {MOST_LABEL_CHARACTERS}")
        self._space()
        if not self._take(")"):
            raise self._error(f"expected the closing parenthesis of {name}(")
        return Has(label) if name == "has" else All() if name == "all" else Global()

    def _operator(self, label: str) -> str:
        for symbol in ("==", "!="):
            if self._take(symbol):
                return symbol
        start = self._at
        word = self._word()
        self._space()
        if word in ("contains", "in"):
            return word
        if word in ("startswith", "endswith", "notin"):
            return {"startswith": "starts with", "endswith": "ends with", "notin": "not in"}[word]
        second = {"starts": "with", "ends": "with", "not": "in"}.get(word)
        if second and self._word() == second:
            self._space()
            return f"{word} {second}"
        self._at = start
        hint = '; did you mean "=="?' if self._text.startswith("=", start) else ""
        raise self._error(f"expected an operator after label {label}{hint}")

    def _string(self) -> str:
        quote = self._text[self._at : self._at + 1]
        if quote not in ("'", '"'):
            raise self._error("expected a value in quotes")
        end = self._text.find(quote, self._at + 1)
        if end < 0:
            raise self._error("this quote is never closed")
        value = self._text[self._at + 1 : end]
        self._at = end + 1
        self._space()
        return value

    def _set(self) -> frozenset[str]:
        if not self._take("{"):
            raise self._error("expected a set of values such as {'a', 'b'}")
        values: list[str] = []
        while not self._take("}"):
            if values and not self._take(","):
                raise self._error("expected a comma or the closing brace")
            if values and self._take("}"):
                break
            values.append(self._string())
        return frozenset(values)

    def _word(self) -> str:
        """The longest run of label characters here, maybe none."""
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in LABEL_CHARACTERS:
            self._at += 1
        return self._text[start : self._at]

    def _take(self, symbol: str) -> bool:
        """Step over `symbol` and the space after it, if it stands here."""
        if not self._text.startswith(symbol, self._at):
            return False
        self._at += len(symbol)
        self._space()
        return True

    def _space(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _error(self, why: str) -> SelectorError:
        rest = self._text[self._at : self._at + 12]
        found = f"found {rest!r}" if rest else "found the end"
        return SelectorError([Problem(why=f"selector, column {self._at + 1}: {why}; {found}")])
