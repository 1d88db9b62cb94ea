//! The uncompressed kernel inside a bzImage.
//!
//! A bzImage is setup code, a decompressor and the compressed ELF kernel ("the payload"), whose
//! place the boot header gives since protocol 2.08. An uncompressed kernel boots faster (no
//! decompression inside the machine) and by PVH.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header", fields
//! `payload_offset` and `payload_length`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::Error;
use crate::program::{self, Program};

/// How a compressed payload begins and what unpacks it to standard output.
struct Format {
    magic: &'static [u8],
    program: Program,
    arguments: &'static [&'static str],
    /// The kernel's build appends the unpacked size (32-bit little-endian) to the stream; gzip's
    /// own trailer ends with that size anyway.
    size_appended: bool,
}

const FORMATS: [Format; 7] = [
    format(b"\x02\x21\x4c\x18", "lz4", "lz4", &["-dc"]),
    format(b"\xfd7zXZ\0", "xz", "xz-utils", &["-dc"]),
    format(b"\x28\xb5\x2f\xfd", "zstd", "zstd", &["-dcq"]),
    Format {
        size_appended: false,
        ..format(b"\x1f\x8b", "gzip", "gzip", &["-dc"])
    },
    format(b"BZh", "bzip2", "bzip2", &["-dc"]),
    format(b"\x89LZO", "lzop", "lzop", &["-dc"]),
    format(b"\x5d\0\0", "xz", "xz-utils", &["-dc", "--format=lzma"]),
];

const fn format(
    magic: &'static [u8],
    name: &'static str,
    package: &'static str,
    arguments: &'static [&'static str],
) -> Format {
    Format {
        magic,
        program: Program { name, package },
        arguments,
        size_appended: true,
    }
}

/// Writes the ELF kernel inside `bzimage` to `output`.
///
/// # Errors
/// [`Error::BadKernel`] for a file that is no bzImage of protocol 2.08 or later or whose payload is
/// damaged, [`Error::MissingProgram`] when the payload's decompressor is not installed.
pub fn extract(bzimage: &Path, output: &Path) -> Result<(), Error> {
    let bad = |reason: String| Error::BadKernel {
        path: bzimage.to_owned(),
        reason,
    };
    let image = fs::read(bzimage).map_err(Error::io("read", bzimage))?;
    let payload = payload(&image).map_err(|reason| bad(reason.to_owned()))?;
    let format = FORMATS
        .iter()
        .find(|format| payload.starts_with(format.magic))
        .ok_or_else(|| {
            bad(format!(
                "unknown compression, the payload begins with {:02x?}",
                &payload[..payload.len().min(6)]
            ))
        })?;
    let (stream, size) = match payload.split_last_chunk::<4>() {
        Some((stream, size)) if format.size_appended => (stream, u32::from_le_bytes(*size)),
        Some((_, size)) => (payload, u32::from_le_bytes(*size)),
        None => return Err(bad("the payload is too short".to_owned())),
    };

    let action = "unpack the kernel to";
    let mut input = tempfile::tempfile().map_err(Error::io(action, output))?;
    input
        .write_all(stream)
        .and_then(|()| input.seek(SeekFrom::Start(0)))
        .map_err(Error::io(action, output))?;
    let unpacked = File::create(output).map_err(Error::io("create", output))?;
    let mut command = format.program.command()?;
    command.args(format.arguments).stdin(input).stdout(unpacked);
    program::run(&mut command, "unpacking the kernel", &mut |_| {})?;

    let mut unpacked = File::open(output).map_err(Error::io("read", output))?;
    let length = unpacked
        .metadata()
        .map_err(Error::io("read", output))?
        .len();
    if length != u64::from(size) {
        return Err(bad(format!(
            "the payload unpacks to {length} bytes instead of {size}"
        )));
    }
    let mut magic = [0; 4];
    if unpacked.read_exact(&mut magic).is_err() || magic != *b"\x7fELF" {
        return Err(bad("the payload is no ELF file".to_owned()));
    }
    Ok(())
}

/// The compressed payload of a bzImage.
fn payload(image: &[u8]) -> Result<&[u8], &'static str> {
    const SETUP_SECTS: usize = 0x1f1;
    const HEADER: usize = 0x202;
    const VERSION: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;

    let u32_at = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(HEADER..HEADER + 4) != Some(b"HdrS") {
        return Err("it has no Linux boot header (HdrS)");
    }
    let version = image
        .get(VERSION..VERSION + 2)
        .map_or(0, |v| u16::from_le_bytes([v[0], v[1]]));
    if version < 0x208 {
        return Err("its boot protocol is older than 2.08");
    }
    let setup_sects = match image[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let code = (setup_sects + 1) * 512;
    let place = || {
        let begin = code.checked_add(u32_at(PAYLOAD_OFFSET)?)?;
        let end = begin.checked_add(u32_at(PAYLOAD_LENGTH)?)?;
        image.get(begin..end)
    };
    place().ok_or("its payload lies outside the file")
}

#[cfg(test)]
mod tests;
