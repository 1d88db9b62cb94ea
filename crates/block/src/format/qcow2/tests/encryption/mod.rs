//! Encrypted images, with QEMU's tools and cryptsetup as oracles.
//!
//! | file       | what                                                    |
//! |------------|---------------------------------------------------------|
//! | `keys.rs`  | passphrases, and headers and wishes that are refused    |
//! | `files.rs` | LUKS files, which are no qcow2 images                   |

mod files;
mod keys;

use std::fs;
use std::time::Duration;

use luks::{CipherSpec, Hash, NewHeader, Passphrase};

use proptest::prelude::*;

use super::*;
use crate::{Image, NewEncryption, StatusKind, create_image};

const SECRET: &str = "correct horse\u{e9}";
const SIZE: usize = 3 << 19;

/// A folder with the passphrase in a file.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = directory();
        fs::write(directory.path().join("key"), SECRET).unwrap();
        Self { directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key(&self) -> PathBuf {
        self.file("key")
    }

    fn spec(&self, path: &Path, format: Format) -> DiskSpec {
        DiskSpec {
            format: Some(format),
            key_file: Some(self.key()),
            ..DiskSpec::new(path)
        }
    }

    /// One of QEMU's tools on an image, for which `{}` stands. That of `top.qcow2` has another
    /// one below it.
    fn qemu(&self, words: &[&str], path: &Path, format: Format) -> String {
        let key = format!("secret,id=k,file={}", self.key().display());
        let property = match format {
            Format::Luks => "key-secret",
            _ => "encrypt.key-secret",
        };
        let below = match path.ends_with("top.qcow2") {
            true => ",backing.encrypt.key-secret=k",
            false => "",
        };
        let image = format!(
            "driver={},file.filename={},{property}=k{below}",
            format.word(),
            path.display()
        );
        let mut all = vec![words[0]];
        all.extend(match words[0] {
            "qemu-img" => vec![words[1], "--object", &key, "--image-opts"],
            _ => vec!["--object", &key, "--image-opts"],
        });
        let rest = if words[0] == "qemu-img" { 2 } else { 1 };
        let rest = words[rest..].iter();
        all.extend(rest.map(|word| if *word == "{}" { image.as_str() } else { word }));
        tool(&all)
    }

    fn qemu_bytes(&self, path: &Path, format: Format) -> Vec<u8> {
        let raw = self.file("plain");
        let to = raw.to_str().unwrap();
        self.qemu(
            &["qemu-img", "convert", "-O", "raw", "{}", to],
            path,
            format,
        );
        fs::read(raw).unwrap()
    }

    /// QEMU writes, as a guest would.
    fn qemu_writes(&self, path: &Path, format: Format, model: &mut [u8]) {
        let writes = [
            (0, 512, 0x11),
            (65536 - 512, 1024, 0x22),
            (300 * 512, 200_704, 0x33),
            (1 << 20, 65536, 0x44),
        ];
        let mut words: Vec<String> = vec!["qemu-io".into()];
        for (at, len, value) in writes {
            words.extend(["-c".into(), format!("write -P {value} {at} {len}")]);
            model[at..at + len].fill(value);
        }
        words.push("{}".into());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.qemu(&words, path, format);
    }

    fn check(&self, path: &Path) {
        self.qemu(&["qemu-img", "check", "{}"], path, Format::Qcow2);
    }
}

fn passphrase() -> Passphrase {
    Passphrase::new(SECRET.into())
}

const QUICK: Duration = Duration::from_micros(1);

/// Encryption with a cipher, by LUKS' names.
fn new(name: &str, mode: &str, key_bytes: usize, hash: Hash) -> NewEncryption {
    NewEncryption {
        header: NewHeader {
            cipher: CipherSpec::parse(name, mode).unwrap(),
            key_bytes,
            hash,
            iter_time: QUICK,
        },
        passphrase: passphrase(),
    }
}

fn usual() -> NewEncryption {
    new("aes", "xts-plain64", 64, Hash::Sha256)
}

fn encrypted(encryption: NewEncryption) -> CreateOptions {
    CreateOptions {
        encryption: Some(encryption),
        ..CreateOptions::new(SIZE as u64)
    }
}

async fn make_encrypted(spec: &DiskSpec, options: &CreateOptions) {
    create_image(spec, options).await.unwrap();
}

async fn open_any(spec: &DiskSpec) -> Image {
    open_image(spec, &OpenOptions::default()).await.unwrap()
}

fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

/// What a guest and its tools do, in any place and of any length; `discards` read as zeros.
async fn act(disk: &dyn Node, model: &mut [u8], seed: u64, discards: bool) {
    let mut state = seed | 1;
    for n in 0..40 {
        let len = match next(&mut state) % 4 {
            0 => next(&mut state) % 700 + 1,
            1 => (next(&mut state) % 16 + 1) * 512,
            2 => next(&mut state) % 150_000 + 1,
            _ => 65536,
        };
        let mut at = next(&mut state) % (model.len() - len);
        if n % 3 == 0 {
            at -= at % 512;
        }
        let range = at..at + len;
        match next(&mut state) % 8 {
            0 => {
                let flags = ZeroFlags {
                    may_unmap: n % 2 == 0,
                    fua: false,
                };
                disk.write_zeroes(at as u64, len as u64, flags)
                    .await
                    .unwrap();
                model[range].fill(0);
            }
            1 if discards => {
                let at = at - at % 65536;
                disk.discard(at as u64, 65536).await.unwrap();
                model[at..at + 65536].fill(0);
            }
            2 => assert!(read(disk, at as u64, len).await == model[range], "at {at}"),
            3 => disk.flush().await.unwrap(),
            _ => {
                let bytes = pattern(n, len);
                write(disk, at as u64, bytes.clone()).await;
                model[range].copy_from_slice(&bytes);
            }
        }
    }
    assert!(read(disk, 0, model.len()).await == model);
}

/// We, QEMU, and we again write to an image; everybody reads the same.
fn everybody_agrees(place: &Place, path: &Path, format: Format, rounds: u64, model: &mut Vec<u8>) {
    for round in 0..rounds {
        let spec = place.spec(path, format);
        let mut ours = std::mem::take(model);
        *model = run(move || async move {
            let image = open_any(&spec).await;
            let node = image.node();
            let discards = format == Format::Qcow2;
            act(&*node, &mut ours, 7 + round, discards).await;
            node.close().await.unwrap();
            ours
        });
        if format == Format::Qcow2 {
            place.check(path);
        }
        assert!(place.qemu_bytes(path, format) == *model, "round {round}");
        place.qemu_writes(path, format, model);
    }
    let spec = place.spec(path, format);
    let ours = run(move || async move {
        let node = open_any(&spec).await.node();
        read(&*node, 0, SIZE).await
    });
    assert!(ours == *model);
}

/// `qemu-img create`, until it succeeds in measuring how fast this host is, which it does not
/// always when the host is busy.
fn create_as_qemu(place: &Place, path: &Path, options: &str) {
    let key = format!("secret,id=k,file={}", place.key().display());
    for _ in 0..20 {
        let mut command = Command::new("qemu-img");
        command.args([
            "create", "-q", "-f", "qcow2", "--object", &key, "-o", options,
        ]);
        let output = command.arg(path).arg(SIZE.to_string()).output().unwrap();
        if output.status.success() {
            return;
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("accurate CPU usage"), "{errors}");
    }
    panic!("QEMU cannot measure");
}

