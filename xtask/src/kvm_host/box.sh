#!/bin/sh
# First process of the box in its root file system: makes a host, runs the command, reports.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
box=/run/box

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm /dev/disk/by-id /dev/virtio-ports /scratch
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr

# There is no udev: one kvm, tun and vhost-net, and the disks by their serials.
modprobe -a -q kvm-amd tun vhost_net 9p 9pnet_virtio
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
chmod 666 /dev/kvm /dev/net/tun /dev/vhost-net
for disk in /sys/block/vd*; do
    # The serial has no end of line, so read itself says no.
    serial=
    read -r serial < "$disk/serial"
    ln -s "/dev/${disk##*/}" "/dev/disk/by-id/virtio-$serial"
done
for port in /sys/class/virtio-ports/*; do
    read -r name < "$port/name" && ln -s "/dev/${port##*/}" "/dev/virtio-ports/$name"
done

hostname kvm-host
ip link set lo up
mount -t ext4 -o noatime,nobarrier /dev/disk/by-id/virtio-scratch /scratch
chmod 1777 /scratch
while read -r tag path; do
    mkdir -p "$path"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=mmap,access=any "$tag" "$path" ||
        echo "box: cannot share $path" > /dev/console
done < $box/shares

exec 3> /dev/virtio-ports/status
if [ -e $box/interactive ]; then
    echo start >&3
    setsid -c -w sh $box/run.sh < /dev/hvc0 > /dev/hvc0 2>&1 3>&-
    status=$?
else
    # A port can be open once only; through pipes the command may open /dev/stdout as it likes.
    mkfifo $box/stdout $box/stderr
    cat < $box/stdout > /dev/virtio-ports/stdout 3>&- & out=$!
    cat < $box/stderr > /dev/virtio-ports/stderr 3>&- & err=$!
    echo start >&3
    setsid -w sh $box/run.sh < /dev/null > $box/stdout 2> $box/stderr 3>&-
    status=$?
    # Processes left behind may hold the pipes; what they print does not matter any more.
    tries=0
    while kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -gt 20 ] && break
        sleep 0.05
    done
fi
while read -r tag path; do
    umount "$path" 2>/dev/null || sync -f "$path"
done < $box/shares
echo "exit $status" >&3
# Whoever started the box ends it now.
sleep 10
echo o > /proc/sysrq-trigger
sleep 10
