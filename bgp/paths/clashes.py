"""Two writers for one prefix: seen, and said; never resolved by a coin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from bgp.model import Session
from bgp.paths.imports import Us
from bgp.paths.rib import Heard
from core.addr import Address, Network
from core.prefix import Prefix
from linux.model import Facts, Route


def contested(prefix: Prefix, heard: Iterable[Heard], sessions: Mapping[Address, Session], ours: Us) -> Iterator[str]:
    """Peers that announce a block of ours as somebody else's. Our own announcement that comes back shows it: our AS
    number is in its path, or our router id is its originator. (A router that overwrites AS numbers hides the first.)"""
    for each in heard:
        session, path = sessions.get(each.peer), each.path
        if session is None or session.local_as in path.as_path or path.originator == ours.router_id:
            continue
        origin = path.originator or (f"AS {path.as_path[-1]}" if path.as_path else f"{each.peer}")
        yield (
            f"{prefix} is ours, and {session.name} ({each.peer}) announces it too, from {origin}: two nodes hold it, "
            "or a router has it configured"
        )


def foreign(facts: Facts, wanted: Callable[[Prefix], Route | None]) -> Iterator[str]:
    """Kernel routes of other programs, and addresses of links, for a prefix that we program as well."""
    others: dict[Network, str] = {
        via.destination: f"another program's route via {via.gateway}" for via in facts.gateways
    }
    for link in facts.links.values():
        others |= {each.network: f"{link.name}'s own subnet" for each in link.addresses}
    for network, what in others.items():
        if wanted(Prefix.of(network)) is not None:
            yield f"{network}: {what} stands beside ours in the kernel; the lower metric wins"
