"""Where a host's own interfaces are judged, and by which plane (calico.md 1.7, 4.1 and 4.2).

    comes in    raw-prerouting     host-untracked-in    allowed: not tracked, in for good     else: go on
                mangle-prerouting  host-pre-dnat        allowed: in for good                  else: go on
                 ├─ to the host    filter-input    host-in         failsafe ports, policies, profiles, deny
                 └─ forwarded      filter-forward  host-forward-in      only where policies apply on forward
                                   (a workload's own policy, whatever a host's plane said)
                                                   host-forward-out     likewise
    goes out    raw-output         host-untracked-out
                filter-output      host-out                     failsafe ports, policies, profiles, deny
                mangle-postrouting host-out     what the host sends and NAT readdressed: only now its way out is known

    each        host-PLANE ── failsafe ports, established ── judge-host-PLANE ── vmap: interface ─> goto STACK
                                                                  not in it: `*`'s stack
                                                                  no stack: UNASKED, there is nothing to ask

A packet that an earlier plane has let in carries ACCEPTED, and later host planes let it pass; a workload's policy does
not know the mark. What comes in or is sent begins unmarked, so that no packet brings the mark along, be it out of a
tunnel. The loopback interface is never judged, the host is never kept from its own workloads, and these chains are not
there on a node without host endpoints.

`*` is a rule behind the vmap, so that it covers an interface from the moment it appears. What a workload sends the host
is judged by it, after the workload's own policy, if `defaultEndpointToHostAction` is Return. It has no untracked plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from core.names import Key
from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.resources.policy import Direction
from felix.failsafe import Failsafes, stateful, stateless
from felix.filter import FROM, LISTENER, NEIGHBOUR, NO_HOSTS, NODES, TO, UNMARK, HostRules
from felix.hosts import LOOPBACK, Host
from policy.compile import Compiled
from policy.keep import OURS, high
from policy.model import Cause, Decision, Plane, Table
from policy.outcomes import ACCEPTED, UNASKED, ask, set_mark

Slot: TypeAlias = tuple[Plane, Direction]
Stacks: TypeAlias = Mapping[tuple[Key, Plane, Direction], str]
"""The names of compiled stacks. A plane and direction without one has nothing to ask; HOST always has one."""

_IN, _OUT = Direction.INGRESS, Direction.EGRESS
NAMES: Final[Mapping[Slot, str]] = MappingProxyType(
    {
        (Plane.UNTRACKED, _IN): "host-untracked-in",
        (Plane.UNTRACKED, _OUT): "host-untracked-out",
        (Plane.PRE_DNAT, _IN): "host-pre-dnat",
        (Plane.FORWARD, _IN): "host-forward-in",
        (Plane.FORWARD, _OUT): "host-forward-out",
        (Plane.HOST, _IN): "host-in",
        (Plane.HOST, _OUT): "host-out",
    }
)
"""The chain of each plane and direction, and the map from interface to stack that it asks."""

INTERFACES: Final = "host-interfaces"

NOT_ASKED: Final = "host-not-asked"
"""Instead of a stack, where an endpoint has none: or `*`'s would judge what is not its own."""

