"""explain: what would become of a new connection: which tier, policy and rule decide it, and which way it goes.

On a node that it passes the kernel is asked too, and with --trace a real packet is followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import hops, options, store, terminal
from cli.hops import Hop
from cli.kinds import reference
from cli.watching import FOLLOWED
from core import values
from core.addr import Address
from core.errors import Invalid, NotFound, Problem
from core.names import Key
from core.resources import HostEndpoint, Node, WorkloadEndpoint
from core.snapshot import Snapshot

if TYPE_CHECKING:
    from cli.guards import Guards
    from cli.here import Live
    from cli.trace import Account
    from policy.explain import Explanation
    from policy.model import Decision

NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
ICMP: Final = {4: 1, 6: 58}


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command("explain")(explain)


def explain(
    source: Annotated[str, typer.Option("--from", metavar="END", help="NAMESPACE/POD, node/NAME or an address.")],
    destination: Annotated[str, typer.Option("--to", metavar="END", help="NAMESPACE/POD, node/NAME or an address.")],
    tcp: Annotated[int | None, typer.Option(metavar="PORT", min=1, max=65535)] = None,
    udp: Annotated[int | None, typer.Option(metavar="PORT", min=1, max=65535)] = None,
    sctp: Annotated[int | None, typer.Option(metavar="PORT", min=1, max=65535)] = None,
    icmp: Annotated[bool, typer.Option("--icmp", help="An echo request (ICMP, or ICMPv6 between IPv6 ends).")] = False,
    protocol: Annotated[int | None, typer.Option(metavar="N", min=0, max=255, help="Another protocol.")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Send a real packet from the source, on its node, and follow it.")
    ] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Say whether one end may open a connection to another, which tier, policy and rule say so, and which way it goes.

    On a node that the way passes, its kernel is asked too.
    """
    ports = {name: port for name, port in (("tcp", tcp), ("udp", udp), ("sctp", sctp)) if port is not None}
    if len(ports) + icmp + (protocol is not None) != 1:
        raise typer.BadParameter("say one of --tcp PORT, --udp PORT, --sctp PORT, --icmp, --protocol N")
    for name, each in NUMBERS.items():
        if protocol == each:
            raise typer.BadParameter(f"protocol {each} has ports: say --{name} PORT", param_hint="--protocol")
    snapshot = asyncio.run(snapshot_of(datastore))
    ends = end(snapshot, source, "--from"), end(snapshot, destination, "--to")
    meant = _address(source), _address(destination)
    families = [_families(snapshot, each, asked) for each, asked in zip(ends, meant, strict=True)]
    number, port = _flow(families, ports, protocol)
    answer = ask(snapshot, ends, number, port, meant, trace=trace, datastore=datastore)
    if output is options.ResultFormat.JSON:
        terminal.show_json(answer.document())
    else:
        terminal.show_lines(answer.lines())


def ask(
    snapshot: Snapshot,
    ends: tuple[Key | Address, Key | Address],
    protocol: int,
    port: int | None,
    meant: tuple[Address | None, Address | None] = (None, None),
    *,
    trace: bool = False,
    datastore: str = "",
) -> Answer:
    """Everything that can be said here of a new flow between two ends; `meant` are the addresses, where they matter.

    `datastore` is where agents reach it: a port that host endpoints never close.
    """
    from cli import guards, here, peering
    from cli import trace as tracing
    from policy.explain import explain as explained

    ends = peering.near(snapshot, ends)
    found = explained(snapshot, *ends, protocol, port, meant)
    source, destination = found.addresses
    there = hops.hops(snapshot, ends, destination, source) if ends[0] != ends[1] else []
    back = hops.hops(snapshot, (ends[1], ends[0]), source, destination, answers=True) if ends[0] != ends[1] else []
    on = sorted({hop.node for hop in (*there, *back)})
    node = here.own_node(snapshot, on) if on else ""
    kernel = here.kernel(node) if node else guards.Kernel()
    called = peering.called(snapshot, ends, found)
    leaving, arriving = guards.guards(snapshot, ends, found, kernel, datastore)
    return Answer(
        found=found,
        names={str(each): _called(snapshot, each) for each in ends},
        to_host="Accept" if called else hops.to_host(snapshot, ends),
        called=called,
        leaving=leaving,
        arriving=arriving,
        hops=tuple(there),
        back=tuple(back),
        on=tuple(on),
        live=here.look(node, *found.addresses, protocol, port) if node else None,
        account=tracing.trace(snapshot, found, ends[0], [*leaving.met, *arriving.met]) if trace else None,
    )


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def end(snapshot: Snapshot, text: str, option: str) -> Key | Address:
    """The pod or node that `NAMESPACE/POD`, `node/NAME` or one of its addresses means; another address is itself."""
    endpoints = snapshot.of(WorkloadEndpoint)
    namespace, slash, pod = text.partition("/")
    node = snapshot.get(Node, pod) if namespace == "node" else None
    if node is not None:
        return node.key
    if slash and _is_prefix(text):
        raise Invalid([Problem(path=option, why=f"{text!r} is a prefix; one address is wanted, or NAMESPACE/POD")])
    if slash:
        of_pod = [key for key, each in endpoints.items() if key.namespace == namespace and each.spec.pod == pod]
        if not of_pod:
            nodes = "; nor a node of that name" if namespace == "node" else ""
            raise NotFound(f"{option}: there is no pod {text}{nodes}; `muslin get wep -A` lists them")
        return min(of_pod)
    address = _address(text)
    if address is None:
        raise Invalid([Problem(path=option, why=f"{text!r} is neither NAMESPACE/POD nor an address")])
    holder = next((key for key, each in endpoints.items() if address in each.spec.addresses), None)
    having = (key for key, each in snapshot.of(Node).items() if each.address(address.version) == address)
    return holder or next(having, None) or _expecting(snapshot, address) or address


