"""What every resource has: apiVersion, kind, metadata; and how the structs are spelt.

Structs are frozen msgspec values with Calico's and Kubernetes' own field names on the wire (camelCase) and
Python's inside (snake_case). Unknown fields are refused. What one object alone can be blamed for is checked by
`core.validate`; what only several objects together can get wrong, by `core.admission`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from core.names import Key, Kind


class Base(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel", gc=False
):
    """A part of a resource."""


class Metadata(Base, frozen=True, kw_only=True):
    """Who an object is. The server keeps `uid`, `resourceVersion` and `creationTimestamp`; users keep the rest."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    generation: int = 0
    generate_name: str = ""
    self_link: str = ""
    finalizers: list[str] = []
    owner_references: list[dict[str, Any]] = []
    managed_fields: list[dict[str, Any]] = []


class Resource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", gc=False):
    """Base of every kind. `KIND` says which; subclasses add `spec` (and `status`)."""

    KIND: ClassVar[Kind]

    api_version: str = ""
    kind: str = ""
    metadata: Metadata

    @property
    def key(self) -> Key:
        """The object's name in the datastore."""
        namespace = self.metadata.namespace if self.KIND.namespaced else ""
        return Key(self.KIND, namespace, self.metadata.name)


R = TypeVar("R", bound=Resource)


def calico(plural: str, name: str, *, namespaced: bool = False) -> Kind:
    """A kind of `projectcalico.org/v3`."""
    return Kind("projectcalico.org", plural, name, "v3", namespaced)
