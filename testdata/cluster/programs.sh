#!/usr/bin/env bash
# Builds programs of a cluster from their Go modules, keeps them outside of the tree, and prints the directory that has them:
#   programs.sh PROGRAM…
#
# There are kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet and kubectl of Kubernetes, coredns,
# helm, kube-router: its NetworkPolicy controller alone, otelcol: an OpenTelemetry collector that writes files, and
# versitygw: a server of S3's protocol. Needs Go. All of them take three quarters of an hour on two processors; what is
# there is not built again.
set -euo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
libraries=v0.${kubernetes#1.}
declare -A versions=([coredns]=1.12.4 [helm]=3.19.2 [kube-router]=2.1.0 [otelcol]=0.165.0 [versitygw]=1.8.0)
# Not every module mirror has a checksum database.
export GONOSUMDB='*' GOFLAGS=-mod=mod CGO_ENABLED=0

# Prints a field of what the go command says of a module: MODULE FIELD
module() { go mod download -json "$1" | sed -n "s/^\t\"$2\": \"\(.*\)\",\?\$/\1/p"; }

# Makes this directory the module that Kubernetes is built in.
begin_kubernetes() {
  local cgroups
  [ ! -f ready ] || return 0
  rm -rf cgroups go.mod go.sum
  cgroups=$(mktemp -d)
  (cd "$cgroups" && go mod init cgroups 2> /dev/null && cp -r "$(module github.com/opencontainers/cgroups@v0.0.3 Dir)/." .)
  chmod -R u+w "$cgroups"
  "$cluster/without-controllers.sh" "$cgroups/fs2/fs2.go"
  mv "$cgroups" cgroups
  go mod init wrapper 2> /dev/null
  # Within Kubernetes' own tree these are directories; outside they are modules of the same release.
  sed -nE "s|^[[:space:]]*(k8s.io/[a-z-]+) => ./staging.*|\1=\1@$libraries|p" \
    "$(module "k8s.io/kubernetes@v$kubernetes" GoMod)" |
    while read -r replace; do go mod edit -replace "$replace"; done
  go mod edit -require "k8s.io/kubernetes@v$kubernetes" -replace "github.com/opencontainers/cgroups=./cgroups"
  touch ready
}

# Makes this directory a module with the libraries of Kubernetes that the rest is built with, for whose sake its build is
# quick: SOURCE MODULE…
begin() {
  local source=$1 library
  shift
  cp "$cluster/$source" main.go
  [ -f go.mod ] || go mod init wrapper 2> /dev/null
  for library in api apimachinery client-go; do
    go mod edit -replace "k8s.io/$library=k8s.io/$library@$libraries"
  done
  for module in "$@"; do
    go mod edit -require "$module"
  done
}

# Builds a collector of these components by its own builder.
build_collector() {
  local version=v${versions[otelcol]}
  cat > builder.yaml << END
dist: { name: otelcol, output_path: source }
receivers: [{ gomod: go.opentelemetry.io/collector/receiver/otlpreceiver $version }]
processors: [{ gomod: go.opentelemetry.io/collector/processor/batchprocessor $version }]
exporters:
  - gomod: go.opentelemetry.io/collector/exporter/debugexporter $version
  - gomod: go.opentelemetry.io/collector/exporter/otlpexporter $version
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/exporter/fileexporter $version
END
  GOBIN=$PWD go install "go.opentelemetry.io/collector/cmd/builder@$version"
  # It tidies up in the end, for which it wants the modules of the exporters' own tests; not every mirror has them.
  ./builder --config builder.yaml --skip-compilation > log 2>&1 || [ -f source/go.mod ] || cat log >&2
  (cd source && go build -trimpath -ldflags '-s -w' -o "$programs/otelcol.part" .)
}

build() {
  local version=k8s.io/component-base/version directory
  case $1 in
    coredns | helm | kube-router | otelcol | versitygw) directory=$programs/build/$1 ;;
    *) directory=$programs/build/kubernetes ;;
  esac
  mkdir -p "$directory"
  cd "$directory"
  case $1 in
    coredns)
      begin coredns.go "github.com/coredns/coredns@v${versions[coredns]}"
      # Those of newer releases are not of one kind with the libraries.
      go mod edit -replace k8s.io/kube-openapi=k8s.io/kube-openapi@v0.0.0-20250318190949-c8a335a9a2ff \
        -replace github.com/google/gnostic-models=github.com/google/gnostic-models@v0.6.9
      go build -trimpath -ldflags '-s -w' -o "$programs/coredns.part" .
      ;;
    helm)
      GOBIN=$PWD go install "helm.sh/helm/v3/cmd/helm@v${versions[helm]}"
      mv helm "$programs/helm.part"
      ;;
    kube-router)
      begin kube-router.go "github.com/cloudnativelabs/kube-router/v2@v${versions[kube-router]}"
      go build -trimpath -ldflags '-s -w' -o "$programs/kube-router.part" .
      ;;
    otelcol) build_collector ;;
    versitygw)
      GOBIN=$PWD go install "github.com/versity/versitygw/cmd/versitygw@v${versions[versitygw]}"
      mv versitygw "$programs/versitygw.part"
      ;;
    *)
      begin_kubernetes
      go build -trimpath -o "$programs/$1.part" -ldflags \
        "-s -w -X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d . -f 2 <<< $kubernetes)" \
        "k8s.io/kubernetes/cmd/$1"
      ;;
  esac
  mv "$programs/$1.part" "$2"
}

mkdir -p "$programs"
for program in "$@"; do
  # Those of Kubernetes are in a directory of its version.
  built=$programs/$program
  if [ -n "${versions[$program]:-}" ]; then
    built=$programs/$program-${versions[$program]}
    ln -sfn "$(basename "$built")" "$programs/$program"
  fi
  [ -x "$built" ] && continue
  begun=$SECONDS
  (build "$program" "$built")
  echo "built $program in $((SECONDS - begun)) s" >&2
done
echo "$programs"
