//! Scenarios with real guests. See the library for how they are driven.

mod boot;
mod common;
mod compare;
mod control;
mod debian;
mod devices;
mod exits;
mod full;
mod live;
mod modes;
mod programs;
mod terminal;

use std::process::ExitCode;

use guest_tests::scenario::Suite;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    // The longest first: the others fill what is left of their time.
    debian::add(&mut suite);
    programs::add(&mut suite);
    devices::add(&mut suite);
    compare::add(&mut suite);
    full::add(&mut suite);
    live::add(&mut suite);
    modes::add(&mut suite);
    boot::add(&mut suite);
    control::add(&mut suite);
    exits::add(&mut suite);
    terminal::add(&mut suite);
    suite.run(Arguments::from_args()).exit_code()
}
