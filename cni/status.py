"""STATUS: whether an ADD could succeed now.

50  pods that run are fine, a new one could not be added: the datastore is away, no pool serves this node
51  pods that run may be cut off, too: felix is away, or not done with what it should program
"""

from __future__ import annotations

import asyncio

from cni.call import Means
from cni.conf import Conf
from cni.spec import Code, Failure
from core import selector
from core.addr import Family
from core.errors import MuslinError
from core.manifest import decode
from core.resources import IPPool, Node
from datastore import objects
from datastore.ipam.model import Use


async def status(means: Means, conf: Conf) -> None:
    """Raise `Failure` when an ADD would have to fail."""
    try:
        listing, node = await asyncio.gather(
            means.store.list({IPPool.KIND}), objects.read(means.store, Node, means.node)
        )
    except MuslinError as error:
        raise Failure(Code.NOT_AVAILABLE, str(error)) from error
    said = means.outcomes.said
    if said is None:
        raise Failure(Code.LIMITED, f"felix on node {means.node} is away; start it there")
    if not said.ready:
        why = "; ".join(said.problems) or "it is at work"
        raise Failure(Code.LIMITED, f"felix on node {means.node} is not ready: {why}")
    if node is None:
        raise Failure(Code.NOT_AVAILABLE, f"there is no Node {means.node}; create it, or start the agent with its name")
    pools = [_pool(entry.key.name, decode(entry.key, entry.value)) for entry in listing.entries]
    if why := _no_pool([pool for pool in pools if pool], node[0], conf):
        raise Failure(Code.NOT_AVAILABLE, why)


def _pool(_: str, resource: object) -> IPPool | None:
    return resource if isinstance(resource, IPPool) else None


def _no_pool(pools: list[IPPool], node: Node, conf: Conf) -> str:
    """Why no pool could serve a pod on the node; "" when one could, for each family that the configuration wants."""
    serving = {Family(pool.spec.network.version) for pool in pools if _serves(pool, node)}
    named = {Family(pool.spec.network.version) for pool in pools if _named(pool, conf) and not pool.spec.disabled}
    usable = serving | named
    for family in conf.ipam.families or ():
        if family not in usable:
            return f"no IPPool gives IPv{int(family)} addresses on node {node.metadata.name}"
    return "" if usable else f"no IPPool gives addresses on node {node.metadata.name}"


def _serves(pool: IPPool, node: Node) -> bool:
    spec = pool.spec
    if spec.disabled or pool.metadata.deletion_timestamp or spec.assignment_mode == "Manual":
        return False
    if spec.allowed_uses and Use.WORKLOAD not in spec.allowed_uses:
        return False
    return not spec.node_selector or selector.parse(spec.node_selector).matches(node.metadata.labels)


def _named(pool: IPPool, conf: Conf) -> bool:
    wanted = [each for pools in conf.ipam.pools.values() for each in pools]
    return pool.metadata.name in wanted or pool.spec.cidr in wanted
