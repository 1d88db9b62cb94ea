//! The devices, one after the other, in a guest that is Debian without systemd.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::scenario::{Outcome, Scenario, Suite};
use guest_tests::{Console, Host, Vm};
use serde_json::json;

use crate::common::{BOOT, SOON, check_dmesg, complaints, number, quoted, small_debian};

struct Guest {
    vm: Vm,
    disk: PathBuf,
}

const MIB: u64 = 1 << 20;

pub fn add(suite: &mut Suite) {
    Scenario::new("devices", || {
        let host = Host::get()?;
        let disk = host.empty_disk("work.img", 256 * MIB)?;
        let fixed = host.file("fixed.img", &guest_tests::http::noise(MIB as usize))?;
        let config = format!(
            r#"{}
[memory]
size = "512M"
[[disk]]
id = "work"
file = {}
serial = "work"
cache = "none"
num-queues = 2
[[disk]]
file = {}
read-only = true
serial = "fixed"
[[net]]
backend = "user"
[[rng]]
[[balloon]]
id = "balloon"
guest-stats-polling-interval = 1
[[console]]
to = "unix:@/hvc0"
port = ["org.vireo.test.0@unix:@/port"]
"#,
            small_debian()?,
            quoted(&disk),
            quoted(fixed),
        );
        let mut vm = Vm::start(&config)?;
        vm.wait_shell(BOOT)?;
        vm.run("mkdir -p /dev/disk/by-id /dev/virtio-ports; modprobe -a virtio_balloon virtio_console virtio-rng")?;
        let note = format!("shell after {:.1} s", vm.age().as_secs_f64());
        Ok((Guest { vm, disk }, note))
    })
    .check("dmesg", |guest| {
        let text = complaints(&mut guest.vm)?;
        Ok(format!("{} lines, all known", check_dmesg(&text)?))
    })
    .check("disk_serial", |guest| {
        let text = guest.vm.run("cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial; echo; cat /sys/block/vdc/serial")?;
        ensure!(text == "root\nwork\nfixed", "{text:?}");
        Ok(text.replace('\n', " "))
    })
    .check("disk_queues", |guest| {
        let count = guest.vm.run("ls -d /sys/block/vdb/mq/* | wc -l")?;
        // Linux uses no more queues than there are processors.
        ensure!(count == "1", "{count} queues for one processor");
        Ok(count)
    })
    .check("disk_write_and_verify", disk_write_and_verify)
    .check("disk_file_system", disk_file_system)
    .check("disk_discard", disk_discard)
    .check("disk_write_zeroes", |guest| {
        guest.vm.run("blkdiscard -z -o 1048576 -l 1048576 /dev/vdb")?;
        let text = guest.vm.run("dd if=/dev/vdb bs=1M skip=1 count=1 iflag=direct 2>/dev/null | cmp -n 1048576 - /dev/zero && echo zero")?;
        ensure!(text == "zero", "{text}");
        Ok("1 MiB".into())
    })
    .check("disk_read_only", |guest| {
        let out = guest.vm.try_run("dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct", SOON)?;
        ensure!(out.status != 0, "it can be written: {}", out.text);
        ensure!(guest.vm.run("cat /sys/block/vdc/ro")? == "1", "the guest is not told");
        guest.vm.run("dd if=/dev/vdc of=/dev/null bs=64k")?;
        Ok(out.text.lines().next().unwrap_or_default().to_owned())
    })
    .check("disk_resize", |guest| {
        let mut qmp = guest.vm.qmp()?;
        qmp.execute("block_resize", json!({ "device": "work", "size": 320 * MIB }))?;
        let deadline = Instant::now() + SOON;
        loop {
            let sectors = number(&guest.vm.run("cat /sys/block/vdb/size")?)?;
            if sectors == 320 * MIB / 512 {
                break;
            }
            ensure!(Instant::now() < deadline, "the guest sees {sectors} sectors");
        }
        guest.vm.run("dd if=/dev/zero of=/dev/vdb bs=1M seek=319 count=1 oflag=direct")?;
        let none = qmp.execute("block_resize", json!({ "device": "nobody", "size": MIB }));
        let error = none.err().context("a disk that is not there was resized")?.to_string();
        ensure!(error.starts_with("DeviceNotFound"), "{error}");
        Ok("256 to 320 MiB".into())
    })
    .check("rng", |guest| {
        ensure!(guest.vm.run("cat /sys/class/misc/hw_random/rng_current")? == "virtio_rng.0", "no virtio_rng");
        let text = guest.vm.run("dd if=/dev/hwrng bs=1k count=64 iflag=fullblock 2>/dev/null | gzip -c | wc -c")?;
        let size = number(&text)?;
        ensure!(size >= 65536, "64 KiB of it compress to {size} bytes");
        Ok("64 KiB do not compress".into())
    })
    .check("balloon", balloon)
    .check("console_hvc0", console_hvc0)
    .check("console_port", console_port)
    .check("net_user", |guest| {
        let port = guest_tests::http::serve(b"hello".to_vec())?;
        guest.vm.run("d=$(basename /sys/class/net/e*); ip link set $d up; ip addr add 10.0.2.15/24 dev $d; ip route add default via 10.0.2.2")?;
        let text = guest.vm.run(&format!("curl -sS --max-time 60 http://10.0.2.2:{port}/"))?;
        ensure!(text == "hello", "{text}");
        // An IPv4 packet of the largest size goes in fragments.
        guest.vm.run("ping -c 2 -s 4000 -W 20 10.0.2.2")?;
        Ok(String::new())
    })
    .check("device_states", |guest| {
        let mut qmp = guest.vm.qmp()?;
        qmp.execute("stop", json!({}))?;
        let states = qmp.execute("x-query-device-states", json!({}))?;
        qmp.execute("cont", json!({}))?;
        let states = states.as_array().context("no list")?.clone();
        for name in ["serial0", "ioapic", "acpi-pm", "work", "balloon"] {
            let found = states.iter().find(|s| s["id"] == name).with_context(|| format!("no {name}"))?;
            ensure!(found["state"].as_str().is_some_and(|text| text.len() > 20), "{found}");
        }
        guest.vm.run("true")?;
        Ok(format!("{} parts", states.len()))
    })
    .check("unload_and_load_drivers", |guest| {
        // The driver's reset, and a fresh negotiation.
        guest.vm.run("rmmod virtio_console virtio_balloon virtio_rng virtio_net && modprobe -a virtio_console virtio_balloon virtio-rng virtio_net && dd if=/dev/hwrng of=/dev/null bs=64 count=1")?;
        for device in ["virtio1", "virtio2"] {
            let driver = "/sys/bus/virtio/drivers/virtio_blk";
            if guest.vm.try_run(&format!("test -e {driver}/{device}"), SOON)?.status == 0 {
                guest.vm.run(&format!("echo {device} > {driver}/unbind; echo {device} > {driver}/bind"))?;
            }
        }
        let text = guest.vm.run("dd if=/dev/vdb bs=1M count=8 iflag=direct of=/dev/null; dmesg --level=emerg,alert,crit,err,warn")?;
        ensure!(!text.contains("error"), "{text}");
        Ok(String::new())
    })
    .check("poweroff", |guest| {
        guest.vm.console.send("sync; echo o > /proc/sysrq-trigger\n")?;
        let status = guest.vm.wait_exit(SOON)?;
        ensure!(status == 0, "status {status}: {}", guest.vm.errors());
        ensure!(guest.vm.errors().is_empty(), "it says: {}", guest.vm.errors());
        Ok("status 0".into())
    })
    .add_to(suite);
}

