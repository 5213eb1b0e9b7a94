"""The values that manifests spell as text: addresses, prefixes, ports, protocols, AS numbers, communities, durations.

Each function reads one spelling and returns the typed value, or raises ValueError with the reason in words. The
validator proves with them that a manifest's text parses; whoever uses the text later reads it with the same ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType
from typing import Final

from core.addr import Address, Interface, Network

PROTOCOLS: Final = MappingProxyType({"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136})
"""IP protocol numbers by Calico's names."""

_NAMES: Final = MappingProxyType({number: name for name, number in PROTOCOLS.items()})

WITH_PORTS: Final = frozenset({6, 17, 132})
"""Protocols whose rules may name ports: TCP, UDP, SCTP."""

_PREFIX: Final = re.compile(r"[0-9A-Fa-f:.]+/[0-9]{1,3}")
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(-[0-9A-Fa-f]{2}){5}")


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last`, both included."""

    first: int
    last: int


def address(text: str, version: int | None = None) -> Address:
    """`10.0.0.1` or `fd00::1`; of IP `version` when one is given."""
    if "/" in text:
        raise ValueError(f"{text!r} is a prefix; an address without /length is wanted")
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if "%" in text:
        raise ValueError(f"{text!r} names an interface; only the address is wanted")
    _check_version(found.version, version, text)
    return found


def network(text: str, version: int | None = None) -> Network:
    """`10.0.0.0/8`: a prefix with its length and no host bits."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length; write it as address/length")
    found = _network(text, version)
    if str(found.network_address) != text.partition("/")[0] and ip_interface(text).ip != found.network_address:
        raise ValueError(f"{text!r} has host bits set; did you mean {str(found)!r}?")
    return found


def network_or_address(text: str, version: int | None = None) -> Network:
    """A prefix without host bits, or one address as its /32 or /128."""
    return network(text, version) if "/" in text else _network(text, version)


def loose_network(text: str, version: int | None = None) -> Network:
    """A prefix or an address; host bits are dropped."""
    return _network(text, version)


def interface(text: str, version: int | None = None) -> Interface:
    """An address with or without the length of its subnet: `10.1.0.5/24`."""
    _network(text, version)
    return ip_interface(text)


def peer_address(text: str) -> tuple[Address, int | None]:
    """`ADDRESS`, `IPv4:PORT` or `[IPv6]:PORT`; the port is None when absent."""
    bracketed = re.fullmatch(r"\[([^\]]*)\]:([0-9]+)", text) or re.fullmatch(r"([0-9.]+):([0-9]+)", text)
    if bracketed is None:
        return address(text), None
    return address(bracketed[1], 6 if text.startswith("[") else 4), port_number(bracketed[2])


def port_number(value: int | str) -> int:
    """A port, 1 to 65535."""
    if isinstance(value, str) and not re.fullmatch(r"0|[1-9][0-9]{0,5}", value):
        raise ValueError(f"{value!r} is not a port number")
    if not 1 <= int(value) <= 65535:
        raise ValueError(f"port {value} is not within 1 to 65535")
    return int(value)


def port(value: int | str) -> PortRange | str:
    """A port, a range `a:b`, or the name of a port (which is returned as it is)."""
    if isinstance(value, int) or re.fullmatch(r"[0-9]+", value):
        number = port_number(value)
        return PortRange(number, number)
    ends = re.fullmatch(r"([0-9]+):([0-9]+)", value)
    if ends is None:
        return port_name(value)
    first, last = port_number(ends[1]), port_number(ends[2])
    if first > last:
        raise ValueError(f"port range {value!r} ends before it begins")
    return PortRange(first, last)


def port_name(text: str) -> str:
    """The name of a port: up to 15 lower-case letters, digits and single dashes, with a letter (RFC 6335)."""
    if len(text) > 15 or "--" in text or not _PORT_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a port: a number, a range a:b, or a name of at most 15 of a-z 0-9 -")
    return text


def protocol(value: int | str) -> int:
    """The number of an IP protocol given by Calico's name or by number 1 to 255."""
    if isinstance(value, str) and not re.fullmatch(r"[1-9][0-9]{0,2}", value):
        if value not in PROTOCOLS:
            raise ValueError(f"unknown protocol {value!r}; one of {', '.join(PROTOCOLS)} or a number")
        return PROTOCOLS[value]
    if not 1 <= int(value) <= 255:
        raise ValueError(f"protocol {value} is not within 1 to 255")
    return int(value)


def protocol_name(number: int) -> str:
    """Calico's name of an IP protocol, or "protocol" and its number."""
    return _NAMES.get(number, f"protocol {number}")


def as_number(value: int | str) -> int:
    """An AS number, plain (64512) or dotted ("1.10"), at most 4294967295."""
    number = value if isinstance(value, int) else None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
        number = int(value)
    elif isinstance(value, str) and (parts := re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})", value)):
        high, low = int(parts[1]), int(parts[2])
        number = (high << 16) + low if high < 1 << 16 and low < 1 << 16 else None
    if number is None or not 0 <= number < 1 << 32:
        raise ValueError(f"{value!r} is not an AS number (up to 4294967295, or dotted as '1.10')")
    return number


def community(text: str) -> tuple[int, ...]:
    """A BGP community: `aa:nn` of 16 bits each, or a large one, `aa:nn:mm` of 32 bits each."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(re.fullmatch(r"[0-9]{1,10}", part) for part in parts):
        raise ValueError(f"{text!r} is not a community: aa:nn or aa:nn:mm")
    numbers = tuple(int(part) for part in parts)
    bits = 16 if len(parts) == 2 else 32
    if any(number >= 1 << bits for number in numbers):
        raise ValueError(f"{text!r} has a part that does not fit into {bits} bits")
    return numbers


def duration(text: str) -> float:
    """Seconds of a duration as Go spells it: `90s`, `1h30m`, `500ms`; never negative."""
    parts = _DURATION.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as '90s' or '1h30m'")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def mac(text: str) -> str:
    """A MAC address of six octets, in lower case with colons."""
    if not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address")
    return text.lower().replace("-", ":")


def _network(text: str, version: int | None) -> Network:
    if "/" in text and not _PREFIX.fullmatch(text):
        raise ValueError(f"{text!r} is not a prefix: address/length")
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP {'prefix' if '/' in text else 'address or prefix'}") from None
    if "%" in text:
        raise ValueError(f"{text!r} names an interface; only the address is wanted")
    _check_version(found.version, version, text)
    return found


def _check_version(found: int, wanted: int | None, text: str) -> None:
    if wanted is not None and found != wanted:
        raise ValueError(f"{text!r} is IPv{found}; IPv{wanted} is wanted")