def _expecting(snapshot: Snapshot, address: Address) -> Key | None:
    """The node of which a host endpoint expects `address`."""
    for _, found in sorted(snapshot.of(HostEndpoint).items(), key=lambda item: item[0]):
        node = snapshot.get(Node, found.spec.node)
        if node is not None and address in map(ip_address, found.spec.expected_ips):
            return node.key
    return None


def _is_prefix(text: str) -> bool:
    try:
        values.loose_network(text)
    except ValueError:
        return False
    return True


def _flow(families: Sequence[set[int]], ports: Mapping[str, int], protocol: int | None) -> tuple[int, int | None]:
    if protocol is not None:
        return protocol, None
    for name, port in ports.items():
        return NUMBERS[name], port
    return ICMP[min(set.intersection(*families), default=4)], None


def _families(snapshot: Snapshot, found: Key | Address, meant: Address | None) -> set[int]:
    if meant is not None:
        return {meant.version}
    if not isinstance(found, Key):
        return {found.version}
    if found.kind == Node.KIND:
        return {version for version in (4, 6) if snapshot.of(Node)[found].address(version)}
    return {address.version for address in snapshot.of(WorkloadEndpoint)[found].spec.addresses}


def _called(snapshot: Snapshot, found: Key | Address) -> str:
    """An end as people name it: `NAMESPACE/POD`, `node/NAME`, or the address."""
    if not isinstance(found, Key):
        return str(found)
    if found.kind == Node.KIND:
        return f"node/{found.name}"
    return f"{found.namespace}/{snapshot.of(WorkloadEndpoint)[found].spec.pod}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What `explain` found. `hops` and `back` are the ways there and back, over the nodes `on`; `to_host` is said where
    a pod talks to its own node, `called` that it is the BGP which a BGPPeer asks for; `leaving` and `arriving` are the
    host endpoints of the source's and the destination's node; `live` where this host is one of the nodes; `account`
    where a packet was traced.
    """

    found: Explanation
    names: Mapping[str, str]
    to_host: str
    called: bool
    leaving: Guards
    arriving: Guards
    hops: tuple[Hop, ...]
    back: tuple[Hop, ...]
    on: tuple[str, ...]
    live: Live | None
    account: Account | None

    @property
    def verdict(self) -> str:
        """Allow or Deny, in all."""
        return _all(self.to_host == "Drop", self.found.verdict == "Deny", self.guards.denies)

    @property
    def guards(self) -> Guards:
        """All host endpoints that are met, or may be."""
        return self.leaving | self.arriving

    @property
    def pending(self) -> str:
        """The verdict if the staged policies were in force; "" when they would change nothing on the way."""
        found = self.found
        if not found.pending and not any(each.pending for each in self.guards.met):
            return ""
        return _all(self.to_host == "Drop", (found.pending or found.verdict) == "Deny", self.guards.would_deny)

    def lines(self) -> list[str]:
        """For people; the last one is the verdict."""
        told = [self._renamed(line) for line in self.found.lines[:-1]]
        sent, rest = (told[:1], told[1:]) if self.found.egress else ([], told)
        why = "BGP with its node, which a BGPPeer asks for" if self.called else "defaultEndpointToHostAction"
        to_host = [f"to its own node: {self.to_host}: {why}"] if self.to_host else []
        lines = [*sent, *map(str, self.leaving.met), *to_host, *map(str, self.arriving.met), *rest]
        lines += self.guards.unanswered
        lines += [each.would_be for each in self.guards.met if each.pending]
        if self.guards.unknown:
            named = ", ".join(map(reference, self.guards.unknown))
            lines.append(f"not asked: {named}: only its node knows by which interface this goes: run explain there")
        lines += [f"there: {hop.node}: {hop.text}" for hop in self.hops]
        lines += [f"back: {hop.node}: {hop.text}" for hop in self.back]
        lines += self._live()
        if self.account:
            lines += [self._renamed(line) for line in self.account.lines]
        return [*lines, self.verdict]

    def _live(self) -> list[str]:
        from cli.here import flow_told, told

        if self.live is None:
            nodes = " or ".join(self.on)
            return [f"connections: each node knows its own; run this on {nodes} to see them"] if nodes else []
        lines = [f"kernel of {self.live.node}: {told(self.live.way)}"] if self.live.way else []
        if self.live.flows is None:
            return [*lines, f"connections: {self.live.why}"]
        return [*lines, *(f"connection: {flow_told(flow)}" for flow in self.live.flows or ())] + (
            [] if self.live.flows else ["connections: none now"]
        )

    def _renamed(self, line: str) -> str:
        for key, name in self.names.items():
            line = line.replace(f" of {key}:", f" of {name}:").replace(f" of {key} would", f" of {name} would")
        return line

    def document(self) -> dict[str, Any]:
        """For programs."""
        from cli.guards import documents

        found = self.found
        return {
            "verdict": self.verdict,
            "from": self.names[found.source],
            "to": self.names[found.destination],
            "protocol": found.protocol,
            "port": found.port,
            "egress": _decision(found.egress),
            "ingress": _decision(found.ingress),
            "note": found.note,
            "unanswered": list(self.guards.unanswered),
            "hostEndpoints": list(documents(self.guards.met, _decision)),
            "pending": {
                "verdict": self.pending,
                "egress": _decision(found.pending_egress),
                "ingress": _decision(found.pending_ingress),
            }
            if self.pending
            else None,
            "toHost": self.to_host,
            "notAsked": [reference(each) for each in self.guards.unknown],
            "route": [_hop(each) for each in self.hops],
            "back": [_hop(each) for each in self.back],
            "live": _live(self.live) if self.live else None,
            "trace": self._account(self.account) if self.account else None,
        }

    def _account(self, account: Account) -> dict[str, Any]:
        return {
            "outcome": self._renamed(account.outcome),
            "answered": account.heard.answered,
            "tookMs": round(account.heard.took_s * 1000, 3),
            "dropped": asdict(account.dropped) if account.dropped else None,
            "decision": _decision(account.decision),
            "steps": [asdict(each) for each in account.steps],
            "back": [asdict(each) for each in account.back],
        }


def _all(*denied: bool) -> str:
    return "Deny" if any(denied) else "Allow"


def _hop(hop: Hop) -> dict[str, Any]:
    return {
        "node": hop.node,
        "destination": str(hop.destination),
        "carriers": list(hop.carriers),
        "interface": hop.interface,
        "gateway": str(hop.gateway) if hop.gateway else "",
        "encapsulation": hop.encapsulation,
        "why": hop.text,
    }


def _live(live: Live) -> dict[str, Any]:
    from cli.here import flow_told, told

    return {
        "node": live.node,
        "route": told(live.way) if live.way else "",
        "connections": None
        if live.flows is None
        else [
            {
                "source": str(flow.original.source),
                "sourcePort": flow.original.sport,
                "destination": str(flow.original.destination),
                "destinationPort": flow.original.dport,
                "behind": str(flow.reply.source),
                "behindPort": flow.reply.sport,
                "protocol": flow.original.protocol,
                "zone": flow.zone,
                "state": flow.state,
                "status": int(flow.status),
                "timeoutS": flow.timeout_s,
                "mark": flow.mark,
                "text": flow_told(flow),
            }
            for flow in live.flows
        ],
        "why": live.why,
    }


def _decision(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    reason = decision.reason
    return {
        "verdict": decision.verdict.value,
        "cause": reason.cause.value,
        "tier": reason.tier,
        "policy": reference(reason.policy) if reason.policy else "",
        "profile": reason.profile,
        "rule": reason.rule,
        "match": str(reason.match or ""),
        "policies": [reference(each) for each in reason.policies],
        "why": str(reason),
    }


async def snapshot_of(target: str) -> Snapshot:
    """What felix decides on, and nothing else, so that the answer is the kernel's."""
    async with store.opened(target) as opened:
        state = await store.read(opened, FOLLOWED)
    readable = ((key, stored.resource) for key, stored in state.objects.items())
    return Snapshot().apply(state.revision, [*readable, *state.unreadable.items()])
