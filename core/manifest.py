"""Manifests and resources: what users write, what the datastore keeps, what `get` prints.

    text (YAML, JSON) ── load ──> resources ── encode ──> bytes in the datastore ── decode ──> resources
                                      └─────── render ──> a document as users know it ── to_yaml ──> text

The datastore's bytes are canonical JSON: sorted keys, no field that says only the default, apiVersion and kind filled
in, and nothing that the store knows better (resourceVersion). Equal resources have equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
import yaml

from core import documents, shape, source
from core.documents import Document
from core.errors import Invalid, Problem
from core.names import Key
from core.resources import BY_KIND, BY_MANIFEST, CLASSES, DECODERS, Resource, Secret
from core.resources.policy import KubernetesNetworkPolicySpec, NetworkPolicySpec
from core.validate import validate

SUFFIXES: Final = (".json", ".yaml", ".yml")

DEFAULT_NAMESPACE: Final = "default"

EXACT: Final = 2.0**53
"""Below this, a float without a fraction is written as the integer it is: `order: 10`."""

_NAMES: Final = frozenset(cls.KIND.name for cls in CLASSES)

_S = TypeVar("_S", bound=Resource)


@dataclass(frozen=True, slots=True)
class Located:
    """A resource and where it was read: the file, the document in it, the line."""

    resource: Resource
    where: str


def load(text: str, where: str) -> list[Resource]:
    """Every resource in `text` (YAML or JSON; one or many documents, lists opened), valid and with its defaults.

    Raises `Invalid` with every problem of every document; `where` (a file's name) and the line go into each.
    """
    return [each.resource for each in locate(text, where)]


def load_path(path: Path) -> list[Resource]:
    """Every resource in a file, or in a folder's .yaml, .yml and .json files, deep and in order of path.

    Raises `Invalid` with the problems of all files.
    """
    return [each.resource for each in locate_path(path)]


def locate(text: str, where: str) -> list[Located]:
    """As `load`, and where each resource stands."""
    return _whole(*_load(text, where))


def locate_path(path: Path) -> list[Located]:
    """As `load_path`, and where each resource stands."""
    if not path.exists():
        raise Invalid([Problem(where=str(path), why="no such file or folder")])
    files = [path] if not path.is_dir() else sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
    if not files:
        raise Invalid([Problem(where=str(path), why=f"no {', '.join(SUFFIXES)} file in this folder")])
    resources: list[Located] = []
    problems: list[Problem] = []
    for file in files:
        try:
            found, wrong = _load(source.read_file(file), str(file))
        except Invalid as error:
            problems += error.problems
            continue
        resources += found
        problems += wrong
    return _whole(resources, problems)


def encode(resource: Resource) -> bytes:
    """The canonical JSON of a resource. Equal resources give equal bytes; `encode(decode(x))` changes nothing more."""
    return msgspec.json.encode(render(resource), order="sorted")


def decode(key: Key, value: bytes) -> Resource:
    """The resource kept under `key`. Raises `Invalid` when the bytes are no valid resource, or another one."""
    cls = BY_KIND[key.kind]
    try:
        resource = DECODERS[key.kind].decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(_faults_of(value, cls, named(key), error)) from None
    problems = validate(resource)
    if not problems and resource.key != key:
        problems = [Problem(what=named(key), why=f"the object kept under this name calls itself {resource.key}")]
    if problems:
        raise Invalid(problems)
    return _with_defaults(resource)


def render(resource: Resource, revision: int | None = None) -> dict[str, Any]:
    """The document a user knows: apiVersion, kind, metadata (with resourceVersion, if given), spec, status."""
    plain: dict[str, Any] = _plain(resource)
    metadata = plain["metadata"]
    for name in ("resourceVersion", "managedFields", "selfLink"):
        metadata.pop(name, None)
    if revision is not None:
        metadata["resourceVersion"] = str(revision)
    head = {"apiVersion": resource.KIND.api_version, "kind": resource.KIND.name, "metadata": metadata}
    return head | {name: plain[name] for name in plain if name not in head}


def to_yaml(rendered: Sequence[Mapping[str, Any]]) -> str:
    """Documents as YAML text, which `load` and YAML 1.1 readers alike read back as they were."""
    return yaml.dump_all(
        rendered, Dumper=documents.Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120
    )


def _load(text: str, where: str) -> tuple[list[Located], list[Problem]]:
    found, problems = documents.read(text, where)
    resources: list[Located] = []
    for document in _opened(found, problems):
        resource, wrong = _typed(document)
        if resource is not None:
            wrong += validate(resource)
            resources.append(Located(_with_defaults(resource), document.at("")))
        problems += [replace(problem, where=document.at(problem.path)) for problem in wrong]
    return resources, problems


def _whole(resources: list[Located], problems: list[Problem]) -> list[Located]:
    seen: dict[Key, str] = {}
    for each in resources:
        key = each.resource.key
        if key in seen:
            problems.append(Problem(where=each.where, what=named(key), why=f"is given twice; first in {seen[key]}"))
        seen.setdefault(key, each.where)
    if problems:
        raise Invalid(problems)
    return resources


def _opened(found: Sequence[Document], problems: list[Problem]) -> Iterator[Document]:
    """The documents, with every list (`List`, `IPPoolList`) replaced by its items."""
    for document in found:
        kind = document.value.get("kind") if isinstance(document.value, dict) else None
        if not isinstance(kind, str) or kind.removesuffix("List") not in _NAMES | {""} or not kind.endswith("List"):
            yield document
        elif not isinstance(document.value.get("items"), list):
            problems.append(Problem(where=document.at(""), what=kind, path="items", why="is required: a list"))
        else:
            yield from (_item(item, document.value) for item in document.items())


def _item(item: Document, parent: Mapping[str, Any]) -> Document:
    """An item of a typed list may leave out the apiVersion and kind that the list gives."""
    if parent["kind"] == "List" or not isinstance(item.value, dict):
        return item
    given = {"apiVersion": parent.get("apiVersion"), "kind": parent["kind"].removesuffix("List")}
    return replace(item, value=given | item.value)


def _typed(document: Document) -> tuple[Resource | None, list[Problem]]:
    """The document as a resource of its kind, and what is wrong with its shape.

    Where only fields' names are wrong there is a resource too, as it seems to be meant, so that its values are judged.
    """
    value = document.value
    if not isinstance(value, dict):
        return None, [Problem(why="a manifest is a set of fields: apiVersion, kind, metadata, spec")]
    cls, problems = _class_of(value)
    if cls is None:
        return None, problems
    metadata = value.get("metadata")
    what = cls.KIND.name
    if isinstance(metadata, dict):
        namespace = metadata.get("namespace")
        if cls.KIND.namespaced and not namespace:
            value = value | {"metadata": metadata | {"namespace": DEFAULT_NAMESPACE}}
        what = "/".join(str(part) for part in (what, namespace, metadata.get("name")) if part)
    value = shape.without_nulls(value, cls)
    try:
        return msgspec.convert(value, cls), []
    except msgspec.ValidationError as error:
        wrong = [replace(problem, what=what) for problem in _faults(value, cls)]
        try:
            return msgspec.convert(shape.as_meant(value, cls), cls), wrong
        except msgspec.ValidationError:
            return None, wrong or [Problem(what=what, why=str(error))]


def _class_of(value: Mapping[str, Any]) -> tuple[type[Resource] | None, list[Problem]]:
    version, kind = value.get("apiVersion"), value.get("kind")
    missing = [Problem(path=name, why="is required") for name in ("apiVersion", "kind") if not value.get(name)]
    if missing:
        return None, missing
    cls = BY_MANIFEST.get((str(version), str(kind)))
    if cls is not None:
        return cls, []
    versions = sorted({other.KIND.api_version for other in CLASSES if other.KIND.name == kind})
    if versions:
        return None, [Problem(path="apiVersion", why=f"{kind} is of {' or '.join(versions)}, not of {version!r}")]
    return None, [Problem(path="kind", why=f"unknown kind {kind!r}{shape.meant(str(kind), _NAMES)}")]


def _faults_of(value: bytes, cls: type[Resource], what: str, error: Exception) -> list[Problem]:
    try:
        wrong = _faults(msgspec.json.decode(value), cls)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        wrong = []
    return [replace(problem, what=what) for problem in wrong] or [Problem(what=what, why=f"cannot be read: {error}")]


def _faults(value: Any, cls: type[Resource]) -> list[Problem]:
    """What is wrong with a manifest's shape; of a Secret, without a word of what it holds."""
    found = list(shape.faults(value, cls))
    return [replace(each, why=each.why.partition(", found")[0]) for each in found] if cls is Secret else found


def named(key: Key) -> str:
    """An object as problems name it: `IPPool/rack-1`."""
    return "/".join(part for part in (key.kind.name, key.namespace, key.name) if part)


def _with_defaults(resource: _S) -> _S:
    """Spellings of one thing, made one: the empty tier, the empty list of policy types, a secret's plain text."""
    if isinstance(resource, Secret):
        return cast("_S", resource.folded())
    spec: Any = getattr(resource, "spec", None)
    if isinstance(spec, NetworkPolicySpec) and (not spec.tier or spec.types == []):
        spec = msgspec.structs.replace(spec, tier=spec.tier or "default", types=spec.types or None)
        return msgspec.structs.replace(resource, spec=spec)
    if isinstance(spec, KubernetesNetworkPolicySpec) and spec.policy_types == []:
        return msgspec.structs.replace(resource, spec=msgspec.structs.replace(spec, policy_types=None))
    return resource


@cache
def _fields(cls: type[msgspec.Struct]) -> tuple[tuple[str, str, Any], ...]:
    """Attribute, field name and default of each field of a struct."""
    return tuple(
        (
            field.name,
            name,
            field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory(),
        )
        for name, field in shape.fields(cls).items()
    )


_PLAIN: Final = frozenset({str, int, bool, type(None)})


def _plain(value: Any) -> Any:
    """A value as JSON says it, without the fields that say only the default."""
    if type(value) in _PLAIN:  # nearly every one, and asking what it is instead costs more than all the rest
        return value
    if isinstance(value, msgspec.Struct):
        found = ((name, getattr(value, attribute), default) for attribute, name, default in _fields(type(value)))
        return {name: _plain(item) for name, item, default in found if item != default}
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value
