//! `vireo image create`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use block::qcow2::CreateOptions;
use block::{BackingFiles, DiskSpec, Format};
use clap::{Arg, ArgMatches, Command, value_parser};

use super::common;
use super::encryption::{self, Words};
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "create";

/// What `-o` takes.
const OPTIONS: [&str; 12] = [
    "size",
    "compat",
    "cluster_size",
    "refcount_bits",
    "lazy_refcounts",
    "extended_l2",
    "compression_type",
    "preallocation",
    "backing_file",
    "backing_fmt",
    "data_file",
    "data_file_raw",
];

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Makes an empty image, or one on top of another")
        .arg(common::format("Format of the new image").default_value("raw"))
        .arg(options())
        .arg(
            common::text("backing", "FILE", "The image below, which is not changed")
                .short('b')
                .value_parser(value_parser!(OsString)),
        )
        .arg(common::second_format(
            "backing-format",
            'F',
            "Format of the image below; it is recorded in the new one",
        ))
        .arg(common::flag("quiet", "Say nothing").short('q'))
        .arg(common::file(
            "file",
            "FILE",
            "The image to make; one that exists is replaced",
        ))
        .arg(Arg::new("size").value_name("SIZE").help(
            "Size of the disk, in bytes or with K, M, G, T; that of the image below when not given",
        ))
}

/// `-o`.
pub(super) fn options() -> Arg {
    common::text(
        "options",
        "NAME=VALUE,...",
        "compat, cluster_size, refcount_bits, lazy_refcounts, extended_l2, compression_type, \
         preallocation, backing_file, backing_fmt, data_file, data_file_raw; encrypt.format=luks, \
         encrypt.key-file, encrypt.iter-time (milliseconds), encrypt.cipher-alg, \
         encrypt.cipher-mode, encrypt.ivgen-alg, encrypt.ivgen-hash-alg, encrypt.hash-alg (without \
         \"encrypt.\" for a LUKS image)",
    )
    .short('o')
    .action(clap::ArgAction::Append)
}

/// Applies `-o` to a new image's options; whether it said a size, and what about encryption.
pub(super) fn apply(matches: &ArgMatches, create: &mut CreateOptions) -> Result<(bool, Words)> {
    let mut sized = false;
    let mut words = Words::default();
    for list in matches.get_many::<String>("options").unwrap_or_default() {
        for pair in list.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "on"));
            let name = name.replace('-', "_");
            sized |= name == "size";
            if !words.take(&name, value)? {
                one(create, &name, value)?;
            }
        }
    }
    Ok((sized, words))
}

fn one(create: &mut CreateOptions, name: &str, value: &str) -> Result<()> {
    let option = format!("-o {name}");
    let number = |word: &str| {
        word.parse::<u32>()
            .map_err(|_| Failure::Usage(format!("{option}: {word:?} is no number")))
    };
    match name {
        "size" => create.size = common::size(&option, value)?,
        "compat" => {
            create.version = match value {
                "0.10" | "v2" => 2,
                "1.1" | "v3" => 3,
                _ => return Err(Failure::Usage(format!("{option}: expected 0.10 or 1.1"))),
            }
        }
        "cluster_size" => create.cluster_size = common::size(&option, value)?,
        "refcount_bits" => create.refcount_bits = number(value)?,
        "lazy_refcounts" => create.lazy_refcounts = common::parse(&option, value)?,
        "extended_l2" => create.extended_l2 = common::parse(&option, value)?,
        "compression_type" => create.compression = common::parse(&option, value)?,
        "preallocation" => create.preallocation = common::parse(&option, value)?,
        "backing_file" => create.backing_file = Some(value.into()),
        "backing_fmt" => create.backing_format = Some(value.to_owned()),
        "data_file" => create.data_file = Some(value.into()),
        "data_file_raw" => create.data_file_raw = common::parse(&option, value)?,
        other => {
            let plain = other.strip_prefix("encrypt.").unwrap_or(other);
            let near = spec::nearest(plain, OPTIONS.into_iter().chain(encryption::NAMES));
            let advice = near.map_or_else(
                || format!("expected one of {}", OPTIONS.join(", ")),
                |near| format!("did you mean {near:?}?"),
            );
            return Err(Failure::Usage(format!("-o {other}: {advice}")));
        }
    }
    Ok(())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let mut create = CreateOptions::new(0);
    let (mut sized, encryption) = apply(matches, &mut create)?;
    if let Some(backing) = matches.get_one::<OsString>("backing") {
        create.backing_file = Some(backing.as_bytes().to_vec());
    }
    if let Some(format) = matches.get_one::<String>("backing-format") {
        create.backing_format = Some(format.clone());
    }
    if let Some(word) = matches.get_one::<String>("size") {
        create.size = common::size("SIZE", word)?;
        sized = true;
    }
    let spec = common::spec(matches, "file", "format")?;
    create.encryption = encryption.resolve(spec.format)?;
    if let Some(backing) = create.backing_file.clone() {
        if spec.format != Some(Format::Qcow2) {
            return Err(Failure::Usage(
                "only a qcow2 image (-f qcow2) has a backing file".into(),
            ));
        }
        let below = below(&spec, &backing, create.backing_format.as_deref())?;
        let size = common::run(move || async move { block::image_size(&below).await })?;
        if !sized {
            create.size = size;
        }
    } else if !sized {
        return Err(Failure::Usage(
            "say the disk's size, for example 10G".into(),
        ));
    }
    let options = create.clone();
    let image = spec.clone();
    common::run(move || async move { block::create_image(&image, &options).await })?;
    if matches.get_flag("quiet") {
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&format!(
        "{}: {} image of {}\n",
        spec.file.display(),
        spec.format.unwrap_or(Format::Raw).word(),
        common::human(create.size)
    ))
}

/// The image below, as the new one will name it.
fn below(spec: &DiskSpec, named: &[u8], format: Option<&str>) -> Result<DiskSpec> {
    let Some(format) = format else {
        return Err(Failure::Usage(
            "say the format of the image below (-F raw or -F qcow2): it is never guessed".into(),
        ));
    };
    let directory = spec.file.parent().unwrap_or(Path::new(""));
    let path: PathBuf = directory.join(std::ffi::OsStr::from_bytes(named));
    Ok(DiskSpec {
        format: Some(common::parse("--backing-format", format)?),
        // Who makes an image on top of another trusts that one.
        backing_files: BackingFiles::Any,
        read_only: true,
        ..DiskSpec::new(path)
    })
}
