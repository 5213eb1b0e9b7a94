"""Manifests: what is read, what is refused and how it is said, and that bytes and text lose nothing."""

import json
import os
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Invalid
from core.manifest import decode, encode, load, load_path, locate, render, to_yaml
from core.names import Key
from core.resources import (
    BY_MANIFEST,
    CLASSES,
    GlobalNetworkPolicy,
    IPPool,
    KubernetesNetworkPolicy,
    Metadata,
    Namespace,
    NetworkPolicy,
    WorkloadEndpoint,
)
from core.resources.network import IPPoolSpec
from core.resources.policy import GlobalNetworkPolicySpec, NetworkPolicySpec
from core.source import LARGEST

POOL = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: rack-1}
spec:
  cidr: 10.65.0.0/16
"""


def refusal(text: str) -> list[str]:
    with pytest.raises(Invalid) as caught:
        load(text, "f.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_many_documents_lists_and_defaults() -> None:
    text = f"""\
# nothing before the first
---
{POOL}
---
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {{name: shop, labels: {{env: prod}}}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {{name: deny}}
  spec: {{podSelector: {{}}}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicyList
metadata: {{resourceVersion: "7"}}
items:
- metadata: {{name: all}}
  spec: {{tier: "", types: []}}
"""
    pool, namespace, deny, every = load(text, "f.yaml")
    assert isinstance(pool, IPPool)
    assert pool.spec == IPPoolSpec(cidr="10.65.0.0/16")
    assert isinstance(namespace, Namespace)
    assert namespace.metadata.labels == {"env": "prod"}
    assert isinstance(deny, KubernetesNetworkPolicy)
    assert deny.metadata.namespace == "default"
    assert isinstance(every, GlobalNetworkPolicy)
    assert (every.spec.tier, every.spec.types) == ("default", None)


def test_json_and_flow_style() -> None:
    as_json = '{"apiVersion": "projectcalico.org/v3",\t"kind": "IPPool", "metadata": {"name": "rack-1"},'
    as_json += ' "spec": {"cidr": "10.65.0.0/16"}}'
    flow = "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: rack-1}, spec: {cidr: 10.65.0.0/16}}"
    assert (
        list(map(encode, load(as_json, "a")))
        == list(map(encode, load(flow, "b")))
        == list(map(encode, load(POOL, "c")))
    )


def test_nothing_in_a_text_is_no_resource() -> None:
    assert load("", "f") == load("# only a comment\n---\n---\n", "f") == []


def test_plain_text_means_what_yaml_1_2_says() -> None:
    text = """\
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default, labels: {a: on, b: 2024-01-01, c: 010, d: 0x1F, e: 1_000}}
spec:
  communities: [{name: gold, value: 65000:10}]
  prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [65000:10]}]
  nodeMeshPassword:
