"""Every class of inconsistency: found in a state that has it, mended where that is certain, left where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ipam_audit_world as w
import pytest

from core.manifest import encode
from core.names import Key
from core.resources import IPAMBlock, IPAMRecord, Resource
from core.resources.ipam import AffinityState
from datastore.api import Put
from datastore.ipam.auditing.audit import audit, same
from datastore.ipam.auditing.findings import Fault
from datastore.ipam.auditing.mend import look, mend

State = Mapping[Key, Resource]

HELD, BORROWED = w.HELD, w.BORROWED
MINE = w.block(w.A, "a", HELD, borrowers=BORROWED)
POD = w.endpoint("pod-c2", "a", "c2", "10.244.0.2", "fd00:10::2")


def leaked(on: str, since: str = w.LONG_AGO, text: str = "k8s.c9") -> list[Resource]:
    """An address of node a's block that nobody uses, held for a container of node `on`."""
    lent = BORROWED | ({} if on == "a" else {"10.244.0.9": on})
    taken = w.block(w.A, "a", HELD | {"10.244.0.9": text}, borrowers=lent)
    return [taken, w.handle(text, on, {"10.244.0.9": w.A}, since)]


GONE = [w.block("10.244.1.0/26", "gone"), w.claim("gone", "10.244.1.0/26")]
GONE_HOLDS = w.block("10.244.1.0/26", "gone", {"10.244.1.1": "ipip-tunnel-addr-gone"})
GONE_TUNNEL = w.handle("ipip-tunnel-addr-gone", "gone", {"10.244.1.1": "10.244.1.0/26"})
C3 = w.handle("k8s.c3", "b", {"10.244.0.3": w.A})

CERTAIN: list[tuple[str, State, list[tuple[Fault, str]]]] = [
    (
        "a container of a node that is gone",
        w.changed(*leaked("gone")),
        [(Fault.LEAK, "10.244.0.9")],
    ),
    (
        "a tunnel of a node that is gone, in its block",
        w.changed(GONE_HOLDS, GONE[1], GONE_TUNNEL),
        [(Fault.LEAK, "10.244.1.1"), (Fault.NODE_GONE, "BlockAffinity gone-10-244-1-0-26")],
    ),
    ("a node that is gone", w.changed(*GONE), [(Fault.NODE_GONE, "BlockAffinity gone-10-244-1-0-26")]),
    ("a block of a node that is gone", w.changed(GONE[0]), [(Fault.NODE_GONE, "IPAMBlock 10-244-1-0-26")]),
    (
        "a handle without addresses",
        w.changed(w.handle("k8s.c8", "a", {})),
        [(Fault.EMPTY_HANDLE, "IPAMHandle k8s.c8")],
    ),
    (
        "a handle whose addresses no block gives it",
        w.changed(w.handle("k8s.c8", "a", {"10.244.0.8": w.A})),
        [(Fault.EMPTY_HANDLE, "IPAMHandle k8s.c8")],
    ),
    (
        "a handle that names one address too many",
        w.changed(w.handle("k8s.c3", "b", {"10.244.0.3": w.A, "10.244.0.8": w.A})),
        [(Fault.HANDLE, "IPAMHandle k8s.c3")],
    ),
    (
        "a handle that does not name its address",
        w.changed(w.handle("k8s.c2", "a", {"10.244.0.2": w.A})),
        [(Fault.HANDLE, "fd00:10::2")],
    ),
    (
        "addresses whose handle is missing",
        w.changed(gone=[w.handle("k8s.c2", "a", {})]),
        [(Fault.NO_HANDLE, "10.244.0.2"), (Fault.NO_HANDLE, "fd00:10::2")],
    ),
    (
        "a borrower of what nobody holds",
        w.changed(w.block(w.A, "a", HELD, borrowers=BORROWED | {"10.244.0.33": "b"})),
        [(Fault.BLOCK, "IPAMBlock 10-244-0-0-26")],
    ),
    (
        "free and held at once",
        w.changed(w.block(w.A, "a", HELD, borrowers=BORROWED, freed={"10.244.0.2": w.LONG_AGO})),
        [(Fault.BLOCK, "IPAMBlock 10-244-0-0-26")],
    ),
    (
        "an empty block of no pool",
        w.changed(w.block("10.99.0.0/26", "a"), w.claim("a", "10.99.0.0/26")),
        [(Fault.BLOCK, "IPAMBlock 10-99-0-0-26")],
    ),
    (
        "an empty block of another size",
        w.changed(w.block("10.244.1.0/28", "a"), w.claim("a", "10.244.1.0/28")),
        [(Fault.BLOCK, "IPAMBlock 10-244-1-0-28")],
    ),
    (
        "a claim without its block",
        w.changed(w.claim("a", "10.244.1.0/26")),
        [(Fault.NO_BLOCK, "BlockAffinity a-10-244-1-0-26")],
    ),
    (
        "a claim to another node's block",
        w.changed(w.claim("a", w.B, AffinityState.PENDING)),
        [(Fault.NO_BLOCK, "BlockAffinity a-10-244-0-64-26")],
    ),
    ("a block without a claim", w.changed(gone=[w.claim("a", w.A)]), [(Fault.NO_AFFINITY, "IPAMBlock 10-244-0-0-26")]),
    (
        "a claim that was not confirmed",
        w.changed(w.claim("a", w.A, AffinityState.PENDING)),
        [(Fault.PENDING, "BlockAffinity a-10-244-0-0-26")],
    ),
]

