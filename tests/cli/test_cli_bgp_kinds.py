"""Secrets and questions to speakers, through the command: what is shown, and what stays when a manifest comes again."""

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

HUSH = "hunter2hunter2"
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "bgp", "namespace": "kube-system"},
    "stringData": {"rack": HUSH, "spine": HUSH},
}
QUESTION = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "CalicoNodeStatus",
    "metadata": {"name": "node1"},
    "spec": {"node": "node1", "classes": ["BGP"]},
}
NODE = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "Node",
    "metadata": {"name": "node1"},
    "spec": {"bgp": {"ipv4Address": "10.1.0.5/24"}},
}


@pytest.fixture
def apply(muslin: Callable[[str], Any], tmp_path: Path) -> Callable[[Any], str]:
    def run(manifest: Any) -> str:
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump(manifest))
        said = muslin(f"apply -f {path}")
        assert said.code == 0, said.err
        return said.out.splitlines()[0]

    return run


def test_a_table_names_a_secrets_keys_only(muslin: Callable[[str], Any], apply: Callable[[Any], str]) -> None:
    assert apply(SECRET).endswith("created")
    assert apply(SECRET).endswith("unchanged")
    for words in ("get secrets -A", "get secret bgp -n kube-system -o wide"):
        said = muslin(words)
        assert "rack,spine" in said.out
        assert HUSH not in said.out + said.err
        assert b64encode(HUSH.encode()).decode() not in said.out + said.err
    shown = json.loads(muslin("get secret bgp -n kube-system -o json").out)
    assert shown["data"] == dict.fromkeys(("rack", "spine"), b64encode(HUSH.encode()).decode())


def test_an_answer_stays_while_the_question_does(muslin: Callable[[str], Any], apply: Callable[[Any], str]) -> None:
    def answer() -> Any:
        return json.loads(muslin("get caliconodestatus node1 -o json").out).get("status")

    apply(QUESTION | {"status": {"lastUpdated": "2026-01-02T03:04:05Z"}})
    assert "BGP" in muslin("get caliconodestatuses").out
    assert apply(QUESTION).endswith("unchanged")
    assert answer() == {"lastUpdated": "2026-01-02T03:04:05Z"}
    assert apply(QUESTION | {"spec": {"node": "node2"}}).endswith("configured")
    assert answer() is None


def test_a_drained_node_stays_drained(muslin: Callable[[str], Any], apply: Callable[[Any], str]) -> None:
    def maintenance() -> str:
        return json.loads(muslin("get node node1 -o json").out)["spec"]["bgp"].get("maintenance", "")

    apply(NODE | {"spec": {"bgp": {"ipv4Address": "10.1.0.5/24", "maintenance": "Withdrawn"}}})
    apply(NODE | {"metadata": {"name": "node1", "labels": {"rack": "a"}}})
    assert maintenance() == "Withdrawn"
    apply(NODE | {"spec": {"bgp": {"ipv4Address": "10.1.0.5/24", "maintenance": "GracefulShutdown"}}})
    assert maintenance() == "GracefulShutdown"
