"""What people call the kinds: plural, singular and short names, as Calico's and Kubernetes' own tools take them.

Every kind answers to its plural, its singular and its manifest name in any case, and to the first two with the
API group (`networkpolicies.networking.k8s.io`). Two kinds are named NetworkPolicy: without a group the name and
`np` mean Calico's, and `netpol` means Kubernetes'.

A *reference* names one object: `ippool/rack-1`, `np/shop/deny-all`. `get -o name` prints them and every command
takes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from core import resources as r
from core.errors import Invalid, Problem
from core.names import Key, Kind

SHORT: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        r.AdminNetworkPolicy.KIND: ("anp", "anps"),
        r.BaselineAdminNetworkPolicy.KIND: ("banp", "banps"),
        r.ClusterNetworkPolicy.KIND: ("cnp", "cnps"),
        r.Service.KIND: ("svc",),
        r.StagedGlobalNetworkPolicy.KIND: ("sgnp",),
        r.StagedKubernetesNetworkPolicy.KIND: ("sknp",),
        r.StagedNetworkPolicy.KIND: ("snp",),
        r.BGPConfiguration.KIND: ("bgpconfig", "bgpconfigs"),
        r.BlockAffinity.KIND: ("affinity", "affinities"),
        r.FelixConfiguration.KIND: ("felixconfig", "felixconfigs"),
        r.HostEndpoint.KIND: ("hep", "heps"),
        r.IPAMBlock.KIND: ("block", "blocks"),
        r.IPAMConfiguration.KIND: ("ipamconfig", "ipamconfigs"),
        r.IPAMHandle.KIND: ("handle", "handles"),
        r.IPPool.KIND: ("ipp", "ipps", "pool", "pools"),
        r.IPReservation.KIND: ("reservation", "reservations"),
        r.KubeControllersConfiguration.KIND: ("kubecontrollersconfig", "kcc"),
        r.Namespace.KIND: ("ns",),
        r.Node.KIND: ("no",),
        r.Pod.KIND: ("po",),
        r.ServiceAccount.KIND: ("sa",),
        r.WorkloadEndpoint.KIND: ("wep", "weps"),
        r.GlobalNetworkPolicy.KIND: ("gnp", "gnps"),
        r.GlobalNetworkSet.KIND: ("gns",),
        r.KubernetesNetworkPolicy.KIND: ("netpol", "netpols", "knp"),
        r.NetworkPolicy.KIND: ("np", "nps"),
        r.NetworkSet.KIND: ("netset", "netsets"),
    }
)


def _names(kind: Kind) -> Iterator[str]:
    singular = kind.name.lower()
    yield from (f"{kind.plural}.{kind.group}", f"{singular}.{kind.group}", *SHORT.get(kind, ()))
    if kind is not r.KubernetesNetworkPolicy.KIND:
        yield from (kind.plural, singular)


NAMES: Final[Mapping[str, Kind]] = MappingProxyType({name: kind for kind in r.BY_KIND for name in _names(kind)})
"""Every name, in lower case, and the kind it means."""


def kind_of(name: str) -> Kind:
    """The kind that a person calls `name`; `Invalid`, with the nearest names, when there is none."""
    found = NAMES.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Invalid([Problem(why=f"there is no kind of that name{hint}", what=name)])
    return found


def reference(key: Key) -> str:
    """How one object is named in output: `ippool/rack-1`, `networkpolicy/shop/deny-all`, `netpol/shop/deny-all`."""
    kind = "netpol" if key.kind == r.KubernetesNetworkPolicy.KIND else key.kind.name.lower()
    return f"{kind}/{key.namespace}/{key.name}" if key.kind.namespaced else f"{kind}/{key.name}"


def parse_target(kind: str, name: str | None, namespace: str | None) -> tuple[Kind, str | None, str | None]:
    """What `KIND [NAME] [-n NS]` or `KIND/[NS/]NAME` means: kind, namespace and name, None where none was given."""
    parts = kind.split("/")
    found = kind_of(parts[0])
    if len(parts) > 1 and name is not None:
        raise Invalid([Problem(why=f"two names are given: {parts[-1]} and {name}", what=kind)])
    if len(parts) > (3 if found.namespaced else 2) or "" in parts:
        form = "KIND/NAMESPACE/NAME or KIND/NAME" if found.namespaced else "KIND/NAME"
        raise Invalid([Problem(why=f"an object of this kind is written {form}", what=kind)])
    if len(parts) == 3:
        if namespace not in {None, parts[1]}:
            raise Invalid([Problem(why=f"two namespaces are given: {parts[1]} and {namespace}", what=kind)])
        namespace = parts[1]
    if namespace is not None and not found.namespaced:
        raise Invalid([Problem(why="objects of this kind have no namespace; leave -n away", what=found.name)])
    return found, parts[-1] if len(parts) > 1 else name, namespace
