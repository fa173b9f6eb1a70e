#!/bin/bash
# Installs what building, demonstrating and testing Podwright needs beyond cargo, as far as it is missing. Run as root.
#
# usage: setup.sh build|demo|test|node
#   build   what a build needs                      demo   and what `make demo` needs
#   test    and everything `make test` needs        node   and what `make test-node` needs
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=conformance/debian.sh
. "$here/debian.sh"
tools=${CARGO_TARGET_DIR:-$here/../target}/conformance/tools
level=${1:-test}

packages=(gcc libc6-dev libseccomp-dev pkg-config make)
optional=()
case $level in
  build) ;;
  demo | test | node)
    packages+=(binutils python3 iproute2 iptables nftables containernetworking-plugins procps util-linux)
    ;;
  *) echo "setup: unknown level $level" >&2; exit 2 ;;
esac
case $level in test | node)
  packages+=(git shellcheck strace)
  optional+=(runc crun)
esac

apt=()
say() { echo "setup: $*" >&2; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }
install_with() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o APT::Sandbox::User=root "$@"; }
updated=
update() {
  if [ -z "$updated" ]; then say "apt-get update"; install_with update; updated=1; fi
}
known() { [ -n "$(apt-cache search --names-only "^$1\$" 2>/dev/null)" ]; }

if ! command -v apt-get >/dev/null; then
  say "this machine has no apt-get; please provide: ${packages[*]} docker-registry (optional: ${optional[*]})"
  exit 1
fi

missing=()
for p in "${packages[@]}"; do
  if ! installed "$p"; then
    known "$p" || update
    missing+=("$p")
  fi
done
for p in ${optional[@]+"${optional[@]}"}; do
  if command -v "$p" >/dev/null || installed "$p"; then continue; fi
  known "$p" || update
  if known "$p"; then missing+=("$p"); else say "no package $p here: the tests of that handler will be skipped"; fi
done
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { say "root is needed to install: ${missing[*]}"; exit 1; }
  say "installing ${missing[*]}"
  # A package list that is too old names files that are gone: update and try once more.
  install_with install -y --no-install-recommends "${missing[@]}" >/dev/null ||
    { update; install_with install -y --no-install-recommends "${missing[@]}" >/dev/null; }
fi

# The registry is unpacked, not installed: the package would start a service.
# The virtual node takes it from there in any case.
registry=$(command -v docker-registry || :)
if [ "$level" = node ]; then registry=; fi
if [ "$level" != build ] && [ -z "$registry" ] && [ ! -x "$tools/usr/bin/docker-registry" ]; then
  say "unpacking docker-registry into $tools"
  known docker-registry || update
  mkdir -p "$tools/new"
  (cd "$tools/new" && { install_with download docker-registry || { update; install_with download docker-registry; }; })
  dpkg-deb -x "$tools"/new/docker-registry_*.deb "$tools"
  rm -r "$tools/new"
fi
# So is gVisor's runsc, from backports: the release's own is too old for current kernels.
case $level in test | node)
  runsc=$(command -v runsc || :)
  if [ -z "$runsc" ] && [ ! -e "$tools/no-runsc" ] && [ ! -x "$tools/usr/bin/runsc" ]; then
    say "unpacking runsc into $tools"
    mkdir -p "$tools/new"
    if (cd "$tools/new" && debian_apt_with "$tools/new" "$(debian_release)-backports" && "${apt[@]}" download runsc); then
      dpkg-deb -x "$tools"/new/runsc_*.deb "$tools"
    else
      say "no package runsc here: the tests of that handler will be skipped"
      touch "$tools/no-runsc"
    fi
    rm -r "$tools/new"
  fi
esac
# The images are made of packages that are downloaded, never installed.
if [ "$level" != build ]; then known nginx || update; fi

cargo_tool() { # NAME: installed from source if it is not there
  if cargo "$1" --version >/dev/null 2>&1; then return; fi
  say "building cargo-$1, once; this takes some minutes"
  CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug --quiet --target-dir "$tools/cargo-$1" "cargo-$1"
  rm -rf "$tools/cargo-$1"
}
case $level in test | node)
  cargo_tool nextest
  cargo_tool deny
  for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || rustup component add "${part/fmt/rustfmt}"
  done
esac
