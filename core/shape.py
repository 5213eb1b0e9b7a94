"""Whether a value has the shape of a struct: every unknown field, missing field and wrong type, each with its path.

msgspec stops at the first fault, which is right for speed and wrong for a person with a file to mend. So a value that
msgspec refuses is walked here once more, along the struct's own field types, to say everything at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

import msgspec

from core.documents import join
from core.errors import Problem

_WORDS: Final[Mapping[Any, str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@cache
def fields(cls: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """A struct's fields by their names in manifests."""
    return {field.encode_name: field for field in msgspec.structs.fields(cls)}


def faults(value: Any, expected: Any, path: str = "") -> Iterator[Problem]:
    """What keeps `value` (as JSON would give it) from being an `expected`; nothing when it is one."""
    choices = [choice for choice in _choices(expected) if choice is not NoneType]
    if value is None and len(choices) < len(_choices(expected)):
        return
    chosen = choices[0]
    if len(choices) > 1 or chosen is Any:
        yield from _leaf(value, expected, choices, path)
    elif isinstance(chosen, type) and issubclass(chosen, msgspec.Struct):
        yield from _struct(value, chosen, path)
    elif get_origin(chosen) is list:
        yield from _list(value, get_args(chosen)[0], path)
    elif get_origin(chosen) is not None:
        yield from _mapping(value, get_args(chosen)[1], path)
    else:
        yield from _leaf(value, expected, choices, path)


def without_nulls(value: Any, expected: Any) -> Any:
    """`value` less the fields that are null, which is how Kubernetes spells absent; a null label stays (a fault)."""
    for chosen in _choices(expected):
        if isinstance(value, list) and get_origin(chosen) is list:
            return [without_nulls(each, get_args(chosen)[0]) for each in value]
        if isinstance(value, dict) and isinstance(chosen, type) and issubclass(chosen, msgspec.Struct):
            types = {name: field.type for name, field in fields(chosen).items()}
            return {name: without_nulls(item, types.get(name, Any)) for name, item in value.items() if item is not None}
    return value


def as_meant(value: Any, expected: Any) -> Any:
    """`value` with misspelt fields under the names they seem to mean, less the fields that mean nothing."""
    for chosen in _choices(expected):
        if isinstance(value, list) and get_origin(chosen) is list:
            return [as_meant(each, get_args(chosen)[0]) for each in value]
        if isinstance(value, dict) and isinstance(chosen, type) and issubclass(chosen, msgspec.Struct):
            types = {name: field.type for name, field in fields(chosen).items()}
            left = types.keys() - value.keys()
            named = {name if name in types else _near(name, left): item for name, item in value.items()}
            return {name: as_meant(item, types[name]) for name, item in named.items() if name is not None}
    return value


def meant(written: str, known: Iterable[str]) -> str:
    """`; did you mean 'ipipMode'?` when a known word is near enough to what was written, else nothing."""
    near = _near(written, known)
    return f"; did you mean {near!r}?" if near else ""


def _near(written: str, known: Iterable[str]) -> str | None:
    spellings = {word.lower(): word for word in known}
    near = get_close_matches(written.lower(), spellings, n=1, cutoff=0.7)
    return spellings[near[0]] if near else None


def _struct(value: Any, cls: type[msgspec.Struct], path: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path=path, why=f"expected fields, found {_shown(value)}")
        return
    known = fields(cls)
    for name, item in value.items():
        if name not in known:
            yield Problem(path=path, why=f"unknown field {name!r}{meant(name, known) or _elsewhere(name, cls)}")
        else:
            yield from faults(item, known[name].type, join(path, name))
    for name, field in known.items():
        if field.required and name not in value:
            yield Problem(path=join(path, name), why="is required")


def _elsewhere(name: str, cls: type[msgspec.Struct]) -> str:
    """Whether the field belongs one level down, under `spec` or another part."""
    for field in fields(cls).values():
        inner = [choice for choice in _choices(field.type) if isinstance(choice, type)]
        for choice in inner:
            if issubclass(choice, msgspec.Struct) and name in choice.__struct_encode_fields__:
                return f"; it belongs under {field.encode_name!r}"
    return ""


def _list(value: Any, item: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(path=path, why=f"expected a list, found {_shown(value)}")
        return
    for index, each in enumerate(value):
        yield from faults(each, item, f"{path}[{index}]")


def _mapping(value: Any, item: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path=path, why=f"expected keys and values, found {_shown(value)}")
        return
    for key, each in value.items():
        yield from faults(each, item, join(path, key))


def _leaf(value: Any, expected: Any, choices: list[Any], path: str) -> Iterator[Problem]:
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        yield Problem(path=path, why=_reason(value, choices, str(error)))


def _reason(value: Any, choices: list[Any], otherwise: str) -> str:
    if isinstance(choices[0], type) and issubclass(choices[0], Enum):
        words = [str(member.value) for member in choices[0]]
        return f"{_shown(value)} is not one of {', '.join(words)}{meant(str(value), words)}"
    if not all(choice in _WORDS for choice in choices):
        return otherwise
    quotes = "; put it in quotes" if str in choices and isinstance(value, bool | int | float) else ""
    return f"expected {' or '.join(_WORDS[choice] for choice in choices)}, found {_shown(value)}{quotes}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _choices(expected: Any) -> tuple[Any, ...]:
    return get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