_LET_BE: Final = frozenset({Cause.NO_FORWARD_RULE, Cause.UNDECIDED})
_ALWAYS: Final = frozenset({(Plane.HOST, _IN), (Plane.HOST, _OUT)})
_IS_ACCEPTED: Final = f"meta mark & {OURS} == {high(ACCEPTED)}"
_NOT_ACCEPTED: Final = f"meta mark & {OURS} != {high(ACCEPTED)}"
_IS_UNASKED: Final = f"meta mark & {OURS} == {high(UNASKED)}"
_NOT_UNASKED: Final = f"meta mark & {OURS} != {high(UNASKED)}"
_WIPE: Final = f"meta mark & {OURS} != 0x00000000 {UNMARK}"
_DISCOVERY: Final = f"icmpv6 type {{ {NEIGHBOUR}, nd-router-advert, {LISTENER} }}"
_ESTABLISHED: Final = "ct state established,related accept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the host endpoints of a node need of the frame: which planes are asked, and whether there is a `*`."""

    asked: frozenset[Slot]
    everywhere: bool

    def rules(self) -> HostRules:
        """What is woven into the frame's own base chains."""
        forwards = [slot for slot in self.asked if slot[0] is Plane.FORWARD]
        return HostRules(
            judgements=tuple(_judge(name) for slot, name in NAMES.items() if slot in self.asked),
            unmark=(_WIPE,),
            prerouting=self._jump(Plane.UNTRACKED, _IN, f"iifname @{INTERFACES}"),
            input=self._jump(Plane.HOST, _IN, self.of(_IN)),
            forward_in=self._jump(Plane.FORWARD, _IN, f"{_NOT_ACCEPTED} {self.of(_IN)}"),
            forward_out=self._jump(Plane.FORWARD, _OUT, f"{_NOT_ACCEPTED} {self.of(_OUT)}"),
            invalid=tuple(f"{self.of(direction)} counter drop" for direction in (_IN, _OUT)) if forwards else (),
        )

    def _jump(self, plane: Plane, direction: Direction, when: str) -> tuple[str, ...]:
        asked = (plane, direction) in self.asked
        return (f"{when} jump {NAMES[plane, direction]}",) if asked else ()

    def of(self, direction: Direction) -> str:
        """Whether an interface is a host endpoint's, as nft asks; with `*`, workloads' are among them."""
        word = "iifname" if direction is _IN else "oifname"
        return f'{word} != "{LOOPBACK}"' if self.everywhere else f"{word} @{INTERFACES}"


def stacks(compiled: Compiled) -> Stacks:
    """The stacks of host endpoints, but for those of a plane in which no policy asks for anything."""
    return MappingProxyType(
        {slot: name for slot, name in compiled.hosts.items() if slot[1] is Plane.HOST or _asks(compiled.tables[name])}
    )


def _asks(table: Table) -> bool:
    """Whether anything but the end of its plane is ever the answer."""
    return not (isinstance(table.constant, Decision) and table.constant.reason.cause in _LET_BE)


def shape(hosts: Iterable[Host], stacks: Stacks) -> Shape | None:
    """What is needed for these endpoints; None when none of them covers an interface."""
    placed = [host for host in hosts if host.interfaces or host.everywhere]
    if not placed:
        return None
    asked = {slot for host in placed for slot in NAMES if _stack(host, slot, stacks)}
    return Shape(asked=_ALWAYS | asked, everywhere=any(host.everywhere for host in placed))


def rules(given: Shape | None) -> HostRules:
    """What is woven into the frame."""
    return given.rules() if given else NO_HOSTS


def _stack(host: Host, slot: Slot, stacks: Stacks) -> str:
    """The stack that judges an endpoint there, "" for none."""
    if host.everywhere and slot[0] is Plane.UNTRACKED:
        return ""
    return stacks.get((host.key, *slot), "")


def ignored(hosts: Iterable[Host], stacks: Stacks) -> list[str]:
    """What policy asks of these endpoints and cannot have, in words."""
    return [
        f"{host.key}: policies with doNotTrack do not apply to interfaceName '*': name the interface"
        for host in hosts
        if host.everywhere and any((host.key, Plane.UNTRACKED, each) in stacks for each in Direction)
    ]


