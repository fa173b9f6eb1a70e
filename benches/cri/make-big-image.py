#!/usr/bin/env python3
"""Write the image that the pull scenario takes: six layers, 1.3 GB unpacked, about half a GB gzip.

usage: make-big-image.py REGISTRY_ROOT [--name REPOSITORY:TAG] [--scale FACTOR]

REGISTRY_ROOT is the root directory of a docker-registry file system storage. The bytes come from a
seeded generator: the same FACTOR gives the same layers (the same diff ids) on every machine, and the
same digests with the same zlib. The mix is that of a distribution image with a language runtime and
an application on top: most files are small text or code, most bytes are in a few libraries and
archives; with symlinks, hard links, a setuid file, and whiteouts of lower layers' files.
Needs only python3; takes a minute or two.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile

EPOCH = 1_700_000_000
MIB = 1 << 20
POOL = 24 * MIB
# name, MiB unpacked, median file size in KiB, shares of text / code / incompressible bytes
LAYERS = [
    ("base", 124, 3, (0.36, 0.61, 0.03)),
    ("packages", 318, 3, (0.38, 0.58, 0.04)),
    ("toolchain", 412, 9, (0.22, 0.74, 0.04)),
    ("modules", 168, 1.5, (0.74, 0.22, 0.04)),
    ("assets", 205, 24, (0.30, 0.55, 0.15)),
    ("app", 13, 3, (0.60, 0.34, 0.06)),
]
LARGEST = 40 * MIB
DIRS = ["bin", "lib", "share", "include", "etc", "doc", "man", "locale", "python", "src", "data", "plugins"]
SUFFIX = {"text": [".txt", ".py", ".h", ".json", ".md", ".conf"], "code": ["", ".so", ".a", ".o", ".pyc"], "noise": [".gz", ".png", ".jar"]}


def text_pool(rng):
    """Words of a Zipf-like vocabulary in lines with indents: gzip makes about a quarter of it."""
    letters = "etaoinshrdlucmfwypvbgkjqxz_"
    words = ["".join(rng.choices(letters, range(27, 0, -1), k=rng.randint(2, 11))) for _ in range(9000)]
    weights = [1 / (n + 6) for n in range(len(words))]
    drawn = rng.choices(words, weights, k=400_000)
    ends = rng.choices([" ", " ", " ", ", ", "(", ") ", " = ", ".\n", ";\n    ", "\n"], k=len(drawn))
    piece = "".join(w + e for w, e in zip(drawn, ends)).encode()
    return stretch(rng, piece, 24, 240, 0.52)


def code_pool(rng):
    """Machine code and tables: recurring instruction shapes with varied operands."""
    shapes = [rng.randbytes(rng.randint(2, 9)) for _ in range(1400)]
    weights = [1 / (n + 10) for n in range(len(shapes))]
    out = io.BytesIO()
    while out.tell() < 4 * MIB:
        for shape in rng.choices(shapes, weights, k=4096):
            out.write(shape)
            fate = rng.random()
            if fate < 0.24:
                out.write(rng.randbytes(2))
            elif fate < 0.34:
                out.write(bytes(4))
    return stretch(rng, out.getvalue(), 16, 160, 0.36)


def stretch(rng, piece, low, high, again):
    """A pool made of a shorter piece, cut and put together anew, so that its parts lie far apart.

    A share of `again` of the cuts repeats what stands a few KiB before, as real files do.
    """
    out = bytearray(piece[:8192])
    while len(out) < POOL:
        n = rng.randint(low, high)
        if rng.random() < again:
            at = len(out) - rng.randint(high, 8192)
            out += out[at : at + n]
        else:
            at = rng.randrange(len(piece) - high)
            out += piece[at : at + n]
    return bytes(out[:POOL])


class Tally(io.RawIOBase):
    """Passes bytes on, with their digest and number."""

    def __init__(self, to):
        self.to, self.hash, self.size = to, hashlib.sha256(), 0

    def writable(self):
        return True

    def write(self, data):
        self.hash.update(data)
        self.size += len(data)
        self.to.write(data)
        return len(data)

    def digest(self):
        return "sha256:" + self.hash.hexdigest()


class Content(io.RawIOBase):
    """A file's bytes: slices of a pool, or random bytes."""

    def __init__(self, rng, pool, size):
        self.rng, self.pool, self.left = rng, pool, size

    def read(self, size=-1):
        size = self.left if size < 0 else min(size, self.left)
        self.left -= size
        if self.pool is None:
            return self.rng.randbytes(size)
        parts = []
        while size:
            n = min(size, 256 * 1024)
            at = self.rng.randrange(POOL - n + 1)
            parts.append(self.pool[at : at + n])
            size -= n
        return b"".join(parts)


def entry(path, kind=tarfile.REGTYPE, mode=0o644, link="", size=0):
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.linkname, info.size, info.mtime = kind, mode, link, size, EPOCH
    info.uname = info.gname = "root"
    return info


