#!/bin/sh
# Plays traffic that is known between network namespaces of its own, twice, while the agent records it, and keeps what the
# agent wrote and said. Runs in a guest of .ci/kernels, by busybox, and on a machine's own kernel; `lab kernels` compares.
#
#   scene.sh RESULT-DIR
#
# From the environment: AGENT and TRAFFIC are the programs, CGROUP is where cgroup v2 is mounted, SHORT is how many short
# connections are made. BOUNDED, if not empty, has the agent record the scene's own cgroup alone.
#
#   first/   the agent with all capabilities: `traffic play pods` and `loopback`, connections older than the agent
#   second/  the agent as in its pod, with three capabilities and a network of its own: `traffic play node` from the
#            machine's network, and `loopback`, with an inventory
# shellcheck disable=SC2153 # names in capitals are from the environment
set -u
result=$1
group=$CGROUP/flowscribe-scene-$$
run=$(mktemp -d /run/flowscribe-scene.XXXXXX)
signals=$run/signals

say() { echo "[$(cut -d ' ' -f 1 /proc/uptime)] $*"; }

# Notes what a step of a recording ended with.
note() { echo "$2 $3" >> "$result/$1/exits"; say "$1: $2 ended with $3"; }

# Becomes a program in a cgroup of the scene's and, unless it is `-`, a network of the scene's; to be called in a subshell.
within() {
  cgroup=$group/$1 network=$2
  shift 2
  [ "$network" = - ] || set -- nsenter --net="$run/$network" "$@"
  exec sh -c 'echo $$ > "$0/cgroup.procs" && exec "$@"' "$cgroup" "$@"
}

# Waits for so many tenths of a second until a file has a line, or a process has ended.
await() {
  file=$1 line=$2 process=$3 left=$4
  until grep -q "$line" "$file" 2> /dev/null; do
    left=$((left - 1))
    if [ "$left" -le 0 ] || ! kill -0 "$process" 2> /dev/null; then
      return 1
    fi
    sleep 0.1
  done
}

# Ends every process of the scene, and takes away what it made.
clean() {
  trap - EXIT
  for cgroup in "$group"/*/; do
    while read -r process; do
      kill -KILL "$process" 2> /dev/null
    done < "$cgroup/cgroup.procs"
  done
  wait
  ip link del fslab-host 2> /dev/null
  for network in client server agent; do
    umount "$run/$network" 2> /dev/null
  done
  rm -rf "$run"
  for cgroup in "$group"/*/ "$group"; do
    left=50
    until rmdir "$cgroup" 2> /dev/null || [ "$left" = 0 ]; do
      left=$((left - 1))
      sleep 0.1
    done
  done
}

make_network() {
  : > "$run/$1"
  unshare --net="$run/$1" true
  nsenter --net="$run/$1" ip link set lo up
}

# Serves in both pods' networks.
start_servers() {
  within servers client "$TRAFFIC" serve --signals "$signals" > "$result/client.log" 2>&1 &
  client=$!
  within servers server "$TRAFFIC" serve --signals "$signals" > "$result/server.log" 2>&1 &
  await "$result/client.log" serving $client 600 && await "$result/server.log" serving $! 600
}

# Links the server's network to that of a process: NAME-THERE PROCESS. Of busybox, a link's other end is always `veth0`, and
# networks are known by their processes.
add_link() {
  nsenter --net="$run/server" ip link add name "to-$1" type veth
  nsenter --net="$run/server" ip link set veth0 name "$1"
  nsenter --net="$run/server" ip link set "$1" netns "$2"
}

# Gives an end of a link its addresses: DEVICE IPV4 IPV6 PREFIX…
configure() {
  device=$1 ipv4=$2 ipv6=$3
  shift 3
  # Addresses are used at once, without asking whether somebody else has them.
  "$@" sh -c "echo 0 > /proc/sys/net/ipv6/conf/$device/accept_dad"
  "$@" ip addr add "$ipv4/24" dev "$device"
  "$@" ip addr add "$ipv6/64" dev "$device"
  "$@" ip link set "$device" up
}

# Two pods' networks with a link between them, and one from the machine's network to the server's.
make_networks() {
  make_network client && make_network server && make_network agent && start_servers || return
  add_link fslab-client "$client" && add_link fslab-host $$ || return
  configure to-fslab-client 198.18.77.2 fd00:77::2 nsenter --net="$run/server"
  configure fslab-client 198.18.77.1 fd00:77::1 nsenter --net="$run/client"
  configure to-fslab-host 198.18.78.2 fd00:78::2 nsenter --net="$run/server"
  configure fslab-host 198.18.78.1 fd00:78::1
}

