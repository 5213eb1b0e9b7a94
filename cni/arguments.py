"""The environment of a call: which interface of which container, and for which pod.

    CNI_ARGS  IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;IP=10.0.0.9;...

Kubernetes' runtimes name the pod. podman names its container in K8S_POD_NAME and no namespace, and its names are freer
than Kubernetes': `Web_1` becomes `web-1-` and the beginning of the container's id, so that no two become one pod.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cni.spec import Code, Command, Failure
from core import values
from core.addr import Address

DEFAULT: Final = "default"
"""The namespace of a container that comes without one."""

_CONTAINER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INTERFACE: Final = re.compile(r"(?!\.{1,2}$)[^/:\s\0%]{1,15}")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9.]+")
_KNOWN: Final = frozenset(
    {
        "IgnoreUnknown",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
        "IP",
        "MAC",
        "CNI_NETNS_OVERRIDE",
    }
)
_TRUE: Final = frozenset({"1", "t", "T", "true", "True", "TRUE"})
_OPTIONAL: Final = {Command.DEL: frozenset({"CNI_NETNS"})}
_WITHOUT: Final = frozenset({Command.STATUS, Command.GC, Command.VERSION})
"""Commands that are about no container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One interface of one container: who, where (`netns` "" when the namespace is gone), and for which pod.

    `addresses` and `mac` are what CNI_ARGS asks for. `named`: the runtime said which pod it is; else the container's id
    stands for its name.
    """

    container: str
    netns: str
    interface: str
    namespace: str
    pod: str
    addresses: tuple[Address, ...] = field(default_factory=tuple)
    mac: str = ""
    named: bool = True


def attachment(command: Command, environment: Mapping[str, str]) -> Attachment | None:
    """What the call is about; None for a command that is about no container. Raises `Failure`."""
    if command in _WITHOUT:
        return None
    needed = {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"} - _OPTIONAL.get(command, frozenset())
    if missing := sorted(name for name in needed if not environment.get(name)):
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
    namespace, pod = _pod(arguments, container)
    return Attachment(
        container=container,
        netns=netns,
        interface=interface,
        namespace=namespace,
        pod=pod,
        addresses=_addresses(arguments.get("IP", "")),
        mac=_mac(arguments.get("MAC", "")),
        named=bool(arguments.get("K8S_POD_NAME")),
    )


def _pod(arguments: Mapping[str, str], container: str) -> tuple[str, str]:
    namespace, given = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    pod = given or container
    if not namespace and not _NAME.fullmatch(pod):
        pod = _NOT_IN_NAMES.sub("-", f"{pod.lower()[:200]}-{container.lower()[:32]}").strip("-.")
    namespace = namespace or DEFAULT
    for what, text in (("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", pod)):
        if not _NAME.fullmatch(text):
            raise Failure(Code.ENVIRONMENT, f"CNI_ARGS: {what} {text!r}: lower-case letters, digits, - and . only")
    return namespace, pod


def _arguments(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(";")):
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise Failure(Code.ENVIRONMENT, f"CNI_ARGS: {part!r} is not NAME=VALUE")
        found[name] = value
    unknown = sorted(found.keys() - _KNOWN)
    if unknown and found.get("IgnoreUnknown") not in _TRUE:
        raise Failure(
            Code.ENVIRONMENT, f"CNI_ARGS: {', '.join(unknown)} unknown; set IgnoreUnknown=1 to pass it anyway"
        )
    return found


def _addresses(text: str) -> tuple[Address, ...]:
    try:
        return tuple(values.address(each.strip().partition("/")[0]) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise Failure(Code.ENVIRONMENT, f"CNI_ARGS: IP: {error}") from None


def _mac(text: str) -> str:
    try:
        return values.mac(text) if text else ""
    except ValueError as error:
        raise Failure(Code.ENVIRONMENT, f"CNI_ARGS: MAC: {error}") from None
