"""DEL: take a pod off; whatever of it is gone already is success.

    read the endpoint ──> unwire ──> connections cut ──> address, handle and endpoint away, one transaction

The address goes last: nobody gets it while the pod could still use it. An endpoint, or a wire, of the container that
has taken the pod's place stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from cni import wiring
from cni.call import Call
from cni.thread import in_thread
from core.addr import Address

WHY: Final = "DEL"
"""In the addresses' records."""

log = structlog.get_logger()


async def remove(call: Call) -> None:
    """Take the pod off. Raises `MuslinError` or `OSError`."""
    found = await call.found()
    if call.is_beside(found):
        return  # the container's other interface, or another network's, which stays
    ours = call.is_of(found)
    certain = ours or (found.endpoint is None and call.netns is None)  # else it is seen whether it is this pod's
    await in_thread(call.means.threads, wiring.detach, call.place, certain=certain)
    if ours and found.endpoint:
        await _cut(call, found.endpoint.spec.addresses)
    freed = await call.give_back(WHY, found)
    log.info("cni.removed", **call.who, addresses=[str(each) for each in freed.addresses])


async def _cut(call: Call, addresses: Iterable[Address]) -> None:
    """What cannot be cut now is cut when the address is given again."""
    try:
        await call.means.flows.cut(addresses)
    except OSError as error:
        log.warning("cni.connections_not_cut", **call.who, why=str(error))
