//! The format as a whole, with QEMU's tools as the oracle.

mod copy_up;
mod encryption;
mod hostile;
#[cfg(shuttle)]
mod interleavings;
mod matrix;
mod power;
mod queues;
mod random;
mod repair;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use event::{IoBuf, IoThread, IoThreadConfig, WriteFlags};
use tempfile::TempDir;

use super::*;
use crate::storage::AnyStorage;
use crate::{DiskSpec, Format, Image, OpenOptions, create_file, open_image};

pub(super) type Disk = Arc<Qcow2<AnyStorage>>;

/// Runs a future on an I/O thread.
pub(super) fn run<T, F, M>(make: M) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce() -> F + Send + 'static,
{
    static THREAD: LazyLock<IoThread> = LazyLock::new(|| {
        IoThread::spawn(IoThreadConfig {
            stack_size: 8 << 20,
            ..IoThreadConfig::new("qcow2")
        })
        .unwrap()
    });
    THREAD.spawn_task(make).join().unwrap()
}

pub(super) fn directory() -> TempDir {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
    std::fs::create_dir_all(&target).unwrap();
    tempfile::tempdir_in(target).unwrap()
}

/// Runs one of QEMU's tools; its output.
pub(super) fn tool(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{errors}");
    text
}

/// `qemu-img create`, with these options, which may be none.
pub(super) fn qemu_create(path: &Path, options: &str, size: &str) {
    let mut words = vec!["qemu-img", "create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        words.extend(["-o", options]);
    }
    words.extend([path.to_str().unwrap(), size]);
    tool(&words);
}

/// `qemu-img check` finds nothing.
pub(super) fn qemu_check(path: &Path) {
    tool(&["qemu-img", "check", "-f", "qcow2", path.to_str().unwrap()]);
}

/// The disk in an image as QEMU sees it.
pub(super) fn qemu_bytes(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("converted");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    tool(&["qemu-img", "convert", "-f", "qcow2", "-O", "raw", from, to]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// How to open an image; the passphrase is in the file `key` beside it, if there is one.
pub(super) fn spec(path: &Path) -> DiskSpec {
    let key = path.with_file_name("key");
    DiskSpec {
        format: Some(Format::Qcow2),
        key_file: key.exists().then_some(key),
        ..DiskSpec::new(path)
    }
}

pub(super) async fn try_open_with(
    spec: DiskSpec,
    options: OpenOptions,
) -> Result<Disk, BlockError> {
    match open_image(&spec, &options).await? {
        Image::Qcow2(disk) => Ok(disk),
        Image::Raw(_) | Image::Luks(_) => panic!("another format"),
    }
}

pub(super) async fn open(path: &Path) -> Disk {
    try_open_with(spec(path), OpenOptions::default())
        .await
        .unwrap()
}

/// Makes an image.
pub(super) async fn make(path: &Path, options: &CreateOptions) {
    let spec = spec(path);
    let data = options.data_file.as_ref().map(|_| {
        let data = create_file(&DiskSpec::new(path.with_extension("data"))).unwrap();
        (data, DiskSpec::new(path.with_extension("data")))
    });
    let storage = create_file(&spec).unwrap();
    create(&storage, options).await.unwrap();
    if let Some((data, _)) = &data {
        data.resize(options.size).await.unwrap();
    }
    if options.preallocation != Preallocation::Off {
        let files = Opened {
            image: storage,
            data: data.map(|(data, _)| data),
            backing: None,
        };
        preallocate(files, options).await.unwrap();
    }
}

pub(super) async fn read(disk: &dyn Node, offset: u64, len: usize) -> Vec<u8> {
    let buf = IoBuf::from_vec(vec![0xa5; len]);
    let (result, buf) = disk.read_vectored(buf, offset).await;
    result.unwrap();
    buf.into_vec().unwrap()
}

pub(super) async fn write(disk: &dyn Node, offset: u64, bytes: Vec<u8>) {
    let flags = WriteFlags::default();
    let buf = IoBuf::from_vec(bytes);
    disk.write_vectored(buf, offset, flags).await.0.unwrap();
}

/// The image checks clean for both, and has these bytes for both.
pub(super) fn same_everywhere(path: &Path, model: &[u8]) {
    qemu_check(path);
    assert!(qemu_bytes(path) == model, "QEMU reads something else");
    let path = path.to_owned();
    let size = model.len();
    let (report, bytes) = run(move || async move {
        let spec = DiskSpec {
            read_only: true,
            ..spec(&path)
        };
        let options = OpenOptions {
            ignore_marks: true,
            ..OpenOptions::default()
        };
        let disk = try_open_with(spec, options).await.unwrap();
        let report = disk.check(None).await.unwrap();
        (report, read(&*disk, 0, size).await)
    });
    assert_eq!(report.messages, Vec::<String>::new());
    assert!(bytes == model, "read again it is something else");
}

/// Bytes that are not all the same.
pub(super) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i / 7) as u8).wrapping_mul(31) ^ seed | 1)
        .collect()
}

pub(super) fn in_directory(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

/// So many cases, or what PROPTEST_CASES says.
pub(super) fn cases(cases: u32) -> proptest::prelude::ProptestConfig {
    let default = proptest::prelude::ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => proptest::prelude::ProptestConfig { cases, ..default },
    }
}
