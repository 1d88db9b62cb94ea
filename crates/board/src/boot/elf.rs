//! ELF executables (System V ABI, chapters 4 and 5, and its x86 supplements).

use super::image::read_up_to;
use super::{Image, Loader, Problem};
use crate::BoardError;

/// First bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";

const KIND: &str = "ELF file";
const HEADER_LEN_64: usize = 64;
/// More program headers than any kernel has.
const MAX_SEGMENTS: u16 = 256;
/// Notes beyond this are not looked at.
pub(super) const MAX_NOTES: u64 = 64 << 10;
/// Linux on x86-64 is linked to run here (`__START_KERNEL_map`).
const LINUX_TEXT: u64 = 0xffff_ffff_8000_0000;

/// A piece of the file that goes into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file, bytes.
    pub offset: u64,
    /// Virtual address.
    pub vaddr: u64,
    /// Physical address.
    pub paddr: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; what the file does not have is zero.
    pub memory_size: u64,
}

/// What the headers of an executable say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// 64-bit file.
    pub wide: bool,
    /// Entry point as the file has it.
    pub entry: u64,
    /// What is to be loaded; empty segments are left out.
    pub segments: Vec<Segment>,
    /// Physical 32-bit entry point of a PVH kernel.
    pub pvh_entry: Option<u32>,
    /// There is a note by "Linux".
    pub linux_note: bool,
}

/// The fields of an ELF header that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// 64-bit file.
    pub wide: bool,
    /// Entry point.
    pub entry: u64,
    /// Offset of the program headers in the file, bytes.
    pub table: u64,
    /// Size of one program header, bytes.
    pub entry_size: u16,
    /// Number of program headers.
    pub count: u16,
}

/// A field of `len` bytes, little-endian; bytes that are not there read as zero.
fn field(bytes: &[u8], offset: usize, len: usize) -> u64 {
    let bytes = bytes.get(offset..).unwrap_or_default();
    bytes
        .iter()
        .take(len)
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl FileHeader {
    /// Reads the header.
    ///
    /// # Errors
    /// It is cut off, or the file is not an x86 executable.
    pub fn parse(head: &[u8]) -> Result<Self, Problem> {
        const CLASS_32: u8 = 1;
        const CLASS_64: u8 = 2;
        const LITTLE_ENDIAN: u8 = 1;
        const EXECUTABLE: u64 = 2;
        const SHARED: u64 = 3;
        const I386: u64 = 3;
        const X86_64: u64 = 62;

        let [.., class, data] = *head.first_chunk::<6>().ok_or("its header is cut off")?;
        let (wide, len) = match class {
            CLASS_32 => (false, 52),
            CLASS_64 => (true, HEADER_LEN_64),
            other => return Err(format!("its class is {other}, not 32 or 64 bits").into()),
        };
        if head.len() < len {
            return Err("its header is cut off".into());
        }
        let machine = field(head, 18, 2);
        if data != LITTLE_ENDIAN || !matches!(machine, I386 | X86_64) {
            return Err(format!("it is for another processor (machine {machine}), not x86").into());
        }
        match field(head, 16, 2) {
            EXECUTABLE | SHARED => {}
            1 => return Err("it is an object file; link it first".into()),
            other => return Err(format!("its type is {other}, not an executable").into()),
        }
        let width = if wide { 8 } else { 4 };
        let header = Self {
            wide,
            entry: field(head, 24, width),
            table: field(head, 24 + width, width),
            entry_size: field(head, len - 10, 2) as u16,
            count: field(head, len - 8, 2) as u16,
        };
        let least = if wide { 56 } else { 32 };
        if header.count == 0 {
            return Err("it has no program headers: nothing says what to load".into());
        }
        if header.count > MAX_SEGMENTS || header.entry_size < least {
            return Err(format!(
                "its {} program headers of {} bytes make no sense",
                header.count, header.entry_size
            )
            .into());
        }
        Ok(header)
    }

    /// Length of all program headers, bytes.
    #[must_use]
    pub fn table_len(&self) -> usize {
        usize::from(self.entry_size) * usize::from(self.count)
    }

    /// What to load, and where notes are (offset, length, alignment), from the program headers.
    ///
    /// # Errors
    /// A segment is longer in the file than in memory, wraps around, or goes past `file_len`.
    pub fn segments(&self, table: &[u8], file_len: u64) -> Result<SegmentsAndNotes, Problem> {
        const LOAD: u64 = 1;
        const NOTE: u64 = 4;
        let mut segments = Vec::new();
        let mut notes = Vec::new();
        for entry in table.chunks_exact(usize::from(self.entry_size)) {
            let word = |narrow: usize, wide: usize| {
                if self.wide {
                    field(entry, wide, 8)
                } else {
                    field(entry, narrow, 4)
                }
            };
            let segment = Segment {
                offset: word(4, 8),
                vaddr: word(8, 16),
                paddr: word(12, 24),
                file_size: word(16, 32),
                memory_size: word(20, 40),
            };
            let kind = field(entry, 0, 4);
            if !matches!(kind, LOAD | NOTE) {
                continue;
            }
            let end = segment.offset.checked_add(segment.file_size);
            if end.is_none_or(|end| end > file_len) {
                return Err(format!(
                    "it is cut off: {file_len} bytes, and a segment goes from {:#x} on for {:#x} bytes",
                    segment.offset, segment.file_size
                )
                .into());
            }
            if kind == NOTE {
                notes.push((segment.offset, segment.file_size, word(28, 48)));
                continue;
            }
            if segment.file_size > segment.memory_size
                || segment.paddr.checked_add(segment.memory_size).is_none()
            {
                return Err(format!(
                    "a segment of {:#x} bytes at {:#x} has {:#x} bytes in the file",
                    segment.memory_size, segment.paddr, segment.file_size
                )
                .into());
            }
            if segment.memory_size != 0 {
                segments.push(segment);
            }
        }
        if segments.is_empty() {
            return Err("it has nothing to load".into());
        }
        Ok((segments, notes))
    }
}

/// Segments to load, and notes as (offset, length, alignment) in the file.
pub type SegmentsAndNotes = (Vec<Segment>, Vec<(u64, u64, u64)>);

/// What is known from notes: PVH entry point, and whether "Linux" wrote one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Notes {
    /// Value of XEN_ELFNOTE_PHYS32_ENTRY.
    pub pvh_entry: Option<u32>,
    /// There is a note by "Linux".
    pub linux: bool,
}