"""
    (configuration,) = load(text, "f")
    assert configuration.metadata.labels == {"a": "on", "b": "2024-01-01", "c": "010", "d": "0x1F", "e": "1_000"}
    assert '"value":"65000:10"' in encode(configuration).decode()


def metadata(line: str) -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  {line}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            POOL + "  ipipmode: Always\n",
            ["f.yaml line 4: IPPool/rack-1: spec: unknown field 'ipipmode'; did you mean 'ipipMode'?"],
        ),
        (
            POOL.replace("cidr: 10.65.0.0/16", "cider: here") + "  blockSize: 99\n  colour: red\n",
            [
                "f.yaml line 4: IPPool/rack-1: spec: unknown field 'cider'; did you mean 'cidr'?",
                "f.yaml line 4: IPPool/rack-1: spec: unknown field 'colour'",
                "f.yaml line 4: IPPool/rack-1: spec.cidr: 'here' has no prefix length; write it as address/length",
            ],
        ),
        (
            POOL + "cidr: 10.0.0.0/8\n",
            ["f.yaml line 1: IPPool/rack-1: unknown field 'cidr'; it belongs under 'spec'"],
        ),
        (
            POOL.replace("IPPool", "IPool"),
            ["f.yaml line 2: kind: unknown kind 'IPool'; did you mean 'IPPool'?"],
        ),
        (
            POOL.replace("projectcalico.org/v3", "crd.projectcalico.org/v1"),
            ["f.yaml line 1: apiVersion: IPPool is of projectcalico.org/v3, not of 'crd.projectcalico.org/v1'"],
        ),
        ("metadata: {name: x}\n", ["f.yaml line 1: apiVersion: is required", "f.yaml line 1: kind: is required"]),
        (
            POOL + "  ipipMode: CrossSubnets\n  natOutgoing: yes\n  blockSize: '26'\n",
            [
                (
                    "f.yaml line 6: IPPool/rack-1: spec.ipipMode: 'CrossSubnets' is not one of Never, Always,"
                    " CrossSubnet, Fallback; did you mean 'CrossSubnet'?"
                ),
                "f.yaml line 7: IPPool/rack-1: spec.natOutgoing: expected true or false, found 'yes'",
                "f.yaml line 8: IPPool/rack-1: spec.blockSize: expected a whole number, found '26'",
            ],
        ),
        (
            POOL + "  cidr: 10.66.0.0/16\n",
            ["f.yaml line 6: key 'cidr' is given twice"],
        ),
        (
            metadata("labels: {a: true}"),
            ["f.yaml line 5: Namespace/a: metadata.labels.a: expected text, found true; put it in quotes"],
        ),
        (
            metadata("labels: {a: 5, b: }"),
            [
                "f.yaml line 5: Namespace/a: metadata.labels.a: expected text, found 5; put it in quotes",
                "f.yaml line 5: Namespace/a: metadata.labels.b: expected text, found nothing",
            ],
        ),
        (metadata("labels: {1: x}"), ["f.yaml: metadata.labels: key 1 is not text; put it in quotes"]),
        (
            metadata("labels: [a]"),
            ["f.yaml line 5: Namespace/a: metadata.labels: expected keys and values, found a list"],
        ),
        (
            metadata("namespace: b"),
            ["f.yaml line 5: Namespace/b/a: metadata.namespace: Namespace belongs to no namespace"],
        ),
        (
            metadata('labels: {x.y/z: "a b"}'),
            [
                (
                    "f.yaml line 5: Namespace/a: metadata.labels[\"x.y/z\"]: value 'a b' is not a label's:"
                    " a-z A-Z 0-9 - _ . which begins and ends with a letter or digit"
                )
            ],
        ),
        ("just words", ["f.yaml line 1: a manifest is a set of fields: apiVersion, kind, metadata, spec"]),
        (
            f"{POOL}---\n{POOL}",
            ["f.yaml[1] line 7: IPPool/rack-1: is given twice; first in f.yaml[0] line 1"],
        ),
        ("a: [1\n", ["f.yaml line 2: not YAML: while parsing a flow sequence, did not find expected ',' or ']'"]),
        (
            "a: !!python/name:os.system\n",
            [
                (
                    "f.yaml line 1: not YAML: could not determine a constructor for the tag"
                    " 'tag:yaml.org,2002:python/name:os.system'"
                )
            ],
        ),
        ("kind: List\n", ["f.yaml line 1: List: items: is required: a list"]),
        (
            "apiVersion: projectcalico.org/v3\nkind: IPPoolList\nitems:\n- metadata: {name: a}\n  spec: {cidr: x}\n",
            ["f.yaml.items[0] line 5: IPPool/a: spec.cidr: 'x' has no prefix length; write it as address/length"],
        ),
    ],
)
def test_a_fault_says_where_what_and_why(text: str, says: list[str]) -> None:
    assert refusal(text) == says


def test_faults_of_all_documents_are_told_together() -> None:
    text = POOL.replace("cidr", "cider") + "---\n" + POOL.replace("10.65.0.0/16", "10.65.0.1/16").replace("rack-1", "b")
    assert refusal(text) == [
        "f.yaml[0] line 4: IPPool/rack-1: spec: unknown field 'cider'; did you mean 'cidr'?",
        "f.yaml[1] line 11: IPPool/b: spec.cidr: '10.65.0.1/16' has host bits set; did you mean '10.65.0.0/16'?",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "- " * 100_000 + "a",
        "[" * 100_000,
        '{"a":' * 100_000,
        "a: &a [x, x]\n"
        + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)),
    ],
    ids=["blocks", "flow", "json", "aliases"],
)
def test_hostile_texts_are_refused_not_suffered(text: str) -> None:
    with pytest.raises(Invalid):
        load(text, "f")


def test_a_folder_is_read_deep_in_order_and_told_whole(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.yml").write_text(POOL)
    (tmp_path / "deep" / "a.json").write_text(
        msgspec.json.encode(render(load(metadata("labels: {}"), "f")[0])).decode()
    )
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert [str(resource.key) for resource in load_path(tmp_path)] == ["IPPool rack-1", "Namespace a"]
    (tmp_path / "c.yaml").write_text(POOL)
    (tmp_path / "d.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid) as caught:
        load_path(tmp_path)
    assert {Path(problem.where.split(" ")[0]).name for problem in caught.value.problems} == {"c.yaml", "d.yaml"}
    for missing in (tmp_path / "none.yaml", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(Invalid):
            load_path(missing)


def test_what_is_read_has_an_end(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as opened:
        opened.truncate(LARGEST + 1)
    for path, says in {
        Path("/dev/zero"): "/dev/zero: is neither a file nor a pipe",
        Path("/dev/null"): "/dev/null: is neither a file nor a pipe",
        large: f"{large}: is larger than 64 MiB; give it in smaller parts",
    }.items():
        with pytest.raises(Invalid) as caught:
            load_path(path)
        assert str(caught.value) == says


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(POOL,))
    writer.start()
    assert [str(resource.key) for resource in load_path(pipe)] == ["IPPool rack-1"]
    writer.join()


def test_each_resource_is_located() -> None:
    second = POOL.replace("rack-1", "b")
    found = locate(f"{POOL}---\nkind: List\nitems:\n- {json.dumps(render(load(second, 'g')[0]))}\n", "f.yaml")
    assert [each.where for each in found] == ["f.yaml[0] line 1", "f.yaml[1].items[0] line 9"]


def test_equal_resources_have_equal_bytes() -> None:
    one = load(POOL + "  natOutgoing: false\n  nodeSelector: ''\n", "f")[0]
    other = load(POOL.replace("{name: rack-1}", "{name: rack-1, resourceVersion: '9', managedFields: [{a: 1}]}"), "f")[
        0
    ]
    assert encode(one) == encode(other)
    assert encode(one) == (
        b'{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"rack-1"},"spec":{"cidr":"10.65.0.0/16"}}'
    )


def test_absent_and_empty_differ_where_they_mean_different_things() -> None:
    def peers(text: str) -> bytes:
        head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\n"
        return encode(load(f"{head}spec: {{podSelector: {{}}, {text}}}", "f")[0])

    assert b'"ingress":[]' in peers("ingress: []")
    assert b"ingress" not in peers("policyTypes: [Ingress]").replace(b"Ingress", b"")
    assert b'"from":[{"namespaceSelector":{}}]' in peers("ingress: [{from: [{namespaceSelector: {}}]}]")


def test_decode_refuses_what_is_not_what_its_key_says() -> None:
    pool = load(POOL, "f")[0]
    other = Key(IPPool.KIND, "", "rack-2")
    with pytest.raises(Invalid, match="calls itself IPPool rack-1"):
        decode(other, encode(pool))
    with pytest.raises(Invalid, match=r"IPPool/rack-1: spec: unknown field 'cidrs'; did you mean 'cidr'\?"):
        decode(pool.key, encode(pool).replace(b'"cidr"', b'"cidrs"'))
    with pytest.raises(Invalid, match=r"spec\.cidr: '10.65.0.1/16' has host bits"):
        decode(pool.key, encode(pool).replace(b"10.65.0.0", b"10.65.0.1"))
    for garbage in (b"", b"\xff", b"{", b"[" * 100_000, b"null"):
        with pytest.raises(Invalid, match="IPPool/rack-1"):
            decode(pool.key, garbage)


def test_render_is_what_users_know() -> None:
    shown = to_yaml([render(load(POOL, "f")[0], revision=42)])
    assert shown == (
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: rack-1\n  resourceVersion: '42'\n"
        "spec:\n  cidr: 10.65.0.0/16\n"
    )


VALUES = st.one_of(
    st.sampled_from(["on", "010", "1e3", "0x1F", "65000:1", "2024-01-01", "~", "null", "true", "1_0", "=", "<<", ".5"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=20),
)


@settings(max_examples=200, deadline=None)
@given(
    annotations=st.dictionaries(st.sampled_from(["a", "b.c/d", "on", "1e3"]), VALUES),
    order=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 10**6).map(float),
    rules=st.none() | st.just([]),
)
def test_bytes_and_text_lose_nothing(annotations: dict, order: float | None, rules: list | None) -> None:
    policy = NetworkPolicy(
        metadata=Metadata(name="a", namespace="b", annotations=annotations),
        spec=NetworkPolicySpec(order=order, ingress=rules),
    )
    kept = encode(policy)
    again = decode(policy.key, kept)
    assert isinstance(again, NetworkPolicy)
    assert (again.metadata, again.spec) == (policy.metadata, policy.spec)
    assert encode(again) == kept
    (read,) = load(to_yaml([render(policy)]), "f")
    assert encode(read) == kept


def test_every_kind_is_known_by_its_manifest_and_has_one_path() -> None:
    assert set(BY_MANIFEST.values()) == set(CLASSES)
    assert len({cls.KIND.prefix for cls in CLASSES}) == len(CLASSES)
    assert WorkloadEndpoint.KIND.namespaced
    assert isinstance(GlobalNetworkPolicySpec(), NetworkPolicySpec)
