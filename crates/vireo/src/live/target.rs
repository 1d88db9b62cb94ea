//! Images that a machine writes to: made here, opened there, and given back in the end.

use std::path::{Path, PathBuf};

use block::qcow2::CreateOptions;
use block::{DiskSpec, Format};
use clap::ArgMatches;
use serde_json::{Value, json};

use super::disk::Disk;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::image::common;

/// An image that is open in the machine as a node without users.
pub(super) struct Target {
    /// The node.
    pub node: String,
    file: PathBuf,
    is_new: bool,
}

/// What the image is to be like.
pub(super) struct Wanted<'a> {
    /// Absolute.
    pub file: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'a str,
    /// Bytes of the disk.
    pub size: u64,
    /// The image below, absolute, and its format.
    pub backing: Option<(PathBuf, &'a str)>,
    /// It is there, and is used as it is.
    pub existing: bool,
}

/// `--unencrypted`.
pub(super) fn unencrypted() -> clap::Arg {
    common::flag(
        "unencrypted",
        "The disk is encrypted, and this file need not be",
    )
}

/// What is secret is not written to a plain file unasked.
pub(super) fn check_secret(matches: &ArgMatches, disk: &Disk) -> Result<()> {
    let is_secret = |node: &Value| node.get("encrypted").and_then(Value::as_bool) == Some(true);
    match disk.chain.iter().any(is_secret) && !matches.get_flag("unencrypted") {
        false => Ok(()),
        true => Err(Failure::Failed(format!(
            "disk {:?} is encrypted, and the file would not be: say --unencrypted if that may be",
            disk.id
        ))),
    }
}

/// Makes the image, unless it is there and may be used, and lets the machine open it.
pub(super) fn open(client: &mut Client, wanted: Wanted<'_>) -> Result<Target> {
    let file = wanted.file;
    if wanted.existing {
        if !file.exists() {
            return Err(Failure::Failed(format!(
                "{} does not exist: leave out --existing, and it is made",
                file.display()
            )));
        }
    } else {
        refuse_existing(&file)?;
        create(&file, wanted.format, wanted.size, wanted.backing)?;
    }
    let target = Target {
        node: free_name(client)?,
        file,
        is_new: !wanted.existing,
    };
    let options = json!({
        "driver": wanted.format,
        "node-name": target.node,
        "file": { "driver": "file", "filename": target.file.display().to_string() },
    });
    match client.call("blockdev-add", Some(options)) {
        Ok(_) => Ok(target),
        Err(failure) => {
            target.remove();
            Err(failure)
        }
    }
}

/// Nothing that is there is overwritten unasked.
pub(super) fn refuse_existing(file: &Path) -> Result<()> {
    match file.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::Failed(format!(
            "{} exists already: choose another name, or use it as it is with --existing",
            file.display()
        ))),
    }
}

fn create(file: &Path, format: &str, size: u64, backing: Option<(PathBuf, &str)>) -> Result<()> {
    let mut options = CreateOptions::new(size);
    if let Some((below, format)) = backing {
        options.backing_file = Some(below.to_string_lossy().into_owned().into_bytes());
        options.backing_format = Some(format.to_owned());
    }
    let spec = DiskSpec {
        format: Some(match format {
            "raw" => Format::Raw,
            _ => Format::Qcow2,
        }),
        ..DiskSpec::new(file.to_owned())
    };
    common::run(move || async move { block::create_image(&spec, &options).await })
}

/// A node's name that none has.
pub(super) fn free_name(client: &mut Client) -> Result<String> {
    let nodes = client.call("query-named-block-nodes", Some(json!({ "flat": true })))?;
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let taken = |name: &String| {
        let own = Value::String(name.clone());
        nodes.iter().any(|node| node.get("node-name") == Some(&own))
    };
    let mut names = (1_u32..).map(|number| format!("target{number}"));
    Ok(names.find(|name| !taken(name)).unwrap_or_default())
}

impl Target {
    /// Closes it in the machine; the file has what the job wrote.
    pub(super) fn close(self, client: &mut Client) -> Result<()> {
        let node = json!({ "node-name": self.node });
        client.call("blockdev-del", Some(node)).map(|_| ())
    }

    /// Closes it in the machine, and removes the file if it was made for this.
    pub(super) fn give_up(self, client: &mut Client) {
        let node = json!({ "node-name": self.node });
        match client.call("blockdev-del", Some(node)) {
            Ok(_) => self.remove(),
            Err(_) => eprintln!(
                "vireo: {} is still open in the machine, as node {:?}",
                self.file.display(),
                self.node
            ),
        }
    }

    fn remove(&self) {
        if self.is_new
            && let Err(error) = std::fs::remove_file(&self.file)
        {
            eprintln!("vireo: cannot remove {}: {error}", self.file.display());
        }
    }
}
