"""The report of `ipam check`, as programs and `ipam release --from-report` read it.

An address that leaks stands in it with what it was judged on: the revision of its handle (0: it has none), which every
ADD changes, and the uid of its pool, which no other cluster has. Both must be the same when it is released.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from core.errors import Invalid, Problem
from datastore.ipam.auditing import findings
from datastore.ipam.auditing.findings import Report


class Leak(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An address that nobody used when the report was made."""

    address: str
    handle: str
    handle_revision: int
    pool_uid: str = ""


class Given(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What of a report is needed to release what leaks."""

    revision: int
    leaks: list[Leak]


def document(report: Report) -> dict[str, Any]:
    """A report for programs."""
    return {
        "revision": report.revision,
        "clean": not report.findings,
        "findings": [
            {
                "fault": each.fault.value,
                "what": each.what,
                "who": each.who,
                "why": each.why,
                "remedy": each.remedy,
                "certain": each.step is not None,
            }
            for each in report.findings
        ],
        "leaks": [_leak(each) for each in report.leaks],
        "notes": list(report.notes),
        "counts": {
            "pools": report.pools,
            "blocks": report.blocks,
            "handles": report.handles,
            "addresses": len(report.allocations),
        },
        "nodes": [{"node": each.node, "addresses": each.addresses} for each in report.stocks],
        "medianPerNode": report.median,
        "addresses": [
            {
                "ip": str(given.address),
                "inUse": used,
                "node": given.node,
                "borrowed": given.borrowed,
                "block": given.block.resource.spec.cidr,
                "handle": given.handle,
            }
            for given, used in report.allocations
        ],
    }


def _leak(each: findings.Leak) -> dict[str, Any]:
    return {
        "address": str(each.address),
        "handle": each.handle,
        "handleRevision": each.handle_revision,
        "poolUid": each.pool_uid,
    }


def read(file: Path) -> Given:
    """What a report says leaks. `Invalid` when the file holds no report."""
    try:
        return msgspec.convert(json.loads(file.read_bytes()), Given)
    except OSError as error:
        raise Invalid([Problem(where=str(file), why=f"cannot be read: {error.strerror}")]) from error
    except (ValueError, msgspec.ValidationError) as error:
        why = f"is no report of `muslin ipam check -o FILE`: {error}"
        raise Invalid([Problem(where=str(file), why=why)]) from error
