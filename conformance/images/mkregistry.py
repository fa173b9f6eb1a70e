#!/usr/bin/env python3
"""Packs folders into layers and lays the images out as a docker-registry's storage.

usage: mkregistry.py ROOTFS_DIR REGISTRY_ROOT IMAGES_JSON ARCHITECTURE
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tarfile

SOURCE, REGISTRY, INDEX, ARCH = sys.argv[1:5]
OTHER_ARCH = "arm64" if ARCH != "arm64" else "amd64"
NEW = REGISTRY + ".new"
V2 = NEW + "/docker/registry/v2"
EPOCH = 1700000000
CREATED = "2023-11-14T22:13:20Z"
PATH_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DOCKER = {
    "manifest": "application/vnd.docker.distribution.manifest.v2+json",
    "index": "application/vnd.docker.distribution.manifest.list.v2+json",
    "config": "application/vnd.docker.container.image.v1+json",
    "layer": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
OCI = {
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "index": "application/vnd.oci.image.index.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
}
layers = {}
listing = []


def sha(data):
    return hashlib.sha256(data).hexdigest()


def dump(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def put_blob(data):
    digest = sha(data)
    folder = f"{V2}/blobs/sha256/{digest[:2]}/{digest}"
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/data", "wb") as file:
        file.write(data)
    return digest


def link(folder, digest):
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/link", "w") as file:
        file.write("sha256:" + digest)


def pack(root):
    """The folder as a tar with fixed times, owners and order."""
    buffer, seen = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        paths = [os.path.relpath(os.path.join(d, n), root) for d, dirs, files in os.walk(root) for n in dirs + files]
        for path in sorted(paths):
            full = os.path.join(root, path)
            status = os.lstat(full)
            entry = tarfile.TarInfo(path)
            entry.mtime, entry.mode = EPOCH, stat.S_IMODE(status.st_mode)
            entry.uname = entry.gname = "root"
            if path.startswith("home/default-user"):
                entry.uid = entry.gid = 1000
                entry.uname = entry.gname = ""
            if stat.S_ISDIR(status.st_mode):
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            elif stat.S_ISLNK(status.st_mode):
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(full)
                tar.addfile(entry)
            elif status.st_ino in seen:
                entry.type, entry.linkname = tarfile.LNKTYPE, seen[status.st_ino]
                tar.addfile(entry)
            else:
                if status.st_nlink > 1:
                    seen[status.st_ino] = path
                entry.size = status.st_size
                with open(full, "rb") as file:
                    tar.addfile(entry, file)
    return buffer.getvalue()


def layer(name):
    """-> (diff id, digest, size)"""
    if name not in layers:
        raw = pack(f"{SOURCE}/{name}")
        data = gzip.compress(raw, 6, mtime=0)
        layers[name] = ("sha256:" + sha(raw), put_blob(data), len(data))
    return layers[name]


def put_manifest(repo, names, config, kinds, arch):
    """-> (digest, size, config digest)"""
    made = [layer(name) for name in names]
    config_data = dump(
        {
            "architecture": arch,
            "os": "linux",
            "created": CREATED,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff for diff, _, _ in made]},
            "history": [{"created": CREATED, "created_by": f"layer {name}"} for name in names],
        }
    )
    config_digest = put_blob(config_data)
    manifest = dump(
        {
            "schemaVersion": 2,
            "mediaType": kinds["manifest"],
            "config": {"mediaType": kinds["config"], "digest": "sha256:" + config_digest, "size": len(config_data)},
            "layers": [{"mediaType": kinds["layer"], "digest": "sha256:" + d, "size": s} for _, d, s in made],
        }
    )
    digest = put_blob(manifest)
    folder = f"{V2}/repositories/{repo}"
    for blob in [config_digest] + [d for _, d, _ in made]:
        link(f"{folder}/_layers/sha256/{blob}", blob)
    link(f"{folder}/_manifests/revisions/sha256/{digest}", digest)
    return digest, len(manifest), config_digest


def image(reference, names, config, kinds, hosts, index=True):
    repo, tag = reference.rsplit(":", 1)
    folder = f"{V2}/repositories/{repo}"
    config = {"Env": [PATH_ENV], **config}
    digest, size, config_digest = put_manifest(repo, names, config, kinds, ARCH)
    top = digest
    if index:
        # The other platform's image holds a marker only: a runtime that picks it fails loudly.
        other, other_size, _ = put_manifest(repo, ["m-wrong-platform"], config, kinds, OTHER_ARCH)
        entries = [(other, other_size, OTHER_ARCH), (digest, size, ARCH)]
        top = put_blob(
            dump(
                {
                    "schemaVersion": 2,
                    "mediaType": kinds["index"],
                    "manifests": [
                        {
                            "mediaType": kinds["manifest"],
                            "digest": "sha256:" + d,
                            "size": s,
                            "platform": {"architecture": a, "os": "linux", **({"variant": "v8"} if a == "arm64" else {})},
                        }
                        for d, s, a in entries
                    ],
                }
            )
        )
        link(f"{folder}/_manifests/revisions/sha256/{top}", top)
    link(f"{folder}/_manifests/tags/{tag}/current", top)
    link(f"{folder}/_manifests/tags/{tag}/index/sha256/{top}", top)
    for host in hosts:
        listing.append(
            {
                "ref": f"{host}/{reference}",
                "digest": "sha256:" + top,
                "manifest": "sha256:" + digest,
                "config": "sha256:" + config_digest,
            }
        )


shutil.rmtree(NEW, ignore_errors=True)
K8S, GCR, HUB = ["registry.k8s.io"], ["gcr.io"], ["docker.io"]
E2E, CRI = "e2e-test-images/", "k8s-staging-cri-tools/"
SHELL = {"Cmd": ["sh"]}
NGINX = {"Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGTERM"}

for tag in ("latest", "1.35"):
    image("library/busybox:" + tag, ["busybox"], SHELL, OCI, HUB)
image(E2E + "busybox:1.29-2", ["busybox"], SHELL, DOCKER, K8S)
image(E2E + "nginx:1.14-2", ["busybox", "nginx"], NGINX, OCI, K8S)
image(
    E2E + "httpd:2.4.39-4",
    ["busybox", "httpd"],
    {"Cmd": ["httpd-foreground"], "ExposedPorts": {"80/tcp": {}}, "WorkingDir": "/usr/local/apache2"},
    OCI,
    K8S,
)
image(E2E + "nonewprivs:1.3", ["busybox", "nnp"], {"Entrypoint": ["/nnp"]}, OCI, K8S)
# Each pause has an id of its own, and 3.9 two names.
for version in ("3.9", "3.10", "3.10.1", "3.10.2"):
    image(
        "pause:" + version,
        ["pause"],
        {"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/", "Labels": {"test.pause": version}},
        DOCKER,
        K8S + (["k8s.gcr.io"] if version == "3.9" else []),
    )
for name, user in (("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:1004"), ("username-group", "www-data:1004")):
    image(CRI + f"test-image-user-{name}:latest", ["busybox"], {**SHELL, "User": user}, DOCKER, GCR, index=False)
image(CRI + "test-image-predefined-group:latest", ["busybox", "predef"], {**SHELL, "User": "1000"}, OCI, GCR, index=False)
image(
    CRI + "hostnet-nginx-amd64:latest",
    ["busybox", "nginx", "hostnet"],
    {**NGINX, "StopSignal": "SIGQUIT"},
    DOCKER,
    GCR,
    index=False,
)
for n in "123":
    image(CRI + f"test-image-{n}:latest", ["busybox", f"m-test-image-{n}"], SHELL, DOCKER, GCR)
image(CRI + "test-image-latest:latest", ["busybox", "m-test-image-latest"], SHELL, OCI, GCR)
# No index here: clients want to see exactly one digest of it.
image(CRI + "test-image-digest:latest", ["busybox", "m-test-image-digest"], SHELL, DOCKER, GCR, index=False)
for n in "123":
    image(CRI + f"test-image-tags:{n}", ["busybox", "m-same-image"], SHELL, OCI, GCR)
for tag in ("test", "all"):
    image(CRI + f"test-image-tag:{tag}", ["busybox", f"m-{tag}"], SHELL, OCI, GCR)
for tag in ("1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"):
    image("docker/library/busybox:" + tag, ["busybox"], {**SHELL, "Labels": {"test.variant": tag}}, OCI, ["public.ecr.aws"])

shutil.rmtree(REGISTRY, ignore_errors=True)
os.rename(NEW, REGISTRY)
with open(INDEX, "w") as out:
    json.dump(listing, out, indent=1)
for entry in listing:
    print(entry["digest"][7:19], entry["ref"])
