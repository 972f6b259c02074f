#!/usr/bin/env bash
# Renders the plain manifests from the chart, one file per documented setup; --check compares them with what is committed.
# Needs helm, in $HELM or on the path.
set -euo pipefail
cd "$(dirname "$0")"
helm=${HELM:-helm}
rendered=manifests
[ "${1:-}" != --check ] || rendered=$(mktemp -d)
mkdir -p "$rendered"
for setup in chart/examples/*.yaml; do
  {
    cat << EOF
# Rendered from the chart with $setup by render.sh; change those.
apiVersion: v1
kind: Namespace
metadata:
  name: flowscribe
  labels:
    # Of the agent: hostPID, the node's cgroups and spool, and three capabilities.
    pod-security.kubernetes.io/enforce: privileged
EOF
    # A token that is committed is none.
    "$helm" template flowscribe chart --namespace flowscribe --kube-version 1.33.0 --values "$setup" \
      --set receive.tokenSecret=flowscribe-receive-token |
      grep -v '^# Source: '
  } > "$rendered/$(basename "$setup")"
done
[ "$rendered" = manifests ] || diff -r manifests "$rendered"
