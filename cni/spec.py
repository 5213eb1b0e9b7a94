"""The CNI protocol without input or output: an environment and a JSON document in, values out; values in, JSON out.

    CNI_COMMAND, CNI_CONTAINERID, ...  ──┐                      ┌──> result(), in the words of the asked version
    {"cniVersion": ..., "name": ...}   ──┴── parse() ──> Call ──┤
                                              │                 └──> versions()
                                              └── Failure(code) ──> error()

What is wrong is refused with the code the specification gives for it, before anything is done. The text followed is
the CNI specification 1.1.0; results of 0.3.1 to 1.0.0 differ in their spelling only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import ip_interface
from typing import Any, Final

from core.addr import Address, Interface
from core.errors import MuslinError

VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""What of the specification is spoken, oldest first."""

DATASTORE: Final = "unix:/run/muslin/datastore.sock"

MTU: Final = 1480
"""What IP-in-IP leaves of an Ethernet packet. Pods have it in every mode, so that a pool can change its mode."""

LEAST_MTU: Final = 1280
"""IPv6 works from here."""

WAIT_S: Final = 10.0
"""Seconds that ADD gives felix to program the pod."""

DEFAULT: Final = "default"
"""The namespace of a container that comes without one, and every pod's service account: CNI names none."""


class Code(IntEnum):
    """What went wrong, as numbers that runtimes know. Those from 100 on are ours."""

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
    VERSION = "VERSION"


