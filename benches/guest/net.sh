# Sends and receives through the network card. From the kernel's command line: bench.seconds=N,
# bench.address=ADDRESS/PREFIX of the guest, bench.host=ADDRESS where iperf3 and the echo server are.
for word in $(cat /proc/cmdline); do
    case $word in
        bench.seconds=*) seconds=${word#*=} ;;
        bench.address=*) address=${word#*=} ;;
        bench.host=*) host=${word#*=} ;;
    esac
done
# iperf3 keeps what it sends in a file.
mount -t tmpfs tmp /tmp
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up
# A bridge or tap may need a moment until it forwards.
tries=0
until /run/init echo "$host:5202" 0.01 > /run/first 2>&1; do
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then
        echo "@failed no connection to $host: $(cat /run/first)"
        break
    fi
    sleep 0.1
done

stream() {
    name=$1
    shift
    echo "@begin $name"
    echo "@end $(iperf3 --client "$host" --time "$seconds" --format k "$@" 2>&1 | grep -E 'receiver|error')"
}

stream "guest to host"
stream "host to guest" --reverse
echo "@begin requests"
echo "@end $(/run/init echo "$host:5202" "$seconds")"
echo "@done"
read -r _