/// Data written with O_DIRECT, in order and not, is read back as it was, and is in the file.
fn disk_write_and_verify(guest: &mut Guest) -> Outcome {
    let begin = Instant::now();
    let text = guest.vm.run(
        "fio --name=verify --filename=/dev/vdb --rw=randwrite --bs=4k-64k --bsrange=4k-64k --size=8m \
         --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 \
         --randrepeat=1 --output-format=terse --terse-version=3",
    )?;
    let fields: Vec<&str> = text.lines().last().unwrap_or_default().split(';').collect();
    ensure!(fields.get(4) == Some(&"0"), "fio: {text}");
    let sum = guest
        .vm
        .run("dd if=/dev/vdb bs=1M count=8 iflag=direct 2>/dev/null | sha256sum")?;
    guest.vm.run("blockdev --flushbufs /dev/vdb; sync")?;
    let here = std::process::Command::new("sh")
        .args(["-c", "head -c 8388608 \"$0\" | sha256sum"])
        .arg(&guest.disk)
        .output()?;
    let here = String::from_utf8(here.stdout)?;
    ensure!(
        sum.split(' ').next() == here.split(' ').next(),
        "{sum} in the guest, {here} in the file"
    );
    Ok(format!("8 MiB in {:.1} s", begin.elapsed().as_secs_f64()))
}

