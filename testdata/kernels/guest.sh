#!/bin/busybox sh
# shellcheck shell=dash
# The first process of a guest of .ci/kernels: mounts what a system has, plays the scene, and writes the results as a tar
# archive to the first disk, since stock kernels for clouds have neither 9p nor virtiofs.
#
# From the kernel's command line: `now`, the time in seconds, and `short`, how many short connections the scene makes.
export PATH=/tools:/sbin:/bin HOME=/
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
while read -r module; do
  insmod "$module" || echo "module $module cannot be loaded"
done < /modules.order
mount -t ext4 -o ro /dev/vdb /tools || echo 'no disk of tools'
ip link set lo up

setting() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

date -s "@$(setting now)" > /dev/null
mkdir /tmp/result
AGENT=/tools/flowscribe-exporter TRAFFIC=/tools/traffic CGROUP=/sys/fs/cgroup SHORT=$(setting short) \
  /tools/scene.sh /tmp/result 2>&1 | tee /tmp/result/scene.log
dmesg > /tmp/result/dmesg
tar -cf /dev/vda -C /tmp/result . && sync || echo 'the results cannot be written'
poweroff -f
