"""Every way in which what IPAM keeps can be wrong, looked for in one listing of the store. Pure.

    listing ──> Holdings ──> Uses ──┬─ addresses   held and not used, used and not held, several owners   (here)
                                    ├─ handles     without addresses, missing, not naming what they hold  (`soundness`)
                                    └─ blocks      of no pool, overlapping, claims without their blocks   (`soundness`)
                                                         │
    Report: findings, each with its remedy and, where     <
            that is certain to harm nobody, the step

A finding has a step only if the store alone can tell that nobody is harmed. What a container of a living node holds is
not such a thing, whatever endpoints say: only its node sees its interface. What cannot be read counts as in use.

What is on its way looks wrong to one look: a claim that is being made, a block that is just going. Callers look twice,
a moment apart, and believe what both looks find (`same`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Final

from core.addr import Address, contains
from core.errors import Invalid
from core.manifest import decode
from core.names import Key
from core.resources import IPAMBlock, IPAMHandle, IPPool, IPReservation, Node, Service
from datastore.api import ABSENT, At
from datastore.ipam.auditing.findings import Fault, Finding, Leak, Report, Stock
from datastore.ipam.auditing.soundness import of_affinities, of_blocks, of_handles
from datastore.ipam.balancing.waiting import waiting
from datastore.ipam.collecting.unused import freeing
from datastore.ipam.listing.holders import Holder, Holdings
from datastore.ipam.listing.uses import Allocation, Use, Uses
from datastore.ipam.model import Step

YOUNG: Final = timedelta(minutes=15)
"""What was given less long ago may be on its way to its user; Calico's leakGracePeriod."""

MENDED: Final = "ipam check --fix"
"""What the records of addresses say that were given back so."""


def audit(seen: Holdings, now: datetime) -> Report:
    """Everything that is wrong with the state `seen` at the time of day `now`."""
    uses = Uses(seen)
    allocations = tuple((given, uses.used(given)) for all_of in uses.allocations.values() for given in all_of)
    leaks = [given for given, used in allocations if not used and not _young(uses, given, now)]
    findings = [
        *_unreadable(seen),
        *(_leak(uses, given, now) for given in leaks),
        *_unheld(uses),
        *_several(uses),
        *of_handles(uses, now),
        *of_blocks(uses),
        *of_affinities(uses),
    ]
    return Report(
        revision=seen.revision,
        findings=tuple(findings),
        leaks=tuple(leak_of(uses, given) for given in leaks),
        notes=(*_reserved(uses), *waiting(seen, now)),
        pools=len(seen.of(IPPool)),
        blocks=len(uses.blocks),
        handles=len(seen.of(IPAMHandle)),
        allocations=allocations,
        stocks=_stocks(uses),
    )


def same(earlier: Report, later: Report) -> Report:
    """`later` with those findings only that `earlier` has too."""
    known = {each.identity for each in earlier.findings}
    return replace(later, findings=tuple(each for each in later.findings if each.identity in known))


def _unreadable(seen: Holdings) -> Iterator[Finding]:
    for key, entry in sorted(seen.unread.items()):
        try:
            decode(key, entry.value)
        except Invalid as invalid:
            why = "; ".join(": ".join(filter(None, (each.path, each.why))) for each in invalid.problems)
            fault = Fault.BLOCK if key.kind == IPAMBlock.KIND else Fault.UNREADABLE
            remedy = "apply it again as it should be, or delete it; until then what it says counts as in use"
            yield Finding(fault=fault, what=str(key), why=why, remedy=remedy)


def leak_of(uses: Uses, given: Allocation) -> Leak:
    """What an allocation is judged on."""
    held = uses.holder(given).object
    around = uses.seen.pool_of(given.block.resource.spec.network)
    return Leak(
        address=given.address,
        handle=given.handle,
        handle_revision=held.revision if held is not None else ABSENT,
        pool_uid=around.resource.metadata.uid if around is not None else "",
    )


def _since(holder: Holder) -> str:
    return holder.object.resource.spec.since if holder.object is not None else ""


def _young(uses: Uses, given: Allocation, now: datetime) -> bool:
    since = _since(uses.holder(given))
    return bool(since) and now - datetime.fromisoformat(since) < YOUNG


def _leak(uses: Uses, given: Allocation, now: datetime) -> Finding:
    """An address that somebody holds and nobody uses."""
    holder = uses.holder(given)
    since, node = _since(holder), holder.owner_of_tunnel or holder.node or given.node
    told = f"held since {since}" if since else "held for an unknown time"
    found = Finding(
        fault=Fault.LEAK,
        what=str(given.address),
        who=given.handle,
        why=f"{told}; no endpoint and no Node uses it",
        remedy=f"node {node or '(unknown)'} collects what its kernel has no pod of; by hand: "
        f"muslin ipam release --ip {given.address}",
    )
    if holder.service is not None:
        return _of_service(uses, holder, holder.service, found, now)
    if not _left_behind(uses, holder):
        return found
    step = Step(changes=tuple(freeing([holder], (), now, MENDED)))
    return replace(found, why=f"{found.why}; its node {node} is gone", remedy="it is given back", step=step)


