#!/usr/bin/env bash
# Builds flowscribe and flowscribe-exporter as static binaries into a directory, for an image that has nothing else, and
# checks that they are: build-static.sh DIR. Needs Rust and a C compiler with a static C library (Debian: libc6-dev).
#
# The C library is glibc, which since 2.34 resolves names by /etc/hosts and DNS without libraries of its own.
set -euo pipefail
output=${1:?build-static.sh DIR}
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
# With a target, the flags are for the programs and not for what runs while they are built.
RUSTFLAGS='-C target-feature=+crt-static' \
  cargo build --release --locked --target "$target" --package exporter --package analyzer
mkdir -p "$output"
for program in flowscribe flowscribe-exporter; do
  built=${CARGO_TARGET_DIR:-target}/$target/release/$program
  if readelf --program-headers --dynamic "$built" | grep -E 'INTERP|NEEDED'; then
    echo "$program is not static"
    exit 1
  fi
  install -m 0755 "$built" "$output/$program"
  strip "$output/$program"
done
(cd "$output" && ls -l flowscribe flowscribe-exporter)
