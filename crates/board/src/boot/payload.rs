//! Decompressing a bzImage's payload on the host, straight into guest memory.
//!
//! The payload is a vmlinux, and its program headers come first: as the stream passes by, each
//! byte goes to its place in guest memory. Beside that there is only the decompressor's window,
//! which is gone afterwards.

use std::io::{self, BufReader, Read};

use super::bzimage::SetupHeader;
use super::elf::{Elf, FileHeader, MAX_NOTES, Notes};
use super::image::read_up_to;
use super::{Image, Loader, Problem};
use crate::BoardError;

const KIND: &str = "bzImage";
/// Bytes handed on at a time; the first ones hold the ELF file's headers.
const CHUNK: usize = 64 << 10;
/// Linux appends the uncompressed length, 32 bits; gzip has it there anyway.
const LENGTH_LEN: u64 = 4;

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// gzip (RFC 1952).
    Gzip,
    /// xz, usually with the x86 filter.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
    /// LZ4 in its legacy frame format, which is what Linux uses.
    Lz4,
}

impl Format {
    /// The format of data that begin so, when it is one of ours.
    #[must_use]
    pub fn detect(head: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 4] = [
            (b"\x1f\x8b\x08", Format::Gzip),
            (b"\xfd7zXZ\0", Format::Xz),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (&LEGACY_MAGIC, Format::Lz4),
        ];
        let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
        found.map(|(_, format)| *format)
    }

    /// A stream of the uncompressed bytes of `input`.
    ///
    /// # Errors
    /// The data are damaged from the start.
    pub fn decoder<'r>(self, input: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        let input = BufReader::with_capacity(CHUNK, input);
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new(input, false)),
            Self::Zstd => Box::new(
                ruzstd::decoding::StreamingDecoder::new(input).map_err(|error| {
                    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                })?,
            ),
            Self::Lz4 => Box::new(LegacyLz4::new(input)),
        })
    }
}

const LEGACY_MAGIC: [u8; 4] = *b"\x02\x21\x4c\x18";

/// The legacy frame: a magic number, then blocks of 8 MiB, each behind its compressed length.
struct LegacyLz4<R> {
    input: R,
    packed: Vec<u8>,
    block: Vec<u8>,
    taken: usize,
    len: usize,
}

impl<R: Read> LegacyLz4<R> {
    const BLOCK: usize = 8 << 20;
    /// A block that cannot be compressed grows by a 255th and 16 bytes.
    const PACKED_MAX: usize = Self::BLOCK + Self::BLOCK / 255 + 16;

    fn new(input: R) -> Self {
        Self {
            input,
            packed: Vec::new(),
            block: Vec::new(),
            taken: 0,
            len: 0,
        }
    }

    /// Reads the next block; false at the end.
    fn refill(&mut self) -> io::Result<bool> {
        let mut word = LEGACY_MAGIC;
        // A frame may follow a frame.
        while word == LEGACY_MAGIC {
            match self.input.read_exact(&mut word) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                result => result?,
            }
        }
        let packed_len = u32::from_le_bytes(word) as usize;
        if packed_len > Self::PACKED_MAX {
            return Err(invalid(format!("a block of {packed_len} bytes")));
        }
        self.packed.resize(packed_len, 0);
        self.block.resize(Self::BLOCK, 0);
        self.input.read_exact(&mut self.packed)?;
        self.len = lz4_flex::block::decompress_into(&self.packed, &mut self.block)
            .map_err(|error| invalid(error.to_string()))?;
        self.taken = 0;
        Ok(true)
    }
}

impl<R: Read> Read for LegacyLz4<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.len {
            if !self.refill()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.len - self.taken);
        buffer[..count].copy_from_slice(&self.block[self.taken..][..count]);
        self.taken += count;
        Ok(count)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Part of an image as a stream.
struct Part<'a> {
    image: &'a dyn Image,
    offset: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.offset);
        let count = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.image.read_at(self.offset, &mut buffer[..count])?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Puts the vmlinux inside a bzImage into guest memory. None, and maybe some bytes written where
