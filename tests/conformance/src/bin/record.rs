//! `cargo run -p conformance --bin record -- FILE`: runs the snippets of a file on the host and
//! writes them to standard output with what came out.

use std::env;
use std::fs;

use anyhow::Context;
use conformance::Backend;
use conformance::host::Host;
use conformance::snippet;

fn main() -> anyhow::Result<()> {
    let file = env::args().nth(1).context("which file?")?;
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    let mut host = Host::new();
    for one in snippet::parse(&text)? {
        let mut outcome = host.run(&one.case);
        outcome.registers.rflags =
            outcome.registers.rflags & !one.undefined | one.case.registers.rflags & one.undefined;
        let start = (one.case.registers.rip - conformance::CODE) as usize;
        let written = snippet::write(&one.case, &outcome, start, one.undefined);
        let (_, rest) = written.split_once('\n').unwrap_or_default();
        println!("# {}\n{rest}\n", one.name);
    }
    Ok(())
}
