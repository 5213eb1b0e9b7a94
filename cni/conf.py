"""The network configuration: the JSON that an administrator wrote and the runtime filled in.

    honoured   what is in `Network`
    agreed     datastore, node, nodename: the agent's own settings, and a configuration that says otherwise is refused
    harmless   what has no meaning here and changes nothing that anybody could miss (`_HARMLESS`)
    refused    everything else, by its path

A Calico conflist is taken as it is, but for settings that muslin would not keep to. Sources: CNI specification 1.1.0
section 1 and CONVENTIONS.md; calico.md 1.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from cni.result import Result, previous
from cni.spec import Code, Command, Failure
from core import values
from core.addr import Address, Family, Network

MTU: Final = 1480
"""What IP-in-IP leaves of an Ethernet packet. Pods have it in every mode, so that a pool can change its mode."""

LEAST_MTU: Final = 1280
"""IPv6 works from here."""

WAIT_S: Final = 10.0
"""Seconds that ADD gives felix to program the pod."""

MOST_WAIT_S: Final = 60.0
"""The executable gives the agent up after 90 s."""

VALID: Final = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""What GC is told is in use: the specification's name, and the one that its first text and libcni had."""

_NETWORK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ANNOTATIONS: Final = "io.kubernetes.cri.pod-annotations"
_CALICO_IPAM: Final = "calico-ipam"
_OWN_IPAM: Final = frozenset({"", _CALICO_IPAM, "muslin-ipam", "muslin"})

