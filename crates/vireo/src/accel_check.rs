//! `vireo accel-check`: what runs guests on this host?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use accel::Accelerator;
use accel_kvm::Kvm;
use accel_soft::Soft;
use clap::{Arg, ArgMatches, Command, value_parser};

use crate::failure::Result;
use crate::output;

pub(crate) const NAME: &str = "accel-check";

pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Checks whether guests run by KVM here")
        .long_about(
            "Opens KVM and runs a short 64-bit program with paging and SSE in a throw-away machine, \
             because a device that opens proves nothing. The exit status is 0 if guests run by KVM, \
             else 1: they run on the software processor then, which needs nothing but is slower.",
        )
        .arg(device_option())
}

/// The option that names the KVM device.
pub(crate) fn device_option() -> Arg {
    Arg::new("device")
        .long("device")
        .value_name("PATH")
        .default_value("/dev/kvm")
        .value_parser(value_parser!(PathBuf))
        .help("The KVM device")
}

/// The device that was named.
pub(crate) fn device(matches: &ArgMatches) -> &Path {
    matches
        .get_one::<PathBuf>("device")
        .map_or(Path::new("/dev/kvm"), PathBuf::as_path)
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let device = device(matches);
    let start = Instant::now();
    match Kvm::open(device).and_then(|kvm| kvm.ready().map(|()| kvm)) {
        Ok(kvm) => {
            let (took, limit) = (start.elapsed(), kvm.capabilities().max_vcpus);
            output::print(&format!(
                "{}: usable; the self-test passed in {:.1} ms; at most {limit} virtual processors\n{}",
                device.display(),
                took.as_secs_f64() * 1000.0,
                soft(),
            ))
        }
        Err(e) => {
            output::print(&format!(
                "{}: not usable: {}\n{}",
                device.display(),
                machine::chain(&e),
                soft(),
            ))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The line about the software processor, which is there on every host.
fn soft() -> String {
    let soft = Soft::new(accel_soft::Options::default());
    let limit = soft.capabilities().max_vcpus;
    format!("soft: usable; at most {limit} virtual processors\n")
}
