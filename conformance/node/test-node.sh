#!/bin/bash
# Runs the conformance suite in a fresh virtual node with cgroup v2 and systemd (node-vm), once with each cgroup driver, and
# ends with a summary. The tests and the programs are built here; the node sees this checkout and its target folder
# read-only, at the same paths.
#
# usage: test-node.sh [--selinux] [NEXTEST-ARGUMENT...]     for instance: test-node.sh -E 'test(/^sandbox::/)'
# --selinux: with SELinux, enforcing, in AppArmor's place
# PODWRIGHT_NODE_TIMEOUT: seconds until a node is stopped (7200)
# PODWRIGHT_TEST_CGROUP_DRIVER: systemd or cgroupfs: only this driver
set -euo pipefail
options=() prepare=: confine=
if [ "${1:-}" = --selinux ]; then
  shift
  options=(--selinux)
  # The daemon runs as unconfined_t there. Debian's policy lets such a one start containers, but these may use pipes of
  # container engines only; and of no process that has categories which they lack.
  confine="runcon -l s0 bash -c 'exec \"\$0\" \"\$@\"'"
  prepare="printf '%s\n' '(allow container_t unconfined_t (fifo_file (read write append getattr ioctl)))' \
    '(allow container_t unconfined_t (fd (use)))' >/root/pwt.cil; semodule -i /root/pwt.cil; setenforce 1"
fi
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")
data=$target/conformance
mkdir -p "$data/node"
rm -f "$data"/node/{systemd,cgroupfs}.log "$data/node/outcome.new"
cd "$repo"

# The node has neither the registry nor the images, and sees a read-only folder. `make test-node` has seen to both.
[ -x "$data/tools/usr/bin/docker-registry" ] || conformance/setup.sh node
[ -e "$data/images/stamp" ] || conformance/images/make-images.sh

# What nextest needs to run tests where there is no cargo.
cargo nextest list --locked --test conformance --list-type binaries-only --message-format json >"$data/node/binaries.json"
cargo metadata --locked --format-version 1 --all-features >"$data/node/metadata.json"
install -m 755 "$(command -v cargo-nextest || echo "${CARGO_HOME:-$HOME/.cargo}/bin/cargo-nextest")" "$data/node/cargo-nextest"

# Copies without debug information, laid out as in the target folder: the node takes them to its own disk, from where
# programs start ten times faster than from a share.
rm -rf "$data/node/target"
tests=$(sed 's/.*"binary-path":"\([^"]*\)".*/\1/' "$data/node/binaries.json")
for file in "$tests" "$target/debug/podwright" "$target/debug/podwright-monitor"; do
  copy=$data/node/target/${file#"$target"/}
  mkdir -p "${copy%/*}"
  strip -g -o "$copy" "$file"
done

cat >"$data/node/run" <<X
#!/bin/bash
set -euo pipefail
export PATH=\$PATH:/usr/sbin:/usr/lib/cni PODWRIGHT_TEST_SLOW=6 PODWRIGHT_TEST_DATA=$(printf %q "$data")
cp -r $(printf %q "$data/node/target") /opt/target
cp $(printf %q "$data/node/cargo-nextest") /opt/target/
$prepare
cd $(printf %q "$repo")
exec $confine /opt/target/cargo-nextest nextest run --profile node --no-fail-fast \
  --binaries-metadata $(printf %q "$data/node/binaries.json") --cargo-metadata $(printf %q "$data/node/metadata.json") \
  --workspace-remap $(printf %q "$repo") --target-dir-remap /opt/target "\$@"
X
chmod +x "$data/node/run"
shares=(--share "$repo:$repo:ro")
case $target in "$repo"/*) ;; *) shares+=(--share "$target:$target:ro") ;; esac

failed=0
for driver in ${PODWRIGHT_TEST_CGROUP_DRIVER:-systemd cgroupfs}; do
  echo "test-node: cgroup driver $driver"
  status=0 begin=$SECONDS log=$data/node/$driver.log
  PODWRIGHT_TEST_CGROUP_DRIVER=$driver "$here/node-vm" run ${options[@]+"${options[@]}"} "${shares[@]}" --env PODWRIGHT_TEST_CGROUP_DRIVER \
    --timeout "${PODWRIGHT_NODE_TIMEOUT:-7200}" -- "$data/node/run" "$@" 2>&1 | tee "$log" || status=$?
  echo "$driver $status $((SECONDS - begin))" >>"$data/node/outcome.new"
  [ $status = 0 ] || failed=1
done

mv "$data/node/outcome.new" "$data/node/outcome"
printf '\n%-10s %-8s %s\n' driver minutes result
while read -r driver status seconds; do
  log=$data/node/$driver.log
  result=$(sed -n 's/^ *Summary \[[^]]*\] *//p' "$log" | tail -n 1)
  printf '%-10s %-8s %s\n' "$driver" $(((seconds + 59) / 60)) "${result:-the node ended with status $status before the suite did}"
  # After the summary nextest tells once more which tests failed.
  sed -n '/^ *Summary /,$s/^ *\([A-Z]*\) \[ *\([0-9.]*\)s\].*conformance \(.*\)/             \1 \3 (\2 s)/p' "$log"
done <"$data/node/outcome"
grep -h '^ *SKIPPED:' "$data"/node/{systemd,cgroupfs}.log 2>/dev/null | sort -u || :
exit $failed
