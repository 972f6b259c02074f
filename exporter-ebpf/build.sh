#!/usr/bin/env bash
# Builds the eBPF programs: writes flowscribe.bpf.o beside this script, and toolchain.txt with what built it.
#
#   exporter-ebpf/build.sh            rebuild the committed object
#   exporter-ebpf/build.sh --check    rebuild elsewhere and compare: the same toolchain must give the same bytes
#                                     (exit 1); another one is reported, and its object left in target/ (exit 3)
#
# Needs bpf-linker, a rustc with the bpfel-unknown-none target, and llvm-objcopy. The defaults are Debian's packages
# rustc-web, libstd-rust-web-dev-bpf and llvm-22; BPF_RUSTC, LLVM_OBJCOPY and LLVM_NM name others.
set -euo pipefail
cd "$(dirname "$0")"

compiler=${BPF_RUSTC:-/usr/bin/rustc}
objcopy=${LLVM_OBJCOPY:-/usr/lib/llvm-22/bin/llvm-objcopy}
nm=${LLVM_NM:-/usr/lib/llvm-22/bin/llvm-nm}
toolchain="$("$compiler" --version --verbose)
$(bpf-linker --version)
$("$objcopy" --version)"

cargo fetch --locked # so that the folders of the registry are there to be remapped
# Remapped, so that the object does not depend on where it is built.
flags=(
  '--cfg=bpf_target_arch="x86_64"'
  -Cdebuginfo=2
  -Clink-arg=--btf
  "--remap-path-prefix=$(cd .. && pwd)=/flowscribe"
)
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
  flags+=("--remap-path-prefix=$sources=/registry")
done
export CARGO_ENCODED_RUSTFLAGS
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf '%s' "${flags[*]}")
RUSTC="$compiler" RUSTC_BOOTSTRAP=1 CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER=bpf-linker \
  cargo build --locked --release --target bpfel-unknown-none --target-dir target
built=target/flowscribe.bpf.o
# Type information for the kernel stays; what is for debuggers names things by where they were built.
# So does the hash of a crate in the names of functions that were not inlined.
linked=target/bpfel-unknown-none/release/flowscribe
"$nm" --format=just-symbols "$linked" | sed -n 'h; s/Cs[0-9A-Za-z]*_/C/g; x; G; s/\n/ /; /^\(.*\) \1$/!p' > target/renamed
"$objcopy" --strip-debug --redefine-syms=target/renamed "$linked" "$built"

if [ "${1:-}" != --check ]; then
  cp "$built" flowscribe.bpf.o
  printf '%s\n' "$toolchain" > toolchain.txt
  echo "wrote exporter-ebpf/flowscribe.bpf.o ($(stat -c %s flowscribe.bpf.o) bytes)"
elif [ "$toolchain" != "$(cat toolchain.txt)" ]; then
  echo "ANOTHER TOOLCHAIN than the committed object's: the bytes are not compared." >&2
  diff <(printf '%s\n' "$toolchain") toolchain.txt >&2 || true
  exit 3
elif cmp "$built" flowscribe.bpf.o; then
  echo "the committed object is what its source builds"
else
  echo "exporter-ebpf/flowscribe.bpf.o is stale: run exporter-ebpf/build.sh and commit it" >&2
  exit 1
fi
