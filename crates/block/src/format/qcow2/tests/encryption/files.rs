//! LUKS files.

use super::*;
use crate::storage::Storage;

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
