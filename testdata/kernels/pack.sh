#!/usr/bin/env bash
# Packs what a guest of .ci/kernels starts from:
#   pack.sh init OUTPUT BUSYBOX          an initramfs of busybox and guest.sh
#   pack.sh tools OUTPUT PROGRAM…        a disk of static programs and scene.sh, which takes no root to make
set -euo pipefail
here=$(realpath "$(dirname "$0")")
kind=$1 output=$(realpath -m "$2")
shift 2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
case $kind in
  init)
    mkdir "$root"/{bin,dev,proc,run,sys,tmp,tools}
    install -m 0755 "$1" "$root/bin/busybox"
    install -m 0755 "$here/guest.sh" "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc --owner 0:0) > "$output"
    ;;
  tools)
    install -m 0755 "$here/scene.sh" "$@" "$root"
    rm -f "$output"
    megabytes=$(du -sm "$root" | cut -f 1)
    truncate --size "$((megabytes * 11 / 10 + 8))M" "$output"
    mke2fs -q -t ext4 -O '^has_journal' -d "$root" "$output"
    ;;
esac
