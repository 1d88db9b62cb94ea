//! `cargo xtask guest-image`: the Debian guest that tests and benchmarks boot.

use std::process::ExitCode;

use image_build::progress::Bar;
use image_build::{DebianGuest, Options, Outputs};

use crate::{cache, project, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Build it anew, with today's package versions.
    #[arg(long)]
    rebuild: bool,
    /// The one with a compiler and other programs that keep a processor busy.
    #[arg(long)]
    compiler: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let outputs = if args.compiler {
        ensure_with_compiler(args.rebuild)?
    } else {
        ensure(args.rebuild)?
    };
    println!("{}", outputs.image.display());
    Ok(ExitCode::SUCCESS)
}

/// Units that no test looks at. Each is a process or three, and in the box, where TCG emulates a
/// processor that runs KVM, a process takes up to a second to start.
const MASKED_UNITS: [&str; 20] = [
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "kmod-static-nodes.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-network-generator.service",
    "systemd-pstore.service",
    "systemd-sysusers.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// The guest: Debian's cloud kernel, autologin on the console, and what the benchmarks run.
fn guest(packages: &[&str]) -> DebianGuest {
    DebianGuest {
        hostname: "guest".to_owned(),
        packages: packages.iter().map(|&name| name.to_owned()).collect(),
        masked_units: MASKED_UNITS.map(str::to_owned).into(),
        ..DebianGuest::default()
    }
}

/// The guest's disk, kernels and initramfs, built if they are not there.
///
/// Many may read them at once; nobody writes (open the disk as a throw-away snapshot or a copy).
pub fn ensure(rebuild: bool) -> anyhow::Result<Outputs> {
    build("guest", &guest(&PACKAGES), rebuild)
}

/// The same with a compiler and other programs that keep a processor busy: three times the size,
/// and only for `cargo xtask bench cpu` and the scenario "programs".
pub fn ensure_with_compiler(rebuild: bool) -> anyhow::Result<Outputs> {
    let packages = [&PACKAGES[..], &COMPILER_PACKAGES[..]].concat();
    build("guest-compiler", &guest(&packages), rebuild)
}

const PACKAGES: [&str; 2] = ["fio", "iperf3"];
const COMPILER_PACKAGES: [&str; 7] = [
    "gcc",
    "libc6-dev",
    "linux-perf",
    "luajit",
    "openssl",
    "python3-minimal",
    "stress-ng",
];

fn build(name: &str, guest: &DebianGuest, rebuild: bool) -> anyhow::Result<Outputs> {
    let key = format!("{} size {}", guest.recipe()?.fingerprint(), guest.size);
    let folder = cache::folder(name, &key, rebuild, |folder| {
        setup::ensure_packages()?;
        eprintln!("building the Debian guest");
        let options = Options {
            force: false,
            package_cache: Some(project::target()?.join("apt")),
        };
        image_build::build(guest, &folder.join("debian.img"), &options, &mut Bar::new())?;
        Ok(())
    })?;
    Ok(Outputs::beside(&folder.join("debian.img"))?)
}
