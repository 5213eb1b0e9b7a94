"""A table's chains, sets and counters out of the kernel's bytes; all but its elements, which `linux.nft_dump` reads.

libnftables cannot list a table without fetching every element of it, at a KiB of memory each. What is needed of a
rule is only the digest in its comment, so no rule is understood here. A set or chain with something about it that we
never ask for is told as one that equals none of ours.
Formats: linux/netfilter/nf_tables.h; nftables' include/datatype.h for the numbers of types; libnftnl/udata.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from core.nftables import Hook, Set
from linux.netlink import Attributes, attributes
from linux.nfnetlink import Nfnetlink, generic
from linux.nft_objects import FOREIGN, ChainBody, ChainName, CounterName, Object, SetName, Value, digest_of
from linux.nft_wire import (
    CONCATENATION,
    INET,
    INTERVAL,
    MAP,
    OBJECTS,
    SET_DATA_TYPE,
    SET_FLAGS,
    SET_KEY_TYPE,
    SET_NAME,
    SET_OBJECT_TYPE,
    SUBSYSTEM,
    TYPE_BITS,
    TYPES,
    VERDICT_TYPE,
    counted,
    dump_counters,
)

_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET = 1, 4, 7, 10
_TABLE: Final = 1  # the first attribute of all of them: the table's name
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_CHAIN, _RULE_USERDATA = 2, 7
_SET_TIMEOUT, _SET_EXPRESSION, _SET_EXPRESSIONS = 11, 17, 18
_EXPRESSION_NAME: Final = 1
_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT

_HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
_ACCEPT: Final = 1

_ANONYMOUS: Final = 0x1
_OURS: Final = INTERVAL | MAP | OBJECTS | CONCATENATION
_WORDS: Final = {number: kind for kind, number in TYPES.items()}
_COUNTER: Final = 1
_RESOURCE: Final = struct.Struct("!2xH")


def generation(netlink: Nfnetlink, table: str) -> int | None:
    """A number that changes with every transaction on any table; None when there is no such table."""
    for body in netlink.dump(SUBSYSTEM << 8 | _GET_TABLE, generic(INET)):
        if attributes(body, 4)[_TABLE] == table.encode() + b"\0":
            (found,) = _RESOURCE.unpack_from(body)
            return int(found)
    return None


def read_shape(netlink: Nfnetlink, table: str) -> dict[Object, Value]:
    """The chains, sets and counters of a table. It may change meanwhile: `generation` tells."""
    comments: dict[str, list[str]] = {}
    for rule in _dump(netlink, _GET_RULE, table):
        comments.setdefault(_text(rule[_RULE_CHAIN]), []).append(_comment(rule.get(_RULE_USERDATA, b"")))
    found: dict[Object, Value] = {}
    for chain in _dump(netlink, _GET_CHAIN, table):
        name = _text(chain[_CHAIN_NAME])
        found[ChainName(name)] = _chain(chain, comments.get(name, []))
    for made in _dump(netlink, _GET_SET, table):
        if not _number(made.get(SET_FLAGS, b"")) & _ANONYMOUS:
            found[SetName(_text(made[SET_NAME]))] = _set(made)
    for body in netlink.dump(*dump_counters(table)):
        found[CounterName(counted(body)[0])] = ""
    return found


def _dump(netlink: Nfnetlink, kind: int, table: str) -> Iterator[Attributes]:
    name = table.encode() + b"\0"
    for body in netlink.dump(SUBSYSTEM << 8 | kind, generic(INET)):
        found = attributes(body, 4)
        if body[0] == INET and found[_TABLE] == name:
            yield found


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _chain(chain: Attributes, comments: list[str]) -> ChainBody:
    hook, digest = None, digest_of(comments)
    if _CHAIN_HOOK in chain:
        at = attributes(chain[_CHAIN_HOOK])
        number = _number(at[_HOOK_NUMBER])
        priority = int.from_bytes(at[_HOOK_PRIORITY], "big", signed=True)
        where = _HOOKS[number] if number < len(_HOOKS) else str(number)
        hook = Hook(type=_text(chain[_CHAIN_TYPE]), hook=where, priority=priority)
        if _number(chain.get(_CHAIN_POLICY, b"")) != _ACCEPT:
            digest = FOREIGN
    return ChainBody(hook=hook, count=len(comments), digest=digest)


def _comment(userdata: bytes) -> str:
    """The comment among what nft keeps with a rule: types and lengths of a byte each."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _COMMENT:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return ""


def _set(made: Attributes) -> Set:
    flags = _number(made.get(SET_FLAGS, b""))
    statements = _statements(made)
    ours = not flags & ~_OURS and _SET_TIMEOUT not in made and statements in ([], ["counter"])
    return Set(
        key=_types(_number(made[SET_KEY_TYPE])) if ours else (),
        value=_value(made, flags),
        interval=bool(flags & INTERVAL),
        counter="counter" in statements,
    )


def _types(packed: int) -> tuple[str, ...]:
    """The types of a key's parts; none if one of them is not of ours."""
    found = []
    while packed:
        found.append(_WORDS.get(packed & (1 << TYPE_BITS) - 1, ""))
        packed >>= TYPE_BITS
    return tuple(reversed(found)) if all(found) else ()


def _value(made: Attributes, flags: int) -> str:
    if flags & OBJECTS:
        return "counter" if _number(made[SET_OBJECT_TYPE]) == _COUNTER else "object"
    if flags & MAP:
        kind = _number(made[SET_DATA_TYPE])
        return "verdict" if kind == VERDICT_TYPE else " . ".join(_types(kind)) or "data"
    return ""


def _statements(made: Attributes) -> list[str]:
    """The names of what each element of a set does."""
    if _SET_EXPRESSION in made:
        return [_text(attributes(made[_SET_EXPRESSION])[_EXPRESSION_NAME])]
    listed = made.get(_SET_EXPRESSIONS, b"")
    found, at = [], 0
    while at + 4 <= len(listed):
        (length,) = struct.unpack_from("=H", listed, at)
        found.append(_text(attributes(listed[at + 4 : at + length])[_EXPRESSION_NAME]))
        at += (length + 3) & ~3
    return found
