# Runs rows of `cargo xtask bench cpu` one after the other, in a guest or on the host itself. From
# the kernel's command line, or from BENCH_WORDS on the host:
#   bench.rows=NAME,...  what to run      bench.seconds=N  how long each repeats
#   bench.tools=FOLDER   the program cpu and loop.py           bench.folder=FOLDER  to write to
#   bench.disk=FILE      what fio reads and writes
#   bench.net=ADDRESS/PREFIX,HOST        of the guest, and where iperf3 listens
# A row says "@begin NAME", then "@end NAME NUMBER SECONDS PIECES THINGS ALL" as cpu/main.rs has it
# (- where there is no number), "@end NAME skip WHY", or "@end NAME fail WHY".
tools=/run
folder=/run/work
disk=/dev/vdb
for word in ${BENCH_WORDS:-$(cat /proc/cmdline)}; do
    case $word in
        bench.rows=*) rows=${word#*=} ;;
        bench.seconds=*) seconds=${word#*=} ;;
        bench.tools=*) tools=${word#*=} ;;
        bench.folder=*) folder=${word#*=} ;;
        bench.disk=*) disk=${word#*=} ;;
        bench.net=*) net=${word#*=} ;;
    esac
done
cpu=$tools/cpu
mkdir -p "$folder"
cd "$folder" || exit 1
if [ -z "$BENCH_WORDS" ]; then
    mount -t tmpfs tmp /tmp
    mount -t sysfs sys /sys
    ip link set lo up
fi

# The last line that a command prints, which has to end well.
said() {
    "$@" > said 2> errors
    status=$?
    if [ $status -ne 0 ]; then
        echo "fail status $status: $(tail -n 1 said) $(tail -n 1 errors)"
        return 1
    fi
    tail -n 1 said
}

# The first 16 digits of the SHA-256 of what comes in.
digest() {
    sha256sum | cut -c1-16
}

needs() {
    command -v "$1" > /dev/null && return
    echo "skip $1 is not in the image"
    return 1
}

# openssl_speed NAME: bytes per second of blocks of 16 KiB, and the same data twice as the check.
openssl_speed() {
    needs openssl || return
    "$cpu" data 1000000 > data
    case $1 in
        sha256) number=$(openssl dgst -sha256 -binary data | digest) ;;
        # The command line has no GCM, but its counter mode.
        aes-128-gcm) number=$(openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff \
            -iv 000102030405060708090a0b0c0d0e0f -in data | digest) ;;
        *) number=$(openssl enc "-$1" -K 00112233445566778899aabbccddeeff0123456789abcdef0011223344556677 \
            -iv 000102030405060708090a0b0c0d0e0f -in data | digest) ;;
    esac
    said openssl speed -mr -seconds 1 -bytes 16384 -evp "$1" | awk -F: -v number="$number" '
        /^\+F:/ { printf "%s %.12f 1 1 0\n", number, 1 / $NF; next } { print }'
}

gcc_compile() {
    needs gcc || return
    "$cpu" source 1000 > source.c
    # The compiler's files come into the cache first.
    echo 'int main(void) { return 0; }' > small.c
    gcc -O2 -c small.c -o small.o || { echo "fail it does not compile"; return; }
    cat "$(gcc -print-prog-name=cc1)" > /dev/null
    line=$(said "$cpu" time "$seconds" gcc -O2 -c source.c -o source.o)
    # What the compiled program computes is the check.
    gcc -o program source.o || { echo "fail it does not link"; return; }
    case $line in
        fail*) echo "$line" ;;
        *) echo "$(./program) $(echo "$line" | cut -d' ' -f2-4) 0" ;;
    esac
}

python_loop() {
    python=/usr/bin/python3
    needs $python || return
    said $python "$tools/loop.py" "$seconds"
}

# fio's terse output, version 3: error (5), and requests per second of reads (8) and writes (49).
fio_row() {
    needs fio || return
    fio --name=job --filename="$disk" --size=256M --ioengine=libaio --direct=1 --thread \
        --time_based --runtime=3 --ramp_time=1 --randrepeat=0 --norandommap --minimal \
        --terse-version=3 --bs=4k --iodepth=32 --rw="$1" 2>&1 | tail -n 1 | awk -F';' '
        $5 == 0 && $8 + $49 > 0 { printf "- %.9f 1 1 0\n", 1 / ($8 + $49); next }
        { print "fail " $0 }'
}

iperf_row() {
    needs iperf3 || return
    [ -n "$net" ] || { echo "skip only between a guest and its host"; return; }
    if ! ip address show dev eth0 | grep -q inet; then
        ip address add "${net%,*}" dev eth0
        ip link set eth0 up
    fi
    # kbit/s of what the receiver got.
    iperf3 --client "${net#*,}" --time 3 --format k "$@" 2>&1 | awk '
        /receiver/ { for (i = 2; i <= NF; i++) if ($i == "Kbits/sec") rate = $(i - 1) }
        { last = $0 }
        END { if (rate > 0) printf "- %.9f 1 1000 0\n", 1 / rate; else print "fail " last }'
}

IFS=,
for row in $rows; do
    IFS=' '
    echo "@begin $row"
    case $row in
        openssl-*) line=$(openssl_speed "${row#openssl-}") ;;
        gcc) line=$(gcc_compile) ;;
        python) line=$(python_loop) ;;
        disk-read) line=$(fio_row randread) ;;
        disk-write) line=$(fio_row randwrite) ;;
        net-send) line=$(iperf_row) ;;
        net-receive) line=$(iperf_row --reverse) ;;
        *) line=$(said "$cpu" run "$row" "$seconds") ;;
    esac
    echo "@end $row $line"
done
echo "@done"
[ -n "$BENCH_WORDS" ] || read -r _
