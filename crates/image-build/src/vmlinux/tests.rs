use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// A kernel to pack: compressible, longer than one block of any packer.
fn kernel() -> Vec<u8> {
    let mut elf = b"\x7fELF".to_vec();
    elf.extend((0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()));
    elf
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 3 * 512 + 100];
    image[0x1f1] = 2;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(b"after the payload");
    image
}

fn extract_bytes(image: &[u8]) -> Result<Vec<u8>, Error> {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (
        directory.path().join("vmlinuz"),
        directory.path().join("vmlinux"),
    );
    fs::write(&input, image).unwrap();
    extract(&input, &output)?;
    Ok(fs::read(&output).unwrap())
}

/// `data` packed by a program, as the kernel's build does it.
fn pack(program: &str, arguments: &[&str], data: &[u8]) -> Vec<u8> {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(data).unwrap();
    input.seek(SeekFrom::Start(0)).unwrap();
    let output = Command::new(program)
        .args(arguments)
        .stdin(input)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}");
    output.stdout
}

#[test]
fn kernels_packed_as_debian_packs_them_come_out_whole() {
    let kernel = kernel();
    let size = u32::try_from(kernel.len()).unwrap().to_le_bytes();
    // gzip and xz are in every Debian (dpkg needs them).
    let gzip = pack("gzip", &["-c"], &kernel);
    assert_eq!(extract_bytes(&bzimage(&gzip)).unwrap(), kernel);
    for arguments in [
        ["-c", "--check=crc32", "--x86", "--lzma2=dict=1MiB"].as_slice(),
        &["-c", "--format=lzma"],
    ] {
        let mut xz = pack("xz", arguments, &kernel);
        xz.extend_from_slice(&size);
        assert_eq!(
            extract_bytes(&bzimage(&xz)).unwrap(),
            kernel,
            "{arguments:?}"
        );
    }
}

#[test]
fn damage_is_told_apart() {
    let kernel = kernel();
    let reason = |image: &[u8]| extract_bytes(image).unwrap_err().to_string();

    assert!(reason(b"not a kernel").contains("HdrS"));
    let mut old = bzimage(b"");
    old[0x206] = 7;
    old[0x207] = 2;
    assert!(reason(&old).contains("2.08"));
    let good = bzimage(&pack("gzip", &["-c"], &kernel));
    assert!(reason(&good[..good.len() - 100]).contains("outside the file"));
    assert!(reason(&bzimage(b"whatever")).contains("unknown compression"));
    assert!(reason(&bzimage(b"\x1f\x8b")).contains("too short"));
    assert!(reason(&bzimage(&pack("gzip", &["-c"], b"text, no ELF"))).contains("no ELF"));
    let mut short = pack("xz", &["-c"], &kernel);
    short.extend_from_slice(&7u32.to_le_bytes());
    assert!(reason(&bzimage(&short)).contains("instead of 7"));
}

proptest! {
    #[test]
    fn any_header_is_taken_or_refused(
        header in proptest::collection::vec(any::<u8>(), 0..600),
        keep_magic in any::<bool>(),
    ) {
        let mut image = header;
        if keep_magic && image.len() >= 0x208 {
            image[0x202..0x206].copy_from_slice(b"HdrS");
            image[0x207] = 2;
        }
        if let Ok(payload) = payload(&image) {
            prop_assert!(payload.len() <= image.len());
        }
    }
}
