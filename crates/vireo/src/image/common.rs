//! What the subcommands share.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use block::{BackingFiles, BlockError, Cache, DiskSpec, Format, Image, IoBuf, Node, OpenOptions};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use event::{IoThread, IoThreadConfig};
use spec::{Field, Size, Value};

use crate::failure::{Failure, Result};

/// Exit statuses beside success and failure, as qemu-img has them.
pub(super) mod status {
    /// `check`: the image is corrupt. `compare`: the images differ is 1.
    pub(crate) const CORRUPT: u8 = 2;
    /// `check`: clusters are leaked.
    pub(crate) const LEAKS: u8 = 3;
}

pub(crate) fn text(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

pub(crate) fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

pub(super) fn file(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(value)
        .value_parser(value_parser!(PathBuf))
        .required(true)
        .help(help)
}

fn format_arg(name: &'static str, short: char, help: &'static str) -> Arg {
    text(name, "FORMAT", help)
        .short(short)
        .value_parser(PossibleValuesParser::new(["raw", "qcow2", "luks"]))
}

/// `-f`.
pub(crate) fn format(help: &'static str) -> Arg {
    format_arg("format", 'f', help)
}

/// Another format.
pub(super) fn second_format(name: &'static str, short: char, help: &'static str) -> Arg {
    format_arg(name, short, help)
}

/// `--output`, in qemu-img's words.
pub(crate) fn output() -> Arg {
    text("output", "KIND", "How to print it")
        .value_parser(PossibleValuesParser::new(["human", "json"]))
        .default_value("human")
}

pub(crate) fn wants_json(matches: &ArgMatches) -> bool {
    matches
        .get_one::<String>("output")
        .is_some_and(|kind| kind == "json")
}

/// `--backing-files`.
pub(crate) fn backing_files() -> Arg {
    text(
        "backing-files",
        "WHICH",
        "Which other files the header of an image may lead to",
    )
    .value_parser(PossibleValuesParser::new(["same-directory", "any", "none"]))
    .default_value("same-directory")
}

/// One word as a field of a description.
pub(super) fn parse<T: Field>(option: &str, word: &str) -> Result<T> {
    T::from_value(&Value::Text(word.to_owned()))
        .map_err(|why| Failure::Usage(format!("{option}: {word:?}: {why}")))
}

pub(super) fn size(option: &str, word: &str) -> Result<u64> {
    word.parse::<Size>()
        .map(|size| size.0)
        .map_err(|why| Failure::Usage(format!("{option} {word}: {why}")))
}

pub(super) fn path<'a>(matches: &'a ArgMatches, name: &str) -> &'a Path {
    matches
        .get_one::<PathBuf>(name)
        .map_or(Path::new(""), PathBuf::as_path)
}

/// The image that is named, in the format that is said.
pub(crate) fn spec(matches: &ArgMatches, name: &str, format: &str) -> Result<DiskSpec> {
    let format = matches.try_get_one::<String>(format).ok().flatten();
    let format = format.map(|word| parse::<Format>("--format", word));
    let backing_files = matches
        .try_get_one::<String>("backing-files")
        .ok()
        .flatten();
    let backing_files = backing_files.map(|word| parse("--backing-files", word));
    let key_file = matches.try_get_one::<PathBuf>("key-file").ok().flatten();
    Ok(DiskSpec {
        format: format.transpose()?,
        key_file: key_file.cloned(),
        backing_files: backing_files
            .transpose()?
            .unwrap_or(BackingFiles::SameDirectory),
        cache: Cache::Writeback,
        ..DiskSpec::new(path(matches, name))
    })
}

/// As [`spec()`], to be read.
pub(super) fn spec_to_read(matches: &ArgMatches, name: &str, format: &str) -> Result<DiskSpec> {
    Ok(DiskSpec {
        read_only: true,
        ..spec(matches, name, format)?
    })
}

/// For what does not read the disk: no passphrase is needed.
pub(super) const METADATA: OpenOptions = OpenOptions {
    backing: true,
    repair_dirty: true,
    ignore_marks: false,
    metadata_only: true,
};

