//! `vireo run`: a machine from its description to its end.

mod config;
mod options;
pub(crate) mod pidfile;
mod print;
mod said;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use clap::ArgMatches;
use machine::{Outcome, Plan};

pub(crate) use self::options::command;
use self::pidfile::Pidfile;
use self::said::Said;
use crate::failure::Result;
use crate::{heap, logger, output};

pub(crate) const NAME: &str = "run";

pub(crate) fn execute(matches: ArgMatches) -> Result<ExitCode> {
    if let Some(text) = options::help_asked_for(&matches) {
        return output::print(&text?);
    }
    let said = Said::new(&matches)?;
    if matches.get_flag(options::PRINT_CONFIG) {
        return output::print(&print::toml(&said));
    }
    drop(matches);
    run(said)
}

fn run(said: Said) -> Result<ExitCode> {
    logger::install(&said.log()?)?;
    let path = said.process()?.pidfile;
    let plan = Plan::new(said.description)?;
    let accelerator = machine::accelerator(&plan)?;
    heap::give_back();
    let mut pidfile = None;
    let program = Arc::new(OnceLock::new());
    let announce = machine::Announce {
        built: || {
            pidfile = path.as_deref().map(Pidfile::write).transpose()?;
            program.get_or_init(heap::Program::look);
            Ok(())
        },
        quieter: {
            let program = Arc::clone(&program);
            move || program.get().map_or((), heap::Program::give_back)
        },
    };
    let outcome = machine::run_announced(plan, accelerator.as_ref(), announce)?;
    drop(pidfile);
    Ok(tell(&outcome))
}

/// Says how the machine ended; the exit status.
fn tell(outcome: &Outcome) -> ExitCode {
    chardev::restore_terminal();
    if let Some(message) = outcome.message() {
        eprintln!("vireo: {message}");
    }
    ExitCode::from(outcome.status())
}
