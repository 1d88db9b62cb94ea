//! Debian as it comes, under systemd, to its login prompt: with one processor and with four.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::scenario::{Outcome, Scenario, Suite};
use guest_tests::{Host, Vm, http};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::{LOGIN, SOON, check_dmesg, complaints, number, quoted};

pub fn add(suite: &mut Suite) {
    one_processor(suite);
    four_processors(suite);
}

/// How long Debian may take to stop its services.
const SHUTDOWN: Duration = Duration::from_secs(180);

/// A port of the loopback that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

struct Guest {
    vm: Vm,
    forward: u16,
}

fn one_processor(suite: &mut Suite) {
    Scenario::new("debian_1", || {
        let host = Host::get()?;
        let forward = free_port()?;
        let behind = host.empty_disk("behind-port.img", 8 << 20)?;
        let config = format!(
            r#"
[kernel]
image = {}
initrd = {}
cmdline = "console=ttyS0 root=/dev/vda rw quiet rcupdate.rcu_cpu_stall_suppress=1"
[memory]
size = "512M"
[[serial]]
to = "stdio"
[[root-port]]
id = "port"
addr = 10
[[disk]]
file = {}
serial = "debian"
addr = 3
[[disk]]
file = {}
serial = "behind"
bus = "port"
[[net]]
backend = "user"
hostfwd = ["tcp:127.0.0.1:{forward}-:7777"]
addr = 4
[[rng]]
addr = 5
[[balloon]]
addr = 6
[[console]]
to = "null"
addr = 7
"#,
            quoted(&host.vmlinux),
            quoted(&host.initrd),
            quoted(host.writable_disk("guest-1")?),
            quoted(behind),
        );
        let mut vm = Vm::start(&config)?;
        let login = vm.wait_login(LOGIN)?;
        let note = format!("login prompt after {:.1} s", login.as_secs_f64());
        Ok((Guest { vm, forward }, note))
    })
    .check("nproc", |guest| {
        let count = guest.vm.run("nproc")?;
        ensure!(count == "1", "{count} processors");
        Ok(count)
    })
    .check("lspci", |guest| lspci(&mut guest.vm))
    .check("lspci_vv", |guest| lspci_vv(&mut guest.vm))
    .check("interrupts", |guest| {
        let lines = guest.vm.run("grep virtio /proc/interrupts")?;
        // Queues by the names that the drivers give them; disks have one for each processor.
        let expected = [
            "virtio*-config", "virtio*-req.0", "virtio*-input.0", "virtio*-output.0",
            "virtio*-inflate", "virtio*-deflate", "virtio*-stats", "virtio*-virtqueues",
        ];
        msi_lines(&lines, &expected[..4])
    })
    .check("dmidecode", |guest| {
        let text = guest.vm.run(
            "dmidecode 2>&1 | grep -E 'BROKEN|BAD INDEX|OUT OF SPEC|Wrong|Invalid|truncated|Manufacturer|Size: |^# '",
        )?;
        for complaint in ["BROKEN", "BAD INDEX", "OUT OF SPEC", "Wrong", "Invalid", "truncated"] {
            ensure!(!text.contains(complaint), "dmidecode says {complaint}:\n{text}");
        }
        ensure!(text.contains("Manufacturer: Vireo"), "{text}");
        ensure!(text.contains("Size: 512 MB"), "{text}");
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    })
    .check("clocksource", |guest| {
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let name = guest.vm.run(&format!("cat {source}"))?;
        ensure!(name == "kvm-clock", "{name}");
        // The guest's clock against ours, to within what a busy machine and the console cost.
        let before = Instant::now();
        let first: f64 = guest.vm.run("date +%s.%N")?.parse()?;
        std::thread::sleep(Duration::from_secs(3));
        let last: f64 = guest.vm.run("date +%s.%N")?.parse()?;
        let (here, there) = (before.elapsed().as_secs_f64(), last - first);
        ensure!(there > 2.9 && there < here + 0.5, "{there:.2} s in the guest are {here:.2} s here");
        Ok(format!("{name}; {there:.2} s in the guest are at most {here:.2} s here"))
    })
    .check("dmesg", |guest| {
        let text = complaints(&mut guest.vm)?;
        Ok(format!("{} lines, all known", check_dmesg(&text)?))
    })
    .check("services", |guest| {
        let failed = guest.vm.run("systemctl list-units --state=failed --no-legend --plain")?;
        ensure!(failed.is_empty(), "{failed}");
        Ok("none failed".into())
    })
    .check("dhcp", |guest| {
        let wait = "n=0; until ip -4 -o addr show scope global | grep -q inet; do \
                    n=$((n+1)); [ $n -gt 60 ] && break; sleep 1; done; ip -4 -o addr show scope global";
        let address = guest.vm.run(wait)?;
        ensure!(address.contains("inet 10.0.2.15/24"), "{address:?}");
        let route = guest.vm.run("ip route show default; resolvectl dns")?;
        ensure!(route.contains("default via 10.0.2.2"), "{route}");
        ensure!(route.contains("10.0.2.3"), "no name server: {route}");
        Ok("10.0.2.15/24, gateway and name server".into())
    })
    .check("fetch", |guest| {
        let body = http::noise(4 << 20);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("body");
        std::fs::write(&path, &body)?;
        let sum = std::process::Command::new("sha256sum").arg(&path).output()?;
        let sum = String::from_utf8(sum.stdout)?;
        let sum = sum.split_whitespace().next().context("no sum")?;
        let port = http::serve(body)?;
        let begin = Instant::now();
        let text = guest.vm.run(&format!(
            "curl -sS --max-time 80 http://10.0.2.2:{port}/file -o /tmp/f && sha256sum < /tmp/f"
        ))?;
        ensure!(text.starts_with(sum), "{text} is not {sum}");
        Ok(format!("4 MiB from the loopback in {:.1} s", begin.elapsed().as_secs_f64()))
    })
    .check("hostfwd", |guest| {
        let server = "import socket; s = socket.create_server(('', 7777)); c = s.accept()[0]; \
                      c.sendall(b'from the guest'); c.close()";
        guest.vm.run(&format!("python3 -c \"{server}\" > /dev/null 2>&1 &"))?;
        let deadline = Instant::now() + SOON;
        loop {
            let mut text = String::new();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, guest.forward))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            if stream.read_to_string(&mut text).is_ok() && text == "from the guest" {
                return Ok(format!("port {}", guest.forward));
            }
            ensure!(Instant::now() < deadline, "the guest does not answer");
            std::thread::sleep(Duration::from_millis(300));
        }
    })
    .check("reboot", |guest| {
        let vm = &mut guest.vm;
        vm.run("echo kept > /root/witness && sync")?;
        let before = vm.run("cat /proc/sys/kernel/random/boot_id")?;
        let pid = vm.pid();
        let begin = Instant::now();
        let mut qmp = vm.qmp()?;
        vm.console.send("systemctl reboot\n")?;
        let event = qmp.wait_event("RESET", SHUTDOWN)?;
        ensure!(event["data"]["guest"] == true, "{event}");
        vm.wait_login(LOGIN)?;
        ensure!(vm.pid() == pid, "another process");
        let after = vm.run("cat /proc/sys/kernel/random/boot_id")?;
        ensure!(before != after, "the guest did not boot anew");
        let text = vm.run("cat /root/witness")?;
        ensure!(text == "kept", "{text}");
        Ok(format!("login prompt again after {:.1} s; the file is there", begin.elapsed().as_secs_f64()))
    })
    .check("devices_after_reboot", |guest| {
        let text = complaints(&mut guest.vm)?;
        check_dmesg(&text)?;
        lspci(&mut guest.vm)?;
        guest.vm.run("dd if=/dev/hwrng of=/dev/null bs=64 count=4")?;
        guest.vm.run("dd if=/dev/vdb of=/dev/null bs=1M iflag=direct")?;
        Ok(String::new())
    })
    .check("poweroff", |guest| {
        let vm = &mut guest.vm;
        let mut qmp = vm.qmp()?;
        vm.console.send("systemctl poweroff\n")?;
        let event = qmp.wait_event("SHUTDOWN", SHUTDOWN)?;
        ensure!(event["data"]["reason"] == "guest-shutdown", "{event}");
        let status = vm.wait_exit(SOON)?;
        ensure!(status == 0, "status {status}: {}", vm.errors());
        ensure!(vm.errors().is_empty(), "it says: {}", vm.errors());
        Ok("status 0".into())
    })
    .add_to(suite);
}

