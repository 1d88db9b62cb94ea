//! Tables in one piece that can be put anywhere: pointers and checksums come last.

use super::{RSDP_FILE, RSDP_LEN, TABLES_FILE};

/// Which of the two files a link is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    Tables,
    Rsdp,
}

impl File {
    fn name(self) -> &'static str {
        match self {
            File::Tables => TABLES_FILE,
            File::Rsdp => RSDP_FILE,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Link {
    /// A little-endian pointer of `size` bytes that holds an offset into the tables.
    Pointer { file: File, offset: usize, size: u8 },
    /// A byte that makes the sum over `start .. start + len` zero.
    Checksum {
        file: File,
        offset: usize,
        start: usize,
        len: usize,
    },
}

/// The tables one behind the other, the root pointer, and what has to be linked, in order.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) tables: Vec<u8>,
    pub(super) rsdp: [u8; RSDP_LEN],
    links: Vec<Link>,
}

impl Default for Blob {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            rsdp: [0; RSDP_LEN],
            links: Vec::new(),
        }
    }
}

/// Alignment of every table; the FACS needs it (ACPI 6.5 section 5.2.10).
const ALIGN: usize = 64;
/// Offset of the checksum in a table's header (ACPI 6.5 section 5.2.6).
const CHECKSUM: usize = 9;

impl Blob {
    /// Appends a table that is finished and returns its offset.
    pub(super) fn add(&mut self, table: Vec<u8>) -> usize {
        let offset = self.tables.len().next_multiple_of(ALIGN);
        self.tables.resize(offset, 0);
        self.tables.extend_from_slice(&table);
        offset
    }

    /// Appends a table whose `pointers` (offset in the table, size of the pointer, offset of the
    /// target) are linked later.
    pub(super) fn add_linked(&mut self, table: Vec<u8>, pointers: &[(usize, u8, usize)]) -> usize {
        let len = table.len();
        let start = self.add(table);
        for &(offset, size, target) in pointers {
            self.point(File::Tables, start + offset, size, target);
        }
        self.checksum(File::Tables, start + CHECKSUM, start, len);
        start
    }

    /// Has the pointer at `offset` of `file` point to `target` in the tables.
    pub(super) fn point(&mut self, file: File, offset: usize, size: u8, target: usize) {
        let bytes = (target as u64).to_le_bytes();
        let width = usize::from(size);
        self.bytes(file)[offset..offset + width].copy_from_slice(&bytes[..width]);
        self.links.push(Link::Pointer { file, offset, size });
    }

    /// Has the byte at `offset` of `file` make the sum of a range zero.
    pub(super) fn checksum(&mut self, file: File, offset: usize, start: usize, len: usize) {
        self.bytes(file)[offset] = 0;
        self.links.push(Link::Checksum {
            file,
            offset,
            start,
            len,
        });
    }

    fn bytes(&mut self, file: File) -> &mut [u8] {
        match file {
            File::Tables => &mut self.tables,
            File::Rsdp => &mut self.rsdp,
        }
    }

    /// The tables linked for address `base`, and the root pointer.
    pub(super) fn placed(&self, base: u64) -> (Vec<u8>, [u8; RSDP_LEN]) {
        let mut linked = self.clone();
        for &link in &self.links {
            match link {
                Link::Pointer { file, offset, size } => {
                    let width = usize::from(size);
                    let field = &mut linked.bytes(file)[offset..offset + width];
                    let mut value = [0; 8];
                    value[..width].copy_from_slice(field);
                    let value = u64::from_le_bytes(value).wrapping_add(base).to_le_bytes();
                    field.copy_from_slice(&value[..width]);
                }
                Link::Checksum {
                    file,
                    offset,
                    start,
                    len,
                } => {
                    let bytes = linked.bytes(file);
                    bytes[offset] = checksum(&bytes[start..start + len]);
                }
            }
        }
        (linked.tables, linked.rsdp)
    }

    /// Commands for firmware in the format of QEMU's BIOS linker/loader: 128 bytes each, a
    /// command number and its arguments, file names in fields of 56 bytes.
    pub(super) fn loader(&self) -> Vec<u8> {
        const ALLOCATE: u32 = 1;
        const ADD_POINTER: u32 = 2;
        const ADD_CHECKSUM: u32 = 3;
        const ZONE_HIGH: u8 = 1;
        const ZONE_F_SEGMENT: u8 = 2;
        const COMMAND_LEN: usize = 128;

        let mut out = Vec::new();
        let mut command = |number: u32, files: &[&str], arguments: &[u8]| {
            let end = out.len() + COMMAND_LEN;
            out.extend_from_slice(&number.to_le_bytes());
            for name in files {
                let mut field = [0; 56];
                field[..name.len()].copy_from_slice(name.as_bytes());
                out.extend_from_slice(&field);
            }
            out.extend_from_slice(arguments);
            out.resize(end, 0);
        };
        let word = |value: usize| (value as u32).to_le_bytes();

        for (file, align, zone) in [
            (RSDP_FILE, 16, ZONE_F_SEGMENT),
            (TABLES_FILE, ALIGN, ZONE_HIGH),
        ] {
            let [a, b, c, d] = word(align);
            command(ALLOCATE, &[file], &[a, b, c, d, zone]);
        }
        for &link in &self.links {
            match link {
                Link::Pointer { file, offset, size } => {
                    let [a, b, c, d] = word(offset);
                    let files = [file.name(), TABLES_FILE];
                    command(ADD_POINTER, &files, &[a, b, c, d, size]);
                }
                Link::Checksum {
                    file,
                    offset,
                    start,
                    len,
                } => {
                    let arguments = [word(offset), word(start), word(len)].concat();
                    command(ADD_CHECKSUM, &[file.name()], &arguments);
                }
            }
        }
        out
    }
}

/// The byte that, in place of a zero, makes the sum of `bytes` zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}
