//! Other ways to the same devices: packed rings, no MSI-X, no EVENT_IDX, a PCIe root port.

use anyhow::{Context, ensure};
use guest_tests::scenario::{Outcome, Suite};
use guest_tests::{Host, Vm};

use crate::common::{BOOT, SOON, check_dmesg, quoted, small_kernel};

pub fn add(suite: &mut Suite) {
    suite.single("modes::packed", || exercise("packed", "packed = true", &[]));
    suite.single("modes::packed_plain", || {
        exercise(
            "packed-plain",
            "packed = true\nevent-idx = false\nindirect-desc = false",
            &[],
        )
    });
    suite.single("modes::intx", || exercise("intx", "vectors = 0", &[]));
    suite.single("modes::shared_vector", || {
        exercise("shared", "vectors = 2", &[])
    });
    suite.single("modes::plain", || {
        exercise(
            "plain",
            "event-idx = false\nindirect-desc = false\nport-doorbells = false",
            &[],
        )
    });
    suite.single("modes::root_ports", || {
        exercise(
            "root-ports",
            "",
            &["blk", "work", "net", "rng", "balloon", "console"],
        )
    });
}

/// A guest whose devices all have `options`, each behind its root port if `ports` names it.
fn exercise(name: &str, options: &str, ports: &[&str]) -> Outcome {
    let host = Host::get()?;
    let work = host.empty_disk(&format!("{name}.img"), 64 << 20)?;
    let mut config = small_kernel("root=/dev/vda")?;
    config.push_str("[[serial]]\nto = \"stdio\"\n");
    for port in ports {
        config.push_str(&format!("[[root-port]]\nid = \"{port}-port\"\n"));
    }
    let devices = [
        (
            "blk",
            "disk",
            format!("file = {}\nread-only = true", quoted(&host.disk)),
        ),
        (
            "work",
            "disk",
            format!("file = {}\nnum-queues = 1", quoted(&work)),
        ),
        ("net", "net", "backend = \"user\"".to_owned()),
        ("rng", "rng", String::new()),
        ("balloon", "balloon", String::new()),
        ("console", "console", "to = \"unix:@/hvc0\"".to_owned()),
    ];
    for (id, kind, own) in &devices {
        let bus = if ports.contains(id) {
            format!("bus = \"{id}-port\"")
        } else {
            String::new()
        };
        config.push_str(&format!(
            "[[{kind}]]\nid = \"{id}\"\n{own}\n{options}\n{bus}\n"
        ));
    }
    let mut vm = Vm::start(&config)?;
    vm.wait_shell(BOOT)?;
    let shell = vm.age().as_secs_f64();
    vm.run("modprobe -a virtio_balloon virtio_console virtio-rng")?;
    features(&mut vm, options)?;
    vm.run("dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>&1 && dd if=/tmp/data of=/dev/vdb bs=64k oflag=direct 2>&1 && dd if=/dev/vdb bs=4k count=1024 iflag=direct of=/tmp/back 2>&1 && cmp /tmp/data /tmp/back")?;
    vm.run("dd if=/dev/hwrng of=/dev/null bs=512 count=4")?;
    let port = guest_tests::http::serve(guest_tests::http::noise(300_000))?;
    vm.run("d=$(basename /sys/class/net/e*); ip link set $d up; ip addr add 10.0.2.15/24 dev $d; ip route add default via 10.0.2.2")?;
    let text = vm.run(&format!(
        "curl -sS --max-time 60 http://10.0.2.2:{port}/ | wc -c"
    ))?;
    ensure!(text == "300000", "{text} bytes");
    let path = vm.folder().join("hvc0");
    let mut hvc = vm.connect(&path)?;
    vm.run("echo hello > /dev/hvc0")?;
    hvc.set_read_timeout(Some(SOON))?;
    let mut byte = [0];
    std::io::Read::read_exact(&mut hvc, &mut byte).context("nothing comes out of hvc0")?;
    let messages = vm.run("dmesg --level=emerg,alert,crit,err,warn")?;
    check_dmesg(&messages)?;
    vm.console.send("echo o > /proc/sysrq-trigger\n")?;
    let status = vm.wait_exit(SOON)?;
    ensure!(status == 0, "status {status}: {}", vm.errors());
    Ok(format!(
        "shell after {shell:.1} s; disk, net, rng, balloon, console work"
    ))
}

/// That the guest really uses what the options say.
fn features(vm: &mut Vm, options: &str) -> anyhow::Result<()> {
    // Bit n of the features is character n (VIRTIO 1.3 section 6: 28, 29, 34). Linux takes
    // indirect descriptors where it needs them.
    let text =
        vm.run("for d in /sys/bus/virtio/devices/*; do echo $(cat $d/device $d/features); done")?;
    let devices: Vec<&str> = text.lines().collect();
    ensure!(devices.len() == 6, "{} virtio devices", devices.len());
    let packed = options.contains("packed = true");
    let event_idx = !options.contains("event-idx = false");
    for line in devices {
        let (device, features) = line.split_once(' ').context("no features")?;
        let is_disk = device == "0x0002";
        for (bit, wanted) in [
            (28, event_idx && is_disk),
            (29, event_idx),
            (32, true),
            (34, packed),
        ] {
            let has = features.as_bytes().get(bit) == Some(&b'1');
            let free = bit == 28 && event_idx && !is_disk;
            ensure!(
                free || has == wanted,
                "device {device} has feature {bit}: {has}: {features}"
            );
        }
    }
    let interrupts = vm.run("grep virtio /proc/interrupts")?;
    let msi = interrupts.lines().filter(|l| l.contains("PCI-MSI")).count();
    let intx = interrupts.lines().filter(|l| l.contains("IO-APIC")).count();
    if options.contains("vectors = 0") {
        ensure!(msi == 0 && intx > 0, "{interrupts}");
    } else {
        ensure!(msi > 0 && intx == 0, "{interrupts}");
    }
    Ok(())
}