def fill(tar, rng, pools, name, budget, median, shares):
    """The layer's files, until `budget` bytes of content and headers are written; their paths."""
    top = "usr/" + name
    tar.addfile(entry("usr", tarfile.DIRTYPE, 0o755))
    tar.addfile(entry(top, tarfile.DIRTYPE, 0o755))
    # Shares are of bytes: what is furthest below its share is next.
    written = dict.fromkeys(SUFFIX, 0)
    share = dict(zip(SUFFIX, shares))
    folder, files, kept = top, 0, []
    while (left := budget - tar.offset) > 4096:
        if files % 24 == 0:
            folder = f"{top}/{rng.choice(DIRS)}-{files // 24:04x}"
            tar.addfile(entry(folder, tarfile.DIRTYPE, 0o755))
        kind = min(SUFFIX, key=lambda k: written[k] / share[k])
        scale = 1 if kind == "text" else 3
        size = int(rng.lognormvariate(0, 1.9) * median * 1024 * scale)
        size = min(size, LARGEST, left - 2048)
        path = f"{folder}/{rng.choice(DIRS)}{files:05x}{rng.choice(SUFFIX[kind])}"
        mode = 0o755 if kind == "code" else 0o644
        tar.addfile(entry(path, mode=mode, size=size), Content(rng, pools[kind], size))
        written[kind] += size + 512
        fate = rng.random()
        if fate < 0.06:
            tar.addfile(entry(path + ".1", tarfile.SYMTYPE, 0o777, os.path.basename(path)))
        elif fate < 0.08:
            tar.addfile(entry(path + ".alias", tarfile.LNKTYPE, mode, path))
        kept.append(path)
        files += 1
    tar.addfile(entry(f"{top}/helper", mode=0o4755))
    return kept


def whiteouts(tar, below):
    """Hide some files of a lower layer, and the whole of one of its folders."""
    for path in below[5::97][:200]:
        tar.addfile(entry(os.path.join(os.path.dirname(path), ".wh." + os.path.basename(path))))
    folder = os.path.dirname(below[-1])
    tar.addfile(entry(folder, tarfile.DIRTYPE, 0o755))
    tar.addfile(entry(folder + "/.wh..wh..opq"))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("registry", help="root directory of the registry's file system storage")
    ap.add_argument("--name", default="bench/distribution:1", help="repository:tag (default: %(default)s)")
    ap.add_argument("--scale", type=float, default=1.0, help="size of the layers, 1 = 1.3 GB (default: %(default)s)")
    args = ap.parse_args()
    repository, tag = args.name.rsplit(":", 1)
    v2 = os.path.join(args.registry, "docker/registry/v2")
    home = os.path.join(v2, "repositories", repository)
    part = os.path.join(args.registry, f".big-image-{os.getpid()}.part")

    def link(path, digest):
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "link"), "w") as f:
            f.write(digest)

    def blob_path(digest):
        hexed = digest.split(":", 1)[1]
        folder = os.path.join(v2, "blobs/sha256", hexed[:2], hexed)
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, "data")

    def put(document):
        data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with open(blob_path(digest), "wb") as f:
            f.write(data)
        return digest, len(data)

    os.makedirs(args.registry, exist_ok=True)
    seed = random.Random(20261)
    pools = {"text": text_pool(seed), "code": code_pool(seed), "noise": None}
    layers, below, files = [], [], 0
    try:
        for number, (name, mib, median, shares) in enumerate(LAYERS):
            rng = random.Random(1000 + number)
            with open(part, "wb") as out:
                packed = Tally(out)
                with gzip.GzipFile("", "wb", 6, packed, mtime=0) as gz:
                    plain = Tally(gz)
                    with tarfile.open(fileobj=plain, mode="w|", bufsize=1 << 18, format=tarfile.USTAR_FORMAT) as tar:
                        if name in ("modules", "app"):
                            whiteouts(tar, below)
                        below = fill(tar, rng, pools, name, int(mib * MIB * args.scale), median, shares)
            files += len(below)
            shutil.move(part, blob_path(packed.digest()))
            link(f"{home}/_layers/sha256/{packed.digest()[7:]}", packed.digest())
            layers.append((plain.digest(), packed.digest(), packed.size, plain.size))
            print(f"{name:10} {plain.size / 1e6:8.1f} MB  gzip {packed.size / 1e6:7.1f} MB  {len(below):6} files", file=sys.stderr)
    finally:
        if os.path.exists(part):
            os.unlink(part)

    config, config_size = put({
        "architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z",
        "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/usr/app/helper"]},
        "rootfs": {"type": "layers", "diff_ids": [diff for diff, _, _, _ in layers]},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": f"layer {name}"} for name, *_ in LAYERS],
    })
    link(f"{home}/_layers/sha256/{config[7:]}", config)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest, _ = put({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": config, "size": config_size},
        "layers": [
            {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": digest, "size": size}
            for _, digest, size, _ in layers
        ],
    })
    for folder in (f"revisions/sha256/{manifest[7:]}", f"tags/{tag}/current", f"tags/{tag}/index/sha256/{manifest[7:]}"):
        link(f"{home}/_manifests/{folder}", manifest)
    packed, plain = sum(l[2] for l in layers), sum(l[3] for l in layers)
    print(f"{args.name} {manifest}: {len(layers)} layers, {files} files, {plain / 1e6:.0f} MB, gzip {packed / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