/// the kernel would have been, when the guest has to do it.
pub(super) fn load(loader: &mut Loader, header: &SetupHeader) -> Result<Option<Elf>, BoardError> {
    let name = loader.request.kernel_name;
    let image = loader.request.kernel;
    let damaged = |problem: Problem| problem.of(name, KIND);
    let Some((offset, len)) = header.payload else {
        log::warn!("{name} does not say where its payload is: the guest decompresses it");
        return Ok(None);
    };
    let end = offset + len;
    if len <= LENGTH_LEN || end > image.len() {
        return Err(damaged(
            format!("its payload ({offset:#x} to {end:#x}) is not in the file").into(),
        ));
    }
    let magic = read_up_to(image, "kernel", offset, 6)?;
    let Some(format) = Format::detect(&magic) else {
        log::warn!("{name} is compressed in a way only it knows: the guest decompresses it");
        return Ok(None);
    };
    let length = read_up_to(image, "kernel", end - LENGTH_LEN, LENGTH_LEN as usize)?;
    let length = length
        .first_chunk()
        .map_or(0, |word| u32::from_le_bytes(*word));
    let part = Part {
        image,
        offset,
        end: if format == Format::Gzip {
            end
        } else {
            end - LENGTH_LEN
        },
    };
    let bad_data = |error: io::Error| damaged(format!("its payload is damaged: {error}").into());
    let mut stream = format.decoder(part).map_err(bad_data)?;
    let mut chunk = vec![0; CHUNK];
    let mut filled = fill(&mut stream, &mut chunk).map_err(bad_data)?;

    let inside = |problem: Problem| damaged(format!("the kernel in it: {}", problem.0).into());
    let file = FileHeader::parse(&chunk[..filled]).map_err(inside)?;
    let table = usize::try_from(file.table)
        .ok()
        .and_then(|start| chunk[..filled].get(start..start.checked_add(file.table_len())?))
        .ok_or_else(|| inside("its program headers are not at its beginning".into()))?;
    let (segments, note_ranges) = file.segments(table, length.into()).map_err(inside)?;
    for segment in &segments {
        loader.check_kernel(segment.paddr, segment.memory_size)?;
    }
    let mut notes: Vec<_> = note_ranges
        .into_iter()
        .map(|(offset, len, align)| (offset, vec![0; len.min(MAX_NOTES) as usize], align))
        .collect();
    let last = segments.iter().map(|s| s.offset + s.file_size).max();
    let last = notes
        .iter()
        .map(|(offset, bytes, _)| offset + bytes.len() as u64)
        .chain(last)
        .max()
        .unwrap_or(0);

    let mut position = 0;
    while position < last {
        if filled == 0 {
            return Err(inside("it ends too early".into()));
        }
        let bytes = &chunk[..filled];
        for segment in &segments {
            if let Some((from, to, len)) =
                overlap(position, filled, segment.offset, segment.file_size)
            {
                loader.write("the kernel", segment.paddr + to, &bytes[from..from + len])?;
            }
        }
        for (offset, note, _) in &mut notes {
            if let Some((from, to, len)) = overlap(position, filled, *offset, note.len() as u64) {
                let to = to as usize;
                note[to..to + len].copy_from_slice(&bytes[from..from + len]);
            }
        }
        position += filled as u64;
        if position < last {
            filled = fill(&mut stream, &mut chunk).map_err(bad_data)?;
        }
    }

    let notes = notes
        .iter()
        .map(|(_, bytes, align)| Notes::parse(bytes, *align));
    let elf = notes.fold(
        Elf {
            wide: file.wide,
            entry: file.entry,
            segments,
            pvh_entry: None,
            linux_note: false,
        },
        Elf::with_notes,
    );
    if elf.pvh_entry.is_none() && !elf.looks_like_linux64() {
        log::warn!("{name} holds a kernel that only it can enter: the guest decompresses it");
        return Ok(None);
    }
    for segment in &elf.segments {
        Elf::zero_rest(loader, segment)?;
    }
    Ok(Some(elf))
}

/// The common part of the chunk `position .. position + filled` of a stream and its range `start
/// .. start + len`: where it begins in the chunk and in the range, and its length.
fn overlap(position: u64, filled: usize, start: u64, len: u64) -> Option<(usize, u64, usize)> {
    let begin = position.max(start);
    let end = (position + filled as u64).min(start + len);
    let common = end.checked_sub(begin).filter(|common| *common != 0)?;
    Some(((begin - position) as usize, begin - start, common as usize))
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
