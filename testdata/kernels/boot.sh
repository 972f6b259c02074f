#!/usr/bin/env bash
# Boots a kernel in qemu, without KVM or network, and keeps its console and its results:
#   boot.sh ARCHITECTURE KERNEL INITRAMFS TOOLS-IMAGE RESULT-DIR SETTING…
# SETTINGs go to the kernel's command line, where guest.sh reads them. A guest that takes more than LIMIT seconds is ended.
set -euo pipefail
architecture=$1 kernel=$2 initramfs=$3 tools=$4 result=$5
shift 5
case $architecture in
  amd64) machine=(qemu-system-x86_64 -machine q35 -cpu max) console=ttyS0 ;;
  # Without pauth-impdef, emulated pointer authentication takes most of the time.
  arm64) machine=(qemu-system-aarch64 -machine virt -cpu 'max,pauth-impdef=on') console=ttyAMA0 ;;
  *) echo "no machine of architecture $architecture" >&2; exit 2 ;;
esac
rm -rf "$result"
mkdir -p "$result"
truncate --size 64M "$result/disk"
status=0
setpriv --pdeathsig TERM timeout "${LIMIT:-900}" nice -n 10 "${machine[@]}" -accel tcg,tb-size=256 -m 1024 -nodefaults -no-user-config -no-reboot \
  -display none -serial stdio -nic none -kernel "$kernel" -initrd "$initramfs" \
  -drive "file=$result/disk,format=raw,if=none,id=results" -device virtio-blk-pci,drive=results \
  -drive "file=$tools,format=raw,if=none,id=tools,readonly=on" -device virtio-blk-pci,drive=tools \
  -append "console=$console panic=-1 quiet loglevel=4 now=$(date +%s) $*" \
  < /dev/null > "$result/console" 2>&1 || status=$?
echo "$SECONDS" > "$result/seconds"
[ "$status" = 0 ] || echo "qemu ended with $status after $SECONDS s" >> "$result/console"
tar -xf "$result/disk" -C "$result" 2> /dev/null || echo 'the guest wrote no results' >> "$result/console"
rm "$result/disk"