impl Notes {
    /// Looks through the bytes of a PT_NOTE segment.
    #[must_use]
    pub fn parse(mut bytes: &[u8], align: u64) -> Self {
        const PHYS32_ENTRY: u64 = 18;
        const HEADER: usize = 12;
        let align = if align == 8 { 8 } else { 4 };
        let mut notes = Self::default();
        while bytes.len() >= HEADER {
            let name_len = field(bytes, 0, 4) as usize;
            let value_len = field(bytes, 4, 4) as usize;
            let kind = field(bytes, 8, 4);
            let value_start = HEADER.saturating_add(name_len).next_multiple_of(align);
            let end = value_start
                .saturating_add(value_len)
                .next_multiple_of(align);
            let name = bytes.get(HEADER..HEADER.saturating_add(name_len));
            let value = bytes.get(value_start..value_start.saturating_add(value_len));
            let (Some(name), Some(value)) = (name, value) else {
                break;
            };
            match name {
                b"Xen\0" if kind == PHYS32_ENTRY && matches!(value_len, 4 | 8) => {
                    notes.pvh_entry = u32::try_from(field(value, 0, 8)).ok();
                }
                b"Linux\0" => notes.linux = true,
                _ => {}
            }
            bytes = bytes.get(end..).unwrap_or_default();
        }
        notes
    }
}

impl Elf {
    /// Reads all headers and notes.
    ///
    /// # Errors
    /// The file cannot be read, is cut off, or is no x86 executable.
    pub fn read(image: &dyn Image, name: &str) -> Result<Self, BoardError> {
        let problem = |problem: Problem| problem.of(name, KIND);
        let head = read_up_to(image, "kernel", 0, HEADER_LEN_64)?;
        let header = FileHeader::parse(&head).map_err(problem)?;
        let table = read_up_to(image, "kernel", header.table, header.table_len())?;
        if table.len() < header.table_len() {
            return Err(problem("its program headers are cut off".into()));
        }
        let (segments, note_ranges) = header.segments(&table, image.len()).map_err(problem)?;
        let mut elf = Self {
            wide: header.wide,
            entry: header.entry,
            segments,
            pvh_entry: None,
            linux_note: false,
        };
        for (offset, len, align) in note_ranges {
            let len = len.min(MAX_NOTES) as usize;
            let notes = Notes::parse(&read_up_to(image, "kernel", offset, len)?, align);
            elf = elf.with_notes(notes);
        }
        Ok(elf)
    }

    /// With what further notes say.
    pub(super) fn with_notes(self, notes: Notes) -> Self {
        Self {
            pvh_entry: self.pvh_entry.or(notes.pvh_entry),
            linux_note: self.linux_note || notes.linux,
            ..self
        }
    }

    /// Whether this is a vmlinux that can be entered in 64-bit mode: its entry point is a
    /// physical address inside a segment that runs in Linux's part of the address space.
    #[must_use]
    pub fn looks_like_linux64(&self) -> bool {
        self.wide
            && self.segments.iter().any(|segment| {
                segment.vaddr >= LINUX_TEXT
                    && self
                        .entry
                        .checked_sub(segment.paddr)
                        .is_some_and(|offset| offset < segment.memory_size)
            })
    }

    /// The entry point as a physical address, where the file gives it as a virtual one.
    #[must_use]
    pub fn physical_entry(&self) -> u64 {
        self.segments
            .iter()
            .find_map(|segment| {
                let offset = self.entry.checked_sub(segment.vaddr)?;
                (offset < segment.memory_size).then_some(segment.paddr + offset)
            })
            .unwrap_or(self.entry)
    }

    /// First address behind the last segment.
    #[must_use]
    pub fn end(&self) -> u64 {
        let ends = self
            .segments
            .iter()
            .map(|s| s.paddr.saturating_add(s.memory_size));
        ends.max().unwrap_or(0)
    }

    /// Puts the segments into guest memory.
    pub(super) fn load(&self, loader: &mut Loader) -> Result<(), BoardError> {
        for segment in &self.segments {
            loader.check_kernel(segment.paddr, segment.memory_size)?;
        }
        for segment in &self.segments {
            let image = loader.request.kernel;
            image.load(
                segment.offset,
                segment.file_size,
                loader.ram,
                segment.paddr,
                "kernel",
            )?;
            Self::zero_rest(loader, segment)?;
        }
        Ok(())
    }

    /// Clears what the file does not have, as a reset may have left something else there.
    pub(super) fn zero_rest(loader: &mut Loader, segment: &Segment) -> Result<(), BoardError> {
        loader.record("kernel", segment.paddr, segment.memory_size);
        loader.zero(
            "the kernel's BSS",
            segment.paddr + segment.file_size,
            segment.memory_size - segment.file_size,
        )
    }
}