LEFT: list[tuple[str, State, list[tuple[Fault, str]]]] = [
    ("a container of a living node", w.changed(*leaked("a")), [(Fault.LEAK, "10.244.0.9")]),
    ("a handle of unknown make", w.changed(*leaked("gone", text="somebody")), [(Fault.LEAK, "10.244.0.9")]),
    (
        "a pod whose address no block gives",
        w.changed(w.endpoint("pod-x", "a", "cx", "10.244.0.9")),
        [(Fault.UNALLOCATED, "10.244.0.9")],
    ),
    (
        "a pod in a block that is not there",
        w.changed(w.endpoint("pod-x", "a", "cx", "10.244.9.9")),
        [(Fault.UNALLOCATED, "10.244.9.9")],
    ),
    (
        "a tunnel whose address no block gives",
        w.changed(w.node("b", tunnel="10.244.0.71")),
        [(Fault.UNALLOCATED, "10.244.0.71")],
    ),
    (
        "a pod outside all pools",
        w.changed(w.endpoint("pod-x", "a", "cx", "10.99.0.9")),
        [(Fault.OUTSIDE, "10.99.0.9")],
    ),
    (
        "two pods with one address",
        w.changed(w.endpoint("pod-x", "b", "c2", "10.244.0.2")),
        [(Fault.SEVERAL, "10.244.0.2")],
    ),
    (
        "one holds it, another uses it",
        w.changed(w.endpoint("pod-c2", "a", "other", "10.244.0.2", "fd00:10::2")),
        [(Fault.SEVERAL, "10.244.0.2"), (Fault.SEVERAL, "fd00:10::2")],
    ),
    (
        "a node's tunnel has a pod's address",
        w.changed(w.node("b", tunnel="10.244.0.2")),
        [(Fault.SEVERAL, "10.244.0.2"), (Fault.SEVERAL, "10.244.0.2")],
    ),
    (
        "a block of no pool in use",
        w.changed(
            w.block("10.99.0.0/26", "a", {"10.99.0.1": "k8s.cx"}),
            w.claim("a", "10.99.0.0/26"),
            w.handle("k8s.cx", "a", {"10.99.0.1": "10.99.0.0/26"}),
            w.endpoint("pod-x", "a", "cx", "10.99.0.1"),
        ),
        [(Fault.BLOCK, "IPAMBlock 10-99-0-0-26")],
    ),
    (
        "a claim that is being made",
        w.changed(w.claim("a", "10.244.1.0/26", AffinityState.PENDING)),
        [(Fault.PENDING, "BlockAffinity a-10-244-1-0-26")],
    ),
    (
        "a node that is gone, whose pod is there",
        w.changed(
            w.block("10.244.1.0/26", "gone", {"10.244.1.1": "k8s.cx"}),
            GONE[1],
            w.handle("k8s.cx", "gone", {"10.244.1.1": "10.244.1.0/26"}),
            w.endpoint("pod-x", "gone", "cx", "10.244.1.1"),
        ),
        [(Fault.NODE_GONE, "BlockAffinity gone-10-244-1-0-26")],
    ),
    (
        "a handle that claims what a pod uses",
        w.changed(w.handle("k8s.cx", "a", {"10.244.0.9": w.A}), w.endpoint("pod-x", "a", "cx", "10.244.0.9")),
        [(Fault.UNALLOCATED, "10.244.0.9"), (Fault.EMPTY_HANDLE, "IPAMHandle k8s.cx")],
    ),
]


