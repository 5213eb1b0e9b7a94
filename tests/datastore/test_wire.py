"""The wire: the generated code is that of the .proto file, and the codec is total."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Conflict, Invalid, Problem
from core.names import Key
from core.resources import CLASSES
from datastore import codec
from datastore.api import ABSENT, At, Changes, Compacted, Delete, Event, Put, Synced, Unchanged, addressable
from proto.v1 import datastore_pb2 as pb

HOUSE = Path(__file__).parents[2]

parts = st.text(min_size=1, max_size=20).filter(
    lambda text: "/" not in text and addressable(Key(CLASSES[0].KIND, "", text))
)
kinds = st.sampled_from([cls.KIND for cls in CLASSES])
keys = st.builds(
    lambda kind, namespace, name: Key(kind, namespace if kind.namespaced else "", name), kinds, parts, parts
)
revisions = st.integers(1, 1 << 62)
compares = st.one_of(st.none(), st.just(ABSENT), revisions)
operations = st.one_of(st.builds(Put, keys, st.binary(), compares), st.builds(Delete, keys, compares))
events = st.builds(Event, keys, st.one_of(st.none(), st.binary()), revisions)
items = st.one_of(
    st.builds(Changes, revisions, st.lists(events).map(tuple)),
    st.builds(Synced, revisions),
    st.builds(Compacted, revisions),
)


def test_the_generated_code_is_that_of_the_proto_file(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I",
            ".",
            f"--descriptor_set_out={tmp_path}/set",
            "proto/v1/datastore.proto",
        ],
        cwd=HOUSE,
        check=True,
    )
    (fresh,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for message in fresh.message_type:
        for field in message.field:
            field.ClearField("json_name")  # the generator of Python leaves it out
    assert fresh == committed, "run `make proto`"


@settings(max_examples=50)
@given(
    st.lists(operations),
    st.lists(st.builds(Unchanged, kinds, st.integers(0, 1 << 62))),
    st.lists(st.builds(At, keys, revisions)),
)
def test_transactions_survive_the_wire(made: list[Put | Delete], guards: list[Unchanged], at: list[At]) -> None:
    message = pb.TxnRequest.FromString(codec.txn_to(made, [*at, *guards]).SerializeToString())
    assert codec.txn_from(message) == (made, [*guards, *at])


@settings(max_examples=50)
@given(items)
def test_what_a_watcher_hears_survives_the_wire(item: Changes | Synced | Compacted) -> None:
    assert codec.item_from(pb.WatchResponse.FromString(codec.item_to(item).SerializeToString())) == item


@settings(max_examples=50)
@given(st.lists(st.builds(Changes, revisions, st.lists(events, max_size=3).map(tuple)), min_size=1, max_size=4))
def test_batches_that_are_concatenated_are_one_batch(batches: list[Changes]) -> None:
    joined = b"".join(codec.item_to(batch).SerializeToString() for batch in batches)
    whole = Changes(batches[-1].revision, tuple(event for batch in batches for event in batch.events))
    assert codec.item_from(pb.WatchResponse.FromString(joined)) == whole


@settings(max_examples=50)
@given(st.text(max_size=60), st.sampled_from(["", "/muslin/", "/muslin/projectcalico.org/ippools/"]))
def test_a_path_is_a_key_or_invalid(text: str, start: str) -> None:
    try:
        key = codec.key_from(start + text)
    except Invalid:
        return
    assert key.path == start + text
    assert addressable(key)


@pytest.mark.parametrize("message", [pb.WatchResponse(), pb.WatchResponse(changes=pb.Changes(events=[pb.Event()]))])
def test_a_message_that_says_nothing_is_invalid(message: pb.WatchResponse) -> None:
    with pytest.raises(Invalid):
        codec.item_from(message)


def test_errors_survive_the_wire() -> None:
    conflict = codec.conflict_from(codec.conflict_to(Conflict("Node é", 3, None)))
    assert (conflict.what, conflict.expected, conflict.actual) == ("Node é", 3, None)
    problems = (Problem(why="a", path="b", what="c", where="d"), Problem(why='"'))
    assert codec.problems_from(codec.problems_to(Invalid(problems))).problems == problems
    for garbage in (b"", b"[", b"{}", b"[1]"):
        with pytest.raises(Invalid):
            codec.problems_from(garbage)
