"""ipam release, split, configure: what people change of addresses by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from msgspec.structs import replace

from cli import ipam_report, options, store, terminal
from cli.ipam_read import Scene, checked_address, decided, read
from cli.ipam_report import Leak
from cli.ipam_stock import configuration
from cli.kinds import reference
from cli.render import Table
from core import clock
from core.addr import Address, host_prefix
from core.errors import Invalid, NotFound, Problem
from core.names import Key
from core.resources import IPAMConfiguration, IPPool, Metadata
from core.resources.ipam import IPAMConfigurationSpec
from datastore.api import ABSENT, Store
from datastore.ipam.auditing.audit import leak_of
from datastore.ipam.giving.release import release_address
from datastore.ipam.listing.holders import Held
from datastore.ipam.listing.split import children
from datastore.ipam.listing.split import split as split_step
from datastore.ipam.model import Step, Write

BY_HAND: Final = "ipam release"
"""What the records of addresses say that were released so."""


class Truth(StrEnum):
    """As Calico's option spells it."""

    TRUE = "true"
    FALSE = "false"


class Persistence(StrEnum):
    """Whether a KubeVirt machine keeps its address."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class Released:
    """What became of one address: `refused` is why it stays, "" when it is free; `handle` held it."""

    address: Address
    handle: str
    refused: str

    @property
    def sentence(self) -> str:
        """For people."""
        if self.refused:
            return f"{self.address} stays: {self.refused}"
        return f"{self.address} released from {self.handle}" if self.handle else f"{self.address} is free already"


def release(
    ip: Annotated[str | None, typer.Option("--ip", help="The address.")] = None,
    from_report: Annotated[
        Path | None, typer.Option("--from-report", help="All that leaks in a report of `muslin ipam check -o FILE`.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if an endpoint uses it: the next pod is given the same address.")
    ] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Give an address back that nobody uses: from then on others may be given it."""
    if (ip is None) == (from_report is None):
        raise Invalid([Problem(why="say which address: --ip ADDRESS, or --from-report FILE, and not both")])
    if ip is not None:
        done = [asyncio.run(_release_one(datastore, checked_address(ip), force=force))]
    else:
        assert from_report is not None
        done = asyncio.run(_release_report(datastore, from_report, force=force))
    if output is options.ResultFormat.JSON:
        terminal.show_json(
            [{"address": str(each.address), "handle": each.handle, "refused": each.refused} for each in done]
        )
    else:
        terminal.show_lines([each.sentence for each in done if not each.refused])
        for each in done:
            if each.refused:
                terminal.tell(each.sentence)
        if not done:
            terminal.tell(f"nothing leaks in {from_report}")
    if any(each.refused for each in done):
        raise typer.Exit(1)


async def _release_one(target: str, address: Address, *, force: bool) -> Released:
    async with store.opened(target) as opened:
        return await decided(opened, lambda scene: _released(scene, address, None, force=force))


async def _release_report(target: str, file: Path, *, force: bool) -> list[Released]:
    given = ipam_report.read(file)
    async with store.opened(target) as opened:
        return [await _release_leak(opened, leak, force=force) for leak in given.leaks]


async def _release_leak(opened: Store, leak: Leak, *, force: bool) -> Released:
    address = checked_address(leak.address)
    return await decided(opened, lambda scene: _released(scene, address, leak, force=force))


def _released(scene: Scene, address: Address, leak: Leak | None, *, force: bool) -> tuple[Released, Step]:
    """What becomes of an address, as the store is; `leak` is what a report says that it was judged on."""
    given = next(iter(scene.uses.allocations.get(address, ())), None)
    refused = _against(scene, address, leak, force=force)
    if given is None or refused:
        return Released(address, given.handle if given else "", refused), Step()
    step = release_address(scene.books, address, BY_HAND, datetime.now(UTC))
    if not step.changes:
        refused = "its block or its handle cannot be read; mend or delete that first"
    return Released(address, given.handle, refused), step


def _against(scene: Scene, address: Address, leak: Leak | None, *, force: bool) -> str:
    """Why an address is not released; "" when it may be."""
    given = next(iter(scene.uses.allocations.get(address, ())), None)
    if scene.uses.dark(address):
        return "the block that it may lie in cannot be read; mend or delete that first"
    if given is None:
        return ""
    if leak is not None:
        around = scene.seen.pool_of(host_prefix(address))
        if around is None or around.resource.metadata.uid != leak.pool_uid:
            return "the report is of another cluster, or its pool has been made anew; make the report again"
        now = leak_of(scene.uses, given)
        if (now.handle, now.handle_revision) != (leak.handle, leak.handle_revision):
            return "it has been given anew since the report was made"
    users = [*map(str, scene.uses.uses.get(address, ()))]
    users += [str(each.resource.key) for each in scene.seen.users(scene.uses.holder(given))]
    if users and not force:
        return f"{users[0]} uses it; remove that first. With --force it is released, and another may be given it too"
    return ""


