#!/usr/bin/env bash
# Starts a cluster of two nodes, which are namespaces of this machine, and waits until both are ready: as root, with what
# `.ci/cluster` installs and builds. In its own network namespaces alone can it be reached.
set -euo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"

# Joins a namespace to the nodes' network: NODE
join() {
  ip netns add "$prefix-$1"
  ip -n "$prefix-$1" link set lo up
  ip link add "$1" netns "$prefix-lan" type veth peer name eth0 netns "$prefix-$1"
  ip -n "$prefix-lan" link set "$1" master lan up
  ip -n "$prefix-$1" address add "$(address "$1")/24" dev eth0
  ip -n "$prefix-$1" link set eth0 up
  ip -n "$prefix-$1" route add default via "$lan.1"
}

# Starts the first process of a node, and notes its number here: NODE
start() {
  local directory=$state/$1 group=$hierarchy/$prefix/$1 init
  mkdir -p "$directory" "$group"
  (
    echo "$BASHPID" > "$group/cgroup.procs"
    exec setsid nsenter --net="/run/netns/$prefix-$1" \
      unshare --mount --pid --fork --kill-child --uts --ipc --cgroup "$cluster/node.sh" "$1"
  ) < /dev/null > "$directory/console" 2>&1 &
  until init=$(cat "/proc/$!/task/$!/children" 2> /dev/null) && [ -n "$init" ]; do
    kill -0 "$!" || return
    sleep 0.05
  done
  echo "${init% }" > "$directory/init"
}

# Tries something until it works, for so many seconds: SECONDS COMMAND…
retry() {
  local left=$1
  shift
  until "$@" > /dev/null 2>&1; do
    [ $((left--)) -gt 0 ] || { "$@" || true; echo "never: $*" >&2; return 1; }
    sleep 1
  done
}

# What the nodes' programs said last, where something does not start.
explain() {
  local result=$?
  [ $result = 0 ] || tail -n 5 "$state"/*/console "$state"/*/log/* >&2
  return $result
}

mkdir -p "$state"
trap explain EXIT
"$cluster/keys.sh"
ip netns add "$prefix-lan"
ip -n "$prefix-lan" link set lo up
ip -n "$prefix-lan" link add lan type bridge
ip -n "$prefix-lan" address add "$lan.1/24" dev lan
ip -n "$prefix-lan" link set lan up
ip -n "$prefix-lan" address add "$outside/32" dev lo
for node in "${nodes[@]}"; do
  join "$node"
  start "$node"
done
kubectl() { "$cluster/as-user" kubectl "$@"; }
# Whether a node has a range of addresses for its pods: NODE
has_range() { kubectl get node "$1" -o 'jsonpath={.spec.podCIDR}' | grep -q /; }
for node in "${nodes[@]}"; do
  retry 180 kubectl get node "$node"
  retry 60 has_range "$node"
  range=$(kubectl get node "$node" -o 'jsonpath={.spec.podCIDR}')
  "$cluster/in" "$node" "$cluster/pods.sh" "$node" "$range"
  for other in "${nodes[@]}" lan; do
    [ "$other" = "$node" ] || ip -n "$prefix-$other" route add "$range" via "$(address "$node")"
  done
done
kubectl wait --for=condition=Ready node --all --timeout=180s > /dev/null
retry 60 kubectl --namespace kube-system get configmap kube-root-ca.crt
kubectl apply --filename "$cluster/dns.yaml" > /dev/null
kubectl --namespace kube-system rollout status deployment/coredns --timeout=180s > /dev/null