/// The machine of the first scenario, function by function.
const LSPCI: &str = "\
00:00.0 0600: 8086:29c0
00:03.0 0100: 1af4:1042 (rev 01)
00:04.0 0200: 1af4:1041 (rev 01)
00:05.0 00ff: 1af4:1044 (rev 01)
00:06.0 00ff: 1af4:1045 (rev 01)
00:07.0 0780: 1af4:1043 (rev 01)
00:0a.0 0604: 1b36:000c
00:1f.0 0601: 8086:2918 (rev 02)
01:00.0 0100: 1af4:1042 (rev 01)";

fn lspci(vm: &mut Vm) -> Outcome {
    let text = vm.run("lspci -n")?;
    ensure!(text == LSPCI, "lspci -n:\n{text}\nexpected:\n{LSPCI}");
    Ok(format!("{} functions as expected", text.lines().count()))
}

/// Every function has its memory, its driver and interrupts, and the one behind the port is PCIe.
fn lspci_vv(vm: &mut Vm) -> Outcome {
    // Much output to a serial port is what kills guests in the box: only what is looked at.
    let text = vm.run(
        r"lspci -vv | grep -E '^$|^[0-9a-f]|!!!|\[disabled\]|<unassigned>|\[virtual\]|<ignored>|denied|Kernel driver|MSI-X:|BusMaster|Capabilities: .*Express|Slot|Bus: '",
    )?;
    for trouble in [
        "!!!",
        "[disabled]",
        "<unassigned>",
        "[virtual]",
        "<ignored>",
        "access denied",
    ] {
        ensure!(!text.contains(trouble), "lspci -vv says {trouble}:\n{text}");
    }
    let mut virtio = 0;
    for function in text.split("\n\n").filter(|f| f.contains("Virtio")) {
        virtio += 1;
        ensure!(
            function.contains("Kernel driver in use: virtio-pci"),
            "no driver:\n{function}"
        );
        ensure!(function.contains("MSI-X: Enable+"), "no MSI-X:\n{function}");
        ensure!(
            function.contains("BusMaster+"),
            "no bus master:\n{function}"
        );
        if function.starts_with("01:") {
            ensure!(
                function.contains("Express (v2) Endpoint"),
                "no PCIe:\n{function}"
            );
        }
    }
    ensure!(virtio == 6, "{virtio} virtio functions:\n{text}");
    let port = text
        .split("\n\n")
        .find(|f| f.starts_with("00:0a.0"))
        .context("no root port")?;
    ensure!(
        port.contains("Kernel driver in use: pcieport"),
        "no driver:\n{port}"
    );
    ensure!(
        port.contains("Express (v2) Root Port (Slot+)"),
        "no root port:\n{port}"
    );
    Ok(format!("{virtio} virtio functions with drivers and MSI-X"))
}

