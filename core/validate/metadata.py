"""The rules for every object's name, namespace, labels and annotations: Kubernetes' own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from core.documents import join
from core.errors import Problem
from core.resources import (
    BaselineAdminNetworkPolicy,
    GlobalNetworkPolicy,
    Namespace,
    NetworkPolicy,
    Resource,
    Service,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from core.validate.checks import LABEL_NAME, name, reads

MOST_ANNOTATION_BYTES: Final = 256 * 1024

_QUALIFIED: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_LABEL: Final = LABEL_NAME.pattern
_SHORT: Final = (re.compile(rf"(?=.{{1,63}}$){_LABEL}"), "is not at most 63 of a-z 0-9 - without dots")
_DOTS: Final = "has more than one dot; NAME or TIER.NAME is wanted"

_GLOBAL: Final = (re.compile(rf"{_LABEL}(\.{_LABEL})?"), _DOTS)
_NAMESPACED: Final = (re.compile(rf"{_LABEL}(\.{_LABEL})?|(knp|ossg)\.default\.{_LABEL}(\.{_LABEL})*"), _DOTS)

_STRICTER: Final[Mapping[type[Resource], tuple[re.Pattern[str], str]]] = {
    BaselineAdminNetworkPolicy: (
        re.compile("default"),
        "is not 'default': a cluster has one such policy, of that name",
    ),
    GlobalNetworkPolicy: _GLOBAL,
    Namespace: _SHORT,
    NetworkPolicy: _NAMESPACED,
    Service: _SHORT,
    StagedGlobalNetworkPolicy: _GLOBAL,
    StagedNetworkPolicy: _NAMESPACED,
    Tier: _SHORT,
}


def metadata(resource: Resource) -> Iterator[Problem]:
    """Problems of `metadata`, whatever the kind; a name may have to follow its kind's stricter rule too."""
    given, kind = resource.metadata, resource.KIND
    before = list(reads("metadata.name", given.name, name))
    yield from before or _stricter_name(resource)
    if kind.namespaced and not _SHORT[0].fullmatch(given.namespace):
        yield Problem(path="metadata.namespace", why=f"{given.namespace!r} is not a namespace's name: it {_SHORT[1]}")
    if not kind.namespaced and given.namespace:
        yield Problem(path="metadata.namespace", why=f"{kind.name} belongs to no namespace")
    yield from check_labels("metadata.labels", given.labels)
    yield from check_annotations("metadata.annotations", given.annotations)


def check_labels(path: str, given: Mapping[str, str]) -> Iterator[Problem]:
    """That keys and values of labels are ones Kubernetes accepts."""
    for key, value in given.items():
        yield from reads(join(path, key), key, qualified_name)
        yield from reads(join(path, key), value, label_value)


def check_annotations(path: str, given: Mapping[str, str]) -> Iterator[Problem]:
    """That keys of annotations are qualified names, and that they are not too long together."""
    for key in given:
        yield from reads(join(path, key), key.lower(), qualified_name)
    size = sum(len(key.encode()) + len(value.encode()) for key, value in given.items())
    if size > MOST_ANNOTATION_BYTES:
        yield Problem(path=path, why=f"has {size} bytes; at most {MOST_ANNOTATION_BYTES} are allowed")


def qualified_name(text: str) -> str:
    """`name` or `dns.domain/name`; the name at most 63 characters."""
    prefix, slash, last = text.rpartition("/")
    if slash:
        name(prefix)
    if len(last) > 63 or not _QUALIFIED.fullmatch(last):
        raise ValueError(f"key {text!r} is not a name: at most 63 of a-z A-Z 0-9 - _ . after an optional domain/")
    return text


def label_value(text: str) -> str:
    """A label's value: at most 63 characters, empty or beginning and ending with a letter or digit."""
    if len(text) > 63:
        raise ValueError(f"value has {len(text)} characters; a label's value has at most 63")
    if not _VALUE.fullmatch(text):
        raise ValueError(
            f"value {text!r} is not a label's: a-z A-Z 0-9 - _ . which begins and ends with a letter or digit"
        )
    return text


def _stricter_name(resource: Resource) -> Iterator[Problem]:
    given = resource.metadata.name
    pattern, why = _STRICTER.get(type(resource), (None, ""))
    if pattern and not pattern.fullmatch(given):
        yield Problem(path="metadata.name", why=f"{given!r} {why}")