#[test]
fn qemus_luks_images_are_read_and_written() {
    let place = Place::new();
    let path = place.file("image.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10";
    create_as_qemu(&place, &path, options);
    let mut model = vec![0; SIZE];
    place.qemu_writes(&path, Format::Qcow2, &mut model);
    everybody_agrees(&place, &path, Format::Qcow2, 2, &mut model);
}

#[test]
fn qemus_old_encryption_is_read_and_written() {
    let place = Place::new();
    for (n, options) in ["", ",compat=0.10", ",cluster_size=512"].iter().enumerate() {
        let path = place.file(&format!("image{n}.qcow2"));
        let options = format!("encrypt.format=aes,encrypt.key-secret=k{options}");
        create_as_qemu(&place, &path, &options);
        let mut model = vec![0; SIZE];
        place.qemu_writes(&path, Format::Qcow2, &mut model);
        everybody_agrees(&place, &path, Format::Qcow2, 2, &mut model);
    }
}

#[test]
fn our_luks_images_are_read_and_written_by_qemu() {
    let shapes = [
        encrypted(usual()),
        CreateOptions {
            cluster_size: 4096,
            ..encrypted(new("aes", "cbc-essiv:sha256", 32, Hash::Sha1))
        },
        CreateOptions {
            preallocation: Preallocation::Metadata,
            lazy_refcounts: true,
            ..encrypted(new("twofish", "cbc-plain64", 16, Hash::Sha512))
        },
        CreateOptions {
            preallocation: Preallocation::Full,
            ..encrypted(new("aes", "ecb-plain64", 32, Hash::Sha256))
        },
    ];
    for (n, options) in shapes.into_iter().enumerate() {
        let place = Place::new();
        let path = place.file(&format!("image{n}.qcow2"));
        let spec = place.spec(&path, Format::Qcow2);
        run(move || async move { make_encrypted(&spec, &options).await });
        place.check(&path);
        assert!(place.qemu_bytes(&path, Format::Qcow2) == vec![0; SIZE]);
        let mut model = vec![0; SIZE];
        everybody_agrees(&place, &path, Format::Qcow2, 1, &mut model);
    }
}

#[test]
fn snapshots_and_backing_files_are_decrypted_and_encrypted_again() {
    let place = Place::new();
    let (base, top) = (place.file("base.qcow2"), place.file("top.qcow2"));
    let specs = [&base, &top].map(|path| place.spec(path, Format::Qcow2));
    let mut model = pattern(5, SIZE);
    let written = model.clone();
    model = run(move || async move {
        let [base, top] = specs;
        make_encrypted(&base, &encrypted(usual())).await;
        let disk = open_any(&base).await.node();
        write(&*disk, 0, written).await;
        disk.close().await.unwrap();
        drop(disk);
        let options = CreateOptions {
            backing_file: Some(b"base.qcow2".to_vec()),
            backing_format: Some("qcow2".into()),
            ..encrypted(new("aes", "cbc-plain64", 32, Hash::Sha256))
        };
        make_encrypted(&top, &options).await;
        let Image::Qcow2(disk) = open_any(&top).await else {
            panic!("another format");
        };
        // Less than a sector, within a cluster, over clusters.
        for (at, len) in [(5, 3), (70_000, 1000), (200_000, 200_001)] {
            let bytes = pattern(9, len);
            write(&*disk, at as u64, bytes.clone()).await;
            model[at..at + len].copy_from_slice(&bytes);
        }
        let before = model.clone();
        let request = SnapshotRequest {
            name: "then".into(),
            ..SnapshotRequest::default()
        };
        disk.create_snapshot(&request).await.unwrap();
        // A discard of what it does not have shows the backing file.
        act(&*disk, &mut model, 3, false).await;
        disk.copy_up(0, SIZE as u64).await.unwrap();
        assert!(read(&*disk, 0, SIZE).await == model);
        let now = model.clone();
        disk.apply_snapshot("then").await.unwrap();
        assert!(read(&*disk, 0, SIZE).await == before);
        write(&*disk, 1000, now[1000..100_000].to_vec()).await;
        model = before;
        model[1000..100_000].copy_from_slice(&now[1000..100_000]);
        disk.close().await.unwrap();
        model
    });
    place.check(&top);
    let spec = place.spec(&top, Format::Qcow2);
    let ours = run(move || async move {
        let node = open_any(&spec).await.node();
        read(&*node, 0, SIZE).await
    });
    assert!(ours == model);
}

#[test]
fn parts_of_one_sector_are_written_at_the_same_time() {
    let place = Place::new();
    for format in [Format::Qcow2, Format::Luks] {
        let spec = place.spec(&place.file("image"), format);
        run(move || async move {
            make_encrypted(&spec, &encrypted(usual())).await;
            let disk = open_any(&spec).await.node();
            let mut model = pattern(1, 4096);
            write(&*disk, 0, model.clone()).await;
            for _ in 0..10 {
                let parts = (0..32).map(|n| {
                    let (at, bytes) = (700 + n * 37, pattern(n as u8, 37));
                    model[at..at + 37].copy_from_slice(&bytes);
                    write(&*disk, at as u64, bytes)
                });
                let parts: Vec<_> = parts.collect();
                event::join_all(parts).await;
                assert!(read(&*disk, 0, 4096).await == model);
            }
            disk.close().await.unwrap();
        });
    }
}

#[test]
fn nothing_of_the_guest_is_in_the_file_nor_ciphertext_in_the_guest() {
    let place = Place::new();
    for format in [Format::Qcow2, Format::Luks] {
        let path = place.file("image");
        let spec = place.spec(&path, format);
        let (clear, piece) = run(move || async move {
            make_encrypted(&spec, &encrypted(usual())).await;
            let disk = open_any(&spec).await.node();
            let clear = pattern(3, (1 << 20) + 8192);
            let buf = IoBuf::from_vec(clear.clone());
            let flags = WriteFlags { fua: true };
            let (result, buf) = disk.write_vectored(buf, 4096, flags).await;
            result.unwrap();
            assert!(buf.into_vec().unwrap() == clear, "the buffer was changed");
            // What is on the disk is not what tools may copy.
            let status = disk.block_status(4096, 512).await.unwrap();
            assert_eq!((status.kind, status.host), (StatusKind::Data, None));
            disk.close().await.unwrap();
            (clear.clone(), clear[512..544].to_vec())
        });
        let stored = fs::read(&path).unwrap();
        assert!(stored.len() > clear.len());
        assert!(!stored.windows(32).any(|window| window == piece));
        assert!(
            !stored
                .windows(13)
                .any(|window| window == &SECRET.as_bytes()[..13])
        );
    }
}

#[test]
fn data_in_another_file_is_encrypted() {
    let place = Place::new();
    let path = place.file("image.qcow2");
    let spec = place.spec(&path, Format::Qcow2);
    let options = CreateOptions {
        // QEMU looks for other names where it runs.
        data_file: Some(place.file("data").into_os_string().into_encoded_bytes()),
        ..encrypted(usual())
    };
    run(move || async move {
        make_encrypted(&spec, &options).await;
        let node = open_any(&spec).await.node();
        write(&*node, 100, pattern(2, 1 << 20)).await;
        node.close().await.unwrap();
    });
    let stored = fs::read(place.file("data")).unwrap();
    let clear = pattern(2, 1 << 20);
    assert!(!stored.windows(32).any(|window| window == &clear[512..544]));
    let bytes = place.qemu_bytes(&path, Format::Qcow2);
    assert!(bytes[100..100 + (1 << 20)] == clear);
}

#[test]
fn eight_queues_share_an_encrypted_image() {
    let place = Place::new();
    let path = place.file("image.qcow2");
    let spec = place.spec(&path, Format::Qcow2);
    let disk = run(move || async move {
        let options = CreateOptions {
            size: queues::SIZE,
            ..encrypted(usual())
        };
        make_encrypted(&spec, &options).await;
        try_open_with(spec, OpenOptions::default()).await.unwrap()
    });
    let model = queues::in_eight_queues(&disk, 20);
    run(move || async move { disk.close().await.unwrap() });
    place.check(&path);
    assert!(place.qemu_bytes(&path, Format::Qcow2) == model);
}

#[test]
fn what_grows_is_zero() {
    let place = Place::new();
    let path = place.file("image.qcow2");
    let spec = place.spec(&path, Format::Qcow2);
    run(move || async move {
        let options = CreateOptions {
            size: 100 << 10,
            ..encrypted(usual())
        };
        make_encrypted(&spec, &options).await;
        let disk = open_any(&spec).await.node();
        write(&*disk, 0, pattern(6, 100 << 10)).await;
        for (size, data) in [(90 << 10, 90 << 10), (1 << 20, 90 << 10)] {
            disk.resize(size).await.unwrap();
            let mut model = pattern(6, 100 << 10);
            model.truncate(data);
            model.resize(size as usize, 0);
            assert!(read(&*disk, 0, size as usize).await == model);
        }
        disk.close().await.unwrap();
    });
    place.check(&path);
    let bytes = place.qemu_bytes(&path, Format::Qcow2);
    let zeros = bytes[90 << 10..].iter().all(|byte| *byte == 0);
    assert!(bytes.len() == 1 << 20 && zeros);
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn an_encrypted_image_behaves_like_an_array_of_bytes(
        mut shape in random::shapes(),
        steps in random::steps(),
        cipher in 0..4usize,
    ) {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        let (name, mode, key_bytes) = [
            ("aes", "xts-plain64", 64),
            ("aes", "cbc-essiv:sha256", 16),
            ("twofish", "xts-plain64", 32),
            ("serpent", "cbc-plain64", 32),
        ][cipher];
        shape.create.encryption = Some(new(name, mode, key_bytes, Hash::Sha256));
        if shape.create.version == 2 {
            shape.create.preallocation = Preallocation::Off;
        }
        let model = random::made_and_followed(&path, shape, steps);
        place.check(&path);
        prop_assert!(place.qemu_bytes(&path, Format::Qcow2) == model);
    }
}
