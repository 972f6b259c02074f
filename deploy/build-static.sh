#!/usr/bin/env bash
# Builds flowscribe and flowscribe-exporter as static binaries into a directory, for an image that has nothing else, and
# checks that they are: build-static.sh DIR [TARGET]
#
# Needs Rust and a C compiler with a static C library (Debian: libc6-dev). TARGET is this machine's own by default. On
# amd64, aarch64-unknown-linux-gnu can be built too: with Rust's standard library as rustup has it, or else as Debian has
# it. PROGRAMS are the programs to build, `flowscribe flowscribe-exporter` by default; there is also `traffic`.
#
# The C library is glibc, which since 2.34 resolves names by /etc/hosts and DNS without libraries of its own.
set -euo pipefail
mkdir -p "${1:?build-static.sh DIR [TARGET]}"
output=$(realpath "$1")
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
target=${2:-$host}
read -ra programs <<< "${PROGRAMS:-flowscribe flowscribe-exporter}"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/flowscribe

# Makes a directory that holds Debian's standard libraries of Rust for this machine and for arm64.
make_sysroot() {
  local version=$1 sysroot=$2 suite apt
  # shellcheck source=/dev/null
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  apt=("$PWD/deploy/apt-apart.sh" arm64 "$suite $suite-security")
  rm -rf "$sysroot.part"
  mkdir -p "$sysroot.part/lib/rustlib"
  "${apt[@]}" apt-get update -qq
  (cd "$sysroot.part" && "${apt[@]}" apt-get download -qq "libstd-rust-web-dev=$version" && dpkg -x ./*.deb .)
  ln -s "/usr/lib/rustlib/$host" "$sysroot.part/lib/rustlib/$host"
  ln -s "../../usr/lib/rustlib/$target" "$sysroot.part/lib/rustlib/$target"
  rm "$sysroot.part"/*.deb
  mv "$sysroot.part" "$sysroot"
}

# Has cargo use Debian's compiler instead of rustup's, which has no standard library for arm64 here.
use_debian_rust() {
  local version sysroot
  deploy/install-missing.sh rustc-web libstd-rust-web-dev
  version=$(dpkg-query --show --showformat '${Version}' libstd-rust-web-dev)
  sysroot=$cache/rust-arm64-$version
  [ -d "$sysroot" ] || make_sysroot "$version" "$sysroot"
  printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot "%s" "$@"\n' "$sysroot" > "$cache/rustc-arm64"
  chmod +x "$cache/rustc-arm64"
  export RUSTC=$cache/rustc-arm64
}

use_cross_compilers() {
  if [ "$host:$target" != x86_64-unknown-linux-gnu:aarch64-unknown-linux-gnu ]; then
    echo "$target cannot be built on $host" >&2
    return 1
  fi
  deploy/install-missing.sh gcc-aarch64-linux-gnu libc6-dev-arm64-cross
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
  strip=aarch64-linux-gnu-strip
  if ! { command -v rustup > /dev/null && rustup target list --installed | grep -Fqx "$target"; }; then
    use_debian_rust
  fi
}

strip="strip"
[ "$target" = "$host" ] || use_cross_compilers
bins=()
for program in "${programs[@]}"; do
  bins+=(--bin "$program")
done
# With a target, the flags are for the programs and not for what runs while they are built. All packages are named whatever
# is built of them, since libraries are built with the features that these want together, and would be built again.
RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$target" \
  --package exporter --package analyzer --package traffic "${bins[@]}"
for program in "${programs[@]}"; do
  built=${CARGO_TARGET_DIR:-target}/$target/release/$program
  if readelf --program-headers --dynamic "$built" | grep -E 'INTERP|NEEDED'; then
    echo "$program is not static"
    exit 1
  fi
  install -m 0755 "$built" "$output/$program"
  "$strip" "$output/$program"
  ls -l "$output/$program"
done
