//! Passphrases, and what is refused.

use luks::LuksError;

use super::*;
use crate::{CryptError, Encryption, EraseKey};

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

#[test]
fn hostile_luks_files_are_refused() {
    let place = Place::new();
    let path = place.file("image");
    let spec = place.spec(&path, Format::Luks);
    let making = spec.clone();
    run(move || async move { make_encrypted(&making, &encrypted(usual())).await });
    let good = fs::read(&path).unwrap();
    // Offsets in the header: where the sectors begin, and a slot's iterations.
    let changes: [(usize, u32, &str); 4] = [
        (104, 0, "detached headers"),
        (104, u32::MAX, "behind the end of the file"),
        (104, 8, "over the encrypted sectors"),
        (212, u32::MAX, "iterations of a key slot"),
    ];
    for (place, value, says) in changes {
        let mut bytes = good.clone();
        bytes[place..place + 4].copy_from_slice(&value.to_be_bytes());
        fs::write(&path, bytes).unwrap();
        let spec = spec.clone();
        let opened = run(move || async move {
            let opened = open_image(&spec, &OpenOptions::default()).await;
            opened.map(drop)
        });
        let text = chain_of(opened.unwrap_err());
        assert!(text.contains(says), "{place} {value}: {text}");
    }
    // As long as a header that is cut off.
    fs::write(&path, &good[..100]).unwrap();
    let opened = run(move || async move {
        let opened = open_image(&spec, &OpenOptions::default()).await;
        opened.map(drop)
    });
    let text = chain_of(opened.unwrap_err());
    assert!(text.contains("LUKS"), "{text}");
}
