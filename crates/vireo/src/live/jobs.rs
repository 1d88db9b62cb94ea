//! `vireo jobs`.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::common;
use super::disk::{number, text};
use crate::failure::Result;
use crate::image::common::{output as output_option, wants_json};
use crate::output;

pub(super) const NAME: &str = "jobs";

const VERBS: [&str; 6] = [
    "pause", "resume", "cancel", "complete", "finalize", "dismiss",
];

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Shows the jobs on a running machine's disks, and speaks to them")
        .after_help("Example: vireo jobs vm.sock pause commit-disk0")
        .arg(common::vm())
        .arg(
            Arg::new("verb")
                .value_name("VERB")
                .value_parser(PossibleValuesParser::new(VERBS))
                .requires("job")
                .help("What the job is to do; without it, all jobs are shown"),
        )
        .arg(Arg::new("job").value_name("ID").help("The job"))
        .arg(output_option())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let client = &mut common::connect(matches)?;
    if let Some(verb) = matches.get_one::<String>("verb") {
        let id = json!({ "id": common::word(matches, "job") });
        client.call(&format!("job-{verb}"), Some(id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let jobs = client.call("query-jobs", None)?;
    if wants_json(matches) {
        return output::print_json(&jobs);
    }
    let jobs = jobs.as_array().cloned().unwrap_or_default();
    output::print(&match jobs.is_empty() {
        true => "no jobs\n".to_owned(),
        false => table(&jobs),
    })
}

/// One line for each job.
pub(super) fn table(jobs: &[Value]) -> String {
    let header = ["JOB", "TYPE", "STATUS", "DONE", "ERROR"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for job in jobs {
        let (done, all) = (
            number(job, "current-progress"),
            number(job, "total-progress"),
        );
        let percent = match all {
            0 => 0.0,
            all => done as f64 * 100.0 / all as f64,
        };
        rows.push(vec![
            text(job, "id").to_owned(),
            text(job, "type").to_owned(),
            text(job, "status").to_owned(),
            format!("{percent:.0}%"),
            text(job, "error").to_owned(),
        ]);
    }
    output::table(&rows)
}
