"""Decoding that shares: the same objects, less what agents do not go by, in a fraction of the memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import manifest, thrift
from core.names import Key
from core.resources import IPAMBlock, IPPool, Metadata, Resource, WorkloadEndpoint, parse_path
from core.resources.ipam import BlockSpec
from core.thrift import Folded, Sharing

ROOT = "/muslin/projectcalico.org/workloadendpoints"


def document(number: int, *, labels: int = 3, **metadata: object) -> bytes:
    spec = {
        "orchestrator": "k8s",
        "node": f"node-{number % 7}",
        "pod": f"web-{number}",
        "endpoint": "eth0",
        "containerID": f"{number:064x}",
        "interfaceName": f"mus{number:011x}",
        "ipNetworks": [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32"],
        "profiles": ["kns.shop"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    }
    named = {"name": f"pod-{number}", "namespace": "shop", "labels": {f"l{n}": f"v{number % 3}" for n in range(labels)}}
    head = {"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint"}
    return msgspec.json.encode({**head, "metadata": {**named, **metadata}, "spec": spec})


def key(number: int) -> Key:
    return parse_path(f"{ROOT}/shop/pod-{number}")


BOOKKEEPING = {"uid": "8cc8", "annotations": {"a": "b"}, "generation": 4, "creationTimestamp": "2026-01-01T00:00:00Z"}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.booleans()), max_size=20))
def test_what_is_shared_is_what_was_decoded(pods: list[tuple[int, int, bool]]) -> None:
    decode = Sharing(manifest.decode)
    for number, labels, kept_books in pods:
        plain = manifest.decode(key(number), document(number, labels=labels))
        found = decode(key(number), document(number, labels=labels, **(BOOKKEEPING if kept_books else {})))
        assert found == plain
        assert manifest.encode(found) == manifest.encode(plain)


def test_pods_alike_share_what_they_have_in_common() -> None:
    decode = Sharing(manifest.decode)
    one, other = (decode(key(number), document(number)) for number in (3, 24))
    assert isinstance(one, WorkloadEndpoint)
    assert isinstance(other, WorkloadEndpoint)
    assert one.metadata.labels is other.metadata.labels
    assert one.spec.profiles is other.spec.profiles
    assert one.spec.ports is other.spec.ports
    assert one.spec.node is other.spec.node
    assert one.metadata.annotations is other.metadata.annotations


def test_pods_of_other_nodes_are_kept_without_what_only_theirs_goes_by() -> None:
    decode = Sharing(manifest.decode, "node-3")
    ours, theirs = decode(key(3), document(3)), decode(key(4), document(4))
    assert ours == manifest.decode(key(3), document(3))
    whole = manifest.decode(key(4), document(4))
    assert isinstance(whole, WorkloadEndpoint)
    assert theirs == msgspec.structs.replace(whole, spec=msgspec.structs.replace(whole.spec, interface_name="", pod=""))
    assert decode(key(4), manifest.encode(theirs)) == theirs, "as from the disk"


def test_other_kinds_come_through_as_they_are() -> None:
    made = manifest.load(
        "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p, annotations: {a: b}}, "
        "spec: {cidr: 10.0.0.0/8}}",
        "here",
    )[0]
    assert isinstance(made, IPPool)
    assert Sharing(manifest.decode)(made.key, manifest.encode(made)) == made


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thrift, "BOUND", 20)
    decode = Sharing(manifest.decode)
    for number in range(100):
        text = document(number).replace(b"kns.shop", f"kns.shop-{number}".encode())
        assert decode(key(number), text) == manifest.decode(key(number), text)
    assert len(decode._seen) <= 20


def allocated(decode: Callable[[Key, bytes], Resource], pods: int) -> float:
    """Bytes that one decoded pod keeps."""
    return size(lambda: [decode(key(number), document(number)) for number in range(pods)]) / pods


def size(make: Callable[[], list[Resource | None]]) -> int:
    """Bytes that what is made keeps."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    found, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept
    return found


def test_a_pod_takes_less_than_half_of_what_it_would() -> None:
    decode = Sharing(manifest.decode)
    allocated(decode, 50)
    assert allocated(decode, 500) < 0.5 * allocated(manifest.decode, 500)


WORDS = st.text(st.sampled_from("ab.:0 \n"), max_size=4)


@given(st.dictionaries(WORDS, WORDS, max_size=5), st.dictionaries(WORDS, WORDS, max_size=5), WORDS)
def test_a_folded_mapping_is_the_mapping(one: dict[str, str], other: dict[str, str], asked: str) -> None:
    if not Folded.fits(one) or not Folded.fits(other):
        assert any(" " in key or "\n" in key + word for key, word in [*one.items(), *other.items()])
        return
    folded = Folded(one)
    assert folded == one
    assert dict(folded) == one
    assert len(folded) == len(one)
    assert folded.get(asked) == one.get(asked)
    assert (folded == Folded(other)) is (one == other)


def block(number: int) -> IPAMBlock:
    held = {f"10.1.{number}.{n}": f"k8s-pod-network.{number:032x}{n:032x}" for n in range(64)}
    freed = {f"10.1.{number}.{200 + n}": "2026-01-31T12:00:00Z" for n in range(20)}
    spec = BlockSpec(cidr=f"10.1.{number}.0/24", affinity="host:node-1", allocations=held, freed=freed)
    return IPAMBlock(metadata=Metadata(name=f"10-1-{number}-0-24"), spec=spec)


def test_an_agent_keeps_who_has_which_address_in_little_memory() -> None:
    blocks = [block(number) for number in range(100)]
    texts = [(each.key, manifest.encode(each)) for each in blocks]
    decode = Sharing(manifest.decode, "node-3")
    kept = [decode(key, text) for key, text in texts]
    for found, whole in zip(kept, blocks, strict=True):
        assert isinstance(found, IPAMBlock)
        assert found.spec.allocations == whole.spec.allocations
        assert not found.spec.freed
        assert manifest.decode(found.key, manifest.encode(found)).spec == found.spec  # type: ignore[attr-defined]
    assert size(lambda: [decode(key, text) for key, text in texts]) < 0.5 * size(
        lambda: [manifest.decode(key, text) for key, text in texts]
    )


def test_who_gives_addresses_gets_all_of_a_block() -> None:
    whole = block(1)
    assert Sharing(manifest.decode)(whole.key, manifest.encode(whole)) == manifest.decode(
        whole.key, manifest.encode(whole)
    )
