#!/bin/busybox sh
# First process of the box in its root file system: makes a host, runs the command, reports.
# Under emulation a process costs tens of milliseconds, one of a static program half of that: so
# busybox, and few of them.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
box=/run/box

/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs -o mode=1777 tmp /tmp
/bin/busybox mkdir -p /dev/pts /dev/shm /dev/net /dev/disk/by-id /dev/virtio-ports /scratch
/bin/busybox mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
/bin/busybox mount -t tmpfs -o mode=1777 shm /dev/shm
/bin/busybox mount -t cgroup2 cgroup /sys/fs/cgroup
/bin/busybox ln -s /proc/self/fd /dev/fd
/bin/busybox ln -s /proc/self/fd/0 /dev/stdin
/bin/busybox ln -s /proc/self/fd/1 /dev/stdout
/bin/busybox ln -s /proc/self/fd/2 /dev/stderr

# There is no udev: the host's devices, and the disks and ports by their names.
/bin/busybox modprobe -a -q kvm-amd tun vhost_net 9p 9pnet_virtio
[ -e /dev/net/tun ] || /bin/busybox mknod /dev/net/tun c 10 200
/bin/busybox chmod 666 /dev/kvm /dev/net/tun /dev/vhost-net
for disk in /sys/block/vd*; do
    # The serial has no end of line, so read itself says no.
    serial=
    read -r serial < "$disk/serial"
    /bin/busybox ln -s "/dev/${disk##*/}" "/dev/disk/by-id/virtio-$serial"
done
for port in /sys/class/virtio-ports/*; do
    read -r name < "$port/name" && /bin/busybox ln -s "/dev/${port##*/}" "/dev/virtio-ports/$name"
done

/bin/busybox hostname kvm-host
/bin/busybox ip link set lo up
/bin/busybox mount -t ext4 -o noatime,nobarrier /dev/disk/by-id/virtio-scratch /scratch
/bin/busybox chmod 1777 /scratch
while read -r tag path; do
    /bin/busybox mkdir -p "$path"
    /bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=mmap,access=any "$tag" "$path" ||
        echo "box: cannot share $path" > /dev/console
done < $box/shares

exec 3> /dev/virtio-ports/status
# A box that says nothing any more has died: see SILENCE in qemu.rs.
while /bin/busybox sleep 5; do echo alive >&3; done < /dev/null > /dev/null 2>&1 &
if [ -e $box/interactive ]; then
    echo start >&3
    /usr/bin/setsid -c -w /bin/sh $box/run.sh < /dev/hvc0 > /dev/hvc0 2>&1 3>&-
    status=$?
else
    # A port can be open once only; through pipes the command may open /dev/stdout as it likes.
    /bin/busybox mkfifo $box/stdout $box/stderr
    /bin/busybox cat < $box/stdout > /dev/virtio-ports/stdout 3>&- & out=$!
    /bin/busybox cat < $box/stderr > /dev/virtio-ports/stderr 3>&- & err=$!
    echo start >&3
    /usr/bin/setsid -w /bin/sh $box/run.sh < /dev/null > $box/stdout 2> $box/stderr 3>&-
    status=$?
    # Processes left behind may hold the pipes; what they print does not matter any more.
    tries=0
    while kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -gt 20 ] && break
        /bin/busybox sleep 0.05
    done
fi
while read -r tag path; do
    /bin/busybox umount "$path" 2>/dev/null || /bin/sync -f "$path"
done < $box/shares
echo "exit $status" >&3
# Whoever started the box ends it now.
/bin/busybox sleep 10
echo o > /proc/sysrq-trigger
/bin/busybox sleep 10