# Makes a connection before the agent starts: PORT ADDRESS
hold() {
  within older client "$TRAFFIC" hold "$1" "$2" --signals "$signals" > "$result/$1.log" 2>&1 &
}

# Makes the older connections, of which the last is not answered before the agent runs.
start_older() {
  hold 7010 198.18.77.2
  closed=$!
  hold 7011 fd00:77::2
  kept=$!
  await "$result/7010.log" open "$closed" 600 && await "$result/7011.log" open "$kept" 600 || return
  hold 7012 198.18.77.2
  late=$!
  sleep 1
}

# Asks the agent what can be recorded: NAME PREFIX…
examine() {
  name=$1
  shift
  "$@" "$AGENT" doctor > "$result/$name/doctor.txt" 2>&1
  note "$name" doctor $?
  "$@" "$AGENT" doctor --format json > "$result/$name/doctor.json" 2> "$result/$name/doctor.err"
  note "$name" doctor-json $?
}

# Starts the agent, and waits until it records: NAME PREFIX… PROGRAM ARGUMENT…
start_agent() {
  name=$1
  shift
  set -- "$@" --output "$result/$name/capture" --window 5s
  within agent - "$@" > "$result/$name/agent.out" 2> "$result/$name/agent.err" &
  agent=$!
  if ! await "$result/$name/agent.err" 'recording, stop with' "$agent" 3000; then
    kill -TERM "$agent" 2> /dev/null
    wait "$agent"
    note "$name" agent $?
    return 1
  fi
}

stop_agent() {
  kill -TERM "$agent"
  wait "$agent"
  note "$1" agent $?
}

# Plays a plan to addresses: NAME NETWORK PLAN IPV4 IPV6 ARGUMENT…
play() {
  name=$1 network=$2 plan=$3 ipv4=$4 ipv6=$5
  shift 5
  (within clients "$network" "$TRAFFIC" play "$plan" --ipv4 "$ipv4" --ipv6 "$ipv6" --window 5 "$@") \
    > "$result/$name/$plan.log" 2>&1
  note "$name" "$plan" $?
}

first() {
  start_older || { note first older 1; return; }
  start_agent first "$AGENT" --node node-a || return
  touch "$signals/late" "$signals/again"
  play first client pods 198.18.77.2 fd00:77::2 --short "$SHORT" --nobody 198.18.77.99
  play first client loopback 127.0.0.1 ::1
  await "$result/7012.log" exchanged "$late" 1200
  note first late $?
  touch "$signals/end"
  wait "$closed"
  note first older $?
  wait "$late"
  sleep 1 # the last acknowledgements
  stop_agent first
  kill "$kept"
}

write_inventory() {
  cat << END
nodes:
  - { name: node-a, addresses: [198.18.78.1, "fd00:78::1"], podCIDRs: [198.18.77.0/24, "fd00:77::/64"] }
pods:
  - { namespace: demo, name: client-0, labels: { app: client }, podIPs: [198.18.77.1, "fd00:77::1"], node: node-a, netns: $run/client }
  - { namespace: demo, name: server-0, labels: { app: server }, podIPs: [198.18.78.2, "fd00:78::2"], node: node-a, netns: $run/server }
END
}

second() {
  write_inventory > "$run/inventory.yaml"
  start_agent second "$@" "$AGENT" --node node-a --inventory "$run/inventory.yaml" --loopback || return
  play second - node 198.18.78.2 fd00:78::2
  play second client loopback 127.0.0.1 ::1
  sleep 1
  stop_agent second
}

mkdir -p "$result/first" "$result/second" "$signals"
uname -r > "$result/kernel"
echo "$SHORT" > "$result/short"
trap clean EXIT
trap 'exit 130' INT TERM HUP
mkdir "$group" "$group/servers" "$group/older" "$group/agent" "$group/clients"
[ -z "${BOUNDED:-}" ] || export FLOWSCRIBE_CGROUP="$group"
if ! make_networks; then
  say 'the networks cannot be made'
  exit 1
fi
as_in_its_pod="nsenter --net=$run/agent $TRAFFIC limit --keep BPF,NET_ADMIN,PERFMON --"
examine first
first
# shellcheck disable=SC2086 # words
examine second $as_in_its_pod
# shellcheck disable=SC2086
second $as_in_its_pod
clean
say 'the scene has ended'