def part(given: Shape, hosts: Sequence[Host], stacks: Stacks, failsafes: Failsafes, *, ipip: bool) -> Ruleset:
    """The chains, maps and elements of the host endpoints. With `ipip`, nodes may always send each other IP-in-IP."""
    slots = [slot for slot in NAMES if slot in given.asked]
    every = next((host for host in hosts if host.everywhere), None)
    chains = {**_base_chains(given, ipip=ipip), NOT_ASKED: Chain(rules=(set_mark(UNASKED),))}
    for slot in slots:
        chains[NAMES[slot]] = Chain(rules=(*_preface(given, slot, failsafes), *_question(slot)))
        chains[_judge(NAMES[slot])] = _judgement(slot, _stack(every, slot, stacks) if every else "")
    elements = {Element(INTERFACES, f'"{name}"'): "" for host in hosts for name in host.interfaces}
    for host in hosts:
        for slot in slots:
            stack = _stack(host, slot, stacks) or NOT_ASKED
            elements.update({Element(NAMES[slot], f'"{name}"'): f"goto {stack}" for name in host.interfaces})
    sets = {NAMES[slot]: Set(key=("ifname",), value="verdict") for slot in slots}
    return Ruleset(
        chains=MappingProxyType(chains),
        sets=MappingProxyType({INTERFACES: Set(key=("ifname",)), **sets}),
        elements=MappingProxyType(elements),
    )


def _judge(name: str) -> str:
    return f"judge-{name}"


def _judgement(slot: Slot, every: str) -> Chain:
    word = "iifname" if slot[1] is _IN else "oifname"
    return Chain(rules=(f"{word} vmap @{NAMES[slot]}", f"goto {every or NOT_ASKED}"))


def _question(slot: Slot) -> tuple[str, ...]:
    """Ask, and do what is answered. An endpoint without a stack is denied what the host itself sends and receives."""
    unasked = () if slot[0] is Plane.HOST else (f"{_IS_UNASKED} return",)
    return ask(_judge(NAMES[slot]), *unasked)


def _preface(given: Shape, slot: Slot, failsafes: Failsafes) -> list[str]:
    """What is never asked: others' interfaces, established connections, failsafe ports, finding one's neighbours."""
    plane, direction = slot
    workloads = [f"{FROM} return"] if given.everywhere else []
    match plane:
        case Plane.UNTRACKED:
            return [f"{_DISCOVERY} return", *stateless(failsafes, direction, "return")]
        case Plane.PRE_DNAT:
            return [*workloads, f"{_DISCOVERY} return", *stateful(failsafes, direction, "return")]
        case Plane.FORWARD:
            return workloads if direction is _IN else []
    entered = [f"{_IS_ACCEPTED} accept"] if direction is _IN else []
    tracked = "ct state vmap { established : accept, related : accept, invalid : drop }"
    return [*entered, tracked, f"{_DISCOVERY} accept", *stateful(failsafes, direction, "accept")]


def _base_chains(given: Shape, *, ipip: bool) -> dict[str, Chain]:
    """Those that a node without host endpoints does not have."""
    untracked = [f"oifname @{INTERFACES} jump {NAMES[Plane.UNTRACKED, _OUT]}"]
    sent = [f"{TO} accept"] if given.everywhere else []
    sent.append(f"{given.of(_OUT)} jump {NAMES[Plane.HOST, _OUT]}")
    chains = {
        "raw-output": (-300, [_WIPE, *(untracked if (Plane.UNTRACKED, _OUT) in given.asked else [])]),
        "filter-output": (
            0,
            [
                f"{_IS_ACCEPTED} accept",
                _ESTABLISHED,
                f"ct status dnat {set_mark(UNASKED)} accept",  # it may leave elsewhere than where it was bound
                *([f"meta l4proto 4 ip daddr @{NODES} accept"] if ipip else []),
                *sent,
            ],
        ),
        "mangle-postrouting": (-150, [f"{_NOT_UNASKED} accept", UNMARK, *sent]),
    }
    if (Plane.PRE_DNAT, _IN) in given.asked:
        asked = f"{given.of(_IN)} jump {NAMES[Plane.PRE_DNAT, _IN]}"
        chains["mangle-prerouting"] = (-150, [_ESTABLISHED, f"{_IS_ACCEPTED} accept", asked])
    return {
        name: Chain(hook=Hook(type="filter", hook=name.partition("-")[2], priority=priority), rules=tuple(found))
        for name, (priority, found) in chains.items()
    }
