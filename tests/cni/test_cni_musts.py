"""Every MUST of the CNI specification that is a plugin's to keep, each proved on a real node.

A line of `MUSTS` is one sentence of the specification 1.1.0 (or of the older ones, where they differ) in our words, and
the test that proves it. A test that no line names, or a line without a test, fails.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from cni_node import NETWORK, Answer, Pod, Runtime, run

from linux import netns

MUSTS = {
    # section 2, parameters and errors
    "input is JSON; what does not decode is code 6": "test_what_does_not_decode",
    "a container's id begins with a letter or digit, goes on with these, _ . or -": "test_container_ids",
    "CNI_IFNAME obeys Linux; a name that cannot be used is an error": "test_interface_names",
    "an invalid or missing variable is code 4, and the message names it": "test_variables",
    "an error has cniVersion, code, msg; the exit status is not 0": "test_errors",
    "an unknown version is code 1": "test_versions_that_are_not_spoken",
    "a field that is not supported is code 2, with key and value": "test_unsupported_fields",
    "success is exit status 0": "test_add",
    # ADD
    "ADD makes the interface CNI_IFNAME in CNI_NETNS": "test_add",
    "ADD's result: interfaces with mac and sandbox, ips with the interface's index": "test_add",
    "ADD's result is in the words of the version asked": "test_result_of_each_version",
    "a given prevResult is passed on with what was added": "test_add_with_a_previous_result",
    "an interface of that name that is there is an error": "test_add_where_the_name_is_taken",
    "keys of runtimeConfig come from capabilities; args may ask": "test_what_a_runtime_may_ask_for",
    "dns of the configuration goes into the result": "test_dns",
    "a container may ask for a second interface; muslin refuses, and leaves the first": "test_a_second_interface",
    "an ADD that fails leaves nothing": "test_add_where_the_name_is_taken",
    # DEL
    "DEL succeeds when things are missing": "test_del_of_what_is_not_there",
    "DEL may be repeated": "test_del_again_and_again",
    "DEL without CNI_NETNS frees what it can": "test_del_without_namespace",
    "DEL takes prevResult or none": "test_del_with_a_previous_result",
    "DEL frees all that the container has in this network, and no other's": "test_del_is_of_one_container_and_network",
    # CHECK
    "CHECK needs prevResult": "test_check_needs_a_previous_result",
    "CHECK prints nothing, or an error": "test_check",
    "CHECK goes by prevResult's interfaces and addresses": "test_check_against_another_result",
    "CHECK allows what later plugins changed": "test_check_after_later_plugins",
    "CHECK may come at once after ADD": "test_check",
    "CHECK came with 0.4.0": "test_commands_of_later_versions",
    # STATUS
    "STATUS prints nothing when ADD can be served": "test_status",
    "STATUS needs no container": "test_status",
    "STATUS says code 50 or 51 when it cannot": "test_status_when_add_would_fail",
    "STATUS and GC came with 1.1.0": "test_commands_of_later_versions",
    # VERSION
    "VERSION needs cniVersion alone and lists what is spoken": "test_version",
    # GC
    "GC removes what is not among cni.dev/valid-attachments": "test_gc",
    "GC removes nothing that is valid, and nothing of another network": "test_gc",
    "GC is told the list; one that is missing is not an empty one": "test_gc_needs_the_list",
    "GC done again does no harm": "test_gc",
    # parallel
    "different containers may be worked on at once": "test_at_once",
    "CNI_ARGS is NAME=VALUE;..., unknown ones need IgnoreUnknown": "test_arguments",
}


def test_every_must_has_its_test() -> None:
    tests = {name for name in globals() if name.startswith("test_")} - {"test_every_must_has_its_test"}
    assert set(MUSTS.values()) == tests


def refused(answer: Answer, code: int, *words: str) -> None:
    assert answer.status == 1
    assert answer.document.keys() >= {"cniVersion", "code", "msg"}
    assert answer.document["code"] == code, answer
    for word in words:
        assert word in answer.document["msg"]


async def joined(runtime: Runtime, called: str, **more: object) -> tuple[Pod, Answer]:
    pod = runtime.container(called)
    return pod, await runtime.add(pod, **more)


async def test_what_does_not_decode(runtime: Runtime) -> None:
    pod = runtime.container("garbled")
    for given in (b"{", b"[]", b'"text"', b"\xff"):
        refused(await runtime.ask(pod.environment("ADD"), given), 6)


async def test_container_ids(runtime: Runtime) -> None:
    pod = runtime.container("named")
    for given in ("-a", "a/b", "a b", ".a", "_a"):
        refused(await runtime.ask(pod.environment("ADD") | {"CNI_CONTAINERID": given}, runtime.config()), 4, given)
    odd = pod.environment("ADD") | {"CNI_CONTAINERID": "A_b.c-1"}
    assert (await runtime.ask(odd, runtime.config())).status == 0
    assert (await runtime.ask(odd | {"CNI_COMMAND": "DEL"}, runtime.config())).status == 0
    assert await runtime.left() == ([], [], [])


async def test_interface_names(runtime: Runtime) -> None:
    pod = runtime.container("interfaced")
    for given in (".", "..", "a/b", "a:b", "a b", "sixteen-letters-"):
        refused(await runtime.ask(pod.environment("ADD") | {"CNI_IFNAME": given}, runtime.config()), 4, "CNI_IFNAME")
    odd = pod.environment("ADD") | {"CNI_IFNAME": "fifteen.letters"}
    assert (await runtime.ask(odd, runtime.config())).status == 0
    assert "fifteen.letters" in run(pod.netns, "ip", "link")
    assert (await runtime.ask(odd | {"CNI_COMMAND": "DEL"}, runtime.config())).status == 0


NEEDED = {"ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"}}
NEEDED["CHECK"] = NEEDED["ADD"]


async def test_variables(runtime: Runtime) -> None:
    pod = runtime.container("vague")
    for command, names in NEEDED.items():
        for name in names:
            for nothing in (None, ""):
                lacking = pod.environment(command) | {name: nothing}
                refused(await runtime.ask(lacking, runtime.config(prevResult={})), 4, name)
    for given in (None, "", "add", "UPDATE"):
        refused(await runtime.ask(pod.environment("ADD") | {"CNI_COMMAND": given}, runtime.config()), 4, "CNI_COMMAND")
    refused(await runtime.ask(pod.environment("ADD") | {"CNI_NETNS": "netns"}, runtime.config()), 4, "CNI_NETNS")
    gone = pod.environment("ADD") | {"CNI_NETNS": "/run/netns/there-is-none"}
    refused(await runtime.ask(gone, runtime.config()), 3, "/run/netns/there-is-none")
    node = pod.environment("ADD") | {"CNI_NETNS": f"/run/netns/{runtime.namespace}"}
    refused(await runtime.ask(node, runtime.config()), 8, runtime.namespace)
    file = pod.environment("ADD") | {"CNI_NETNS": "/etc/hostname"}
    refused(await runtime.ask(file, runtime.config()), 3, "/etc/hostname")
    assert await runtime.left() == ([], [], [])


async def test_errors(runtime: Runtime) -> None:
    pod = runtime.container("mistaken")
    answer = await runtime.call("ADD", pod, cniVersion="0.4.0", mtu="large")
    refused(answer, 7, "mtu")
    assert answer.document["cniVersion"] == "0.4.0"


async def test_versions_that_are_not_spoken(runtime: Runtime) -> None:
    pod = runtime.container("modern")
    for version in ("0.1.0", "0.2.0", "2.0.0", "1.0", 1):
        refused(await runtime.call("ADD", pod, cniVersion=version), 1, str(version))
    without = {key: value for key, value in runtime.config().items() if key != "cniVersion"}
    refused(await runtime.ask(pod.environment("ADD"), without), 1, "0.1.0")


async def test_unsupported_fields(runtime: Runtime) -> None:
    pod = runtime.container("fielded")
    refused(await runtime.call("ADD", pod, colour="blue"), 2, "colour", '"blue"')
    refused(await runtime.call("ADD", pod, ipam={"subnet": "10.0.0.0/8"}), 2, "ipam.subnet", "10.0.0.0/8")
    refused(await runtime.call("ADD", pod, runtimeConfig={"colour": 1}), 2, "runtimeConfig.colour")


def mac_inside(pod: Pod, interface: str = "eth0") -> str:
    (link,) = json.loads(run(pod.netns, "ip", "-j", "link", "show", interface))
    return str(link["address"])


async def test_add(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "added")
    four, six = added.addresses
    assert added.document == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": pod.interface, "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": mac_inside(pod), "sandbox": f"/run/netns/{pod.netns}"},
        ],
        "ips": [
            {"address": f"{four}/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": f"{six}/128", "gateway": "fe80::ecee:eeff:feee:eeee", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"},
        ],
        "dns": {},
    }
    shown = run(pod.netns, "ip", "-o", "addr", "show", "eth0")
    assert f"{four}/32" in shown
    assert f"{six}/128" in shown
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        assert run(pod.netns, "cat", f"/proc/sys/net/{key}").strip() == "0"
    await runtime.remove(pod)


async def test_result_of_each_version(runtime: Runtime) -> None:
    for version in ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"):
        pod, added = await joined(runtime, "versioned", cniVersion=version, mtu=1400)
        document = added.document
        assert document["cniVersion"] == version
        assert [each.get("version") for each in document["ips"]] == (["4", "6"] if version < "1" else [None, None])
        assert [each.get("mtu") for each in document["interfaces"]] == (
            [1400] * 2 if version == "1.1.0" else [None] * 2
        )
        assert (await runtime.call("DEL", pod, cniVersion=version)).status == 0


BEFORE: Mapping[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "first0", "mac": "02:00:00:00:00:01", "colour": "blue"}],
    "ips": [{"address": "192.0.2.1/24", "interface": 0}],
    "routes": [{"dst": "198.51.100.0/24"}],
    "dns": {"nameservers": ["192.0.2.53"]},
    "more": {"of": "others"},
}


async def test_add_with_a_previous_result(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "second", prevResult=BEFORE)
    document = added.document
    assert [each["name"] for each in document["interfaces"]] == ["first0", pod.interface, "eth0"]
    assert [each["interface"] for each in document["ips"]] == [0, 2, 2]
    assert document["interfaces"][0] == BEFORE["interfaces"][0]
    assert document["routes"][0] == BEFORE["routes"][0]
    assert (document["dns"], document["more"]) == (BEFORE["dns"], BEFORE["more"])
    assert await runtime.call("CHECK", pod, prevResult=document) == Answer(0, {})
    refused(await runtime.call("ADD", pod, prevResult=[]), 7, "prevResult")
    refused(await runtime.call("ADD", pod, prevResult={"ips": [{"address": "x"}]}), 7, "prevResult")
    await runtime.remove(pod)


async def test_add_where_the_name_is_taken(runtime: Runtime) -> None:
    pod = runtime.container("occupied")
    run(pod.netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    refused(await runtime.call("ADD", pod), 5, "has an interface eth0 already")
    assert await runtime.left() == ([], [], [])


async def test_what_a_runtime_may_ask_for(runtime: Runtime) -> None:
    asked = {"ips": ["10.60.0.9/24"], "mac": "02:00:00:00:00:AA"}
    pod, added = await joined(runtime, "choosy", runtimeConfig=asked, capabilities={"ips": True, "mac": True})
    assert added.addresses == ("10.60.0.9",)
    assert mac_inside(pod) == "02:00:00:00:00:aa"
    other = runtime.container("late")
    refused(await runtime.call("ADD", other, args={"cni": {"ips": ["10.60.0.9"]}}), 100, "10.60.0.9")
    for capability in ({"bandwidth": {"ingressRate": 1}}, {"portMappings": [{"hostPort": 80}]}):
        refused(await runtime.call("ADD", other, runtimeConfig=capability), 7, "chain the")
    await runtime.remove(pod)
    assert await runtime.left() == ([], [], [])


async def test_dns(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "resolving", dns={"nameservers": ["10.96.0.10"]})
    assert added.document["dns"] == {"nameservers": ["10.96.0.10"]}
    await runtime.remove(pod)


async def test_del_of_what_is_not_there(runtime: Runtime) -> None:
    await runtime.remove(runtime.container("never-added"))


async def test_del_again_and_again(runtime: Runtime) -> None:
    pod, _ = await joined(runtime, "removed")
    for _ in range(3):
        await runtime.remove(pod)
    assert await runtime.left() == ([], [], [])


async def test_del_without_namespace(runtime: Runtime) -> None:
    for without in (None, "", "/run/netns/there-is-none"):
        pod, _ = await joined(runtime, "homeless")
        answer = await runtime.ask(pod.environment("DEL") | {"CNI_NETNS": without}, runtime.config())
        assert answer == Answer(0, {})
        assert await runtime.left() == ([], [], [])


async def test_del_with_a_previous_result(runtime: Runtime) -> None:
    for before in (None, {}, BEFORE, {"ips": "garbled"}):
        pod, _ = await joined(runtime, "recorded")
        assert await runtime.call("DEL", pod, prevResult=before) == Answer(0, {})
        assert await runtime.left() == ([], [], [])


async def test_del_is_of_one_container_and_network(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "kept")
    stranger = Pod("stranger", "another", pod.netns)
    await runtime.remove(stranger)
    assert (await runtime.ask(pod.environment("DEL") | {"CNI_IFNAME": "eth1"}, runtime.config())).status == 0
    assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    await runtime.remove(pod)


async def test_a_second_interface(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "single")
    for network in (NETWORK, "other-network"):
        second = pod.environment("ADD") | {"CNI_IFNAME": "eth1"}
        given = runtime.config() | {"name": network}
        refused(await runtime.ask(second, given), 4, "muslin gives a pod one", "eth0")
        assert (await runtime.ask(second | {"CNI_COMMAND": "DEL"}, given)).status == 0
        assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    await runtime.remove(pod)


async def test_check(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "sound")
    assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    await runtime.remove(pod)
    refused(await runtime.call("CHECK", pod, prevResult=added.document), 101, "WorkloadEndpoint")


async def test_check_needs_a_previous_result(runtime: Runtime) -> None:
    refused(await runtime.call("CHECK", runtime.container("unknown")), 7, "prevResult")


async def test_check_against_another_result(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "doubted")
    other = json.loads(json.dumps(added.document))
    other["ips"][0]["address"] = "10.60.0.200/32"
    refused(await runtime.call("CHECK", pod, prevResult=other), 101, "10.60.0.200/32")
    other = json.loads(json.dumps(added.document))
    other["interfaces"][1]["mac"] = "02:00:00:00:00:09"
    refused(await runtime.call("CHECK", pod, prevResult=other), 101, "02:00:00:00:00:09")
    other["interfaces"] = other["interfaces"][:1]
    other["ips"] = []
    refused(await runtime.call("CHECK", pod, prevResult=other), 101, "prevResult knows no interface eth0")
    await runtime.remove(pod)


async def test_check_after_later_plugins(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "tuned")
    run(pod.netns, "ip", "addr", "add", "192.0.2.9/24", "dev", "eth0")
    run(pod.netns, "ip", "route", "add", "198.51.100.0/24", "via", "169.254.1.1", "dev", "eth0")
    later = json.loads(json.dumps(added.document))
    later["interfaces"].append({"name": "ifb0", "mac": "02:00:00:00:00:07"})
    later["ips"].append({"address": "203.0.113.1/24", "interface": 2})
    assert await runtime.call("CHECK", pod, prevResult=later) == Answer(0, {})
    await runtime.remove(pod)


async def test_commands_of_later_versions(runtime: Runtime) -> None:
    pod = runtime.container("early")
    for command, version in (("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0")):
        refused(await runtime.call(command, pod, cniVersion=version, prevResult={}), 1, command)


BARE = {"CNI_PATH": "/opt/cni/bin"}


async def test_status(runtime: Runtime) -> None:
    answer = await runtime.ask(BARE | {"CNI_COMMAND": "STATUS"}, runtime.config(cniVersion="1.1.0"))
    assert answer == Answer(0, {})


async def test_status_when_add_would_fail(runtime: Runtime) -> None:
    pod = runtime.container("unserved")
    ipam = {"assign_ipv4": "true", "assign_ipv6": "true"}
    assert await runtime.call("STATUS", pod, cniVersion="1.1.0", ipam=ipam) == Answer(0, {})
    async with runtime.without_pool("six"):
        refused(await runtime.call("STATUS", pod, cniVersion="1.1.0", ipam=ipam), 50, "no IPPool gives IPv6")
        refused(await runtime.call("ADD", pod, ipam=ipam), 100)
        assert await runtime.call("STATUS", pod, cniVersion="1.1.0") == Answer(0, {})
    refused(await runtime.call("STATUS", pod, cniVersion="1.1.0", node="n9"), 7, "node")


async def test_version(runtime: Runtime) -> None:
    for version in ("0.3.1", "1.0.0", "1.1.0"):
        answer = await runtime.ask({"CNI_COMMAND": "VERSION"}, {"cniVersion": version})
        assert answer.status == 0
        assert answer.document["cniVersion"] == version
        assert answer.document["supportedVersions"] == ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    assert (await runtime.ask({"CNI_COMMAND": "VERSION"}, b"")).document["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
async def test_gc(runtime: Runtime, key: str) -> None:
    (stays, added), (goes, _) = await joined(runtime, "stays"), await joined(runtime, "goes")
    elsewhere, _ = await joined(runtime, "elsewhere", name="other-network")
    given = runtime.config(cniVersion="1.1.0", **{key: [{"containerID": stays.container, "ifname": "eth0"}]})
    for _ in range(2):
        assert await runtime.ask(BARE | {"CNI_COMMAND": "GC"}, given) == Answer(0, {})
        endpoints, handles, interfaces = await runtime.left()
        assert sorted(interfaces) == sorted([stays.interface, elsewhere.interface])
        assert len(endpoints) == 2
        assert not [each for each in handles if goes.container in each]
    assert await runtime.call("CHECK", stays, prevResult=added.document) == Answer(0, {})
    await runtime.ask(BARE | {"CNI_COMMAND": "GC"}, runtime.config(cniVersion="1.1.0", disableGC=True, **{key: []}))
    assert await runtime.call("CHECK", stays, prevResult=added.document) == Answer(0, {})
    assert (await runtime.call("DEL", elsewhere, name="other-network")).status == 0
    await runtime.remove(stays)
    assert await runtime.left() == ([], [], [])


async def test_gc_needs_the_list(runtime: Runtime) -> None:
    pod, added = await joined(runtime, "spared")
    gc = BARE | {"CNI_COMMAND": "GC"}
    refused(await runtime.ask(gc, runtime.config(cniVersion="1.1.0")), 7, "cni.dev/valid-attachments")
    for listed in ("x", [1], [{"ifname": "eth0"}]):
        given = runtime.config(cniVersion="1.1.0", **{"cni.dev/valid-attachments": listed})
        refused(await runtime.ask(gc, given), 7, "cni.dev/valid-attachments")
    assert await runtime.call("CHECK", pod, prevResult=added.document) == Answer(0, {})
    await runtime.remove(pod)


async def test_at_once(runtime: Runtime) -> None:
    pods = [runtime.container(f"parallel-{number}") for number in range(4)]
    for _ in range(3):
        answers = await asyncio.gather(*(runtime.add(pod) for pod in pods))
        assert len({answer.addresses for answer in answers}) == len(pods)
        await asyncio.gather(*(runtime.remove(pod) for pod in pods))
    assert await runtime.left() == ([], [], [])
    assert all(netns.exists(pod.netns) for pod in pods)


async def test_arguments(runtime: Runtime) -> None:
    pod = runtime.container("argued")
    wrong = {
        "COLOUR=blue": "COLOUR",
        "IgnoreUnknown=0;COLOUR=blue": "COLOUR",
        "K8S_POD_NAME": "NAME=VALUE",
        "IP=x": "IP",
    }
    for arguments, word in wrong.items():
        refused(await runtime.ask(pod.environment("ADD") | {"CNI_ARGS": arguments}, runtime.config()), 4, word)
    podman = pod.environment("ADD") | {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=Lucid_Fox;IP=10.60.0.33;COLOUR=blue"}
    answer = await runtime.ask(podman, runtime.config())
    assert answer.addresses == ("10.60.0.33",)
    ((name,), handles, _) = await runtime.left()
    assert f"default/n1-k8s-lucid--fox--{pod.container}-eth0" in name
    assert handles == [f"{NETWORK}.{pod.container}"] * 2
    assert (await runtime.ask(podman | {"CNI_COMMAND": "DEL"}, runtime.config())).status == 0
    assert await runtime.left() == ([], [], [])
