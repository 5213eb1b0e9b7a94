"""`muslin policy test` on files: results for people, programs and CI, without a datastore."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

HOUSE = Path(__file__).parents[2]
EXAMPLE = HOUSE / "examples" / "policy-tests"

Muslin = Callable[[str], Any]

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""

TEST = """
apiVersion: muslin.io/v1
kind: PolicyTest
manifests: [policies/*.yaml]
pods: {shop/web: {}, shop/db: {}}
assert:
  - {from: shop/web, to: shop/db, verdict: Deny}
  - {name: open, from: shop/db, to: shop/web, ports: [tcp/80], verdict: Allow}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "deny.yaml").write_text(POLICY)
    (tmp_path / "shop.yaml").write_text(TEST)
    return tmp_path


def test_the_example_is_kept_and_needs_neither_a_datastore_nor_its_client() -> None:
    script = (
        "import sys; from cli.__main__ import main\n"
        "try: main()\n"
        "finally: print([name for name in ('grpc', 'pyroute2', 'rich.table') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "policy", "test", str(EXAMPLE)],
        cwd=HOUSE,
        env={"PATH": "", "MUSLIN_DATASTORE": "unix:/nowhere"},
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["7 assertions, all kept", "[]"]


def test_a_failure_is_explained_and_ends_with_1(muslin: Muslin, folder: Path) -> None:
    said = muslin(f"policy test {folder / 'shop.yaml'}")
    assert said.code == 1
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[1][-2:] == ["1", "ok"]
    assert lines[2][-2:] == ["1", "FAILED"]
    decided = "Deny by the end of tier default, ingress (of default/shop/default-deny), not Allow"
    assert said.out.splitlines()[-2:] == [
        f"{folder}/shop.yaml: assert[1]: shop/db -> shop/web tcp/80: {decided}",
        "2 assertions, 1 failed",
    ]


def test_programs_and_ci_get_the_same(muslin: Muslin, folder: Path) -> None:
    said = muslin(f"policy test {folder} -o json --junit {folder / 'junit.xml'}")
    assert said.code == 1
    found = json.loads(said.out)
    assert [each["kept"] for each in found["tests"][0]["assertions"]] == [True, False]
    failure = found["tests"][0]["assertions"][1]["failures"][0]
    assert failure["decision"]["cause"] == "end of tier"
    assert failure["traffic"] == [{"text": "tcp/80", "protocol": 6, "ports": [80, 80]}]
    suite = ElementTree.parse(folder / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite] == ["assert[0]", "open"]
    assert [case.find("failure") is not None for case in suite] == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("policies/*.yaml", "polices/*.yaml", "shop.yaml line 4: manifests[0]: there is no such file"),
        ("verdict: Allow", "verdict: Perhaps", "shop.yaml line 8: assert[1].verdict"),
        ("from: shop/db", "from: shop/dbs", "shop.yaml line 8: assert[1].from"),
        ("kind: PolicyTest", "kind: PolicyTests", "kind: PolicyTest"),
        ("shop/db: {}", "shop/db: {labels: {'a b': c}}", "metadata.labels"),
    ],
)
def test_a_mistake_is_told_with_its_place(muslin: Muslin, folder: Path, old: str, new: str, said: str) -> None:
    file = folder / "shop.yaml"
    file.write_text(TEST.replace(old, new))
    found = muslin(f"policy test {file}")
    assert found.code == 1
    assert said in found.err
    assert found.out == ""


def test_a_folder_without_a_test_is_no_success(muslin: Muslin, folder: Path) -> None:
    found = muslin(f"policy test {folder / 'policies'}")
    assert found.code == 1
    assert "no PolicyTest in it" in found.err
    assert muslin(f"policy test {folder / 'absent'}").code == 1
