"""explain: what would become of a new connection, and which tier, policy and rule decide it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import options, store, terminal
from cli.kinds import reference
from cli.watching import FOLLOWED
from core.addr import Address
from core.errors import Invalid, NotFound, Problem
from core.names import Key
from core.resources import WorkloadEndpoint
from core.snapshot import Snapshot

if TYPE_CHECKING:
    from policy.explain import Explanation
    from policy.model import Decision

NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
ICMP: Final = {4: 1, 6: 58}


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command("explain")(explain)


def explain(
    source: Annotated[str, typer.Option("--from", metavar="END", help="NAMESPACE/POD or an address.")],
    destination: Annotated[str, typer.Option("--to", metavar="END", help="NAMESPACE/POD or an address.")],
    tcp: Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65535)] = None,
    udp: Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65535)] = None,
    sctp: Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65535)] = None,
    icmp: Annotated[bool, typer.Option("--icmp", help="An echo request (ICMP, or ICMPv6 between IPv6 ends).")] = False,
    protocol: Annotated[int | None, typer.Option(metavar="N", min=0, max=255, help="Another protocol.")] = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Say whether one end may open a connection to another, and which tier, policy and rule say so."""
    ports = {name: port for name, port in (("tcp", tcp), ("udp", udp), ("sctp", sctp)) if port is not None}
    if len(ports) + icmp + (protocol is not None) != 1:
        raise typer.BadParameter("say one of --tcp PORT, --udp PORT, --sctp PORT, --icmp, --protocol N")
    snapshot = asyncio.run(snapshot_of(datastore))
    ends = end(snapshot, source, "--from"), end(snapshot, destination, "--to")
    number, port = _flow(snapshot, ends, ports, protocol)
    from policy.explain import explain as explained

    found = explained(snapshot, *ends, number, port)
    names = {str(each): _pod(snapshot, each) for each in ends}
    if output is options.ResultFormat.JSON:
        terminal.show_json(document(found, names))
    else:
        terminal.show_lines([_renamed(line, names) for line in found.lines])


def end(snapshot: Snapshot, text: str, option: str) -> Key | Address:
    """The workload endpoint that `NAMESPACE/POD` or a pod's address means; another address is itself."""
    endpoints = snapshot.of(WorkloadEndpoint)
    namespace, slash, pod = text.partition("/")
    if slash:
        of_pod = [key for key, each in endpoints.items() if key.namespace == namespace and each.spec.pod == pod]
        if not of_pod:
            raise NotFound(f"{option}: there is no pod {text}; `muslin get wep -A` lists them")
        return min(of_pod)
    try:
        address = ip_address(text)
    except ValueError:
        raise Invalid([Problem(path=option, why=f"{text!r} is neither NAMESPACE/POD nor an address")]) from None
    return next((key for key, each in endpoints.items() if address in each.spec.addresses), address)


def _flow(
    snapshot: Snapshot, ends: tuple[Key | Address, Key | Address], ports: Mapping[str, int], protocol: int | None
) -> tuple[int, int | None]:
    if protocol is not None:
        return protocol, None
    for name, port in ports.items():
        return NUMBERS[name], port
    versions = [_versions(snapshot, each) for each in ends]
    return ICMP[min(set.intersection(*versions), default=4)], None


def _versions(snapshot: Snapshot, found: Key | Address) -> set[int]:
    if not isinstance(found, Key):
        return {found.version}
    return {address.version for address in snapshot.of(WorkloadEndpoint)[found].spec.addresses}


def _pod(snapshot: Snapshot, found: Key | Address) -> str:
    """An end as people name it: `NAMESPACE/POD`, or the address."""
    if not isinstance(found, Key):
        return str(found)
    return f"{found.namespace}/{snapshot.of(WorkloadEndpoint)[found].spec.pod}"


def _renamed(line: str, names: Mapping[str, str]) -> str:
    for key, name in names.items():
        line = line.replace(f" of {key}:", f" of {name}:")
    return line


def document(found: Explanation, names: Mapping[str, str]) -> dict[str, Any]:
    """The explanation for programs; `names` are the ends as people name them."""
    return {
        "verdict": found.verdict.value,
        "from": names[found.source],
        "to": names[found.destination],
        "protocol": found.protocol,
        "port": found.port,
        "egress": _decision(found.egress),
        "ingress": _decision(found.ingress),
        "note": found.note,
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
