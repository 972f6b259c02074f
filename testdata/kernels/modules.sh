#!/usr/bin/env bash
# Packs modules of an unpacked kernel package, with all that they need, into an initramfs: modules.sh TREE OUTPUT MODULE…
#
# /modules.order lists them so that each comes after those that it needs. What is built into the kernel is left out.
set -euo pipefail
tree=$1 output=$(realpath -m "$2")
shift 2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/modules"
: > "$root/modules.order"

# Prints the file of a module, whose name has underscores where the file's may have dashes.
find_module() {
  find "$tree" -path '*/modules/*' -name "${1//_/[-_]}.ko*" -print -quit
}

unpack() {
  case $1 in
    *.xz) xz -dc "$1" ;;
    *.zst) zstd -dcq "$1" ;;
    *.gz) gzip -dc "$1" ;;
    *) cat "$1" ;;
  esac
}

# The modules that a module says it needs, which stand in its section of information as depends=A,B.
needs() {
  tr '\0' '\n' < "$1" | sed -n 's/^depends=//p' | tr ',' ' '
}

add() {
  local name=${1//-/_} file module need
  module=$root/modules/$name.ko
  [ ! -e "$module" ] || return 0
  file=$(find_module "$name")
  [ -n "$file" ] || return 0
  unpack "$file" > "$module"
  for need in $(needs "$module"); do
    add "$need"
  done
  echo "/modules/$name.ko" >> "$root/modules.order"
}

for module in "$@"; do
  add "$module"
done
(cd "$root" && find . | cpio --quiet -o -H newc) > "$output"
