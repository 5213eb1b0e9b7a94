"""lab: clusters in network namespaces, with real routers, from one YAML file."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli import options, terminal
from cli.render import Table

if TYPE_CHECKING:
    from lab.cluster import Cluster
    from lab.status import HostStatus

T = TypeVar("T")

lab = typer.Typer(help="Clusters in network namespaces, with real routers, to play with.", no_args_is_help=True)

LabArgument = Annotated[str, typer.Argument(metavar="FILE", help="The topology file, or the name of a lab that is up.")]


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.add_typer(lab, name="lab")


@lab.command()
def up(file: Annotated[Path, typer.Argument(metavar="FILE", help="The topology file; see docs/lab.md.")]) -> None:
    """Build the cluster that a file describes, and leave it running."""
    from lab import cluster

    built = _interruptible(cluster.up(file, terminal.tell))
    terminal.tell("for the other commands to talk to it, type:")
    terminal.show_lines([f"export MUSLIN_DATASTORE={built.socket}"])
    terminal.tell("then, for instance:")
    for line in _first_steps(built):
        terminal.tell(f"  {_program()} {line}")


@lab.command()
def down(file: LabArgument) -> None:
    """Remove a lab: its processes, its namespaces, its files."""
    from lab import cluster

    _interruptible(cluster.down(_name(file), terminal.tell))


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    file: LabArgument,
    where: Annotated[str, typer.Argument(metavar="WHERE", help="A node, a router, or a pod (NAMESPACE/NAME).")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run there.")],
) -> None:
    """Run a command inside a node, a router or a pod; its exit code is ours."""
    from lab import cluster

    cluster.exec_in(_name(file), where, command)


@lab.command()
def status(file: LabArgument, output: options.ResultOption = options.ResultFormat.TEXT) -> None:
    """Show what runs in a lab, as the machine and the routers see it."""
    from lab import status as overview

    hosts = overview.status(_name(file))
    if output is options.ResultFormat.JSON:
        terminal.show_json([_document(host) for host in hosts])
    else:
        terminal.show(table(hosts))


def table(hosts: Sequence[HostStatus]) -> Table:
    """A row a host: what it is, its addresses, its processes, its sessions."""
    return Table(
        ("NAME", "WHAT", "ADDRESSES", "PROCESSES", "SESSIONS"),
        tuple(
            (
                host.name,
                host.what,
                ", ".join(map(str, host.addresses)),
                ", ".join(name if alive else f"{name} (ended)" for name, alive in host.processes.items()),
                ", ".join(f"{peer} {state}" for peer, state in host.sessions.items()),
            )
            for host in hosts
        ),
    )


def _document(host: HostStatus) -> dict[str, Any]:
    return {
        "name": host.name,
        "what": host.what,
        "addresses": [str(address) for address in host.addresses],
        "processes": dict(host.processes),
        "sessions": dict(host.sessions),
    }


def _name(file: str) -> str:
    """The lab's name: the file's, or the word itself when it can be a name and there is no such file."""
    from lab import topology

    path = Path(file)
    return file if topology.NAME.fullmatch(file) and not path.is_file() else topology.load(path).name


def _first_steps(built: Cluster) -> Iterator[str]:
    """What to try in a lab that has just come up."""
    name, pods = built.name, built.topology.pods
    yield "status"
    yield f"lab status {name}"
    if pods:
        yield f"lab exec {name} {pods[0].node} ip route"
        yield f"lab exec {name} {pods[0].name} ping -c1 {built.address(pods[-1].name)}"
    yield f"lab down {name}"


def _program() -> str:
    """How this program is called from a shell, here and now."""
    return "muslin" if shutil.which("muslin") or Path(sys.argv[0]).name != "muslin" else sys.argv[0]


def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; a signal that would end us cancels it instead, so that what is half built is taken down."""
    caught: list[int] = []

    async def cancellable() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def end(number: int) -> None:
            caught.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise typer.Exit(128 + caught[0]) from None