def split(
    parts: Annotated[int, typer.Argument(metavar="NUMBER", help="Into how many pools: a power of two.")],
    cidr: Annotated[str | None, typer.Option("--cidr", help="The pool, by its cidr.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pool, by its name.")] = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Replace a pool by so many equal ones, in one transaction; blocks and addresses stay as they are."""
    if (cidr is None) == (name is None):
        raise Invalid([Problem(why="say which pool: --cidr CIDR, or --name NAME, and not both")])
    pool, made = asyncio.run(_split(datastore, parts, cidr, name))
    if output is options.ResultFormat.JSON:
        pools = [{"name": each.metadata.name, "cidr": each.spec.cidr} for each in made]
        terminal.show_json({"deleted": pool.metadata.name, "created": pools})
        return
    lines = (f"{reference(each.key)} created ({each.spec.cidr})" for each in made)
    terminal.show_lines([f"{reference(pool.key)} deleted ({pool.spec.cidr})", *lines])


async def _split(target: str, parts: int, cidr: str | None, name: str | None) -> tuple[IPPool, list[IPPool]]:
    now = clock.now()

    def decide(scene: Scene) -> tuple[tuple[IPPool, list[IPPool]], Step]:
        held = _pool(scene.seen.of(IPPool).values(), cidr, name)
        step = split_step(held, parts, scene.seen, now)
        return (held.resource, list(children(held.resource, parts, now))), step

    async with store.opened(target) as opened:
        return await decided(opened, decide)


def _pool(pools: Iterable[Held[IPPool]], cidr: str | None, name: str | None) -> Held[IPPool]:
    for held in pools:
        if name == held.resource.metadata.name or cidr == held.resource.spec.cidr:
            return held
    raise NotFound(f"there is no IPPool {name or cidr}; `muslin get ippools` lists them")


def configure(
    strict_affinity: Annotated[
        Truth | None,
        typer.Option("--strictaffinity", "--strict-affinity", help="Whether nodes take addresses of own blocks only."),
    ] = None,
    max_blocks_per_host: Annotated[
        int | None, typer.Option("--max-blocks-per-host", help="Blocks of a node; 0 for the default, 20.")
    ] = None,
    ip_cooldown_seconds: Annotated[
        int | None, typer.Option("--ip-cooldown-seconds", help="How long a freed address rests, 0 to 1200.")
    ] = None,
    persistence: Annotated[
        Persistence | None, typer.Option("--kubevirt-ip-persistence", help="Kept for Calico's sake.")
    ] = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Change how addresses are given; what is not named stays as it is."""
    given: dict[str, object] = {
        "strict_affinity": None if strict_affinity is None else strict_affinity is Truth.TRUE,
        "max_blocks_per_host": max_blocks_per_host,
        "ip_cooldown_seconds": ip_cooldown_seconds,
        "kube_virt_vm_address_persistence": None if persistence is None else persistence.value,
    }
    asked = {field: value for field, value in given.items() if value is not None}
    if not asked:
        raise Invalid([Problem(why="say what to change: --strictaffinity, --max-blocks-per-host, ...")])
    scene = asyncio.run(_configure(datastore, asked))
    part = configuration(scene)
    if output is options.ResultFormat.JSON:
        terminal.show_json(part.documents[0])
        return
    terminal.show(Table(part.head, tuple(row.cells for row in part.rows)))
    lent = sum(each.borrowed for all_of in scene.uses.allocations.values() for each in all_of)
    if strict_affinity is Truth.TRUE and lent:
        many = f"{lent} addresses are borrowed and stay" if lent > 1 else "one address is borrowed and stays"
        terminal.tell(f"{many} so until the pod goes: muslin ipam show --borrowed")


async def _configure(target: str, asked: dict[str, object]) -> Scene:
    def decide(scene: Scene) -> tuple[None, Step]:
        held = scene.seen.of(IPAMConfiguration).get(Key(IPAMConfiguration.KIND, "", "default"))
        before = held.resource if held is not None else _unset()
        after = replace(before, spec=replace(before.spec, **asked))
        _refuse(after.spec)
        return None, Step(changes=(Write(after, held.revision if held is not None else ABSENT),))

    async with store.opened(target) as opened:
        await decided(opened, decide)
        return await read(opened)


def _unset() -> IPAMConfiguration:
    metadata = Metadata(name="default", creation_timestamp=clock.now())
    kind = IPAMConfiguration.KIND
    return IPAMConfiguration(api_version=kind.api_version, kind=kind.name, metadata=metadata)


def _refuse(spec: IPAMConfigurationSpec) -> None:
    """What Calico's own command refuses."""
    if spec.max_blocks_per_host > 0 and not spec.strict_affinity:
        why = "needs --strictaffinity true: a node at its limit would borrow from the others without bound"
        raise Invalid([Problem(what="--max-blocks-per-host", why=f"{why}; or set it to 0")])
