"""explain --trace: one real packet, followed through this node's tables, and told in the words of policy.

    pod's namespace ── probe ──> prerouting ── (route) ──> forward | input ──> ... ── answer ──> prerouting ──> ...
                                    │ every rule of every table that decides, by nft's own tracing
                                    v
    dropped by our table (which rule of policy), by another's (which rule), by the kernel between two hooks, or nowhere

The trace says where a packet ended; why our table ended it is asked of the compiled tables, which carry the reasons:
`_ours` alone knows how the two fit together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.decisions import Names
from cli.guards import Met
from cli.here import told
from core.addr import Address
from core.errors import MuslinError, NotFound, Unsupported
from core.names import NFT_TABLE, Key
from core.resources import Node, WorkloadEndpoint
from core.snapshot import Snapshot
from core.values import protocol_name
from felix.filter import FROM_WORKLOAD, TO_WORKLOAD
from felix.host_frame import NAMES
from linux import netns
from linux.libnftables import NftRefused
from linux.nft_trace import Step, Traced, Watch, rule_text
from linux.probe import Heard, Probe, namespace_of
from linux.route_query import way_to
from policy.explain import Explanation
from policy.model import Decision, Verdict

WAIT_S: Final = 2.0
"""How long an answer is awaited: a second SYN has time to go."""

_DECIDING: Final = frozenset({"filter-forward", "filter-input"})
"""Our chains that every packet passes which the kernel has routed: to others, or to itself."""

_FRAME: Final = {
    "check-source": "the pod sent it from an address that is not its own",
    "invalid": "conntrack calls it invalid: it fits no connection",
    "from-workload": "a pod may not wrap packets itself (IP-in-IP, VXLAN)",
    "workload-to-host": "defaultEndpointToHostAction lets no pod talk to its node",
    "tunnelled": "IP-in-IP is taken from nodes only",
    "cut": "it belongs to a connection that policy has cut",
    **dict.fromkeys(NAMES.values(), "conntrack calls it invalid: it fits no connection"),
}
"""Chains of our table that drop for reasons of their own; what the others drop, policy denies."""

_JUDGES: Final = frozenset({FROM_WORKLOAD, TO_WORKLOAD, *NAMES.values()})
"""Those that have a packet judged: the last of them that it passed is the one that denied it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of the packet. `steps` are all decisions on its way, `back` those on an answer's; `dropped` is where
    it ended, `decision` the reason when that was policy.
    """

    sent: str
    heard: Heard
    steps: tuple[Step, ...]
    back: tuple[Step, ...]
    outcome: str
    dropped: Step | None = None
    decision: Decision | None = None

    @property
    def lines(self) -> list[str]:
        """In words."""
        there = [f"  {step}" for step in self.steps]
        back = ["its answer", *(f"  {step}" for step in self.back)] if self.back else []
        return [f"sent {self.sent}", *there, *back, self.outcome]


def trace(
    snapshot: Snapshot, found: Explanation, source: Key | Address, met: Sequence[Met] = (), wait_s: float = WAIT_S
) -> Account:
    """Send a packet as `source` would, and follow it. The host must be its node; `met` are its host endpoints' words.

    Raises MuslinError when it cannot be sent from here or not be followed; changes nothing that outlives it.
    """
    here, there = found.addresses
    if here == there:
        raise Unsupported("traffic of a pod to itself passes no table: there is nothing to trace")
    with ExitStack() as stack:
        try:
            with ExitStack() as moved:
                for path in _namespace(snapshot, source):
                    moved.enter_context(netns.inside(path))
                probe = stack.enter_context(Probe(here, there, found.protocol, found.port or 0))
            watch = stack.enter_context(Watch(probe.matches))
        except (NftRefused, OSError) as refusal:
            raise MuslinError(f"no packet can be sent and followed here: {refusal}") from refusal
        heard = probe.send(wait_s, lambda: any(packet.dropped for packet in watch.packets()))
        packets = watch.packets()
        return _account(found, met, packets, probe, heard)


def _namespace(snapshot: Snapshot, source: Key | Address) -> Sequence[str]:
    """Where to send from: the pod's namespace, or nowhere else than here."""
    if not isinstance(source, Key):
        raise NotFound(f"--trace sends a packet from a pod or a node of the cluster, and {source} is neither")
    if source.kind == Node.KIND:
        return ()
    endpoint = snapshot.of(WorkloadEndpoint)[source]
    try:
        return (namespace_of(endpoint.spec.interface_name),)
    except NotFound as absent:
        raise NotFound(f"{absent}; run this on node {endpoint.spec.node}") from absent


