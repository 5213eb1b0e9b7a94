"""What `nft -n -j list table` says, in the spelling of core.nftables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Final

from core.nftables import Element, Hook, Set
from linux.nft_objects import FOREIGN, ChainBody, ChainName, CounterName, Object, SetName, Value, digest_of

_ADDRESSES: Final = frozenset({"ipv4_addr", "ipv6_addr"})
_BITS: Final = {"mark": 32, "inet_proto": 8, "inet_service": 16}
_FLAGS: Final = frozenset({"interval"})


def read_table(listed: Sequence[Mapping[str, Any]]) -> Mapping[Object, Value]:
    """The table's chains, sets and counters, and the elements that are listed, from the list under `nftables`."""
    found: dict[Object, Value] = {}
    comments: dict[str, list[str]] = {}
    for entry in listed:
        if "rule" in entry:
            comments.setdefault(entry["rule"]["chain"], []).append(entry["rule"].get("comment", ""))
    for entry in listed:
        if "chain" in entry:
            chain = entry["chain"]
            found[ChainName(chain["name"])] = _chain(chain, comments.get(chain["name"], []))
        elif "counter" in entry:
            found[CounterName(entry["counter"]["name"])] = ""
        elif "set" in entry or "map" in entry:
            described = entry.get("set") or entry["map"]
            name = described["name"]
            found[SetName(name)] = _set(described)
            for key, value in _elements(described):
                found[Element(name, key)] = value
    return found


def _chain(chain: Mapping[str, Any], comments: list[str]) -> ChainBody:
    hook = None
    digest = digest_of(comments)
    if "hook" in chain:
        hook = Hook(type=chain["type"], hook=chain["hook"], priority=chain["prio"])
        if chain.get("policy", "accept") != "accept":
            digest = FOREIGN
    return ChainBody(hook=hook, count=len(comments), digest=digest)


def _set(described: Mapping[str, Any]) -> Set:
    """A set's definition; one with features that we never ask for gets no key type, and so equals none of ours."""
    flags = frozenset(described.get("flags", ()))
    statements = [name for statement in described.get("stmt", ()) for name in statement]
    ours = flags <= _FLAGS and statements in ([], ["counter"]) and not described.get("timeout")
    return Set(
        key=_parts(described["type"]) if ours else (),
        value=" . ".join(_parts(described["map"])) if "map" in described else "",
        interval="interval" in flags,
        counter="counter" in statements,
    )


def _parts(described: str | Sequence[str]) -> tuple[str, ...]:
    return (described,) if isinstance(described, str) else tuple(described)


def _elements(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and value of each element; what it has counted is no part of it."""
    types = _parts(described["type"])
    value_types = _parts(described.get("map", ""))
    for item in described.get("elem", ()):
        key, value = item if isinstance(item, list) else (item, None)
        if isinstance(key, dict) and "elem" in key:
            key = key["elem"]["val"]
        yield _spell(types, key), "" if value is None else _value(value_types, value)


def _value(types: tuple[str, ...], value: Any) -> str:
    if types == ("verdict",):
        ((verb, target),) = value.items()
        return f"{verb} {target['target']}" if target else str(verb)
    if types == ("counter",):
        return str(value)
    return _spell(types, value)


def _spell(types: tuple[str, ...], key: Any) -> str:
    if isinstance(key, dict) and "concat" in key:
        return " . ".join(_part(kind, part) for kind, part in zip(types, key["concat"], strict=True))
    return _part(types[0], key)


def _part(kind: str, part: Any) -> str:
    if isinstance(part, dict):
        return _interval(kind, part)
    if kind in _ADDRESSES:
        return str(ip_address(part))
    return f'"{part}"' if kind == "ifname" else str(part)


def _interval(kind: str, part: Mapping[str, Any]) -> str:
    """A range or prefix. nft writes ranges of numbers as prefixes when they are aligned, and addresses either way."""
    if "range" in part:
        low, high = part["range"]
        if low == high:
            return _part(kind, low)
        if kind in _ADDRESSES:
            return _address_range(low, high)
        return f"{low}-{high}"
    base, length = part["prefix"]["addr"], part["prefix"]["len"]
    if kind in _ADDRESSES:
        network = ip_network((base, length))
        return str(network.network_address) if length == network.max_prefixlen else str(network)
    width = _BITS[kind] - length
    return f"{base}-{base + (1 << width) - 1}" if width else str(base)


def _address_range(low: str, high: str) -> str:
    first, last = ip_address(low), ip_address(high)
    differing = (int(first) ^ int(last)).bit_length()
    network = ip_network((first, first.max_prefixlen - differing), strict=False)
    return str(network) if (network[0], network[-1]) == (first, last) else f"{first}-{last}"