def _of_service(uses: Uses, holder: Holder, service: Key, found: Finding, now: datetime) -> Finding:
    """An address of a load balancer that its Service does not say it has, or whose Service is gone."""
    by_hand = f"by hand: muslin ipam release --ip {found.what}"
    if service in uses.seen.of(Service):
        name = f"Service {service.namespace}/{service.name}"
        return replace(found, why=f"{found.why}, nor does its {name}", remedy=f"muslin datastore sees to it; {by_hand}")
    why = f"{found.why}; its Service {service.namespace}/{service.name} is gone"
    if _several_blocks(uses, holder):
        return replace(found, why=why, remedy=f"muslin datastore sees to it; {by_hand}")
    step = Step(changes=tuple(freeing([holder], (), now, MENDED)), guards=(At(service, ABSENT),))
    return replace(found, why=why, remedy="it is given back", step=step)


def _left_behind(uses: Uses, holder: Holder) -> bool:
    """Whether a holder that nobody speaks for was of a node that is gone, so that nobody can look there any more."""
    node = holder.owner_of_tunnel or (holder.container and holder.node)
    return bool(node) and node not in uses.seen.nodes and not _several_blocks(uses, holder)


def _several_blocks(uses: Uses, holder: Holder) -> bool:
    return any(len(uses.allocations.get(address, ())) != 1 for address in holder.addresses)


def _unheld(uses: Uses) -> Iterator[Finding]:
    """Addresses that somebody uses, and that no block gives to anybody."""
    for address, users in uses.uses.items():
        if address in uses.allocations or uses.dark(address):
            continue
        who = ", ".join(map(str, users))
        if not uses.pooled(address):
            yield Finding(
                fault=Fault.OUTSIDE,
                what=str(address),
                who=who,
                why="it is used and lies in no IPPool: it is neither routed nor translated as a pod's",
                remedy="make a pool around it, or move its user to an address of a pool",
            )
            continue
        yield Finding(
            fault=Fault.UNALLOCATED,
            what=str(address),
            who=who,
            why="it is used and no block gives it to anybody: somebody else may be given it",
            remedy="restart its user, so that it is given an address; or delete the endpoint if its pod is gone"
            if not any(use.service for use in users)
            else "muslin datastore gives the Service an address, and takes this one out of its status",
        )


def _several(uses: Uses) -> Iterator[Finding]:
    """Addresses with more than one owner: two users, two blocks, or a user that is not the holder."""
    for address, users in uses.uses.items():
        if len(users) > 1:
            yield _owners(address, sorted(map(str, users)), "each of them says that the address is its own")
    for address, given in uses.allocations.items():
        if len(given) > 1:
            blocks = " and ".join(str(each.block.resource.key) for each in given)
            yield _owners(address, sorted(each.handle for each in given), f"{blocks} both give it to somebody")
        for use in uses.uses.get(address, ()) if len(given) == 1 else ():
            if not _same_owner(uses.holder(given[0]), given[0].handle, use):
                yield _owners(address, [given[0].handle, str(use)], "one holds it and the other uses it")


def _owners(address: Address, owners: list[str], why: str) -> Finding:
    remedy = "restart the pods but one, so that they are given others; delete the endpoints whose pods are gone"
    return Finding(fault=Fault.SEVERAL, what=str(address), who=", ".join(owners), why=why, remedy=remedy)


def _same_owner(holder: Holder, handle: str, use: Use) -> bool:
    """Whether who uses an address may be the one who holds it; what has no container that is known may be anybody's."""
    if use.tunnel or use.service:
        return handle in (use.tunnel, use.service)
    if holder.owner_of_tunnel or holder.service is not None:
        return False
    return not holder.container or not use.container or holder.container == use.container


def _reserved(uses: Uses) -> Iterator[str]:
    ranges = [
        ip_network(text) for held in uses.seen.of(IPReservation).values() for text in held.resource.spec.reserved_cidrs
    ]
    taken = [address for address in uses.allocations if any(contains(each, address) for each in ranges)]
    if taken:
        shown = ", ".join(map(str, taken[:5])) + (", ..." if len(taken) > 5 else "")
        yield f"{len(taken)} reserved addresses are held, given before they were reserved or asked for: {shown}"


def _stocks(uses: Uses) -> tuple[Stock, ...]:
    counts = Counter(given.node for all_of in uses.allocations.values() for given in all_of if given.node)
    nodes = {held.resource.metadata.name for held in uses.seen.of(Node).values()} | counts.keys()
    found = (Stock(node=node, addresses=counts[node]) for node in nodes)
    return tuple(sorted(found, key=lambda stock: (-stock.addresses, stock.node)))