def _account(found: Explanation, met: Sequence[Met], packets: Sequence[Traced], probe: Probe, heard: Heard) -> Account:
    mine = [packet for packet in packets if packet.source == probe.source]
    answers = [packet for packet in packets if packet.destination == probe.source]
    first = next((packet for packet in mine if packet.dropped), mine[0] if mine else None)
    answer = next((packet for packet in answers if packet.dropped), answers[0] if answers else None)
    steps, back = first.steps if first else (), answer.steps if answer else ()
    dropped = (first.dropped if first else None) or (None if heard.answered else answer.dropped if answer else None)
    decision = None
    if dropped is not None:
        outcome, decision = _ended(found, met, dropped, steps if dropped in steps else back)
        if first is None or dropped is not first.dropped:
            outcome = f"the answer was {outcome}"
    else:
        outcome = _undropped(found, steps, back, heard)
    port = f":{found.port}" if found.port is not None else ""
    return Account(
        sent=f"{protocol_name(found.protocol)} from {probe.source} ({probe.number}) to {probe.destination}{port}",
        heard=heard,
        steps=steps,
        back=back,
        outcome=outcome,
        dropped=dropped,
        decision=decision,
    )


def _ended(found: Explanation, met: Sequence[Met], dropped: Step, steps: Sequence[Step]) -> tuple[str, Decision | None]:
    if dropped.table != NFT_TABLE or dropped.family != "inet":
        rule = rule_text(dropped)
        by = f": {rule}" if rule else ""
        whose = f"table {dropped.family} {dropped.table}, which is not muslin's"
        return f"dropped by {whose}, chain {dropped.chain}{by}", None
    why, decision = _ours(found, met, dropped, steps)
    return f"dropped by muslin: {why}", decision


def _ours(found: Explanation, met: Sequence[Met], dropped: Step, steps: Sequence[Step]) -> tuple[str, Decision | None]:
    """Why our table dropped it: the frame's own reasons by chain, else by the compiled tables, or by the mark."""
    if dropped.chain in _FRAME:
        return _FRAME[dropped.chain], None
    judge = next((step.chain for step in reversed(steps[: steps.index(dropped)]) if step.chain in _JUDGES), "")
    for chain, word, decision in (*_workloads(found), *_hosts(met)):
        if decision is not None and decision.verdict is Verdict.DENY and judge in ("", chain):
            return f"{word}: {decision.reason}", decision
    # This node is behind the datastore, or it was NAT: the number in the mark says what the kernel went by.
    return f"{Names().of(dropped.mark).rule_name}, by what is in this node's kernel (chain {dropped.chain})", None


def _workloads(found: Explanation) -> Iterator[tuple[str, str, Decision | None]]:
    yield FROM_WORKLOAD, f"egress of {found.source}", found.egress
    yield TO_WORKLOAD, f"ingress of {found.destination}", found.ingress


def _hosts(met: Sequence[Met]) -> Iterator[tuple[str, str, Decision | None]]:
    for each in met:
        yield NAMES[each.said.plane, each.said.direction], each.where, each.decision


def _undropped(found: Explanation, steps: Sequence[Step], back: Sequence[Step], heard: Heard) -> str:
    if heard.answered:
        return f"{heard.word} after {heard.took_s * 1000:.1f} ms"
    if not steps:
        return f"{heard.word}; the packet never came to this node: look at the sender's own routes and rules"
    ours = {step.chain for step in steps if step.table == NFT_TABLE}
    if not ours:
        return f"{heard.word}; there is no table inet {NFT_TABLE} here: does felix run on this node?"
    if not ours & _DECIDING and "raw-prerouting" in ours:
        return f"{heard.word}; the kernel dropped it before forward and input: {_unrouted(found)}"
    if back:
        return f"{heard.word}, though one came back as far as this node: the sender's own rules may drop it"
    return f"{heard.word}; nothing here dropped it: look at the other end, and at what lies between"


def _unrouted(found: Explanation) -> str:
    source, destination = found.addresses
    try:
        way, answer = way_to(destination), way_to(source)
    except OSError as error:
        return str(error)
    if not way.device:
        return f"the route to {destination} is {way.kind}"
    strict = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
    if source.version == 4 and strict.exists() and strict.read_text().strip() != "0":
        return f"rp_filter, perhaps: the way back to {source} is {told(answer)}"
    return f"no neighbour, or no forwarding: the way on is {told(way)}"