/// Every line is an MSI-X interrupt, and each of `names` has one.
fn msi_lines(text: &str, names: &[&str]) -> Outcome {
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines {
        ensure!(line.contains("PCI-MSI"), "no MSI-X: {line}");
    }
    for name in names {
        let found = lines.iter().any(|line| {
            let last = line.split_whitespace().last().unwrap_or_default();
            guest_tests::differences::matches(name, last)
        });
        ensure!(found, "no interrupt {name}:\n{text}");
    }
    Ok(format!("{} MSI-X interrupts", lines.len()))
}

fn four_processors(suite: &mut Suite) {
    Scenario::new("debian_4", || {
        let host = Host::get()?;
        let config = format!(
            r#"
[kernel]
image = {}
initrd = {}
cmdline = "console=ttyS0 root=/dev/vda rw quiet rcupdate.rcu_cpu_stall_suppress=1"
decompress = "guest"
[cpus]
count = 4
sockets = 2
cores = 2
threads = 1
[memory]
size = "768M"
[machine]
name = "four"
shutdown-grace = 170
[[serial]]
to = "unix:@/serial"
[[iothread]]
id = "disks"
cpus = ["0"]
[[disk]]
file = {}
cache = "none"
iothread = ["disks"]
"#,
            quoted(&host.vmlinuz),
            quoted(&host.initrd),
            quoted(host.writable_disk("guest-4")?),
        );
        let mut vm = Vm::start(&config)?;
        let login = vm.wait_login(LOGIN)?;
        Ok((vm, format!("login prompt after {:.1} s", login.as_secs_f64())))
    })
    .check("nproc", |vm| {
        let count = vm.run("nproc")?;
        ensure!(count == "4", "{count} processors");
        Ok(count)
    })
    .check("lscpu", |vm| {
        let text = vm.run("LC_ALL=C lscpu | grep -E 'Socket|Core|Thread'")?;
        for (name, value) in [("Socket(s):", "2"), ("Core(s) per socket:", "2"), ("Thread(s) per core:", "1")] {
            let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_default();
            ensure!(line.trim_end().ends_with(&format!(" {value}")), "{name} {line:?}\n{text}");
        }
        let siblings = vm.run("cat /sys/devices/system/cpu/cpu*/topology/package_cpus_list")?;
        ensure!(siblings == "0-1\n0-1\n2-3\n2-3", "{siblings}");
        Ok("2 sockets, 2 cores".into())
    })
    .check("interrupts", |vm| {
        // Every queue has its own, and each processor is served by its own.
        vm.run("for c in 0 1 2 3; do taskset -c $c dd if=/dev/vda of=/dev/null bs=4k count=64 skip=$((c*4096)) iflag=direct 2>&1; done")?;
        let text = vm.run("grep virtio /proc/interrupts")?;
        msi_lines(&text, &["virtio*-req.0", "virtio*-req.1", "virtio*-req.2", "virtio*-req.3"])?;
        for queue in 0..4 {
            let name = format!("-req.{queue}");
            let line = text.lines().find(|l| l.ends_with(&name)).context("no such queue")?;
            let count: u64 = line.split_whitespace().skip(1).take(4).filter_map(|n| n.parse::<u64>().ok()).sum();
            ensure!(count > 0, "queue {queue} has no interrupts:\n{text}");
        }
        Ok("4 queues, each interrupts".into())
    })
    .check("clocksource", |vm| {
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let name = vm.run(&format!("cat {source}"))?;
        ensure!(name == "kvm-clock", "{name}");
        Ok(name)
    })
    .check("kvm_features", |vm| {
        let text = vm.run("dmesg | grep -i kvm")?;
        // Linux uses the paravirtual TLB flush only where there is steal time, of which it says
        // nothing itself.
        for wanted in ["Hypervisor detected: KVM", "kvm-guest: PV spinlocks", "kvm-guest: setup PV IPIs", "KVM setup pv remote TLB flush"] {
            ensure!(text.contains(wanted), "the guest's kernel does not say {wanted:?}");
        }
        Ok("spinlocks, steal time, IPIs, TLB flush".into())
    })
    .check("dmesg", |vm| {
        let text = complaints(vm)?;
        Ok(format!("{} lines, all known", check_dmesg(&text)?))
    })
    .check("all_processors_work", |vm| {
        let work = "for c in 0 1 2 3; do taskset -c $c sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done' & done; wait";
        let text = vm.run(work)?;
        ensure!(text.lines().filter(|l| *l == "done").count() == 4, "{text}");
        // A hot-unplugged processor comes back through INIT and SIPI.
        vm.run("echo 0 > /sys/devices/system/cpu/cpu3/online && echo 1 > /sys/devices/system/cpu/cpu3/online")?;
        let count = number(&vm.run("nproc")?)?;
        ensure!(count == 4, "{count} processors after one was off and on");
        Ok("four, and one was off and on".into())
    })
    .check("threads", |vm| {
        let mut qmp = vm.qmp()?;
        let cpus = qmp.execute("query-cpus-fast", json!({}))?;
        let cpus = cpus.as_array().context("no list")?;
        ensure!(cpus.len() == 4, "{cpus:?}");
        for (index, cpu) in cpus.iter().enumerate() {
            let tid = cpu["thread-id"].as_u64().context("no thread")?;
            let comm = std::fs::read_to_string(format!("/proc/{}/task/{tid}/comm", vm.pid()))?;
            ensure!(comm.trim_end() == format!("CPU {index}/KVM"), "thread {tid} is {comm:?}");
        }
        let iothreads = qmp.execute("query-iothreads", json!({}))?;
        let tid = iothreads[0]["thread-id"].as_u64().context("no I/O thread")?;
        let status = std::fs::read_to_string(format!("/proc/{}/task/{tid}/status", vm.pid()))?;
        let pinned = status.lines().any(|l| l.split_whitespace().eq(["Cpus_allowed_list:", "0"]));
        ensure!(pinned, "the I/O thread is not pinned:\n{status}");
        Ok("vCPU and I/O threads are where they say".into())
    })
    .check("sigterm", |vm| {
        let mut qmp = vm.qmp()?;
        let begin = Instant::now();
        vm.signal(Signal::SIGTERM)?;
        qmp.wait_event("POWERDOWN", SOON)?;
        let event = qmp.wait_event("SHUTDOWN", SHUTDOWN)?;
        ensure!(event["data"]["reason"] == "guest-shutdown", "{event}");
        let status = vm.wait_exit(SOON)?;
        ensure!(status == 0, "status {status}: {}", vm.errors());
        Ok(format!("powered down by ACPI in {:.1} s, status 0", begin.elapsed().as_secs_f64()))
    })
    .add_to(suite);
}
