#!/usr/bin/env bash
# Ends a cluster with all that runs in it, and removes its namespaces, its control groups and its state.
set -uo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
for node in "${nodes[@]}"; do
  # Whatever else runs in a node ends with its first process.
  [ ! -f "$state/$node/init" ] || kill -KILL "$(cat "$state/$node/init")" 2> /dev/null
done
# A group can be removed when the last of its processes has gone.
for hierarchy in /sys/fs/cgroup/*/; do
  for _ in $(seq 200); do
    [ -d "$hierarchy$prefix" ] || break
    find "$hierarchy$prefix" -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.1
  done
done
for name in "${nodes[@]}" lan; do
  ip netns delete "$prefix-$name" 2> /dev/null
done
rm -rf "$state"
[ ! -e "$state" ]
