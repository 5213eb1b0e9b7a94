"""Text to documents: YAML or JSON, one or many, read so that nothing is guessed and every fault has a line.

YAML 1.1, which PyYAML speaks, has traps that a network's manifests fall into: `65000:1` is a number in base 60,
`010` is eight, `no` is false, `2024-01-01` a date, and a key given twice silently wins. Here plain text is a number,
true, false or null only where YAML 1.2 says so, and is text otherwise; a key given twice is a fault. Depth and size are
bounded: anchors cannot blow a small file up, nor nesting the stack (libyaml's composer would crash the process).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from core.errors import Problem

DEEPEST: Final = 60
"""Most levels of nesting; a policy needs eight."""

GROWTH: Final = 10
"""How many values a text may hold for each of its characters, once its anchors are followed (plain text: below 1)."""

INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})$")
FLOAT: Final = re.compile(r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")

_STEP: Final = re.compile(r'\["([^"]*)"\]|\[([0-9]+)\]|([^.\[\]]+)')


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its value, where it came from (`policies.yaml[2]`), and the YAML behind it (None for JSON)."""

    value: Any
    where: str
    node: yaml.Node | None = None

    def at(self, path: str) -> str:
        """`where`, with the line of the field at `path` (or of the nearest thing around it) when known."""
        if self.node is None:
            return self.where
        return f"{self.where} line {_nearest(self.node, path).start_mark.line + 1}"

    def items(self) -> Iterator[Document]:
        """The documents inside `items` of a list."""
        nodes = _child(self.node, "items") if self.node else None
        for index, value in enumerate(self.value["items"]):
            node = nodes.value[index] if isinstance(nodes, yaml.SequenceNode) else None
            yield Document(value, f"{self.where}.items[{index}]", node)


def read(text: str, where: str) -> tuple[list[Document], list[Problem]]:
    """The documents of `text` that are not empty, and what is wrong with the text itself. Never raises."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _read_json(text, where)
        except ValueError:
            pass  # flow-style YAML begins alike; if it is neither, YAML's complaint has the line
        except RecursionError:
            return [], [Problem(where=where, why="nested too deeply")]
    return _read_yaml(text, where)


def _read_json(text: str, where: str) -> tuple[list[Document], list[Problem]]:
    problems: list[Problem] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(found)
        if len(value) < len(found):
            twice = next(key for index, (key, _) in enumerate(found) if key in dict(found[:index]))
            problems.append(Problem(where=where, why=f"key {twice!r} is given twice"))
        return value

    value = json.loads(text, object_pairs_hook=pairs)
    plain = _Plain(where, len(text))
    documents = [Document(plain.of(value, ""), where)]
    return documents, problems + plain.problems


def _read_yaml(text: str, where: str) -> tuple[list[Document], list[Problem]]:
    documents: list[Document] = []
    plain = _Plain(where, len(text))
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            value = plain.of(loader.construct_document(node), "")
            if value is not None:
                documents.append(Document(value, f"{where}[{len(documents)}]", node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        why = ", ".join(part for part in (error.context, error.problem) if part)
        return [], [Problem(where=f"{where}{line}", why=f"not YAML: {why}")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [], [Problem(where=where, why=f"not YAML: {' '.join(str(error).split())}")]
    finally:
        loader.dispose()
    if len(documents) == 1:
        documents = [Document(documents[0].value, where, documents[0].node)]
    twice = [Problem(where=f"{where} line {line}", why=f"key {key!r} is given twice") for key, line in loader.twice]
    return documents, twice + plain.problems


class _Loader(yaml.CSafeLoader):
    """libyaml's parser with our reading of plain text; `twice` gathers keys given twice, with their lines."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own shape

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[tuple[str, int]] = []
        self._depth = 0

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        self._depth += 1
        if self._depth > DEEPEST * 2:  # a mapping's values count once more than a person would
            raise yaml.YAMLError("nested too deeply")

    def ascend_resolver(self) -> None:
        self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in seen:
                    self.twice.append((key.value, key.start_mark.line + 1))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes YAML that both this reader and YAML 1.1 readers (kubectl's among them) read back as it was."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


class _Plain:
    """Copies a value as JSON could say it; `problems` tells what could not be."""

    def __init__(self, where: str, characters: int) -> None:
        self.problems: list[Problem] = []
        self._where = where
        self._left = GROWTH * characters

    def of(self, value: Any, path: str, depth: int = 0) -> Any:
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            raise ValueError("nested too deeply" if depth > DEEPEST else "its anchors make it too large")
        if isinstance(value, dict):
            return self._mapping(value, path, depth)
        if isinstance(value, list):
            return [self.of(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        if value is not None and not isinstance(value, str | bool | int | float):
            self._problem(path, f"a {type(value).__name__} cannot stand in a manifest; put it in quotes")
        return value

    def _mapping(self, value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
        copied = {}
        for key, item in value.items():
            if not isinstance(key, str):
                self._problem(path, f"key {key!r} is not text; put it in quotes")
            else:
                copied[key] = self.of(item, join(path, key), depth + 1)
        return copied

    def _problem(self, path: str, why: str) -> None:
        self.problems.append(Problem(where=self._where, path=path, why=why))


def join(path: str, key: str) -> str:
    """The path of `key` below `path`: `spec.cidr`, or `metadata.labels["a.b/c"]` where dots would mislead."""
    if not key or any(character in '.[]"' for character in key):
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key


def _nearest(node: yaml.Node, path: str) -> yaml.Node:
    """The node of the key or item that `path` ends at, or as far along as the tree goes."""
    shown = node
    for quoted, index, name in _STEP.findall(path):
        if isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = shown = node.value[int(index)]
            continue
        key = next((key for key, _ in node.value if key.value == (quoted or name)), None) if _is_map(node) else None
        below = _child(node, quoted or name)
        if key is None or below is None:
            break
        shown, node = key, below
    return shown


def _child(node: yaml.Node, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    found: yaml.Node | None = next((value for key, value in node.value if key.value == name), None)
    return found


def _is_map(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)
