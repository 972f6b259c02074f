#!/usr/bin/env bash
# Makes the images that the nodes of a cluster take when they start, as archives, and puts on the path what a person uses:
#   images.sh BINARIES RELEASE BEFORE
#
# BINARIES is a directory with static flowscribe, flowscribe-exporter and traffic, and BEFORE one with the first two as they
# were in a release. There is nothing in an image but its program.
set -euo pipefail
# shellcheck source=env
. "$(dirname "$0")/env"
binaries=$1 release=$2 before=$3
export STORAGE_DRIVER=vfs
container=
trap '[ -z "$container" ] || buildah rm "$container" > /dev/null' EXIT

# Makes an image whose entry point is the first of its programs: IMAGE USER ARGUMENTS PROGRAM…
image() {
  local name=$1 user=$2 arguments=$3 archive
  shift 3
  archive=$images/$(basename "${name/:/-}").tar
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "$@" / > /dev/null
  buildah config --user "$user" --entrypoint "[\"/$(basename "$1")\"$arguments]" "$container"
  rm -f "$archive"
  buildah commit --quiet --rm "$container" "docker-archive:$archive:$name" > /dev/null
  container=
}

rm -rf "$images" "$tools"
mkdir -p "$images" "$tools"
install "$binaries/flowscribe" "$binaries/traffic" "$tools"
ln -s flowscribe "$tools/kubectl-flowscribe"
# It stays, as the first program of a pod has to, and does nothing.
image localhost/pause:1 65532 ', "service"' "$binaries/traffic"
image localhost/app:1 65532 '' "$binaries/traffic"
image localhost/coredns:1 0 '' "$programs/coredns"
image localhost/otelcol:1 0 '' "$programs/otelcol"
image localhost/versitygw:1 0 '' "$programs/versitygw"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$cluster/../../Cargo.toml")
image "localhost/flowscribe:$version" 65532 '' "$binaries/flowscribe" "$binaries/flowscribe-exporter"
image "localhost/flowscribe:$release" 65532 '' "$before/flowscribe" "$before/flowscribe-exporter"
