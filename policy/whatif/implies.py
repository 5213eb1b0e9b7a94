"""Does one match, or one selector, hold wherever another does? Answered yes only where that is sure.

`implies(inner, outer)`: whatever `inner` matches, `outer` matches too. It looks at what is written, part by part, so a
no may be wrong (two prefixes that together cover a third, two tests that exclude each other); a yes never is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import collapse_addresses

from core.addr import Network, contains
from core.selector import All, And, Compare, Has, In, Node, Not, Or, Selector
from policy.model import ICMPMatch, Match, Peer, Ports, Side
from policy.ranges import less


def matches(inner: Match, outer: Match) -> bool:
    """Whether every packet that `inner` matches is one that `outer` matches."""
    return (
        outer.family in (None, inner.family)
        and outer.protocol in (None, inner.protocol)
        and _not_protocol(inner, outer.not_protocol)
        and _icmp(inner.icmp, outer.icmp)
        and _not_icmp(inner, outer.not_icmp)
        and _side(inner.source, outer.source)
        and _side(inner.destination, outer.destination)
    )


def _not_protocol(inner: Match, unwanted: int | None) -> bool:
    if unwanted is None or inner.not_protocol == unwanted:
        return True
    return inner.protocol is not None and inner.protocol != unwanted


def _icmp(inner: ICMPMatch | None, outer: ICMPMatch | None) -> bool:
    if outer is None:
        return True
    return inner is not None and inner.type == outer.type and outer.code in (None, inner.code)


def _not_icmp(inner: Match, unwanted: ICMPMatch | None) -> bool:
    """Whether all that `inner` matches avoids `unwanted`."""
    if unwanted is None:
        return True
    if inner.not_icmp is not None and _icmp(unwanted, inner.not_icmp):
        return True
    given = inner.icmp
    if given is None:
        return False
    return given.type != unwanted.type or (None not in (given.code, unwanted.code) and given.code != unwanted.code)


def _side(inner: Side, outer: Side) -> bool:
    return _peer(inner.peer, outer.peer) and _ports(inner, outer.ports) and _not_ports(inner, outer.not_ports)


def _ports(inner: Side, outer: Ports | None) -> bool:
    if outer is None:
        return True
    given = inner.ports
    return (
        given is not None and set(given.names) <= set(outer.names) and not less(given.ranges, outer.ranges)
    ) and _same_owner(given, inner)


def _same_owner(given: Ports, inner: Side) -> bool:
    """A name means the ports of whom the rule's selector matches: in two rules alike only where there is none."""
    return not given.names or inner.peer is None or inner.peer.selector is None


def _not_ports(inner: Side, unwanted: Ports | None) -> bool:
    if unwanted is None:
        return True
    if inner.not_ports is not None and set(unwanted.names) <= set(inner.not_ports.names):
        left = less(unwanted.ranges, inner.not_ports.ranges)
    elif unwanted.names:
        return False
    else:
        left = tuple(unwanted.ranges)
    if not left:
        return True
    given = inner.ports
    return given is not None and not given.names and less(given.ranges, left) == less(given.ranges, ())


def _peer(inner: Peer | None, outer: Peer | None) -> bool:
    if outer is None:
        return True
    if inner is None:
        return _anywhere(outer)
    if inner.text == outer.text and inner.possibly == outer.possibly:
        return True
    if inner.possibly or outer.possibly:
        return False
    return (
        (outer.selector is None or (inner.selector is not None and implies(inner.selector, outer.selector)))
        and _nets(inner.nets, outer.nets)
        and _not_selector(inner.not_selector, outer.not_selector)
        and _not_nets(inner, outer.not_nets)
    )


def _anywhere(outer: Peer) -> bool:
    """Whether a peer means every address: the prefixes of both families, whole, and nothing else asked."""
    if outer.selector is not None or outer.not_selector is not None or outer.not_nets:
        return False
    return outer.nets is None or {net.version for net in outer.nets if net.prefixlen == 0} == {4, 6}


def _nets(inner: Iterable[Network] | None, outer: tuple[Network, ...] | None) -> bool:
    if outer is None:
        return True
    if inner is None:
        return {net.version for net in outer if net.prefixlen == 0} == {4, 6}
    return all(any(contains(wide, net) for wide in whole(outer)) for net in inner)


@lru_cache(maxsize=4096)
def whole(nets: tuple[Network, ...]) -> tuple[Network, ...]:
    """Prefixes with neighbours joined."""
    found: list[Network] = []
    for family in (4, 6):
        found += collapse_addresses([net for net in nets if net.version == family])  # type: ignore[type-var]
    return tuple(found)


def _not_selector(inner: Selector | None, outer: Selector | None) -> bool:
    """Who avoids more avoids the rest: the other way about."""
    return outer is None or (inner is not None and implies(outer, inner))


def _not_nets(inner: Peer, unwanted: tuple[Network, ...]) -> bool:
    for net in unwanted:
        avoided = any(contains(wide, net) for wide in whole(inner.not_nets))
        apart = inner.nets is not None and not any(contains(net, n) or contains(n, net) for n in inner.nets)
        if not (avoided or apart):
            return False
    return True


def implies(inner: Selector, outer: Selector) -> bool:
    """Whether whatever `inner` selects, `outer` selects too."""
    return _implies(inner.root, outer.root)


def _implies(inner: Node, outer: Node) -> bool:
    if isinstance(outer, All) or str(inner) == str(outer):
        return True
    if isinstance(outer, And):
        return all(_implies(inner, term) for term in outer.terms)
    if isinstance(inner, Or):
        return all(_implies(term, outer) for term in inner.terms)
    if isinstance(inner, And) and any(_implies(term, outer) for term in inner.terms):
        return True
    if isinstance(outer, Or):
        return any(_implies(inner, term) for term in outer.terms)
    if isinstance(inner, Not) and isinstance(outer, Not):
        return _implies(outer.term, inner.term)
    return _test_implies(inner, outer)


def _test_implies(inner: Node, outer: Node) -> bool:
    """One test of a label and another: what values the label has, as far as `inner` says."""
    values = _values(inner)
    if values is None:
        return isinstance(outer, Has) and isinstance(inner, Compare) and _has(inner, outer.label)
    label, given = values
    return all(outer.matches({label: value}) for value in given) and _asks_only(outer, label) and bool(given)


def _values(node: Node) -> tuple[str, frozenset[str]] | None:
    """A label and the values one of which it must have."""
    if isinstance(node, Compare) and node.operator == "==":
        return node.label, frozenset({node.value})
    if isinstance(node, In) and not node.negated:
        return node.label, node.values
    return None


def _has(node: Compare, label: str) -> bool:
    return node.operator != "!=" and node.label == label


def _asks_only(node: Node, label: str) -> bool:
    """Whether it is a single test of this label."""
    if isinstance(node, Not):
        return _asks_only(node.term, label)
    return isinstance(node, Has | Compare | In) and node.label == label
