"""The words of the specification: what is understood, what is refused with which code, and how results are spelt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from cni_node import HOUSE

from cni import spec
from cni.spec import Call, Code, Command, Device, Failure, Joined, parse

CONFIG = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "muslin"}
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "f00d",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1",
    "CNI_PATH": "/opt/cni/bin",
}
PREVIOUS = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/32"}, {"address": "fd00::1/128"}]}


def asked(environment: Mapping[str, str | None] | None = None, **config: object) -> Call:
    given = {**ENVIRONMENT, **(environment or {})}
    document = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    return parse({key: text for key, text in given.items() if text is not None}, json.dumps(document).encode(), "node7")


def test_a_whole_call() -> None:
    call = asked(
        datastore="10.0.0.1:7000",
        node="n1",
        mtu=1400,
        log_file="/var/log/cni.log",
        policy_setup_timeout_seconds=2,
        args={"cni": {"labels": [{"key": "app", "value": "web"}], "ips": ["10.0.0.9"]}},
        capabilities={"portMappings": True},
        runtimeConfig={},
        **{"cni.dev/attachments": []},
    )
    assert call.command is Command.ADD
    assert call.attachment == spec.Attachment(
        container="f00d", netns="/run/netns/x", interface="eth0", namespace="shop", pod="web-1"
    )
    assert call.config == spec.Config(
        version="1.0.0",
        name="k8s-pod-network",
        node="n1",
        datastore="10.0.0.1:7000",
        mtu=1400,
        log_file="/var/log/cni.log",
        wait_s=2.0,
        labels={"app": "web"},
    )


def test_what_is_not_said() -> None:
    call = asked({"CNI_ARGS": None, "CNI_PATH": None})
    assert call.attachment
    assert (call.attachment.namespace, call.attachment.pod) == ("default", "f00d")
    assert call.config == spec.Config(version="1.0.0", name="k8s-pod-network", node="node7")
    assert (call.config.mtu, call.config.wait_s) == (1480, 10.0)
    assert call.config.datastore == "unix:/run/muslin/datastore.sock"


def test_what_a_command_needs() -> None:
    gone = asked({"CNI_COMMAND": "DEL", "CNI_NETNS": None})
    assert gone.attachment
    assert gone.attachment.netns == ""
    assert asked({"CNI_COMMAND": "STATUS", "CNI_CONTAINERID": None}, cniVersion="1.1.0").attachment is None
    check = asked({"CNI_COMMAND": "CHECK"}, prevResult=PREVIOUS)
    assert check.config.previous == (ip_interface("10.0.0.1/32"), ip_interface("fd00::1/128"))
    version = parse({"CNI_COMMAND": "VERSION"}, b"", "n")
    assert spec.versions(version.config.version) == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


ENVIRONMENTS: list[tuple[dict[str, str | None], str]] = [
    ({"CNI_COMMAND": None}, "CNI_COMMAND is not set"),
    ({"CNI_COMMAND": "GC"}, "CNI_COMMAND is 'GC'"),
    ({"CNI_CONTAINERID": None}, "CNI_CONTAINERID: not set"),
    ({"CNI_CONTAINERID": "../x"}, "CNI_CONTAINERID '../x'"),
    ({"CNI_NETNS": None, "CNI_IFNAME": None}, "CNI_IFNAME, CNI_NETNS: not set"),
    ({"CNI_NETNS": "x"}, "CNI_NETNS 'x': not an absolute path"),
    ({"CNI_COMMAND": "DEL", "CNI_IFNAME": None}, "CNI_IFNAME: not set, and DEL needs it"),
    ({"CNI_IFNAME": "abcdefghijklmnop"}, "CNI_IFNAME"),
    ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
    ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
    ({"CNI_ARGS": "K8S_POD_NAME"}, "'K8S_POD_NAME' is not NAME=VALUE"),
    ({"CNI_ARGS": "COLOUR=blue"}, "COLOUR unknown"),
    ({"CNI_ARGS": "K8S_POD_NAME=a/b"}, "the pod's name 'a/b'"),
    ({"CNI_ARGS": "K8S_POD_NAMESPACE=Shop"}, "the pod's namespace 'Shop'"),
]


@pytest.mark.parametrize(("environment", "why"), ENVIRONMENTS, ids=lambda each: str(each))
def test_an_environment_that_is_refused(environment: dict[str, str | None], why: str) -> None:
    with pytest.raises(Failure) as refused:
        asked(environment)
    assert refused.value.code is Code.ENVIRONMENT
    assert why in str(refused.value)


CONFIGS: list[tuple[dict[str, object], Code, str]] = [
    ({"cniVersion": None}, Code.VERSION, "'0.1.0'; muslin speaks 0.3.1"),
    ({"cniVersion": "9.0.0"}, Code.VERSION, "'9.0.0'"),
    ({"cniVersion": ["1.0.0"]}, Code.VERSION, "cniVersion"),
    ({"name": None}, Code.CONFIG, "name"),
    ({"name": "a b"}, Code.CONFIG, "name: 'a b'"),
    ({"ipam": {"type": "host-local"}}, Code.FIELD, 'ipam: {"type": "host-local"}'),
    ({"mut": 1400}, Code.FIELD, "mut: 1400"),
    ({"mtu": 1000}, Code.CONFIG, "mtu: 1000"),
    ({"mtu": True}, Code.CONFIG, "mtu: True"),
    ({"mtu": "1400"}, Code.CONFIG, "mtu: '1400'"),
    ({"node": 7}, Code.CONFIG, "node: 7"),
    ({"datastore": {}}, Code.CONFIG, "datastore"),
    ({"log_file": "cni.log"}, Code.CONFIG, "log_file"),
    ({"policy_setup_timeout_seconds": 0}, Code.CONFIG, "policy_setup_timeout_seconds"),
    ({"policy_setup_timeout_seconds": "soon"}, Code.CONFIG, "policy_setup_timeout_seconds"),
    ({"args": {"cni": {"labels": {"app": "web"}}}}, Code.CONFIG, "args.cni.labels"),
    ({"args": {"cni": {"labels": [{"key": "app", "value": 1}]}}}, Code.CONFIG, "args.cni.labels"),
    ({"args": [1]}, Code.CONFIG, "args.cni.labels"),
    ({"prevResult": {"ips": [{"address": "here"}]}}, Code.CONFIG, "prevResult"),
    ({"prevResult": []}, Code.CONFIG, "prevResult"),
]


@pytest.mark.parametrize(("config", "code", "why"), CONFIGS, ids=lambda each: str(each))
def test_a_configuration_that_is_refused(config: dict[str, object], code: Code, why: str) -> None:
    with pytest.raises(Failure) as refused:
        asked(**config)
    assert refused.value.code is code
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("command", "version", "code"),
    [("CHECK", "0.3.1", Code.VERSION), ("STATUS", "1.0.0", Code.VERSION), ("CHECK", "1.0.0", Code.CONFIG)],
)
def test_a_command_that_the_version_or_the_call_does_not_allow(command: str, version: str, code: Code) -> None:
    with pytest.raises(Failure) as refused:
        asked({"CNI_COMMAND": command}, cniVersion=version)
    assert refused.value.code is code


@pytest.mark.parametrize("given", [b"{", b"[]", b"\xff", b'"x"'])
def test_what_is_no_json_object_is_refused(given: bytes) -> None:
    with pytest.raises(Failure) as refused:
        parse(ENVIRONMENT, given, "n")
    assert refused.value.code is Code.DECODING


JOINED = Joined(
    host=Device(name="mus1", mac="ee:ee:ee:ee:ee:ee", mtu=1480),
    pod=Device(name="eth0", mac="02:00:00:00:00:01", mtu=1480, sandbox="/run/netns/x"),
    addresses=(
        (ip_interface("10.0.0.1/32"), ip_address("169.254.1.1")),
        (ip_interface("fd00::1/128"), ip_address("fe80::1")),
    ),
)


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_a_result_in_every_version(version: str) -> None:
    said = json.loads(json.dumps(spec.result(JOINED, version)))
    families = [{"version": "4"}, {"version": "6"}] if version < "1" else [{}, {}]
    mtu = {"mtu": 1480} if version == "1.1.0" else {}
    assert said == {
        "cniVersion": version,
        "interfaces": [
            {"name": "mus1", "mac": "ee:ee:ee:ee:ee:ee", **mtu},
            {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x", **mtu},
        ],
        "ips": [
            {"address": "10.0.0.1/32", "gateway": "169.254.1.1", "interface": 1, **families[0]},
            {"address": "fd00::1/128", "gateway": "fe80::1", "interface": 1, **families[1]},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        "dns": {},
    }


def program(environment: Mapping[str, str], given: bytes) -> tuple[int, object, str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cni"],
        cwd=HOUSE,
        input=given,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stderr.decode()


def test_the_program_answers_in_json_and_imports_nothing_heavy_for_it(tmp_path: Path) -> None:
    status, said, imports = program({"CNI_COMMAND": "VERSION"}, b'{"cniVersion": "0.4.0"}')
    assert (status, said) == (0, dict(spec.versions("0.4.0")))
    assert "cni.spec" in imports
    assert not [each for each in ("grpc", "structlog", "msgspec", "google.protobuf") if f" {each}\n" in imports]

    status, said, _ = program(ENVIRONMENT, json.dumps({**CONFIG, "mtu": 1}).encode())
    assert (status, said) == (1, {"cniVersion": "1.0.0", "code": 7, "msg": "mtu: 1: not a number from 1280 to 65535"})
    status, said, _ = program(ENVIRONMENT, b"not json")
    assert isinstance(said, dict)
    assert (status, said["cniVersion"], said["code"]) == (1, "1.1.0", 6)
    blocked = tmp_path / "file"
    blocked.write_text("")
    status, said, _ = program(ENVIRONMENT, json.dumps({**CONFIG, "log_file": f"{blocked}/cni.log"}).encode())
    assert isinstance(said, dict)
    assert (status, said["code"]) == (1, 5)
