"""Names: kinds of resource, keys of objects, and what muslin calls its things in the kernel.

A key has one readable path, the same in every backend and in the audit log, so that `etcdctl get --prefix
/muslin/` reads as the manifests do:

    /muslin/projectcalico.org/ippools/rack-1
    /muslin/networking.k8s.io/networkpolicies/shop/deny-all
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

ROOT: Final = "/muslin/"

NFT_TABLE: Final = "muslin"
"""The one nftables table that is ours, family inet."""

WORKLOAD_PREFIX: Final = "mus"
"""First letters of every workload interface on the host; anything else with them is dropped until programmed."""

IPIP_DEVICE: Final = "muslin.ipip"

TUNNEL_HANDLE: Final = "ipip-tunnel-addr-"
"""Followed by a node's name: under which IPAM keeps that node's own address inside the tunnel; Calico's spelling."""

MARK_MASK: Final = 0xFFFF0000
"""The bits of the packet mark that are ours; the low 16 belong to others (kube-proxy) and survive."""


class Kind(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A kind of resource. `group` is the API group (`core` for Kubernetes' own v1), `plural` its path segment."""

    group: str
    plural: str
    name: str
    version: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """The manifest's `apiVersion`."""
        return self.version if self.group == "core" else f"{self.group}/{self.version}"

    @property
    def prefix(self) -> str:
        """The path under which every object of this kind lies, with a trailing slash."""
        return f"{ROOT}{self.group}/{self.plural}/"

    def __str__(self) -> str:
        return self.name


class Key(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """The name of one object: kind, namespace ("" when the kind has none) and name.

    A struct, as tables are asked by it all the time: it is small, and hashed and compared without Python.
    """

    kind: Kind
    namespace: str
    name: str

    @property
    def path(self) -> str:
        """Where the object lies in a backend."""
        middle = f"{self.namespace}/" if self.kind.namespaced else ""
        return f"{self.kind.prefix}{middle}{self.name}"

    def __str__(self) -> str:
        middle = f"{self.namespace}/" if self.kind.namespaced else ""
        return f"{self.kind.name} {middle}{self.name}"


def workload_interface(namespace: str, pod: str) -> str:
    """The host end of a pod's veth: `mus` and 11 hex digits of SHA-1(`namespace.pod`); needs no look-up table."""
    digest = hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()
    return WORKLOAD_PREFIX + digest[:11]


def workload_endpoint_name(node: str, pod: str) -> str:
    """Calico's name of a pod's WorkloadEndpoint: `node-k8s-pod-eth0`, each `-` inside a part doubled."""
    return f"{node.replace('-', '--')}-k8s-{pod.replace('-', '--')}-eth0"