/// Bytes of the stacks of the threads on which images are opened and repaired.
const STACK: usize = 4 << 20;

/// An I/O thread for work on images.
pub(crate) fn thread(name: &str) -> Result<IoThread> {
    IoThread::spawn(IoThreadConfig {
        stack_size: STACK,
        ..IoThreadConfig::new(name)
    })
    .map_err(|error| Failure::failed(&error))
}

/// The I/O thread on which images are opened and closed. It is there until the process ends:
/// starting another one for each step takes longer than most of them.
fn one_thread() -> Result<&'static IoThread> {
    static THREAD: OnceLock<IoThread> = OnceLock::new();
    match THREAD.get() {
        Some(thread) => Ok(thread),
        None => {
            let made = thread("image")?;
            Ok(THREAD.get_or_init(|| made))
        }
    }
}

/// Runs a future on an I/O thread and waits for it.
pub(crate) fn run<T, F>(make: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, BlockError>> + 'static,
{
    let done = one_thread()?.spawn_task(move || Box::pin(make())).join();
    done.map_err(|error| Failure::failed(&error))?
        .map_err(|error| Failure::failed(&error))
}

/// Opens an image: a file, or what an NBD URI names.
pub(crate) fn open(spec: &DiskSpec, options: OpenOptions) -> Result<Image> {
    let spec = spec.clone();
    if let Some(uri) = spec.file.to_str().filter(|text| nbd::Uri::is_uri(text)) {
        let uri = uri.parse();
        return super::remote::open(spec, options, uri.map_err(|e| Failure::failed(&e))?);
    }
    run(move || async move { block::open_image(&spec, &options).await })
}

/// Closes an image that was changed.
pub(crate) fn close(image: &Image) -> Result<()> {
    let node = image.node();
    let name = node.name();
    let closed = one_thread()?
        .spawn_task(move || async move { node.close().await })
        .join();
    closed
        .map_err(|error| Failure::failed(&error))?
        .map_err(|error| Failure::Failed(format!("cannot close {name}: {error}")))
}

/// The image that another one names in its header.
pub(super) fn beside(spec: &DiskSpec, name: &[u8], format: Option<&str>) -> Result<DiskSpec> {
    let directory = spec.file.parent().unwrap_or(Path::new(""));
    let format = format.map(|word| parse::<Format>("backing format", word));
    Ok(DiskSpec {
        file: directory.join(OsStr::from_bytes(name)),
        format: format.transpose()?,
        ..spec.clone()
    })
}

/// Bytes of a disk; zeros beyond its end.
pub(super) async fn read(node: &dyn Node, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let there = len.min(node.size().saturating_sub(at));
    let mut bytes = Vec::new();
    if there != 0 {
        let buf = IoBuf::zeroed_aligned(usize::try_from(there).unwrap_or(usize::MAX), 4096)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let (result, buf) = node.read_vectored(buf, at).await;
        result?;
        bytes = buf.bytes().map(<[u8]>::to_vec).unwrap_or_default();
    }
    bytes.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    Ok(bytes)
}

/// A buffer with these bytes, as O_DIRECT likes it.
pub(super) fn buffer(bytes: &[u8]) -> io::Result<IoBuf> {
    let mut buf = IoBuf::zeroed_aligned(bytes.len(), 4096).ok_or(io::ErrorKind::OutOfMemory)?;
    if let Some(to) = buf.bytes_mut() {
        to.copy_from_slice(bytes);
    }
    Ok(buf)
}

/// Bytes as people read them.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value {
        v if v >= 100.0 => format!("{v:.0} {}", UNITS[unit]),
        v if v >= 10.0 => format!("{} {}", trimmed(format!("{v:.1}")), UNITS[unit]),
        v => format!("{} {}", trimmed(format!("{v:.2}")), UNITS[unit]),
    }
}

fn trimmed(number: String) -> String {
    number
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(196 << 10), "196 KiB");
        assert_eq!(human(10 << 30), "10 GiB");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(1 << 40), "1 TiB");
    }
}
