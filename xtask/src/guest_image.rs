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
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    println!("{}", ensure(args.rebuild)?.image.display());
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
fn guest() -> DebianGuest {
    DebianGuest {
        hostname: "guest".to_owned(),
        packages: ["fio", "iperf3"].map(str::to_owned).into(),
        masked_units: MASKED_UNITS.map(str::to_owned).into(),
        ..DebianGuest::default()
    }
}

/// The guest's disk, kernels and initramfs, built if they are not there.
///
/// Many may read them at once; nobody writes (open the disk as a throw-away snapshot or a copy).
pub fn ensure(rebuild: bool) -> anyhow::Result<Outputs> {
    let guest = guest();
    let key = format!("{} size {}", guest.recipe()?.fingerprint(), guest.size);
    let folder = cache::folder("guest", &key, rebuild, |folder| {
        setup::ensure_packages()?;
        eprintln!("building the Debian guest");
        let options = Options {
            force: false,
            package_cache: Some(project::target()?.join("apt")),
        };
        image_build::build(
            &guest,
            &folder.join("debian.img"),
            &options,
            &mut Bar::new(),
        )?;
        Ok(())
    })?;
    Ok(Outputs::beside(&folder.join("debian.img"))?)
}
