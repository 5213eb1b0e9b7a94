"""The options that many commands share, spelt once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

DATASTORE: Final = "unix:/run/muslin/datastore.sock"

DatastoreOption = Annotated[
    str,
    typer.Option(
        "--datastore",
        envvar="MUSLIN_DATASTORE",
        help="Where the datastore server listens: unix:PATH or HOST:PORT.",
        show_envvar=True,
    ),
]
FilesOption = Annotated[
    list[str], typer.Option("--filename", "-f", help="A manifest file, a folder of them, or - for stdin; repeatable.")
]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="The namespace of namespaced kinds.")]
NodeOption = Annotated[str, typer.Option("--node", help="The name of this host's Node object.")]
RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Where the agent keeps its sockets and snapshot.")]
HealthOption = Annotated[
    str | None,
    typer.Option(
        "--health", help="Answer /liveness and /readiness there: unix:PATH or 127.0.0.1:PORT.  [default: off]"
    ),
]
LeakGraceOption = Annotated[
    float,
    typer.Option("--leak-grace", min=0.1, help="Seconds without a user after which the CNI agent frees an address."),
]
LogLevelOption = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]

RUN_DIR: Final = Path("/run/muslin")


class ResultFormat(StrEnum):
    """How a command that changes or reports something prints its result."""

    TEXT = "text"
    JSON = "json"


ResultOption = Annotated[ResultFormat, typer.Option("--output", "-o", help="text for people, json for programs.")]


class GetFormat(StrEnum):
    """How `get` prints objects."""

    TABLE = "table"
    WIDE = "wide"
    YAML = "yaml"
    JSON = "json"
    NAME = "name"


GetOption = Annotated[GetFormat, typer.Option("--output", "-o", help="How objects are printed.")]
