"""Pieces of traffic: which protocols, ports and types they are, in values and in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from core.values import protocol_name
from policy.model import ALL_PORTS, Range

ICMPS: Final = frozenset({1, 58})
REST: Final = -1
"""Stands for every protocol that no row names."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Traffic:
    """A piece of traffic. `protocol` None is all of it; `REST` all protocols `besides` those.

    `icmp` is a type and a code, -1 for those that nothing names.
    """

    protocol: int | None = None
    besides: tuple[int, ...] = ()
    ports: Range = ALL_PORTS
    sports: Range = ALL_PORTS
    icmp: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.protocol is None:
            return "all traffic"
        if self.protocol == REST:
            return f"anything but {', '.join(map(_name, self.besides))}"
        text = _name(self.protocol)
        if self.ports != ALL_PORTS:
            text += f"/{_span(self.ports)}"
        if self.icmp is not None:
            kind, code = self.icmp
            text += " other types" if kind < 0 else f" type {kind}" + (f" code {code}" if code >= 0 else "")
        return text if self.sports == ALL_PORTS else f"{text} from port {_span(self.sports)}"

    def document(self) -> dict[str, object]:
        """For programs: only what is said of it."""
        said: dict[str, object] = {"text": str(self)}
        if self.protocol == REST:
            said["besides"] = list(self.besides)
        elif self.protocol is not None:
            said["protocol"] = self.protocol
        for name, span in (("ports", self.ports), ("sourcePorts", self.sports)):
            if span != ALL_PORTS:
                said[name] = list(span)
        if self.icmp is not None and self.icmp[0] >= 0:
            said["icmpType"] = self.icmp[0]
        return said


ALL_TRAFFIC: Final = Traffic()


def _name(protocol: int) -> str:
    return protocol_name(protocol).lower()


def _span(span: Range) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def joined(pieces: Sequence[Traffic], whole: Sequence[Traffic]) -> tuple[Traffic, ...]:
    """The same traffic in as few pieces as can be said; `whole` is all of it, cut in the same way.

    Both in the order that `regions` gives.
    """
    if len(pieces) == len(whole):
        return (ALL_TRAFFIC,)
    total: dict[int | None, int] = defaultdict(int)
    for each in whole:
        total[each.protocol] += 1
    of_protocol: dict[int | None, list[Traffic]] = defaultdict(list)
    for each in pieces:
        of_protocol[each.protocol].append(each)
    found: list[Traffic] = []
    for protocol, mine in of_protocol.items():
        found += [_of_all_ports(mine[0])] if len(mine) == total[protocol] else touching(mine)
    return tuple(found)


def _of_all_ports(piece: Traffic) -> Traffic:
    return Traffic(protocol=piece.protocol, besides=piece.besides)


def touching(pieces: Iterable[Traffic]) -> Iterator[Traffic]:
    """Neighbouring port ranges made one."""
    last: Traffic | None = None
    for each in pieces:
        if (
            last is not None
            and (last.protocol, last.sports, last.icmp) == (each.protocol, each.sports, each.icmp)
            and last.ports[1] + 1 == each.ports[0]
        ):
            last = replace(last, ports=(last.ports[0], each.ports[1]))
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def summary(traffic: Sequence[Traffic]) -> str:
    """Pieces of traffic in words."""
    return "all traffic" if ALL_TRAFFIC in traffic else ", ".join(map(str, traffic))
