"""What felix says of itself, from what it wanted and how each reconciler's last round went. Pure.

    up        the endpoint's routes and rules are in the kernel
    pending   its interface does not exist, or is down
    error     it was set aside, or the kernel refused something of it: with the reason, and it stays cut off

A kernel that refuses a tunnel, or the address for peering with pods, does not hold the revision back: pods and policy
are in place without it, and the problem is said plainly. A tunnel that is on its way does: its routes are not in yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from core import breaker
from core.health import Health, trouble
from core.nftables import Element
from core.reconcile import Progress
from core.resources import FelixStatus, Metadata
from core.resources.status import EndpointState, FelixState
from felix.endpoints import Endpoint, host_routes, sysctls
from felix.filter import dispatch
from felix.host_frame import INTERFACES, NAMES
from felix.hosts import Host, status_name
from felix.model import Desired

MOST_ERRORS: Final = 10
"""Errors of one reconciler that the status repeats; when nft refuses a batch, every object in it has one."""


SPARED: Final = frozenset({"tunnels", "addresses"})
"""Without what these make, every pod still has its network and its policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The last round of each reconciler."""

    sysctls: Progress
    tunnels: Progress
    addresses: Progress
    nft: Progress
    routes: Progress

    def __iter__(self) -> Iterator[tuple[str, Progress]]:
        yield from (("sysctls", self.sysctls), ("tunnels", self.tunnels), ("addresses", self.addresses))
        yield from (("nft", self.nft), ("routes", self.routes))

    @property
    def tried(self) -> int:
        """The newest desired state that every reconciler has had its turn with."""
        return min(progress.tried for _, progress in self)

    @property
    def clean(self) -> bool:
        """Whether nothing failed but, perhaps, what is spared: no endpoint has to be asked for then."""
        return all(progress.healthy for name, progress in self if name not in SPARED)

    @property
    def done(self) -> int:
        """The newest desired state that is in the kernel; what is spared does not count when it is refused."""
        counted = [progress for name, progress in self if name not in SPARED or progress.healthy]
        return min(progress.revision for progress in counted)


def state(desired: Desired, outcome: Outcome, programmed: int, since: str) -> FelixState:
    """The status. `desired` is what the round was about, `programmed` the revision that is wholly in the kernel."""
    clean = outcome.clean
    endpoints = {each.name: _endpoint(each, outcome, clean) for each in desired.endpoints}
    endpoints.update((each.name, _host(each, outcome)) for each in desired.hosts)
    for key, reason in desired.rejected.items():
        name = f"{key.namespace}/{key.name}" if key.kind.namespaced else status_name(key)
        endpoints[name] = EndpointState(state="error", reason=reason)
    settled = not desired.held and clean
    return FelixState(
        programmed=programmed,
        decided=desired.revision,
        stale=desired.stale,
        ready=settled and programmed == desired.revision,
        since=since,
        endpoints=dict(sorted(endpoints.items())),
        routes=len(desired.routes),
        problems=[*desired.problems, *_problems(desired, outcome)],
    )


def status(node: str, felix: FelixState) -> FelixStatus:
    """The resource, named as the node."""
    kind = FelixStatus.KIND
    return FelixStatus(api_version=kind.api_version, kind=kind.name, metadata=Metadata(name=node), status=felix)


def tell_health(health: Health, desired: Desired, outcome: Outcome) -> None:
    """Each part's health after a round. What is spared keeps nobody from being ready, as in `state`."""
    for name, progress in outcome:
        if name in SPARED and (why := trouble(progress)):
            health.ok(name, why)
        else:
            health.round(name, progress)
    if desired.held:
        health.degraded("breaker", "; ".join(desired.held))
    else:
        health.ok("breaker")


def _endpoint(endpoint: Endpoint, outcome: Outcome, clean: bool) -> EndpointState:
    if endpoint.pending:
        return EndpointState(state="pending", reason=endpoint.pending)
    up = EndpointState(state="up", link=endpoint.link.index if endpoint.link else 0)
    if clean:
        return up
    errors = [
        *(outcome.routes.errors[key] for key in host_routes(endpoint) if key in outcome.routes.errors),
        *(outcome.sysctls.errors[key] for key in sysctls(endpoint) if key in outcome.sysctls.errors),
        *(outcome.nft.errors[key] for key in _elements(endpoint) if key in outcome.nft.errors),
        *filter(None, (outcome.nft.failure, outcome.routes.failure, outcome.sysctls.failure)),
    ]
    return EndpointState(state="error", reason=str(errors[0])) if errors else up


def _elements(endpoint: Endpoint) -> Iterable[Element]:
    return dispatch(endpoint.interface, endpoint.addresses, endpoint.spoofs, "", "")


def _host(host: Host, outcome: Outcome) -> EndpointState:
    """A host endpoint's state. Its rules stand before its interface does, but there is nobody to be judged by them."""
    if host.pending:
        return EndpointState(state="pending", reason=host.pending)
    elements = [Element(name, f'"{each}"') for name in (INTERFACES, *NAMES.values()) for each in host.interfaces]
    errors = [
        *(outcome.nft.errors[element] for element in elements if element in outcome.nft.errors),
        *filter(None, [outcome.nft.failure]),
    ]
    return EndpointState(state="error", reason=str(errors[0])) if errors else EndpointState(state="up")


def _problems(desired: Desired, outcome: Outcome) -> Iterator[str]:
    yield from breaker.problems(desired.held)
    for name, progress in outcome:
        if progress.failure:
            yield progress.failure
        if name != "tunnels":
            yield from sorted(set(map(str, progress.errors.values())))[:MOST_ERRORS]
    pools = ", ".join(desired.tunnelled)
    yield from (f"{name}: {why} (pools that need it: {pools})" for name, why in outcome.tunnels.errors.items())
