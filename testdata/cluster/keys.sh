#!/usr/bin/env bash
# Makes the keys, certificates and kubeconfigs of a cluster.
set -euo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
mkdir -p "$state/keys"
cd "$state/keys"
server=$(address n1)

# Makes a key, and a certificate of the cluster's authority: NAME SUBJECT USAGE [NAMES]
certify() {
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -subj "$2" 2> /dev/null |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" 2> /dev/null \
      -extfile <(printf 'extendedKeyUsage=%s\n%s\n' "$3" "${4:+subjectAltName=$4}")
}

# Makes a user: NAME SUBJECT
user() {
  certify "$1" "$2" clientAuth
  cat > "$1.kubeconfig" << END
apiVersion: v1
kind: Config
clusters:
  - name: lab
    cluster: { server: "https://$server:6443", certificate-authority-data: $(base64 -w0 ca.crt) }
users:
  - name: $1
    user: { client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key") }
contexts:
  - name: lab
    context: { cluster: lab, user: $1 }
current-context: lab
END
}

openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=lab -days 30 2> /dev/null
openssl genrsa -out service-accounts.key 2048 2> /dev/null
openssl rsa -in service-accounts.key -pubout -out service-accounts.pub 2> /dev/null
of=kubernetes.default
certify apiserver /CN=kube-apiserver serverAuth \
  "DNS:kubernetes,DNS:$of,DNS:$of.svc,DNS:$of.svc.cluster.local,DNS:localhost,IP:${services%.*}.1,IP:$server,IP:127.0.0.1"
certify kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
user admin /O=system:masters/CN=admin
for component in kube-controller-manager kube-scheduler kube-proxy; do
  user "$component" "/CN=system:$component"
done
for node in "${nodes[@]}"; do
  user "$node" "/O=system:nodes/CN=system:node:$node"
done