SINCE: Final = {Command.CHECK: "0.4.0", Command.STATUS: "1.1.0"}
"""The version of the specification that a command came with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The network as its administrator describes it. `previous` is what ADD gave, as CHECK brings it along.

    `node` is the name of this host's Node object, `wait_s` how many seconds ADD waits for felix, `labels` the pod's own
    where the runtime passes any; `log_file` "" is standard error.
    """

    version: str
    name: str
    node: str
    datastore: str = DATASTORE
    mtu: int = MTU
    log_file: str = ""
    wait_s: float = WAIT_S
    labels: Mapping[str, str] = field(default_factory=dict)
    previous: tuple[Interface, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One interface of one container: who, where (`netns` "" when the namespace is gone), and for which pod."""

    container: str
    netns: str
    interface: str
    namespace: str
    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is asked. `attachment` is None for VERSION and STATUS."""

    command: Command
    config: Config
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An interface in a result; `sandbox` is the path of the pod's namespace, "" for the host's end."""

    name: str
    mac: str
    mtu: int
    sandbox: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What ADD made: the host's end, the pod's end, and its addresses with the gateway of each."""

    host: Device
    pod: Device
    addresses: tuple[tuple[Interface, Address], ...]


_CONTAINER: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_NETWORK: Final = _CONTAINER
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_INTERFACE: Final = re.compile(r"(?!\.{1,2}$)[^/:\s]{1,15}")
_ARGUMENTS: Final = frozenset(
    {"IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"}
)
_TRUE: Final = frozenset({"1", "true", "True", "TRUE", "t", "T"})

_THEIRS: Final = frozenset(
    {"cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "disableCheck", "disableGC"}
)
"""Keys of the configuration that runtimes and libraries put there."""

_OURS: Final = frozenset({"datastore", "node", "mtu", "log_file", "policy_setup_timeout_seconds", "prevResult"})


def parse(environment: Mapping[str, str], given: bytes, host: str) -> Call:
    """The call. `host` is the host's name: the node's, unless the configuration names another. Raises `Failure`."""
    try:
        command = Command(environment.get("CNI_COMMAND", ""))
    except ValueError:
        known = ", ".join(Command)
        said = environment.get("CNI_COMMAND")
        why = f"CNI_COMMAND is {said!r}; one of {known}" if said else f"CNI_COMMAND is not set; one of {known}"
        raise Failure(Code.ENVIRONMENT, f"{why}. A container runtime calls this program") from None
    document = _document(given)
    if command is Command.VERSION:
        return Call(command=command, config=Config(version=version_of(document), name="", node=host))
    config = _config(document, host)
    since = SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(config.version) < VERSIONS.index(since):
        raise Failure(Code.VERSION, f"cniVersion {config.version} has no {command}; it came with {since}")
    if command is Command.CHECK and config.previous is None:
        raise Failure(Code.CONFIG, "prevResult is missing: CHECK needs the result of ADD")
    return Call(command=command, config=config, attachment=_attachment(command, environment))


def version_of(document: Mapping[str, Any]) -> str:
    """The version to answer in, also when the document is not to be trusted further."""
    found = document.get("cniVersion")
    return found if isinstance(found, str) and found else VERSIONS[-1]


def _document(given: bytes) -> Mapping[str, Any]:
    if not given.strip():
        return {}
    try:
        document = json.loads(given)
    except ValueError as error:
        raise Failure(Code.DECODING, f"the network configuration on standard input is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Failure(Code.DECODING, "the network configuration on standard input is not a JSON object")
    return document


def _attachment(command: Command, environment: Mapping[str, str]) -> Attachment | None:
    if command is Command.STATUS:
        return None
    needed = ["CNI_CONTAINERID", "CNI_IFNAME", *(["CNI_NETNS"] if command is not Command.DEL else [])]
    if missing := [name for name in needed if not environment.get(name)]:
        raise Failure(Code.ENVIRONMENT, f"{', '.join(missing)}: not set, and {command} needs it")
    container, interface = environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]
    netns = environment.get("CNI_NETNS", "")
    if not _CONTAINER.fullmatch(container):
        raise Failure(Code.ENVIRONMENT, f"CNI_CONTAINERID {container!r}: letters, digits, _ . and - only")
    if not _INTERFACE.fullmatch(interface):
        raise Failure(Code.ENVIRONMENT, f"CNI_IFNAME {interface!r}: no name for an interface")
    if netns and not netns.startswith("/"):
        raise Failure(Code.ENVIRONMENT, f"CNI_NETNS {netns!r}: not an absolute path")
    arguments = _arguments(environment.get("CNI_ARGS", ""))
    namespace = arguments.get("K8S_POD_NAMESPACE", "") or DEFAULT
    pod = arguments.get("K8S_POD_NAME", "") or container
    for what, text in (("namespace", namespace), ("name", pod)):
        if not _NAME.fullmatch(text):
            why = "lower-case letters, digits, - and . only; CNI_ARGS or the container's id gives it"
            raise Failure(Code.ENVIRONMENT, f"the pod's {what} {text!r}: {why}")
    return Attachment(container=container, netns=netns, interface=interface, namespace=namespace, pod=pod)


def _arguments(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(";")):
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise Failure(Code.ENVIRONMENT, f"CNI_ARGS: {part!r} is not NAME=VALUE")
        found[name] = value
    unknown = sorted(found.keys() - _ARGUMENTS)
    if unknown and found.get("IgnoreUnknown") not in _TRUE:
        raise Failure(
            Code.ENVIRONMENT, f"CNI_ARGS: {', '.join(unknown)} unknown; set IgnoreUnknown=1 to pass it anyway"
        )
    return found


def _config(document: Mapping[str, Any], host: str) -> Config:
    version = document.get("cniVersion", "0.1.0")
    if version not in VERSIONS:
        raise Failure(Code.VERSION, f"cniVersion {version!r}; muslin speaks {', '.join(VERSIONS)}")
    for key, value in document.items():
        if key not in _OURS | _THEIRS and not key.startswith("cni.dev/"):
            raise Failure(Code.FIELD, f"{key}: {json.dumps(value)}: muslin has no such setting")
    name = _text(document, "name", "")
    if not _NETWORK.fullmatch(name):
        raise Failure(Code.CONFIG, f"name: {name!r}: give the network a name of letters, digits, _ . and -")
    mtu, wait_s = document.get("mtu", MTU), document.get("policy_setup_timeout_seconds", WAIT_S)
    if isinstance(mtu, bool) or not isinstance(mtu, int) or not LEAST_MTU <= mtu <= 65535:
        raise Failure(Code.CONFIG, f"mtu: {mtu!r}: not a number from {LEAST_MTU} to 65535")
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 < wait_s <= 300:
        raise Failure(Code.CONFIG, f"policy_setup_timeout_seconds: {wait_s!r}: not a number above 0, up to 300")
    log_file = _text(document, "log_file", "")
    if log_file and not log_file.startswith("/"):
        raise Failure(Code.CONFIG, f"log_file: {log_file!r}: not an absolute path")
    return Config(
        version=version,
        name=name,
        node=_text(document, "node", "") or host,
        datastore=_text(document, "datastore", "") or DATASTORE,
        mtu=mtu,
        log_file=log_file,
        wait_s=float(wait_s),
        labels=_labels(document.get("args")),
        previous=_previous(document.get("prevResult")),
    )


def _text(document: Mapping[str, Any], key: str, default: str) -> str:
    value = document.get(key, default)
    if not isinstance(value, str):
        raise Failure(Code.CONFIG, f"{key}: {json.dumps(value)}: not a text")
    return value


def _labels(arguments: Any) -> Mapping[str, str]:
    """`args.cni.labels`, the conventional place for a container's labels: a list of {key, value}."""
    try:
        listed = ((arguments or {}).get("cni") or {}).get("labels") or []
        labels = {each["key"]: each["value"] for each in listed}
    except (AttributeError, KeyError, TypeError):
        raise Failure(Code.CONFIG, "args.cni.labels: not a list of {key, value}") from None
    if not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise Failure(Code.CONFIG, "args.cni.labels: a key or value is not a text")
    return labels


def _previous(result: Any) -> tuple[Interface, ...] | None:
    if result is None:
        return None
    try:
        return tuple(ip_interface(each["address"]) for each in result.get("ips") or [])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Failure(Code.CONFIG, f"prevResult: not a result of ADD ({error!r})") from None


def versions(asked: str) -> Mapping[str, Any]:
    """The answer to VERSION."""
    return {"cniVersion": asked, "supportedVersions": list(VERSIONS)}


def result(joined: Joined, version: str) -> Mapping[str, Any]:
    """The answer to ADD in `version`: before 1.0.0 addresses say their family, from 1.1.0 interfaces their MTU."""
    addresses = [
        {"address": str(interface), "gateway": str(gateway), "interface": 1}
        | ({"version": str(interface.version)} if version < "1" else {})
        for interface, gateway in joined.addresses
    ]
    routes = [
        {"dst": "0.0.0.0/0" if gateway.version == 4 else "::/0", "gw": str(gateway)} for _, gateway in joined.addresses
    ]
    interfaces = [_device(each, version) for each in (joined.host, joined.pod)]
    return {"cniVersion": version, "interfaces": interfaces, "ips": addresses, "routes": routes, "dns": {}}


def _device(device: Device, version: str) -> Mapping[str, Any]:
    said: dict[str, Any] = {"name": device.name, "mac": device.mac}
    if device.sandbox:
        said["sandbox"] = device.sandbox
    if version >= "1.1":
        said["mtu"] = device.mtu
    return said


def error(failure: Failure, version: str) -> Mapping[str, Any]:
    """What is printed when a call fails."""
    return {"cniVersion": version, "code": int(failure.code), "msg": str(failure)}
