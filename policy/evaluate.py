"""Ask the compiled tables about one packet, as the kernel does: the same look-ups in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from core.addr import Address
from core.names import Key
from core.resources.policy import Direction
from policy.compile import Compiled
from policy.decide import ICMP_OF_FAMILY
from policy.model import (
    Cause,
    Decision,
    Logged,
    Outcome,
    Reason,
    Residual,
    Settled,
    Table,
    Tests,
    Verdict,
    Watched,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The first packet of a flow, seen from one endpoint: `peer` is the other side, `local` its own address.

    Ports and `icmp` (type, code) are None where the protocol has none, or where the header is cut off.
    """

    peer: Address
    local: Address | None = None
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is decided, and what would be if the staged policies were in force; None where that is the same."""

    enforced: Decision
    pending: Decision | None = None


def lookup(compiled: Compiled, endpoint: Key, direction: Direction, packet: Packet) -> Decision:
    """What happens to `packet` at `endpoint`, and why. `packet.local` None is the endpoint's first address.

    Raises KeyError when the endpoint was not compiled.
    """
    return judge(compiled, endpoint, direction, packet).enforced


def judge(compiled: Compiled, endpoint: Key, direction: Direction, packet: Packet) -> Judgement:
    """As `lookup`, with what staged policies would have decided."""
    ingress, egress = compiled.chains[endpoint]
    table = compiled.tables[ingress if direction is Direction.INGRESS else egress]
    local = packet.local or next(
        (each for each in compiled.addresses[endpoint] if each.version == packet.peer.version), None
    )
    return judge_by(table, compiled.identity.of(packet.peer), packet, local)


def judge_by(table: Table, number: int, packet: Packet, local: Address | None) -> Judgement:
    """What one table says of a packet whose other side is of class `number`."""
    outcome = _find(table, number, packet)
    if not isinstance(outcome, Watched):
        return Judgement(_settle(outcome, packet, local, table.direction))
    enforced = _settle(outcome.enforced, packet, local, table.direction)
    pending = _settle(outcome.pending, packet, local, table.direction)
    return Judgement(enforced, None if pending == enforced else pending)


def _find(table: Table, number: int, packet: Packet) -> Outcome:
    if table.constant is not None:
        return table.constant
    port, protocol = packet.dport, packet.protocol
    if protocol in table.port_protocols:
        if port is None or packet.sport is None:
            return _unreadable(table.direction)
        single = table.port.get((number, protocol, port))
        if single is not None:
            return single
        for (owner, spoken, first, last), outcome in table.ranges.items():
            if (owner, spoken) == (number, protocol) and first <= port <= last:
                return outcome
    return table.proto.get((number, protocol)) or table.any.get(number) or table.otherwise


def _settle(outcome: Settled, packet: Packet, local: Address | None, direction: Direction) -> Decision:
    while isinstance(outcome, Residual):
        readable = packet.sport is not None or packet.icmp is not None
        if not readable and any(line.tests is not None and line.tests.reads_payload for line in outcome.lines):
            return _unreadable(direction)
        hits = (line.then for line in outcome.lines if line.tests is None or _holds(line.tests, packet, local))
        decisive = (then for then in hits if not isinstance(then, Logged))
        outcome = next(chain(decisive, (outcome.final,)))
    return outcome


def _holds(tests: Tests, packet: Packet, local: Address | None) -> bool:
    if tests.local is not None and not any(local is not None and local in net for net in tests.local):
        return False
    if tests.sports is not None and not any(first <= (packet.sport or 0) <= last for first, last in tests.sports):
        return False
    if tests.icmp is None and tests.not_icmp is None:
        return True
    if packet.icmp is None or packet.protocol != ICMP_OF_FAMILY[tests.family]:
        return False
    kind, code = packet.icmp
    if tests.icmp is not None and (tests.icmp.type != kind or tests.icmp.code not in (None, code)):
        return False
    unwanted = tests.not_icmp
    return unwanted is None or unwanted.type != kind or unwanted.code not in (None, code)


def _unreadable(direction: Direction) -> Decision:
    return Decision(Verdict.DENY, Reason(cause=Cause.UNREADABLE, direction=direction))
