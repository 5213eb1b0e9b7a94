"""`muslin lint` on manifests and on a real datastore: what it says, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Muslin = Callable[[str], Any]

POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: mine, namespace: shop}
spec:
  ingress:
    - {action: Deny}
    - {action: Allow, protocol: TCP}
"""
DENY_ALL = POLICY.partition("    - {action: Allow")[0].replace("mine", "shut")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(POLICY)
    return path


def test_a_finding_says_where_what_and_what_to_do(muslin: Muslin, manifest: Path) -> None:
    said = muslin(f"lint -f {manifest} --datastore unix:/nowhere")
    assert said.code == 0, said.err
    what = "ingress rule 0 (Deny: all traffic) comes first and decides all that it matches"
    place = f"{manifest} line 2: networkpolicy/shop/mine: spec.ingress[1]"
    assert said.out.splitlines() == [
        f"warning after-catch-all: {place}: {what}; move the rule before the one that denies everything",
        "1 warning",
    ]


def test_strict_ends_with_1_at_a_warning_and_not_at_what_is_worth_knowing(muslin: Muslin, manifest: Path) -> None:
    assert muslin(f"lint --strict -f {manifest}").code == 1
    manifest.write_text(DENY_ALL.replace("spec:\n  ingress:\n    - {action: Deny}", "spec: {types: [Ingress]}"))
    said = muslin(f"lint --strict -f {manifest}")
    assert (said.code, said.out.splitlines()[-1]) == (0, "1 info")


def test_without_files_it_looks_at_the_datastore(muslin: Muslin, manifest: Path) -> None:
    assert muslin("lint --strict").out == "nothing found\n"
    assert muslin(f"apply -f {manifest}").code == 0
    said = muslin("lint -o json --strict")
    assert said.code == 1
    assert json.loads(said.out) == {
        "findings": [
            {
                "code": "after-catch-all",
                "severity": "warning",
                "object": "networkpolicy/shop/mine",
                "where": "",
                "path": "spec.ingress[1]",
                "what": "ingress rule 0 (Deny: all traffic) comes first and decides all that it matches",
                "remedy": "move the rule before the one that denies everything",
            }
        ]
    }


def test_what_is_no_manifest_is_refused(muslin: Muslin, manifest: Path) -> None:
    manifest.write_text(POLICY.replace("Allow", "Alow"))
    said = muslin(f"lint -f {manifest}")
    assert said.code == 1
    assert "spec.ingress[1].action" in said.err
