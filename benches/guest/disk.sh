# Runs fio's jobs on every target. The words bench.seconds=N and bench.target=NAME=DEVICE come from
# the kernel's command line, or from BENCH_WORDS where this runs on the host itself.
seconds=4
targets=
for word in ${BENCH_WORDS:-$(cat /proc/cmdline)}; do
    case $word in
        bench.seconds=*) seconds=${word#*=} ;;
        bench.target=*) targets="$targets ${word#*=}" ;;
    esac
done

# job NAME FIO-OPTIONS...: of fio's terse output, version 3, the fields for reads and writes:
# bandwidth in KiB/s (7, 48) and requests per second (8, 49).
job() {
    name=$1
    shift
    echo "@begin $name"
    line=$(fio --name=job --filename="$device" --size=256M --ioengine=libaio --direct=1 --thread \
        --time_based --runtime="$seconds" --ramp_time=1 --randrepeat=0 --norandommap --minimal \
        --terse-version=3 "$@" 2>&1)
    echo "@end $(echo "$line" | cut -d';' -f5,7,8,48,49)"
}

for target in $targets; do
    device=${target#*=}
    target=${target%%=*}
    job "$target/randread 4k depth 1" --rw=randread --bs=4k --iodepth=1
    job "$target/randread 4k depth 32" --rw=randread --bs=4k --iodepth=32
    job "$target/randwrite 4k depth 1" --rw=randwrite --bs=4k --iodepth=1
    job "$target/randwrite 4k depth 32" --rw=randwrite --bs=4k --iodepth=32
    job "$target/read 128k depth 4" --rw=read --bs=128k --iodepth=4
done
echo "@done"
[ -n "$BENCH_WORDS" ] || read -r _
