"""What is remembered of an address that is given back: one IPAMRecord for each holder that it had."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from core.addr import Address
from core.resources import IPAMBlock, IPAMRecord, Metadata
from core.resources.ipam import HandleSpec, RecordSpec
from datastore.ipam import block as blocks

_AS_NAME: Final = str.maketrans(".:", "--")


def record_name(address: Address, handle: str, since: str) -> str:
    """The name of the record that `handle` held `address` from `since` on: by address, and unlike any other's."""
    digest = hashlib.sha256(f"{handle} {since}".encode()).hexdigest()[:20]
    return f"ip-{str(address).translate(_AS_NAME)}-{digest}"


def record(block: IPAMBlock, address: Address, spec: HandleSpec, why: str, now: datetime) -> IPAMRecord:
    """What is remembered of an address that `block`, as it was before, gave to the handle of that `spec`."""
    until = blocks.stamp(now)
    return IPAMRecord(
        api_version=IPAMRecord.KIND.api_version,
        kind=IPAMRecord.KIND.name,
        metadata=Metadata(name=record_name(address, spec.handle_id, spec.since or until)),
        spec=RecordSpec(
            address=str(address),
            handle_id=spec.handle_id,
            node=spec.node or block.spec.borrowers.get(str(address), block.spec.node),
            namespace=spec.namespace,
            pod=spec.pod,
            container=spec.container,
            service=spec.service,
            since=spec.since,
            until=until,
            why=why,
        ),
    )
