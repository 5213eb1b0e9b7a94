"""Why can this one talk to that one, or why not: both ends' decisions, with the tier, policy and rule of each. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from core.addr import Address
from core.errors import NotFound
from core.names import Key
from core.resources.network import WorkloadEndpoint
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import compile
from policy.decide import ICMP_OF_FAMILY
from policy.evaluate import Packet, lookup
from policy.model import Decision, Verdict

EPHEMERAL_PORT = 49152
"""The source port of the packet in question: the first of those that systems give out."""

ECHO_REQUEST = {4: (8, 0), 6: (128, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`egress` is the source's decision, `ingress` the destination's; None where no workload endpoint stands there."""

    source: str
    destination: str
    protocol: int
    port: int | None
    egress: Decision | None
    ingress: Decision | None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Allowed when no end denies."""
        ends = (self.egress, self.ingress)
        return Verdict.DENY if any(end and end.verdict is Verdict.DENY for end in ends) else Verdict.ALLOW

    @property
    def lines(self) -> tuple[str, ...]:
        """In words: one line per decision asked, then the outcome."""
        said = [
            f"{word} {end}: {decision.verdict}: {decision.reason}"
            for word, end, decision in (
                ("egress of", self.source, self.egress),
                ("ingress of", self.destination, self.ingress),
            )
            if decision is not None
        ]
        return (*said, *([self.note] if self.note else []), f"{self.verdict}")


def explain(
    snapshot: Snapshot,
    source: Key | Address,
    destination: Key | Address,
    protocol: int,
    port: int | None = None,
) -> Explanation:
    """The fate of a new flow from `source` to `destination` (workload endpoints or addresses).

    Policy of hosts is not asked. Raises NotFound for an endpoint that is not there, or when the two have no family in
    common.
    """
    addresses = _common(_addresses(snapshot, source), _addresses(snapshot, destination))
    if addresses is None:
        raise NotFound(f"{source} and {destination} have no addresses of one family: nothing can pass between them")
    if source == destination:
        note = "traffic of a pod to itself never leaves it, so no policy sees it"
        return _explanation(source, destination, protocol, port, None, None, note)
    here, there = addresses
    compiled = compile(snapshot, [end for end in (source, destination) if isinstance(end, Key)])
    icmp = ECHO_REQUEST[here.version] if protocol == ICMP_OF_FAMILY[here.version] else None
    sport = None if port is None else EPHEMERAL_PORT
    out = Packet(peer=there, local=here, protocol=protocol, sport=sport, dport=port, icmp=icmp)
    back = Packet(peer=here, local=there, protocol=protocol, sport=sport, dport=port, icmp=icmp)
    egress = lookup(compiled, source, Direction.EGRESS, out) if isinstance(source, Key) else None
    ingress = lookup(compiled, destination, Direction.INGRESS, back) if isinstance(destination, Key) else None
    note = "" if egress or ingress else "neither end is a workload endpoint: no policy of workloads applies"
    return _explanation(source, destination, protocol, port, egress, ingress, note)


def _explanation(
    source: Key | Address,
    destination: Key | Address,
    protocol: int,
    port: int | None,
    egress: Decision | None,
    ingress: Decision | None,
    note: str,
) -> Explanation:
    return Explanation(
        source=str(source),
        destination=str(destination),
        protocol=protocol,
        port=port,
        egress=egress,
        ingress=ingress,
        note=note,
    )


def _addresses(snapshot: Snapshot, end: Key | Address) -> tuple[Address, ...]:
    if not isinstance(end, Key):
        return (end,)
    endpoint = snapshot.of(WorkloadEndpoint).get(end)
    if endpoint is None:
        raise NotFound(f"there is no {end}; `muslin get workloadendpoints` lists those there are")
    return endpoint.spec.addresses


def _common(sources: tuple[Address, ...], destinations: tuple[Address, ...]) -> tuple[Address, Address] | None:
    for source in sources:
        for destination in destinations:
            if source.version == destination.version:
                return source, destination
    return None