async def test_a_sound_state_has_no_faults(tmp_path: Path) -> None:
    store = await w.stored(tmp_path, w.sound())
    try:
        report = audit(await w.holdings(store), w.NOW)
    finally:
        await store.close()
    assert report.findings == ()
    assert [(each.node, each.addresses) for each in report.stocks] == [("a", 3), ("b", 1)]
    assert (report.median, report.pools, report.blocks, report.handles) == (2.0, 2, 3, 3)
    assert [(str(given.address), used) for given, used in report.allocations] == [
        ("10.244.0.1", True),
        ("10.244.0.2", True),
        ("10.244.0.3", True),
        ("fd00:10::2", True),
    ]


@pytest.mark.parametrize(("state", "faults"), [pytest.param(*each[1:], id=each[0]) for each in CERTAIN])
async def test_what_is_certain_is_found_and_mended(tmp_path: Path, state: State, faults: list) -> None:
    store = await w.stored(tmp_path, state)
    try:
        report = await look(store, w.NOW)
        assert [(each.fault, each.what) for each in report.findings] == faults
        mended = await mend(store, {each.identity for each in report.findings}, lambda: w.NOW)
    finally:
        await store.close()
    assert mended.left.findings == ()
    assert {each.identity for each in mended.done} == {each.identity for each in report.findings}


@pytest.mark.parametrize(("state", "faults"), [pytest.param(*each[1:], id=each[0]) for each in LEFT])
async def test_what_is_not_certain_is_found_and_left(tmp_path: Path, state: State, faults: list) -> None:
    store = await w.stored(tmp_path, state)
    try:
        before = await store.list(frozenset({each.kind for each in state}))
        report = await look(store, w.NOW)
        assert [(each.fault, each.what) for each in report.findings] == faults
        assert all(each.remedy and each.why for each in report.findings)
        mended = await mend(store, {each.identity for each in report.findings}, lambda: w.NOW)
        assert mended.done == ()
        assert mended.left.findings == report.findings
        assert await store.list(frozenset({each.kind for each in state})) == before
    finally:
        await store.close()


async def found(tmp_path: Path, state: State, raw: Mapping[Key, bytes] = {}) -> list[tuple[Fault, str]]:
    store = await w.stored(tmp_path, state, raw)
    try:
        return [(each.fault, each.what) for each in (await look(store, w.NOW)).findings]
    finally:
        await store.close()


async def test_what_is_young_is_on_its_way(tmp_path: Path) -> None:
    assert await found(tmp_path, w.changed(*leaked("a", since=w.JUST_NOW))) == []


async def test_what_rests_is_not_held(tmp_path: Path) -> None:
    resting = w.block(w.A, "a", HELD, borrowers=BORROWED, freed={"10.244.0.9": w.JUST_NOW})
    assert await found(tmp_path, w.changed(resting)) == []


async def test_blocks_that_overlap(tmp_path: Path) -> None:
    wide = w.block("10.244.0.0/25", "b")
    state = w.changed(wide, w.claim("b", "10.244.0.0/25"), w.pool(block_size=25))
    faults = await found(tmp_path, state)
    assert (Fault.BLOCK, "IPAMBlock 10-244-0-0-26") in faults
    assert (Fault.BLOCK, "IPAMBlock 10-244-0-64-26") in faults


async def test_an_address_that_two_blocks_give(tmp_path: Path) -> None:
    wide = w.block("10.244.0.0/25", "b", {"10.244.0.2": "k8s.cx"})
    state = w.changed(wide, w.claim("b", "10.244.0.0/25"), w.handle("k8s.cx", "b", {"10.244.0.2": "10.244.0.0/25"}))
    assert (Fault.SEVERAL, "10.244.0.2") in await found(tmp_path, state)


async def test_a_block_under_a_wrong_name(tmp_path: Path) -> None:
    odd = w.block("10.244.1.0/26", "a")
    odd = w.renamed(odd, "mine")
    assert (Fault.BLOCK, "IPAMBlock mine") in await found(tmp_path, w.changed(odd, w.claim("a", "10.244.1.0/26")))


async def test_a_block_with_an_address_that_is_not_its_own_still_holds_the_others(tmp_path: Path) -> None:
    raw = encode(MINE).replace(b'"10.244.0.3":"k8s.c3"', b'"10.244.0.3":"k8s.c3","10.244.9.9":"k8s.c9"')
    faults = await found(tmp_path, w.sound(), {MINE.key: raw})
    assert faults[0] == (Fault.BLOCK, "IPAMBlock 10-244-0-0-26")
    assert Fault.UNALLOCATED not in {fault for fault, _ in faults}


