"""Where a Service says which addresses its load balancer has: `status.loadBalancer.ingress: [{ip: ...}]`. Pure.

Others may write there too: an entry with a host name, or an address that is not IPAM's to give. Those stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from core import values
from core.addr import Address
from core.resources import Service


def addresses(service: Service) -> tuple[Address, ...]:
    """Those that it says; what is no address is passed over."""
    return tuple(found for entry in _entries(service) if (found := _address(entry)) is not None)


def telling(service: Service, held: Collection[Address], is_ours: Callable[[Address], bool]) -> Service:
    """`service` as it says that it has `held`, and nothing else of what is ours to say. Itself, if it says so now."""
    before = list(_entries(service))
    after: list[Any] = []
    for entry in before:
        address = _address(entry)
        if address is None or address in held or not is_ours(address):
            after.append(entry)
    said = {*map(_address, after)}
    after += [{"ip": str(each)} for each in held if each not in said]
    if after == before:
        return service
    status = {**(service.status or {})}
    balancer = {name: value for name, value in _balancer(service).items() if name != "ingress"}
    status["loadBalancer"] = {**balancer, "ingress": after} if after else balancer
    return replace(service, status=status)


def _balancer(service: Service) -> Mapping[str, Any]:
    found = (service.status or {}).get("loadBalancer")
    return found if isinstance(found, Mapping) else {}


def _entries(service: Service) -> Iterator[Any]:
    found = _balancer(service).get("ingress")
    yield from found if isinstance(found, list) else ()


def _address(entry: Any) -> Address | None:
    text = entry.get("ip") if isinstance(entry, Mapping) else None
    try:
        return values.address(text) if isinstance(text, str) else None
    except ValueError:
        return None
