#!/bin/busybox sh
# First process of the box: loads what the root file system needs, and goes there.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
while read -r module; do
    /bin/busybox insmod "/modules/$module" || echo "init: cannot load $module"
done < /modules/order
for name in /sys/block/vd*; do
    read -r serial < "$name/serial"
    [ "$serial" = root ] && root=/dev/${name##*/}
done
/bin/busybox mount -t ext4 -o noatime "$root" /root
/bin/busybox mount -t tmpfs -o mode=755 run /root/run
/bin/busybox cp -a /box /root/run/box
/bin/busybox umount /sys
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /run/box/box.sh
