//! Encrypted images, with QEMU's tools and cryptsetup as oracles.

use std::fs;
use std::time::Duration;

use luks::{CipherSpec, Hash, LuksError, NewHeader, Passphrase};

use super::*;
use crate::storage::Storage;
use crate::{CryptError, Encryption, EraseKey, Image, NewEncryption, StatusKind, create_image};

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

#[test]
fn qemus_luks_images_are_read_and_written() {
    let place = Place::new();
    let path = place.file("image.qcow2");
    let key = format!("secret,id=k,file={}", place.key().display());
    let to = path.to_str().unwrap();
    let options = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10";
    tool(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "--object", &key, "-o", options, to, "1536K",
    ]);
    let mut model = vec![0; SIZE];
    place.qemu_writes(&path, Format::Qcow2, &mut model);
    everybody_agrees(&place, &path, Format::Qcow2, 2, &mut model);
}

#[test]
fn qemus_old_encryption_is_read_and_written() {
    let place = Place::new();
    for (n, options) in ["", ",compat=0.10", ",cluster_size=512"].iter().enumerate() {
        let path = place.file(&format!("image{n}.qcow2"));
        let key = format!("secret,id=k,file={}", place.key().display());
        let options = format!("encrypt.format=aes,encrypt.key-secret=k{options}");
        let to = path.to_str().unwrap();
        tool(&[
            "qemu-img", "create", "-q", "-f", "qcow2", "--object", &key, "-o", &options, to,
            "1536K",
        ]);
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
            extended_l2: true,
            ..encrypted(new("serpent", "xts-plain64", 64, Hash::Sha512))
        },
        CreateOptions {
            version: 2,
            cluster_size: 512,
            ..encrypted(new("aes", "xts-plain64", 32, Hash::Sha256))
        },
        CreateOptions {
            preallocation: Preallocation::Metadata,
            lazy_refcounts: true,
            ..encrypted(new("twofish", "cbc-plain64", 16, Hash::Sha256))
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
            let clear = pattern(3, 1 << 20);
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

fn chain_of(error: BlockError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[test]
fn without_the_passphrase_there_is_only_what_the_header_says() {
    let place = Place::new();
    for format in [Format::Qcow2, Format::Luks] {
        let spec = place.spec(&place.file("image"), format);
        let keys = [
            (None, "say key-file="),
            (Some("wrong"), "opens none of the key slots"),
            (Some("wrong\n"), "line's end"),
            (Some(""), "it is empty"),
        ];
        let other = place.file("other");
        run(move || async move {
            make_encrypted(&spec, &encrypted(usual())).await;
            for (key, says) in keys {
                if let Some(key) = key {
                    fs::write(&other, key).unwrap();
                }
                let spec = DiskSpec {
                    key_file: key.map(|_| other.clone()),
                    ..spec.clone()
                };
                let opened = open_image(&spec, &OpenOptions::default()).await;
                let Err(error) = opened.map(drop) else {
                    panic!("opened with {key:?}");
                };
                let text = chain_of(error);
                assert!(text.contains(says), "{text}");
            }
            let locked = DiskSpec {
                key_file: None,
                ..spec.clone()
            };
            let options = OpenOptions {
                metadata_only: true,
                ..OpenOptions::default()
            };
            let image = open_image(&locked, &options).await.unwrap();
            let node = image.node();
            assert_eq!(node.size(), SIZE as u64);
            let encryption = match &image {
                Image::Qcow2(qcow2) => {
                    assert_eq!(qcow2.check(None).await.unwrap().messages, [""; 0]);
                    qcow2.info().encryption
                }
                Image::Luks(luks) => Some(luks.storage().encryption().clone()),
                Image::Raw(_) => None,
            };
            let Some(Encryption::Luks(header)) = encryption else {
                panic!("not encrypted");
            };
            assert_eq!(header.active().collect::<Vec<_>>(), [0]);
            let flags = WriteFlags::default();
            let buf = || IoBuf::from_vec(vec![7; 512]);
            let (written, _) = node.write_vectored(buf(), 0, flags).await;
            let enokey = Some(libc::ENOKEY);
            assert_eq!(written.unwrap_err().raw_os_error(), enokey);
            if format == Format::Luks {
                let (read, _) = node.read_vectored(buf(), 0).await;
                assert_eq!(read.unwrap_err().raw_os_error(), enokey);
            }
        });
    }
}

#[test]
fn passphrases_come_and_go() {
    let place = Place::new();
    let second = place.file("second");
    fs::write(&second, "second").unwrap();
    for format in [Format::Qcow2, Format::Luks] {
        let path = place.file("image");
        let spec = place.spec(&path, format);
        run(move || async move {
            make_encrypted(&spec, &encrypted(usual())).await;
            let image = open_any(&spec).await;
            write(&*image.node(), 0, pattern(8, SIZE)).await;
            let second = Passphrase::new(b"second".to_vec());
            let add = |known, slot| {
                let (image, second) = (image.clone(), second.clone());
                async move { image.add_key(&known, &second, slot, QUICK).await }
            };
            assert_eq!(add(passphrase(), None).await.unwrap(), 1);
            assert_eq!(add(second.clone(), Some(6)).await.unwrap(), 6);
            let used = add(passphrase(), Some(6)).await;
            assert!(matches!(
                used,
                Err(CryptError::Luks(LuksError::Slot { slot: 6, .. }))
            ));
            let wrong = add(Passphrase::new(b"wrong".to_vec()), None).await;
            assert!(matches!(
                wrong,
                Err(CryptError::Luks(LuksError::Passphrase))
            ));
            let first = passphrase();
            let erased = image.erase_key(EraseKey::Passphrase(&first), false).await;
            assert_eq!(erased.unwrap(), [0]);
            let all = image.erase_key(EraseKey::Passphrase(&second), false).await;
            assert!(matches!(all, Err(CryptError::Luks(LuksError::Slot { .. }))));
            let erased = image.erase_key(EraseKey::Slot(6), false).await;
            assert_eq!(erased.unwrap(), [6]);
            image.node().close().await.unwrap();
            drop(image);
            let opened = open_image(&spec, &OpenOptions::default()).await;
            assert!(opened.is_err(), "the first passphrase is gone");
        });
        fs::copy(&second, place.key()).unwrap();
        assert!(place.qemu_bytes(&path, format) == pattern(8, SIZE));
        fs::write(place.key(), SECRET).unwrap();
        // The header is in the middle of a qcow2 image.
        if format == Format::Luks {
            let (path, key) = (path.to_str().unwrap(), second.to_str().unwrap());
            tool(&[
                "cryptsetup",
                "open",
                "--test-passphrase",
                "--key-file",
                key,
                path,
            ]);
            let dump = tool(&["cryptsetup", "luksDump", path]);
            assert!(dump.contains("Key Slot 1: ENABLED"), "{dump}");
            assert_eq!(dump.matches("DISABLED").count(), 7, "{dump}");
        }
    }
}

#[test]
fn luks_files_of_cryptsetup_and_ours_are_the_same() {
    let place = Place::new();
    let ciphers = [
        ("aes-xts-plain64", 512, "sha256"),
        ("aes-cbc-essiv:sha256", 128, "sha1"),
        ("aes-cbc-plain64", 256, "sha512"),
    ];
    for (n, (cipher, bits, hash)) in ciphers.into_iter().enumerate() {
        let path = place.file(&format!("theirs{n}"));
        fs::write(&path, "").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len((SIZE + (2 << 20)) as u64).unwrap();
        let (to, key, bits) = (path.to_str().unwrap(), place.key(), bits.to_string());
        tool(&[
            "cryptsetup",
            "luksFormat",
            "--type=luks1",
            "-q",
            "--pbkdf-force-iterations=1000",
            "--key-size",
            &bits,
            "--cipher",
            cipher,
            "--hash",
            hash,
            "--align-payload=4096",
            "--key-file",
            key.to_str().unwrap(),
            to,
        ]);
        let mut model = place.qemu_bytes(&path, Format::Luks);
        assert_eq!(model.len(), SIZE);
        everybody_agrees(&place, &path, Format::Luks, 2, &mut model);
    }
    let path = place.file("ours");
    let spec = place.spec(&path, Format::Luks);
    run(move || async move { make_encrypted(&spec, &encrypted(usual())).await });
    let (key, to) = (place.key(), path.to_str().unwrap());
    let key = key.to_str().unwrap();
    tool(&[
        "cryptsetup",
        "open",
        "--test-passphrase",
        "--key-file",
        key,
        to,
    ]);
    let mut model = place.qemu_bytes(&path, Format::Luks);
    everybody_agrees(&place, &path, Format::Luks, 2, &mut model);
}

#[test]
fn a_luks_file_grows() {
    let place = Place::new();
    let spec = place.spec(&place.file("image"), Format::Luks);
    run(move || async move {
        make_encrypted(&spec, &encrypted(usual())).await;
        let node = open_any(&spec).await.node();
        node.resize(2 * SIZE as u64).await.unwrap();
        write(&*node, SIZE as u64, pattern(4, SIZE)).await;
        assert!(read(&*node, SIZE as u64, SIZE).await == pattern(4, SIZE));
        let beyond = IoBuf::from_vec(vec![0; 512]);
        let (result, _) = node.read_vectored(beyond, 2 * SIZE as u64).await;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn what_cannot_be_encrypted_is_refused() {
    let place = Place::new();
    let spec = place.spec(&place.file("image.qcow2"), Format::Qcow2);
    run(move || async move {
        let refused = |options: CreateOptions| {
            let spec = spec.clone();
            async move { chain_of(create_image(&spec, &options).await.unwrap_err()) }
        };
        let mut short = usual();
        short.header.key_bytes = 20;
        let text = refused(encrypted(short)).await;
        assert!(text.contains("no keys of 160 bits"), "{text}");
        let raw = CreateOptions {
            data_file: Some(b"data".to_vec()),
            data_file_raw: true,
            ..encrypted(usual())
        };
        let text = refused(raw).await;
        assert!(text.contains("raw external data file"), "{text}");
        assert!(!spec.file.exists());

        make_encrypted(&spec, &encrypted(usual())).await;
        let Image::Qcow2(disk) = open_any(&spec).await else {
            panic!("another format");
        };
        let compressed = disk.write_compressed(vec![0; 65536], 0).await;
        let text = compressed.unwrap_err().to_string();
        assert!(text.contains("compressed"), "{text}");
    });
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

/// The header of an image and where the LUKS header is are what somebody wrote there.
#[test]
fn hostile_places_of_the_header_are_refused() {
    let place = Place::new();
    let path = place.file("image.qcow2");
    let spec = place.spec(&path, Format::Qcow2);
    let making = spec.clone();
    run(move || async move { make_encrypted(&making, &encrypted(usual())).await });
    let good = fs::read(&path).unwrap();
    let extension = good
        .windows(4)
        .position(|window| window == 0x0537_be77u32.to_be_bytes())
        .unwrap();
    let (offset, length) = (extension + 8, extension + 16);
    let at = u64::from_be_bytes(good[offset..offset + 8].try_into().unwrap()) as usize;
    let changes: [(usize, u64, &str); 7] = [
        (offset, 0, "encryption header"),
        (offset, at as u64 + 1, "encryption header"),
        (offset, u64::MAX - 65535, "encryption header"),
        (offset, 1 << 40, "there is no LUKS header"),
        (length, u64::MAX, "encryption header"),
        (length, 4096, "encryption header"),
        // The magic.
        (at, 0, "there is no LUKS header"),
    ];
    for (place, value, says) in changes {
        let mut bytes = good.clone();
        bytes[place..place + 8].copy_from_slice(&value.to_be_bytes());
        fs::write(&path, bytes).unwrap();
        let spec = spec.clone();
        let opened = run(move || async move {
            let opened = open_image(&spec, &OpenOptions::default()).await;
            opened.map(drop)
        });
        let text = chain_of(opened.unwrap_err());
        assert!(text.contains(says), "{place} {value}: {text}");
    }
    // A guest's cluster over the LUKS header: an entry of the first L2 table is made to lead there.
    fs::write(&path, &good).unwrap();
    let writing = spec.clone();
    run(move || async move {
        let node = open_any(&writing).await.node();
        write(&*node, 0, vec![1; 512]).await;
        node.close().await.unwrap();
    });
    let mut bytes = fs::read(&path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let mask = 0x00ff_ffff_ffff_fe00;
    let l1 = word(&bytes, 40) as usize;
    let l2 = (word(&bytes, l1) & mask) as usize;
    bytes[l2..l2 + 8].copy_from_slice(&(at as u64 | 1 << 63).to_be_bytes());
    fs::write(&path, &bytes).unwrap();
    run(move || async move {
        let node = open_any(&spec).await.node();
        let buf = IoBuf::from_vec(vec![1; 512]);
        let (result, _) = node.write_vectored(buf, 0, WriteFlags::default()).await;
        result.unwrap_err();
    });
    let after = fs::read(&path).unwrap();
    assert!(after[at..at + 592] == good[at..at + 592]);
}

#[test]
fn storage_of_an_encrypted_file_says_what_it_is() {
    let place = Place::new();
    let spec = place.spec(&place.file("image"), Format::Luks);
    run(move || async move {
        make_encrypted(&spec, &encrypted(usual())).await;
        let Image::Luks(luks) = open_any(&spec).await else {
            panic!("another format");
        };
        let storage = luks.storage();
        assert_eq!(Storage::size(storage), SIZE as u64);
        assert!(!storage.grows_with_zeros() && !storage.limits().can_discard);
        assert_eq!(storage.limits().request_alignment % 512, 0);
        let zeros = ZeroFlags::default();
        Storage::write_zeroes(storage, 3, 1 << 20, zeros)
            .await
            .unwrap();
        assert!(read(&*luks, 3, 1 << 20).await == vec![0; 1 << 20]);
    });
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

/// As a machine opens its disks.
#[test]
fn disks_are_opened_with_their_key_file() {
    let place = Place::new();
    for format in [Format::Qcow2, Format::Luks] {
        let path = place.file("image");
        let key = place.key();
        let spec = place.spec(&path, format);
        run(move || async move { make_encrypted(&spec, &encrypted(usual())).await });
        let words = format!(
            "{},format={},key-file={}",
            path.display(),
            format.word(),
            key.display()
        );
        let spec = <DiskSpec as spec::Spec>::parse(&words).unwrap();
        let disk = crate::open(&spec).unwrap();
        assert_eq!(disk.size(), SIZE as u64);
        drop(disk);
        let error = crate::open(&DiskSpec {
            key_file: Some(place.file("none")),
            ..spec
        });
        let Err(error) = error.map(drop) else {
            panic!("opened without a key");
        };
        let text = chain_of(error);
        assert!(text.contains("read the key file"), "{text}");
    }
}
