"""The CNI protocol's frame: what may be asked, with what around it, and what goes wrong as a number and a sentence.

    CNI_COMMAND, CNI_CONTAINERID, CNI_ARGS, ...   this file, cni.arguments
    {"cniVersion": ..., "name": ..., "ipam": ...} cni.conf
    {"interfaces": ..., "ips": ..., "routes": ...} cni.result

What is wrong is refused with the code the specification gives for it, before anything is done. The text followed is
the CNI specification 1.1.0, sections 2 and 5; results of 0.3.1 to 1.0.0 differ in their spelling only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, Final

from core.errors import MuslinError

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""What of the specification is spoken, oldest first. 0.3.0 and 0.3.1 differ by a slip of the pen."""


class Code(IntEnum):
    """What went wrong, as numbers that runtimes know (the specification's and libcni's). Those from 100 on are ours."""

    VERSION = 1
    FIELD = 2
    CONTAINER = 3
    ENVIRONMENT = 4
    IO = 5
    DECODING = 6
    CONFIG = 7
    NAMESPACE = 8
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED = 51
    NO_ADDRESS = 100
    NOT_AS_ADDED = 101
    INTERNAL = 999


class Failure(MuslinError):
    """A call that fails: its code, and a sentence for the person who reads the pod's events."""

    def __init__(self, code: Code, why: str) -> None:
        self.code = code
        super().__init__(why)


class Command(StrEnum):
    """What a runtime may ask."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


SINCE: Final = {Command.CHECK: "0.4.0", Command.STATUS: "1.1.0", Command.GC: "1.1.0"}
"""The version of the specification that a command came with."""


def command(environment: Mapping[str, str]) -> Command:
    """What is asked. Raises `Failure`."""
    given = environment.get("CNI_COMMAND", "")
    try:
        return Command(given)
    except ValueError:
        known = ", ".join(Command)
        why = f"CNI_COMMAND {given!r}: not one of {known}" if given else f"CNI_COMMAND is not set; one of {known}"
        raise Failure(Code.ENVIRONMENT, f"{why}. A container runtime calls this program") from None


def document(given: bytes) -> Mapping[str, Any]:
    """Standard input, decoded. Raises `Failure`."""
    if not given.strip():
        return {}
    try:
        found = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise Failure(Code.DECODING, f"the network configuration on standard input is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Failure(Code.DECODING, "the network configuration on standard input is not a JSON object")
    return found


def answering(given: Mapping[str, Any]) -> str:
    """The version to answer in, also when the document is not to be trusted further."""
    found = given.get("cniVersion")
    return found if isinstance(found, str) and found else VERSIONS[-1]


def version(given: Mapping[str, Any], asked: Command) -> str:
    """The version the runtime speaks. Raises `Failure` when we do not, or when it has no such command."""
    found = given.get("cniVersion", "0.1.0")  # the specification's reading of a configuration that does not say
    if found not in VERSIONS:
        raise Failure(Code.VERSION, f"cniVersion {found!r}; muslin speaks {', '.join(VERSIONS)}")
    since = SINCE.get(asked, VERSIONS[0])
    if VERSIONS.index(found) < VERSIONS.index(since):
        raise Failure(Code.VERSION, f"cniVersion {found} has no {asked}; it came with {since}")
    return str(found)


def versions(asked: str) -> Mapping[str, Any]:
    """The answer to VERSION."""
    return {"cniVersion": asked, "supportedVersions": list(VERSIONS)}


def error(failure: Failure, version: str) -> Mapping[str, Any]:
    """What is printed when a call fails."""
    return {"cniVersion": version, "code": int(failure.code), "msg": str(failure)}
