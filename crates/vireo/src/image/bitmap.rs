//! `vireo image bitmap`.

use std::process::ExitCode;
use std::sync::Arc;

use block::qcow2::{Qcow2, Qcow2Error};
use block::storage::AnyStorage;
use block::{BlockError, Image};
use clap::{Arg, ArgGroup, ArgMatches, Command};

use super::common;
use crate::failure::{Failure, Result};

pub(super) const NAME: &str = "bitmap";

/// What can be done, in the order in which it is.
const ACTIONS: [(&str, &str); 5] = [
    ("add", "Add a bitmap, in which writes are recorded"),
    ("remove", "Remove the bitmap"),
    ("clear", "Clear the bitmap"),
    ("enable", "Record writes in the bitmap"),
    ("disable", "Do not record writes in the bitmap"),
];

pub(super) fn command() -> Command {
    let actions = ACTIONS.map(|(name, help)| common::flag(name, help));
    Command::new(NAME)
        .about("Adds, removes and changes the dirty bitmaps of an image; `image info` lists them")
        .arg(common::format("Format of the image"))
        .args(actions)
        .arg(common::text(
            "merge",
            "SOURCE",
            "Set what is set in another bitmap of the image too",
        ))
        .group(
            ArgGroup::new("action")
                .args(ACTIONS.map(|(name, _)| name))
                .arg("merge")
                .multiple(true)
                .required(true),
        )
        .arg(
            common::text(
                "granularity",
                "SIZE",
                "What a bit of a new bitmap stands for",
            )
            .short('g')
            .default_value("64K"),
        )
        .arg(common::backing_files())
        .arg(common::file(
            "file",
            "FILE",
            "The image; no running machine uses it",
        ))
        .arg(
            Arg::new("name")
                .value_name("BITMAP")
                .required(true)
                .help("The bitmap's name"),
        )
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let granularity = matches
        .get_one::<String>("granularity")
        .map_or("", String::as_str);
    let changes = Changes {
        name: matches
            .get_one::<String>("name")
            .cloned()
            .unwrap_or_default(),
        granularity: common::size("--granularity", granularity)?,
        actions: ACTIONS
            .map(|(name, _)| name)
            .into_iter()
            .filter(|name| matches.get_flag(name))
            .collect(),
        merge: matches.get_one::<String>("merge").cloned(),
    };
    let spec = common::spec(matches, "file", "format")?;
    let image = common::open(&spec, common::METADATA)?;
    let Image::Qcow2(qcow2) = image.clone() else {
        return Err(Failure::Failed(format!(
            "{} is no qcow2 image: it has no bitmaps",
            spec.file.display()
        )));
    };
    let changed = common::run(move || async move {
        changes
            .apply(&qcow2)
            .await
            .map_err(|source| BlockError::Qcow2 {
                what: "change the bitmaps of",
                path: spec.file.clone(),
                source,
            })
    });
    // What is in memory goes back in any case.
    common::close(&image)?;
    changed.map(|()| ExitCode::SUCCESS)
}

struct Changes {
    name: String,
    granularity: u64,
    actions: Vec<&'static str>,
    merge: Option<String>,
}

impl Changes {
    async fn apply(&self, image: &Arc<Qcow2<AnyStorage>>) -> Result<(), Qcow2Error> {
        for action in &self.actions {
            match *action {
                "add" => image.add_bitmap(&self.name, self.granularity)?,
                "remove" => image.remove_bitmap(&self.name)?,
                "clear" => image.clear_bitmap(&self.name)?,
                other => image.enable_bitmap(&self.name, other == "enable").await?,
            }
        }
        match &self.merge {
            Some(source) => image.merge_bitmap(&self.name, source).await,
            None => Ok(()),
        }
    }
}
