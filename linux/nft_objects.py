"""An nftables table as a flat mapping, so that it can be compared and changed object by object.

    ChainName(name)  ->  ChainBody     the hook, a digest of the rules, how many they are
    SetName(name)    ->  Set           of core.nftables
    CounterName(name) -> ""            a counter object; what it has counted is no part of what it is
    Element(set,key) ->  str           a map element's value: a verdict, a mark, a counter's name; "" in a plain set

Rules do not survive a round trip through nft as text, so a chain is known by a digest that every one of its rules
carries in its comment. The digest covers the rules and the types of the sets they name: when a set must be made anew,
each chain that uses it is different too, and so is rewritten in the same transaction.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from core.nftables import Chain, Element, Hook, Ruleset, Set

_SET_NAMED: Final = re.compile(r"@([A-Za-z0-9_.\-/]+)")
_COMMENTED: Final = re.compile(r'(.*?) *comment "([^"]*)"\s*', re.DOTALL)
_TAG: Final = re.compile(r"(?:^| )muslin:([0-9a-f]{12})$")
_COMMENT_BYTES: Final = 120  # nft takes 128 with the terminator


@dataclass(frozen=True, slots=True, order=True)
class ChainName:
    """The name of a chain."""

    name: str


@dataclass(frozen=True, slots=True, order=True)
class SetName:
    """The name of a set or map."""

    name: str


@dataclass(frozen=True, slots=True, order=True)
class CounterName:
    """The name of a counter object."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBody:
    """A chain by what it can be recognised by. `rules` is the text to write; unknown ("") of a chain that was read."""

    hook: Hook | None
    count: int
    digest: str
    rules: tuple[str, ...] = field(default=(), compare=False, repr=False)


Object: TypeAlias = ChainName | SetName | CounterName | Element
Value: TypeAlias = ChainBody | Set | str

FOREIGN: Final = "foreign"
"""The digest of a chain whose rules are not, or not all, what we wrote; equal to no other."""


def flatten(ruleset: Ruleset, sets: Mapping[str, Set] | None = None) -> Mapping[Object, Value]:
    """The whole table as one mapping: what `NftDriver` is given as desired, and reads.

    Of a part of a table, with `sets` those of the whole (`linux.nft_parts`).
    """
    if not (ruleset.sets or ruleset.chains or ruleset.counters):
        return cast("Mapping[Object, Value]", ruleset.elements)  # the large parts are only these: no second copy
    flat: dict[Object, Value] = {SetName(name): each for name, each in ruleset.sets.items()}
    flat |= {CounterName(name): "" for name in ruleset.counters}
    for name, chain in ruleset.chains.items():
        flat[ChainName(name)] = body(chain, ruleset.sets if sets is None else sets)
    flat |= {element: value for element, value in ruleset.elements.items()}  # noqa: C416 - dict() keeps the key's type
    return flat


def body(chain: Chain, sets: Mapping[str, Set]) -> ChainBody:
    """A chain to write. `sets` are those of its table."""
    if not chain.rules:
        return ChainBody(hook=chain.hook, count=0, digest="")
    hashed = hashlib.sha256()
    for rule in chain.rules:
        hashed.update(rule.encode() + b"\n")
        for name in _SET_NAMED.findall(rule):
            hashed.update(repr(sets.get(name)).encode())
    return ChainBody(hook=chain.hook, count=len(chain.rules), digest=hashed.hexdigest()[:12], rules=chain.rules)


def sets_named(chains: Iterable[Chain]) -> frozenset[str]:
    """The names of the sets that rules of these chains ask."""
    return frozenset(name for chain in chains for rule in chain.rules for name in _SET_NAMED.findall(rule))


def tagged(rule: str, digest: str) -> str:
    """`rule` with the digest at the end of its comment, its own comment kept in front."""
    tag = f"muslin:{digest}"
    own = _COMMENTED.fullmatch(rule)
    if own is None:
        return f'{rule} comment "{tag}"'
    said = own[2].encode()[: _COMMENT_BYTES - len(tag)].decode(errors="ignore")
    return f'{own[1]} comment "{said} {tag}"'


def digest_of(comments: list[str]) -> str:
    """The digest that all of a chain's rules agree on, by their comments; "" for no rules, `FOREIGN` if they do not."""
    if not comments:
        return ""
    found = [_TAG.search(comment) for comment in comments]
    digests = {match[1] if match else FOREIGN for match in found}
    return digests.pop() if len(digests) == 1 else FOREIGN
