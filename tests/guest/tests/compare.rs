//! The same guest under Vireo and under QEMU: what it sees may differ only as
//! `differences.toml` says.

use anyhow::{Context, ensure};
use guest_tests::differences::Differences;
use guest_tests::scenario::{Outcome, Scenario, Suite};
use guest_tests::{Host, Vm};

use crate::common::{BOOT, QUIET, complaints, messages, quoted, small_kernel};

/// What the guest saw.
#[derive(Default)]
struct Seen {
    lspci: String,
    flags: String,
    dmesg: String,
}

struct Both {
    vireo: Seen,
    qemu: Seen,
    list: Differences,
}

pub fn add(suite: &mut Suite) {
    Scenario::new("differential", || {
        let (vireo, vireo_s) = look(vireo()?).context("under Vireo")?;
        let (qemu, qemu_s) = look(qemu()?).context("under QEMU")?;
        let list = Differences::parse(include_str!("../differences.toml"))?;
        let note = format!("shell after {vireo_s:.1} s under Vireo, {qemu_s:.1} s under QEMU");
        Ok((Both { vireo, qemu, list }, note))
    })
    .check("lspci", |both| check(both, "lspci", |seen| &seen.lspci))
    .check("cpu_flags", |both| {
        check(both, "cpu-flags", |seen| &seen.flags)
    })
    .check("dmesg", |both| check(both, "dmesg", |seen| &seen.dmesg))
    .add_to(suite);
}

fn check(both: &Both, what: &str, part: impl Fn(&Seen) -> &String) -> Outcome {
    let (vireo, qemu) = (part(&both.vireo), part(&both.qemu));
    ensure!(!vireo.is_empty() || what == "dmesg", "nothing was seen");
    let known = both.list.check(what, vireo, qemu)?;
    Ok(format!(
        "{} lines, {known} intended differences",
        vireo.lines().count()
    ))
}

fn vireo() -> anyhow::Result<Vm> {
    let host = Host::get()?;
    Vm::start(&format!(
        "{}[memory]\nsize = \"512M\"\n[cpus]\ncount = 2\n[[serial]]\nto = \"stdio\"\n\
         [[disk]]\nfile = {}\nread-only = true\naddr = 3\n[[net]]\nbackend = \"user\"\naddr = 4\n[[rng]]\naddr = 5\n",
        small_kernel("root=/dev/vda")?,
        quoted(&host.disk)
    ))
}

fn qemu() -> anyhow::Result<Vm> {
    let host = Host::get()?;
    let text = |path: &std::path::Path| path.display().to_string();
    Vm::start_qemu(&[
        "-machine",
        "q35,kernel_irqchip=split,vmport=off,smbus=off,sata=off,usb=off,graphics=off",
        "-cpu",
        "host",
        "-smp",
        "2",
        "-m",
        "512M",
        "-kernel",
        &text(&host.vmlinux),
        "-initrd",
        &text(host.small_initrd()?),
        "-append",
        &format!("{QUIET} root=/dev/vda"),
        "-drive",
        &format!(
            "if=none,id=root,format=raw,read-only=on,file={}",
            host.disk.display()
        ),
        "-device",
        "virtio-blk-pci,drive=root,addr=3,disable-legacy=on",
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,addr=4,disable-legacy=on,romfile=",
        "-device",
        "virtio-rng-pci,addr=5,disable-legacy=on",
    ])
}

fn look(mut vm: Vm) -> anyhow::Result<(Seen, f64)> {
    vm.wait_shell(BOOT)?;
    let age = vm.age().as_secs_f64();
    let dmesg = complaints(&mut vm)?;
    Ok((
        Seen {
            lspci: vm.run("lspci -n")?,
            flags: vm.run("grep -m1 ^flags /proc/cpuinfo | cut -d: -f2 | tr ' ' '\\n'")?,
            dmesg: messages(&dmesg).join("\n"),
        },
        age,
    ))
}
