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

/// The guest: Debian's cloud kernel, autologin on the console, and what the benchmarks run.
fn guest() -> DebianGuest {
    DebianGuest {
        hostname: "guest".to_owned(),
        packages: ["fio", "iperf3"].map(str::to_owned).into(),
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
