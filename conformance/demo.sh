#!/bin/bash
# Runs one pod from nothing, in a network and a mount namespace of its own: a registry on loopback with an image made of
# Debian's busybox, a daemon with its own folders, a CNI bridge; then `podwright run examples/hello.yaml`. Leaves nothing.
#
# usage: demo.sh     (after: conformance/setup.sh demo; cargo build --release --bins)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../target}")
export CARGO_TARGET_DIR=$target
if [ "$(id -u)" != 0 ]; then echo "demo: root is needed, for namespaces, mounts and cgroups" >&2; exit 1; fi
images=$target/conformance/images
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
if [ -z "${PODWRIGHT_DEMO:-}" ]; then
  # Out here, for the packages come from the network, and in there is none.
  say "Images made of Debian's busybox and nginx"
  "$here/images/make-images.sh" "$images" </dev/null | sed -n /library/p
  echo "$images"
  PODWRIGHT_DEMO=1 exec unshare --net --mount --propagation slave -- "$0" "$@"
fi

pids=()
work=$(mktemp -d /tmp/podwright-demo.XXXXXX)
# shellcheck disable=SC2317,SC2086
finish() {
  local status=$?
  trap - EXIT INT TERM
  # The daemon first: it drains while the registry still answers.
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill "${pids[i]}" 2>/dev/null || :
    wait "${pids[i]}" 2>/dev/null || :
  done
  if [ $status != 0 ] && [ -s "$work/daemon.log" ]; then echo; echo "the daemon's log ends so:"; tail -n 30 "$work/daemon.log"; fi >&2
  say "What is left on the machine"
  "$here/census.sh" "$work" || { [ $status != 0 ] || status=1; }
  umount -l "$work" 2>/dev/null || :
  rm -rf "$work"
  exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ip link set lo up
chmod 755 "$work"
mount -t tmpfs -o mode=0755 podwright-demo "$work"
mkdir -p "$work"/{net.d,leases,conf,certs.d/_default}

say "A registry on loopback"
port=5000
# Before a connection succeeds there is nothing to wait on but the next try.
PATH=$PATH:$target/conformance/tools/usr/bin "$here/images/serve.sh" 127.0.0.1:$port "$images" >"$work/registry.log" 2>&1 &
pids+=($!)
for _ in {1..200}; do
  if (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; then break; fi
  kill -0 "${pids[0]}" 2>/dev/null || { cat "$work/registry.log" >&2; exit 1; }
  sleep 0.05
done
echo "http://127.0.0.1:$port"

say "The daemon, with its own folders and the CNI bridge plugin"
# Every registry's name leads to the one on loopback.
for host in docker.io registry.k8s.io; do
  mkdir -p "$work/certs.d/$host"
  printf '[host."http://127.0.0.1:%s"]\ncapabilities = ["pull", "resolve"]\n' $port >"$work/certs.d/$host/hosts.toml"
done
sed "s|\"bridge\": \"cni0\"|\"bridge\": \"demo0\"|; s|\"type\": \"host-local\"|&, \"dataDir\": \"$work/leases\"|" \
  "$here/../examples/cni/10-podwright.conflist" >"$work/net.d/10-demo.conflist"
cat >"$work/config.toml" <<X
[server]
address = "$work/cri.sock"
[paths]
root = "$work/root"
state = "$work/state"
[network]
conf_dir = "$work/net.d"
[image]
registry_config_dir = "$work/certs.d"
X
podwright=$target/release/podwright
"$podwright" serve --config "$work/config.toml" >"$work/daemon.log" 2>&1 &
pids+=($!)
for _ in {1..200}; do
  if [ -S "$work/cri.sock" ]; then break; fi
  kill -0 "${pids[1]}" 2>/dev/null || { cat "$work/daemon.log" >&2; exit 1; }
  sleep 0.05
done
echo "unix://$work/cri.sock"

say "podwright run examples/hello.yaml"
code=0
"$podwright" run --rm --timeout 60s --root "$work/driver" --runtime-endpoint "unix://$work/cri.sock" "$here/../examples/hello.yaml" || code=$?
echo "exit code $code"
exit $code
