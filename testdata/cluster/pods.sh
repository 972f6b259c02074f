#!/usr/bin/env bash
# On a node: networks for its pods, once it has a range of addresses for them: pods.sh NODE RANGE
set -euo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
# containerd sees that a file is written there, and not that it is renamed.
cat > /etc/cni/net.d/10-pods.conflist << END
{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "mtu": 1500,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": [[{ "subnet": "$2" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }
  ]
}
END
# What leaves the cluster has the node's address, as clouds have it.
nft -f - << END
table ip leaving {
  chain leave {
    type nat hook postrouting priority 101;
    ip saddr $pods ip daddr != { $pods, $lan.0/24 } masquerade
  }
}
END
# What enforces policies.
exec 3>> "$state/$1/log/kube-router"
setsid "$programs/kube-router" --kubeconfig="$state/keys/admin.kubeconfig" --hostname-override="$1" \
  --service-cluster-ip-range="$services" --run-firewall=true --v=1 < /dev/null >&3 2>&1 &
