"""An image for containers: busybox and nothing else, as an OCI layout in a tar file that every runtime loads."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

NAME = "localhost/busybox:1"
"""With a registry's name in front, because containerd's CRI takes a name without for Docker's."""

BUSYBOX = Path("/bin/busybox")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image"


def make(file: Path) -> None:
    """Write the image; its command sleeps, so it serves as a pod's sandbox as well."""
    blobs: dict[str, bytes] = {}

    def put(kind: str, blob: bytes) -> dict[str, object]:
        digest = hashlib.sha256(blob).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = blob
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(blob)}

    layer = put(f"{OCI}.layer.v1.tar", _layer())
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {"config": put(f"{OCI}.config.v1+json", _json(config)), "layers": [layer]}
    listed = put(f"{OCI}.manifest.v1+json", _json({"schemaVersion": 2, **manifest}))
    # containerd takes the image's whole name from the one annotation, podman from the other
    listed["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), **blobs}
    files["index.json"] = _json({"schemaVersion": 2, "manifests": [listed]})
    with tarfile.open(file, "w") as archive:
        for name, content in files.items():
            _add(archive, name, content)


def _layer() -> bytes:
    whole = io.BytesIO()
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for folder in ("bin", "dev", "etc", "proc", "sys", "tmp", "www"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        _add(archive, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
    return whole.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
