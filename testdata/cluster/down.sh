#!/usr/bin/env bash
# Ends a cluster with all that runs in it, and removes its namespaces, its control groups and its state.
set -uo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
group=$hierarchy/$prefix
# All that runs in a node is in its group, or ends with its first process, which is. The numbers are read anew each time.
for _ in $(seq 300); do
  [ -d "$group" ] || break
  # shellcheck disable=SC2046 # they are numbers
  kill -KILL $(find "$group" -name cgroup.procs -exec cat {} + 2> /dev/null) 2> /dev/null
  # A group can be removed when the last of its processes has gone.
  find "$group" -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.1
done
for name in "${nodes[@]}" lan; do
  ip netns delete "$prefix-$name" 2> /dev/null
done
rm -rf "$state"
[ ! -e "$state" ] && [ ! -e "$group" ]
