"""BGPFilter: which routes a session takes and tells, and what it changes in them. Pure.

    rules of a family and direction, in order ── first that matches ──> Accept, with its operations | Reject
    none matches ──> the next filter of the session ──> nobody says anything: what the caller does by default

All that a rule sets must match; a rule that sets nothing matches everything (calico.md 1.4, BGPFilter). A filter that
cannot be carried out to the letter is refused whole: part of a filter is open where somebody asked for closed.

A session may ask for each of 100,000 routes, so rules hold bytes and numbers, and paths that are changed alike stay
one value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from bgp.paths.priority import MAX_PRIORITY, local_pref, priority
from core import values
from core.addr import Network
from core.resources.bgp import BGPFilter, BGPFilterRule, FilterOperation, PrefixLength

if TYPE_CHECKING:
    from bgp.attributes import Path

MOST_OPERATIONS: Final = 10
MOST_PREPENDED: Final = 10


class Action(StrEnum):
    """What a rule does with a route."""

    ACCEPT = "Accept"
    REJECT = "Reject"


class Direction(StrEnum):
    """Whether a route is taken from a peer or told to it."""

    IMPORT = "import"
    EXPORT = "export"


@dataclass(frozen=True, slots=True)
class Within:
    """Prefixes with a first address from `first` to `last`, as packed bytes, and a length from `shortest` to
    `longest`; the others when `inverted`."""

    first: bytes
    last: bytes
    shortest: int
    longest: int
    inverted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """What an accepting rule changes; None and empty leave things alone."""

    communities: tuple[str, ...] = ()
    prepend: tuple[int, ...] = ()
    priority: int | None = None
    local_pref: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. `name` is where it stands; what is None or empty matches everything."""

    name: str
    action: Action
    within: Within | None = None
    learnt: bool = False
    device: re.Pattern[str] | None = None
    internal: bool | None = None
    community: str = ""
    as_path: tuple[int, ...] = ()
    priority: int | None = None
    operations: Operations | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A BGPFilter, checked and ready to be asked."""

    name: str
    import_v4: tuple[Rule, ...] = ()
    export_v4: tuple[Rule, ...] = ()
    import_v6: tuple[Rule, ...] = ()
    export_v6: tuple[Rule, ...] = ()

    def rules(self, direction: Direction, version: int) -> tuple[Rule, ...]:
        """The rules for one direction and IP version."""
        if direction is Direction.IMPORT:
            return self.import_v4 if version == 4 else self.import_v6
        return self.export_v4 if version == 4 else self.export_v6


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a rule may ask of a route beside its path.

    `internal`: the session asked for is iBGP. `learnt`: a peer told us, it is not our own. `heard_internal`: that
    peer is one of iBGP, or the route is our own; it says how the path's local preference reads as a priority.
    `device` is the link the route goes through, "" when it goes through none or none is known.
    """

    internal: bool
    learnt: bool = True
    heard_internal: bool = False
    device: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a session's filters say of a route. `action` None: nothing. `path` is the route's, changed where the rule
    changes it. `reason` names the filter and the rule."""

    action: Action | None
    path: Path
    reason: str = ""


def judge(filters: Sequence[Filter], direction: Direction, prefix: Network, path: Path, context: Context) -> Judgement:
    """Ask `filters` in order about a route.

    Import: `path` as heard. Export: as we have it, before our own AS number is put before it.
    """
    return decide(filters, direction, prefix.network_address.packed, prefix.prefixlen, path, context)


def decide(
    filters: Sequence[Filter], direction: Direction, packed: bytes, length: int, path: Path, context: Context
) -> Judgement:
    """`judge` for a prefix given by its address, as 4 or 16 bytes, and its length."""
    version = 4 if len(packed) == 4 else 6
    for each in filters:
        for rule in each.rules(direction, version):
            if _inside(rule.within, packed, length) and _matches(rule, path, context):
                if rule.operations is not None:
                    path = _changed(rule.operations, path, context.internal)
                return Judgement(rule.action, path, rule.name)
    return Judgement(None, path)


def _inside(within: Within | None, packed: bytes, length: int) -> bool:
    if within is None:
        return True
    inside = within.first <= packed <= within.last and within.shortest <= length <= within.longest
    return inside is not within.inverted


def _matches(rule: Rule, path: Path, context: Context) -> bool:
    if rule.internal is not None and rule.internal is not context.internal:
        return False
    if rule.learnt and not context.learnt:
        return False
    if rule.device is not None and not (context.device and rule.device.fullmatch(context.device)):
        return False
    if rule.community and rule.community not in path.communities:
        return False
    if rule.as_path and path.as_path[: len(rule.as_path)] != rule.as_path:
        return False
    return rule.priority is None or rule.priority == priority(path.local_pref, internal=context.heard_internal)


@lru_cache(maxsize=4096)
def _changed(operations: Operations, path: Path, internal: bool) -> Path:
    added = tuple(each for each in operations.communities if each not in path.communities)
    preference = path.local_pref if operations.local_pref is None else operations.local_pref
    if operations.priority is not None:
        preference = local_pref(operations.priority, internal=internal)
    return replace(
        path,
        communities=path.communities + added,
        as_path=operations.prepend + path.as_path,
        as_path_length=path.as_path_length + len(operations.prepend),
        local_pref=preference,
    )


def compiled(resource: BGPFilter) -> Filter:
    """The filter a manifest asks for. Raises `ValueError`, naming the field, when some of it cannot be carried out."""
    name, spec = resource.metadata.name, resource.spec

    def table(field: str, rules: list[BGPFilterRule], version: int) -> tuple[Rule, ...]:
        return tuple(_rule(f"BGPFilter/{name}", f"{field}[{i}]", rule, version) for i, rule in enumerate(rules))

    return Filter(
        name=name,
        import_v4=table("importV4", spec.import_v4, 4),
        export_v4=table("exportV4", spec.export_v4, 4),
        import_v6=table("importV6", spec.import_v6, 6),
        export_v6=table("exportV6", spec.export_v6, 6),
    )


def _rule(owner: str, where: str, rule: BGPFilterRule, version: int) -> Rule:
    field = f"spec.{where}"
    action = _one_of(f"{field}.action", rule.action, {each.value: each for each in Action})
    if action is Action.REJECT and rule.operations:
        raise ValueError(f"{field}.operations: only an accepting rule changes anything")
    source = _one_of(f"{field}.source", rule.source, {"": False, "RemotePeers": True})
    kind = _one_of(f"{field}.peerType", rule.peer_type or "", {"": None, "iBGP": True, "eBGP": False})
    wanted = rule.communities.values if rule.communities else []
    if rule.communities and len(wanted) != 1:
        raise ValueError(f"{field}.communities.values: exactly one is wanted, not {len(wanted)}")
    as_path = f"{field}.asPathPrefix"
    return Rule(
        name=f"{owner} {where}",
        action=action,
        within=_within(field, rule, version),
        learnt=source,
        device=_glob(rule.interface) if rule.interface else None,
        internal=kind,
        community=_community(f"{field}.communities.values[0]", wanted[0]) if wanted else "",
        as_path=tuple(_read(f"{as_path}[{i}]", values.as_number, n) for i, n in enumerate(rule.as_path_prefix)),
        priority=None if rule.priority is None else _priority(f"{field}.priority", rule.priority),
        operations=_operations(f"{field}.operations", rule.operations),
    )


def _within(field: str, rule: BGPFilterRule, version: int) -> Within | None:
    if not rule.cidr and not rule.match_operator and rule.prefix_length is None:
        return None
    if not rule.cidr or not rule.match_operator:
        missing = "matchOperator" if rule.cidr else "cidr"
        raise ValueError(f"{field}.{missing}: cidr and matchOperator go together, and prefixLength needs both")
    network = _read(f"{field}.cidr", lambda text: values.network(text, version), rule.cidr)
    kinds = {"Equal": (True, False), "NotEqual": (True, True), "In": (False, False), "NotIn": (False, True)}
    exact, inverted = _one_of(f"{field}.matchOperator", rule.match_operator, kinds)
    first, last = network.network_address.packed, network.broadcast_address.packed
    if exact and rule.prefix_length is not None:
        raise ValueError(
            f"{field}.prefixLength: it bounds In and NotIn; {rule.match_operator} has the cidr's own length"
        )
    if exact:
        return Within(first, first, network.prefixlen, network.prefixlen, inverted)
    shortest, longest = _lengths(f"{field}.prefixLength", rule.prefix_length, network.max_prefixlen)
    if longest < network.prefixlen:
        raise ValueError(f"{field}.prefixLength.max: nothing inside {network} is as short as /{longest}")
    return Within(first, last, max(network.prefixlen, shortest), longest, inverted)


def _lengths(field: str, bounds: PrefixLength | None, most: int) -> tuple[int, int]:
    if bounds is None:
        return 0, most
    shortest = 0 if bounds.min is None else bounds.min
    longest = most if bounds.max is None else bounds.max
    if not 0 <= shortest <= longest <= most:
        raise ValueError(f"{field}: min and max are within 0 to {most}, and min is not above max")
    return shortest, longest


def _operations(field: str, given: list[FilterOperation]) -> Operations | None:
    """All operations as one change: later ones of a kind go on from the earlier."""
    if len(given) > MOST_OPERATIONS:
        raise ValueError(f"{field}: at most {MOST_OPERATIONS}, not {len(given)}")
    found = Operations()
    for index, each in enumerate(given):
        found = _and_then(f"{field}[{index}]", found, each)
    return found if given else None


def _and_then(field: str, before: Operations, each: FilterOperation) -> Operations:
    changes = [each.add_community, each.prepend_as_path, each.set_priority, each.set_local_preference]
    if sum(change is not None for change in changes) != 1:
        raise ValueError(f"{field}: exactly one of addCommunity, prependASPath, setPriority, setLocalPreference")
    if each.add_community:
        value = _community(f"{field}.addCommunity.value", each.add_community.value)
        return replace(before, communities=tuple(dict.fromkeys((*before.communities, value))))
    if each.prepend_as_path:
        prefix = tuple(_prepended(f"{field}.prependASPath.prefix", each.prepend_as_path.prefix))
        return replace(before, prepend=prefix + before.prepend)
    if each.set_priority:
        value_set = _priority(f"{field}.setPriority.value", each.set_priority.value)
        return replace(before, priority=value_set, local_pref=None)
    preference = each.set_local_preference.value if each.set_local_preference else 0
    if not 0 <= preference < 1 << 32:
        raise ValueError(f"{field}.setLocalPreference.value: {preference} is not within 0 to 4294967295")
    return replace(before, local_pref=preference, priority=None)


def _prepended(field: str, numbers: list[int | str]) -> Iterator[int]:
    if not 1 <= len(numbers) <= MOST_PREPENDED:
        raise ValueError(f"{field}: 1 to {MOST_PREPENDED} AS numbers, not {len(numbers)}")
    for index, given in enumerate(numbers):
        number = _read(f"{field}[{index}]", values.as_number, given)
        if number == 0:
            raise ValueError(f"{field}[{index}]: AS 0 must not be told (RFC 7607)")
        yield number


def _priority(field: str, value: int) -> int:
    if not 1 <= value <= MAX_PRIORITY:
        raise ValueError(f"{field}: {value} is not within 1 to {MAX_PRIORITY}")
    return value


def _community(field: str, text: str) -> str:
    return ":".join(map(str, _read(field, values.community, text)))


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` is any text, `?` any character, as in BIRD; everything else is itself."""
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


T = TypeVar("T")
G = TypeVar("G")


def _one_of(field: str, given: str, choices: dict[str, T]) -> T:
    if given not in choices:
        raise ValueError(f"{field}: {given!r} is none of {', '.join(filter(None, choices))}")
    return choices[given]


def _read(field: str, read: Callable[[G], T], given: G) -> T:
    try:
        return read(given)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