_HARMLESS: Final = frozenset(
    {
        *("cniVersions", "capabilities", "loadOnlyInlinedPlugins", "disableCheck"),
        *("kubernetes", "datastore_type", "nodename_file_optional"),  # where to find what the agent has found
        *("log_level", "log_file", "log_file_path", "log_file_max_size", "log_file_max_age", "log_file_max_count"),
    }
)
_READ: Final = frozenset(
    {
        *("cniVersion", "name", "type", "args", "runtimeConfig", "prevResult", "dns", "ipMasq", "ipam", "disableGC"),
        *("datastore", "node", "nodename", "mtu", "policy", "policy_setup_timeout_seconds", "container_settings"),
        *("include_default_routes", "readiness_gates", "feature_control"),
    }
)
_CHAINED: Final = {
    "bandwidth": "chain the bandwidth plugin after muslin, and give it this capability",
    "portMappings": "chain the portmap plugin after muslin, and give it this capability",
    "ipRanges": "muslin gives addresses from IPPools; name them in ipam.ipv4_pools",
    "infinibandGUID": "muslin has no InfiniBand",
    "deviceID": "muslin gives veth pairs only",
    "aliases": "muslin has no name service",
}
_FEATURES: Final = frozenset({"ip_addrs_no_ipam", "floating_ips", "allowed_source_prefixes"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipam:
    """Which addresses. `families` None: each that a pool serves. `pools` by family are names or CIDRs; `routes` None:
    the default ones."""

    families: tuple[Family, ...] | None = None
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    routes: tuple[Network, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the runtime asks for one container: by capability (`runtimeConfig`) and by convention (`args.cni`)."""

    addresses: tuple[Address, ...] = ()
    mac: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """The network `name`, as it is for one call.

    `wait_s` is how long ADD waits for felix (seconds, 0: not at all), `gates` what must answer before it ends (URLs),
    `valid` the (container, interface) that GC is told are in use, `previous` the result so far.
    """

    version: str
    name: str
    mtu: int = MTU
    wait_s: float = WAIT_S
    ip_forward: bool = False
    collect: bool = True
    gates: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    ipam: Ipam = Ipam()
    asked: Asked = Asked()
    dns: Mapping[str, Any] = field(default_factory=dict)
    valid: frozenset[tuple[str, str]] = frozenset()
    previous: Result | None = None


def read(document: Mapping[str, Any], version: str, command: Command, node: str, datastore: str) -> Conf:
    """The configuration, for the agent of `node` on `datastore`. Raises `Failure` with the path of what is wrong."""
    _refuse_unknown(document, _READ | _HARMLESS, "")
    for key, ours in (("datastore", datastore), ("node", node), ("nodename", node)):
        given = _text(document, key, "")
        if given and given != ours:
            raise _wrong(key, f"{given!r}: the agent of this node has {ours!r}; change one of them")
    name = _text(document, "name", "")
    if not _NETWORK.fullmatch(name):
        raise _wrong("name", f"{name!r}: give the network a name of letters, digits, _ . and -")
    _refuse_unkept(document)
    runtime, args = _object(document, "runtimeConfig"), _object(_object(document, "args"), "cni", "args.cni")
    return Conf(
        version=version,
        name=name,
        mtu=_mtu(document),
        wait_s=_wait(document),
        ip_forward=_switch(_object(document, "container_settings"), "allow_ip_forwarding", False, "container_settings"),
        collect=not _switch(document, "disableGC", False),
        gates=_gates(document),
        features=_features(_object(document, "feature_control")),
        ipam=_ipam(document),
        asked=_asked(runtime, args),
        dns={**_object(document, "dns"), **_object(runtime, "dns", "runtimeConfig.dns")},
        valid=_valid(document) if command is Command.GC else frozenset(),
        previous=_previous(document, command),
    )


def _wrong(path: str, why: str) -> Failure:
    return Failure(Code.CONFIG, f"{path}: {why}")


def _refuse_unknown(given: Mapping[str, Any], known: frozenset[str], under: str) -> None:
    for key, value in given.items():
        if key not in known and not key.startswith("cni.dev/"):
            raise Failure(Code.FIELD, f"{under}{key}: {json.dumps(value)}: muslin has no such setting")


def _refuse_unkept(document: Mapping[str, Any]) -> None:
    """What would not happen although it is asked for."""
    if _switch(document, "ipMasq", False):
        raise _wrong("ipMasq", "true: translation is the pool's to say; set natOutgoing on the IPPool")
    policy = _text(_object(document, "policy"), "type", "", "policy.type")
    if policy not in ("", "k8s"):
        raise _wrong("policy.type", f"{policy!r}: policy is felix's, and always in force; leave it out")
    for key, value in _object(document, "runtimeConfig").items():
        if value and key in _CHAINED:
            raise _wrong(f"runtimeConfig.{key}", _CHAINED[key])
    runtime = frozenset({"ips", "mac", "dns", "cgroupPath", _ANNOTATIONS, *_CHAINED})
    _refuse_unknown(_object(document, "runtimeConfig"), runtime, "runtimeConfig.")
    _refuse_unknown(_object(document, "container_settings"), frozenset({"allow_ip_forwarding"}), "container_settings.")


def _mtu(document: Mapping[str, Any]) -> int:
    mtu = document.get("mtu", 0)
    if isinstance(mtu, bool) or not isinstance(mtu, int) or (mtu and not LEAST_MTU <= mtu <= 65535):
        raise _wrong("mtu", f"{mtu!r}: not a number from {LEAST_MTU} to 65535, nor 0 for muslin's own")
    return mtu or MTU


def _wait(document: Mapping[str, Any]) -> float:
    wait_s = document.get("policy_setup_timeout_seconds", WAIT_S)
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= MOST_WAIT_S:
        raise _wrong("policy_setup_timeout_seconds", f"{wait_s!r}: not a number from 0 to {MOST_WAIT_S:g}")
    return float(wait_s)


def _gates(document: Mapping[str, Any]) -> tuple[str, ...]:
    found = _texts(document, "readiness_gates")
    for index, url in enumerate(found):
        if urlsplit(url).scheme != "http" or not urlsplit(url).hostname:
            raise _wrong(f"readiness_gates[{index}]", f"{url!r}: not http://HOST[:PORT]/PATH")
    return found


def _features(given: Mapping[str, Any]) -> frozenset[str]:
    _refuse_unknown(given, _FEATURES, "feature_control.")
    return frozenset(key for key in given if _switch(given, key, False, "feature_control"))


def _ipam(document: Mapping[str, Any]) -> Ipam:
    given = _object(document, "ipam")
    known = {"type", "assign_ipv4", "assign_ipv6", "ipv4_pools", "ipv6_pools", "routes"}
    kind = _text(given, "type", "", "ipam.type")
    if kind not in _OWN_IPAM:
        raise _wrong("ipam.type", f"{kind!r}: muslin gives addresses itself, from IPPools; leave `ipam` out")
    _refuse_unknown(given, frozenset(known), "ipam.")
    return Ipam(
        families=_families(given, kind),
        pools={
            family: found
            for family, key in ((Family.V4, "ipv4_pools"), (Family.V6, "ipv6_pools"))
            if (found := _texts(given, key, "ipam."))
        },
        routes=_routes(given, _switch(document, "include_default_routes", "routes" not in given)),
    )


def _families(given: Mapping[str, Any], kind: str) -> tuple[Family, ...] | None:
    """Calico's IPAM gives IPv4 alone unless it is told otherwise; muslin's each family that has a pool."""
    calico = kind == _CALICO_IPAM
    if not calico and not given.keys() & {"assign_ipv4", "assign_ipv6"}:
        return None
    four, six = _switch(given, "assign_ipv4", True, "ipam"), _switch(given, "assign_ipv6", not calico, "ipam")
    if not calico and four and six and not {"assign_ipv4", "assign_ipv6"} <= given.keys():
        return None
    found = tuple(family for family, wanted in ((Family.V4, four), (Family.V6, six)) if wanted)
    if not found:
        raise _wrong("ipam", "assign_ipv4 and assign_ipv6 are both false; a pod has an address")
    return found


def _routes(given: Mapping[str, Any], default: bool) -> tuple[Network, ...] | None:
    """Destinations beside the default ones (None: those alone)."""
    listed = given.get("routes") or []
    if not isinstance(listed, list):
        raise _wrong("ipam.routes", "not a list of {dst}")
    found = []
    for index, route in enumerate(listed):
        path = f"ipam.routes[{index}]"
        if not isinstance(route, dict):
            raise _wrong(path, "not an object with dst")
        _refuse_unknown(route, frozenset({"dst"}), f"{path}.")
        found.append(_value(values.network, route.get("dst"), f"{path}.dst"))
    if default:
        return (*(values.network(each) for each in ("0.0.0.0/0", "::/0")), *found) if found else None
    return tuple(found)


def _asked(runtime: Mapping[str, Any], args: Mapping[str, Any]) -> Asked:
    by_capability = _addresses(runtime, "runtimeConfig.ips")
    by_argument = _addresses(args, "args.cni.ips")
    if by_capability and by_argument and set(by_capability) != set(by_argument):
        raise _wrong("runtimeConfig.ips", "asks for other addresses than args.cni.ips; leave one of them out")
    mac = runtime.get("mac") or ""
    return Asked(
        addresses=by_capability or by_argument,
        mac=_value(values.mac, mac, "runtimeConfig.mac") if mac else "",
        labels=_labels(args),
        annotations=_strings(runtime, _ANNOTATIONS, f"runtimeConfig.{_ANNOTATIONS}"),
    )


def _addresses(given: Mapping[str, Any], path: str) -> tuple[Address, ...]:
    """A list of addresses, each with or without a prefix length (which says nothing here: a pod has a /32)."""
    listed = given.get("ips") or []
    if not isinstance(listed, list):
        raise _wrong(path, "not a list of addresses")
    bare = [text.partition("/")[0] if isinstance(text, str) else text for text in listed]
    found = tuple(_value(values.address, text, f"{path}[{index}]") for index, text in enumerate(bare))
    if len({each.version for each in found}) < len(found):
        raise _wrong(path, "two addresses of one family; a pod has one of each")
    return found


def _labels(args: Mapping[str, Any]) -> Mapping[str, str]:
    """`args.cni.labels`, the conventional place for a container's labels: a list of {key, value}."""
    try:
        labels = {each["key"]: each["value"] for each in args.get("labels") or []}
    except (AttributeError, KeyError, TypeError):
        raise _wrong("args.cni.labels", "not a list of {key, value}") from None
    if not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise _wrong("args.cni.labels", "a key or value is not a text")
    return labels


def _valid(document: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    given = next((document[key] for key in VALID if key in document), None)
    if given is None:  # a list that is missing is not an empty one: nobody would have a network afterwards
        raise _wrong(VALID[0], "missing: GC needs the list of attachments in use, an empty one when there are none")
    try:
        return frozenset((str(each["containerID"]), str(each["ifname"])) for each in given)
    except (KeyError, TypeError):
        raise _wrong(VALID[0], "not a list of {containerID, ifname}") from None


def _previous(document: Mapping[str, Any], command: Command) -> Result | None:
    given = document.get("prevResult")
    if command is Command.CHECK and given is None:
        raise _wrong("prevResult", "missing: CHECK needs the result of ADD")
    if given is None or command not in (Command.ADD, Command.CHECK):
        return None  # DEL and GC go by what is there, whatever was said of it
    return previous(given)


def _object(given: Mapping[str, Any], key: str, path: str = "") -> Mapping[str, Any]:
    found = given.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(path or key, "not an object")
    return found


def _strings(given: Mapping[str, Any], key: str, path: str) -> Mapping[str, str]:
    found = _object(given, key, path)
    if not all(isinstance(each, str) for each in found.values()):
        raise _wrong(path, "a value is not a text")
    return found


def _text(given: Mapping[str, Any], key: str, default: str, path: str = "") -> str:
    value = given.get(key, default)
    if not isinstance(value, str):
        raise _wrong(path or key, f"{json.dumps(value)}: not a text")
    return value


def _texts(given: Mapping[str, Any], key: str, under: str = "") -> tuple[str, ...]:
    found = given.get(key) or []
    if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(each, str) for each in found):
        raise _wrong(under + key, "not a list of texts")
    return tuple(found)


def _switch(given: Mapping[str, Any], key: str, default: bool, under: str = "") -> bool:
    """True or false; as Calico has it, also as a text."""
    value = given.get(key, default)
    spelt = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(spelt, bool):
        raise _wrong(f"{under}.{key}" if under else key, f"{json.dumps(value)}: neither true nor false")
    return spelt


def _value(reads: Callable[[str], T], given: Any, path: str) -> T:
    if not isinstance(given, str):
        raise _wrong(path, f"{json.dumps(given)}: not a text")
    try:
        return reads(given)
    except ValueError as error:
        raise _wrong(path, str(error)) from None
