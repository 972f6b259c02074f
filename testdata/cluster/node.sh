#!/usr/bin/env bash
# The first process of a node, in namespaces of its own: mounts, then a container runtime, kubelet and kube-proxy, and on n1
# the control plane: node.sh NODE
#
# Its root is this machine's, with layers over what is written to. Its control groups are a cgroup2 hierarchy without
# controllers, as this machine's may be taken by cgroup v1: containers have no limits.
set -euo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
node=$1
own=$state/$node
keys=$state/keys

mount_all() {
  local name setting
  mount --make-rprivate /
  umount --recursive --lazy /sys
  umount --recursive --lazy /proc
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mount -t bpf bpf /sys/fs/bpf
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock /run/netns
  for name in etc var opt; do
    mkdir -p "$own/$name.over" "$own/$name.work"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$own/$name.over,workdir=$own/$name.work" "/$name"
  done
  # What can't be on a layer: layers itself, or is watched for changes.
  for name in lib/containerd lib/kubelet log; do
    mkdir -p "$own/var/$name" "/var/$name"
    mount --bind "$own/var/$name" "/var/$name"
  done
  mkdir -p /etc/cni/net.d /etc/kubernetes/manifests /var/lib/flowscribe-volume
  # Settings of the whole machine: kubelet finds them as it wants them.
  mkdir "$own/sysctl"
  for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    name=$own/sysctl/$(basename "${setting%=*}")
    echo "${setting#*=}" > "$name"
    mount --bind "$name" "/proc/sys/${setting%=*}"
  done
  mount --make-rshared /
}

# Starts a program in the background: PROGRAM ARGUMENT…
start() { "$@" > "$own/log/$(basename "$1")" 2>&1 & }

start_control_plane() {
  local etcd=http://127.0.0.1:2379
  start etcd --data-dir="$own/etcd" --log-level=error --unsafe-no-fsync \
    --listen-client-urls=$etcd --advertise-client-urls=$etcd \
    --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
    --initial-cluster=default=http://127.0.0.1:2380
  start "$programs/kube-apiserver" --etcd-servers=$etcd --advertise-address="$(address n1)" --secure-port=6443 \
    --service-cluster-ip-range="$services" --authorization-mode=Node,RBAC --allow-privileged=true \
    --enable-admission-plugins=NodeRestriction --kubelet-preferred-address-types=InternalIP \
    --tls-cert-file="$keys/apiserver.crt" --tls-private-key-file="$keys/apiserver.key" \
    --client-ca-file="$keys/ca.crt" \
    --kubelet-client-certificate="$keys/kubelet-client.crt" --kubelet-client-key="$keys/kubelet-client.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$keys/service-accounts.pub" \
    --service-account-signing-key-file="$keys/service-accounts.key"
  start "$programs/kube-controller-manager" --kubeconfig="$keys/kube-controller-manager.kubeconfig" \
    --service-account-private-key-file="$keys/service-accounts.key" --root-ca-file="$keys/ca.crt" \
    --cluster-signing-cert-file="$keys/ca.crt" --cluster-signing-key-file="$keys/ca.key" \
    --use-service-account-credentials --leader-elect=false \
    --allocate-node-cidrs --cluster-cidr="$pods" --service-cluster-ip-range="$services"
  start "$programs/kube-scheduler" --kubeconfig="$keys/kube-scheduler.kubeconfig" --leader-elect=false
}

start_containerd() {
  local socket=/run/containerd/containerd.sock image
  cat > /etc/containerd-node.toml << END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "$socket"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Where there is no CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "$cluster/runc-without-limits"
END
  start containerd --config /etc/containerd-node.toml
  for _ in $(seq 600); do
    ! ctr --address $socket version > /dev/null 2>&1 || break
    sleep 0.1
  done
  for image in "$images"/*.tar; do
    ctr --address $socket --namespace k8s.io images import --all-platforms "$image" >> "$own/log/images" 2>&1
  done
}

start_kubelet() {
  cat > /etc/kubernetes/kubelet.yaml << END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: { enabled: false }
  webhook: { enabled: true }
  x509: { clientCAFile: $keys/ca.crt }
authorization: { mode: Webhook }
cgroupDriver: cgroupfs
clusterDNS: [$dns]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
staticPodPath: /etc/kubernetes/manifests
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
imageGCHighThresholdPercent: 100
evictionHard: { memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%" }
END
  start "$programs/kubelet" --config=/etc/kubernetes/kubelet.yaml --kubeconfig="$keys/$node.kubeconfig" \
    --node-ip="$(address "$node")" --hostname-override="$node"
  cat > /etc/kubernetes/proxy.yaml << END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
oomScoreAdj: 0
clusterCIDR: $pods
clientConnection: { kubeconfig: $keys/kube-proxy.kubeconfig }
conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }
END
  start "$programs/kube-proxy" --config=/etc/kubernetes/proxy.yaml --hostname-override="$node"
}

mkdir -p "$own/log"
mount_all
hostname "$node"
printf '127.0.0.1 localhost\n%s %s\n' "$(address "$node")" "$node" > /etc/hosts
# It may be a link to what this node does not have.
rm -f /etc/resolv.conf
echo "nameserver $lan.1" > /etc/resolv.conf
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0
[ "$node" != n1 ] || start_control_plane
start_containerd
start_kubelet
# Whoever has lost their parent is this one's child.
while :; do
  wait -n || sleep 1
done