fn disk_file_system(guest: &mut Guest) -> Outcome {
    guest.vm.run(
        "mkfs.ext4 -q -E nodiscard /dev/vdb && mkdir -p /tmp/work && mount /dev/vdb /tmp/work",
    )?;
    guest.vm.run(
        "head -c 24M /dev/urandom > /tmp/work/a && cp /tmp/work/a /tmp/work/b && sync && \
         echo 3 > /proc/sys/vm/drop_caches && cmp /tmp/work/a /tmp/work/b",
    )?;
    Ok("2 x 24 MiB".into())
}

fn disk_discard(guest: &mut Guest) -> Outcome {
    let blocks =
        |path: &PathBuf| -> anyhow::Result<u64> { Ok(std::fs::metadata(path)?.blocks() * 512) };
    let before = blocks(&guest.disk)?;
    guest
        .vm
        .run("rm /tmp/work/a /tmp/work/b && sync && fstrim -v /tmp/work && umount /tmp/work")?;
    let after = blocks(&guest.disk)?;
    ensure!(
        after + 40 * MIB < before,
        "the image took {before} bytes and takes {after}"
    );
    Ok(format!("{} MiB given back", (before - after) / MIB))
}

fn balloon(guest: &mut Guest) -> Outcome {
    let mut qmp = guest.vm.qmp()?;
    let free = |vm: &mut Vm| -> anyhow::Result<u64> {
        number(&vm.run("awk '/^MemTotal/ {print $2}' /proc/meminfo")?)
    };
    let before = free(&mut guest.vm)?;
    let full = qmp.execute("query-balloon", json!({}))?["actual"].as_u64();
    ensure!(full == Some(512 * MIB), "{full:?}");
    qmp.execute("balloon", json!({ "value": 384 * MIB }))?;
    let wait = |qmp: &mut guest_tests::Qmp, target: u64| -> anyhow::Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let actual = qmp.execute("query-balloon", json!({}))?["actual"].as_u64();
            if actual == Some(target) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the guest has {actual:?} bytes");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    wait(&mut qmp, 384 * MIB)?;
    let during = free(&mut guest.vm)?;
    ensure!(
        before - during >= 120 << 10,
        "{before} KiB before, {during} KiB with the balloon"
    );
    qmp.execute("balloon", json!({ "value": 512 * MIB }))?;
    wait(&mut qmp, 512 * MIB)?;
    let after = free(&mut guest.vm)?;
    ensure!(
        after + 4096 >= before,
        "{before} KiB before, {after} KiB after"
    );
    Ok(format!("{before}, {during}, {after} KiB"))
}

fn console_hvc0(guest: &mut Guest) -> Outcome {
    let path = guest.vm.folder().join("hvc0");
    let mut hvc = Console::at(guest.vm.connect(&path)?)?;
    guest
        .vm
        .run("stty -F /dev/hvc0 raw -echo; echo from the guest > /dev/hvc0")?;
    hvc.expect("from the guest", SOON)?;
    guest.vm.run("head -n 1 /dev/hvc0 > /tmp/hvc &")?;
    hvc.send("to the guest\n")?;
    guest.vm.run("n=0; until grep -q 'to the guest' /tmp/hvc; do n=$((n+1)); [ $n -gt 100 ] && exit 1; sleep 0.2; done")?;
    Ok("both ways".into())
}

fn console_port(guest: &mut Guest) -> Outcome {
    let path = guest.vm.folder().join("port");
    let mut port = Console::at(guest.vm.connect(&path)?)?;
    let name = guest.vm.run("cat /sys/class/virtio-ports/*/name")?;
    ensure!(name == "org.vireo.test.0", "{name}");
    let file = guest.vm.run("d=$(grep -l org.vireo.test.0 /sys/class/virtio-ports/*/name); echo /dev/$(basename $(dirname $d))")?;
    guest.vm.run(&format!(
        "(exec 3<>{file}; head -c 100000 <&3 >&3; sleep 1) >/dev/null 2>&1 &"
    ))?;
    // More than any queue or buffer on the way holds at once.
    let text: String = (0..10_000).map(|n| format!("{n:09}\n")).collect();
    port.send(&text)?;
    let mut echoed = port.expect("000009999\n", SOON)?;
    echoed.push_str("000009999\n");
    ensure!(
        echoed == text,
        "{} of {} bytes came back, or others",
        echoed.len(),
        text.len()
    );
    Ok(format!("{} bytes there and back", text.len()))
}
