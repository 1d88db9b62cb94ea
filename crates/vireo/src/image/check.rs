//! `vireo image check`.

use std::process::ExitCode;

use block::qcow2::{CheckReport, Repair};
use block::{BlockError, DiskSpec, Image, OpenOptions};
use clap::builder::PossibleValuesParser;
use clap::{ArgMatches, Command};
use serde_json::json;

use super::common::{self, status};
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "check";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Checks an image's tables, and repairs them")
        .arg(common::format("Format of the image"))
        .arg(common::output())
        .arg(
            common::text("repair", "WHAT", "Repair leaks, or everything")
                .short('r')
                .value_parser(PossibleValuesParser::new(["leaks", "all"])),
        )
        .arg(common::file("file", "FILE", "The image: a file, or an NBD URI"))
        .after_help("Exit status: 0 nothing is wrong, 1 it could not be checked, 2 the image is corrupt, 3 clusters are leaked.")
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let repair = matches.get_one::<String>("repair");
    let repair = repair
        .map(|word| common::parse::<Repair>("--repair", word))
        .transpose()?;
    let spec = DiskSpec {
        read_only: repair.is_none(),
        ..common::spec(matches, "file", "format")?
    };
    let path = spec.file.display().to_string();
    let options = OpenOptions {
        backing: false,
        ignore_marks: true,
        metadata_only: true,
        ..OpenOptions::default()
    };
    let Image::Qcow2(image) = common::open(&spec, options)? else {
        return Err(Failure::Failed(format!(
            "{path} is no qcow2 image: it has no tables to check"
        )));
    };
    let report = common::run(move || async move {
        let report = image.check(repair).await;
        report.map_err(|source| BlockError::Qcow2 {
            what: "check",
            path: spec.file.clone(),
            source,
        })
    })?;
    if common::wants_json(matches) {
        output::print_json(&json!({
            "filename": path,
            "format": "qcow2",
            "check-errors": report.check_errors,
            "corruptions": report.corruptions,
            "leaks": report.leaks,
            "corruptions-fixed": report.corruptions_fixed,
            "leaks-fixed": report.leaks_fixed,
            "total-clusters": report.total_clusters,
            "allocated-clusters": report.allocated_clusters,
            "fragmented-clusters": report.fragmented_clusters,
            "compressed-clusters": report.compressed_clusters,
            "image-end-offset": report.image_end_offset,
        }))?;
    } else {
        output::print(&as_text(&report))?;
    }
    Ok(match report {
        _ if report.check_errors != 0 => ExitCode::FAILURE,
        _ if report.corruptions != 0 => ExitCode::from(status::CORRUPT),
        _ if report.leaks != 0 => ExitCode::from(status::LEAKS),
        _ => ExitCode::SUCCESS,
    })
}

fn as_text(report: &CheckReport) -> String {
    let mut lines = report.messages.clone();
    if report.corruptions_fixed + report.leaks_fixed != 0 {
        lines.push(format!(
            "Repaired: {} leaked clusters, {} errors.",
            report.leaks_fixed, report.corruptions_fixed
        ));
    }
    for (count, what) in [
        (
            report.corruptions,
            "errors: data may be destroyed; `check --repair all` may help",
        ),
        (
            report.leaks,
            "leaked clusters: wasted space, and no harm to data",
        ),
        (report.check_errors, "places could not be checked"),
    ] {
        if count != 0 {
            lines.push(format!("{count} {what}."));
        }
    }
    if report.corruptions + report.leaks + report.check_errors == 0 {
        lines.push("No errors were found on the image.".into());
    }
    let share = |part: u64, whole: u64| match whole {
        0 => 0.0,
        whole => part as f64 * 100.0 / whole as f64,
    };
    lines.push(format!(
        "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
        report.allocated_clusters,
        report.total_clusters,
        share(report.allocated_clusters, report.total_clusters),
        share(report.fragmented_clusters, report.allocated_clusters),
        share(report.compressed_clusters, report.allocated_clusters),
    ));
    lines.push(format!("Image end offset: {}\n", report.image_end_offset));
    lines.join("\n")
}
