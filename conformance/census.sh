#!/bin/bash
# Counts what tests and the demo may have left on this machine: processes, mounts, interfaces, cgroups, folders.
# Tells each and exits with 1 if there is any. What belongs to a test that is running now does not count.
#
# usage: [SINCE=FILE] census.sh [FOLDER]     FOLDER: the demo's, which is still there
#        SINCE: of folders and cgroups only those newer than this file count, not what an earlier run left that was killed
set -euo pipefail
pattern='/tmp/(pwt|podwright-demo)\.'
if [ $# -gt 0 ]; then pattern=$1/; fi
left=()
newer=(); if [ -n "${SINCE:-}" ]; then newer=(-newer "$SINCE"); fi

# Whether a process is this script, or has a running test among its ancestors.
excused() {
  local pid=$1 name
  while [ "$pid" -gt 1 ] 2>/dev/null; do
    if [ "$pid" = $$ ]; then return 0; fi
    name=$(cat "/proc/$pid/comm" 2>/dev/null) || return 0
    case $name in conformance* | demo.sh) if [ "$pid" != "$1" ]; then return 0; fi ;; esac
    pid=$(sed 's/.*) . \([0-9]*\) .*/\1/' "/proc/$pid/stat" 2>/dev/null) || return 0
  done
  return 1
}

running=$(pgrep -c '^conformance-' || :)
for proc in /proc/[0-9]*; do
  pid=${proc#/proc/}
  command=$({ tr '\0' ' ' <"$proc/cmdline"; } 2>/dev/null) || continue
  cgroup=$(cat "$proc/cgroup" 2>/dev/null) || continue
  if [[ $command =~ $pattern || $cgroup =~ podwright-?test ]]; then
    if [ $# -gt 0 ]; then
      # The demo has ended its own programs; this script has the folder's name among its arguments.
      case $command in *census.sh* | *demo.sh*) continue ;; esac
      left+=("process $pid: $command")
    elif ! excused "$pid"; then
      left+=("process $pid: $command")
    fi
  fi
done
while read -r mount; do left+=("mount $mount"); done < <(awk -v p="$pattern" '$5 ~ p { print $5 }' /proc/self/mountinfo)
if [ $# -gt 0 ]; then
  while read -r link; do left+=("interface $link"); done < <(
    awk -F: 'NR > 2 { gsub(/ /, "", $1); if ($1 ~ /^veth/) print $1 }' /proc/self/net/dev)
  while read -r lease; do left+=("address $lease"); done < <(
    find "$1/leases" -type f ! -name 'last_reserved_ip*' ! -name lock 2>/dev/null)
  while read -r file; do left+=("state $file"); done < <(find "$1/root/pods" "$1/state/pods" -mindepth 1 2>/dev/null)
elif [ "$running" = 0 ]; then
  while read -r path; do left+=("folder $path"); done < <(find /tmp -maxdepth 1 \( -name 'pwt.*' -o -name 'podwright-demo.*' \) ${newer[@]+"${newer[@]}"})
  while read -r path; do left+=("cgroup $path"); done < <(
    find /sys/fs/cgroup -maxdepth 3 -type d \( -name 'podwright-test-*' -o -name 'podwrighttest*' \) ${newer[@]+"${newer[@]}"} 2>/dev/null)
fi

if [ ${#left[@]} -gt 0 ]; then
  printf 'left behind: %s\n' "${left[@]}"
  exit 1
fi
echo "nothing: no process, mount, interface, address, cgroup or file of pods"