@pytest.mark.parametrize("name", ["10-244-0-0-26", "nobody-knows"])
async def test_what_an_unreadable_block_may_hold_is_in_use(tmp_path: Path, name: str) -> None:
    """Whose endpoints it has, what its handle names, whose claim it is: none of that is a fault, or mended."""
    key = Key(IPAMBlock.KIND, "", name)
    state = w.changed(gone=[MINE])
    store = await w.stored(tmp_path, state, {key: b"{"})
    try:
        report = await look(store, w.NOW)
        assert [(each.fault, each.what) for each in report.findings] == [(Fault.BLOCK, f"IPAMBlock {name}")]
        mended = await mend(store, {each.identity for each in report.findings}, lambda: w.NOW)
        assert (mended.done, mended.left.findings) == ((), report.findings)
    finally:
        await store.close()


async def test_a_leak_that_an_unreadable_endpoint_may_use_is_left(tmp_path: Path) -> None:
    key = POD.key
    store = await w.stored(tmp_path, w.changed(*leaked("gone"), gone=[POD]), {key: b"{"})
    try:
        report = await look(store, w.NOW)
        assert {each.fault for each in report.findings} == {Fault.UNREADABLE}
    finally:
        await store.close()


async def test_reserved_addresses_are_a_note(tmp_path: Path) -> None:
    store = await w.stored(tmp_path, w.changed(w.reservation("10.244.0.2", "fd00:10::/64")))
    try:
        report = await look(store, w.NOW)
    finally:
        await store.close()
    assert report.findings == ()
    assert report.notes == (
        "2 reserved addresses are held, given before they were reserved or asked for: 10.244.0.2, fd00:10::2",
    )


async def test_only_what_both_looks_find_is_believed(tmp_path: Path) -> None:
    store = await w.stored(tmp_path, w.changed(w.claim("a", "10.244.1.0/26"), w.handle("k8s.c8", "a", {})))
    try:
        first = await look(store, w.NOW)
        await w.delete(store, w.claim("a", "10.244.1.0/26"))
        both = same(first, await look(store, w.NOW))
        assert [each.fault for each in first.findings] == [Fault.EMPTY_HANDLE, Fault.NO_BLOCK]
        assert [each.fault for each in both.findings] == [Fault.EMPTY_HANDLE]
    finally:
        await store.close()


async def test_what_was_given_anew_since_is_not_mended(tmp_path: Path) -> None:
    """An endpoint comes between the look and the mending; and a finding that was not agreed on stays."""
    state = w.changed(*leaked("gone"), w.claim("a", "10.244.1.0/26"))
    store = await w.stored(tmp_path, state)
    try:
        report = await look(store, w.NOW)
        late = w.endpoint("late", "gone", "c9", "10.244.0.9")
        await store.txn([Put(late.key, encode(late))])
        leaks = {each.identity for each in report.findings if each.fault is Fault.LEAK}
        mended = await mend(store, leaks, lambda: w.NOW)
        assert mended.done == ()
        assert [each.fault for each in mended.left.findings] == [Fault.NO_BLOCK]
    finally:
        await store.close()


async def test_what_is_given_back_is_remembered(tmp_path: Path) -> None:
    store = await w.stored(tmp_path, w.changed(*leaked("gone")))
    try:
        report = await look(store, w.NOW)
        await mend(store, {each.identity for each in report.findings}, lambda: w.NOW)
        (entry,) = (await store.list({IPAMRecord.KIND})).entries
        assert b'"why":"ipam check --fix"' in entry.value
        assert b'"address":"10.244.0.9"' in entry.value
    finally:
        await store.close()


async def test_a_leak_that_two_blocks_give_is_left(tmp_path: Path) -> None:
    """Which of them would have to give it back is not known."""
    narrow = w.block("10.244.0.8/29", "b", {"10.244.0.9": "k8s.c9"})
    store = await w.stored(tmp_path, w.changed(*leaked("gone"), narrow, w.claim("b", "10.244.0.8/29")))
    try:
        report = await look(store, w.NOW)
    finally:
        await store.close()
    leaks = [each for each in report.findings if each.fault is Fault.LEAK]
    assert [(each.what, each.step) for each in leaks] == [("10.244.0.9", None)] * 2
