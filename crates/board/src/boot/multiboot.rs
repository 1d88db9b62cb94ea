//! The Multiboot specification, version 0.6.96 ("Multiboot 1").

use x86::Regs;

use super::elf::Elf;
use super::{BootPlan, Loader, Place, Problem, Protocol, entry, layout};
use crate::BoardError;
use crate::address::mem;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies in this much of the file, bytes.
const SEARCH_LEN: usize = 8192;

/// A Multiboot header (section 3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its offset in the file, bytes.
    pub offset: u32,
    /// Flags.
    pub flags: u32,
    /// Addresses, when the kernel does not leave them to an ELF file's headers.
    pub addresses: Option<Addresses>,
}

/// Address fields of the header (section 3.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Address at which the header itself is loaded.
    pub header: u32,
    /// First address of what is loaded.
    pub load: u32,
    /// First address behind what is loaded, 0 for all of the file.
    pub load_end: u32,
    /// First address behind the BSS, 0 for none.
    pub bss_end: u32,
    /// Entry point.
    pub entry: u32,
}

impl Header {
    const PAGE_ALIGN: u32 = 1 << 0;
    const MEMORY_INFO: u32 = 1 << 1;
    const VIDEO: u32 = 1 << 2;
    const ADDRESSES: u32 = 1 << 16;
    /// Flags that a loader has to understand.
    const REQUIRED: u32 = 0xffff;

    /// Looks for a header in the first 8 KiB of a file.
    ///
    /// # Errors
    /// It demands what nobody knows, or its addresses contradict each other.
    pub fn find(head: &[u8]) -> Result<Option<Self>, Problem> {
        let head = &head[..head.len().min(SEARCH_LEN)];
        let word = |offset: usize| {
            let bytes = head.get(offset..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let is_header = |offset: &usize| {
            let sum = |fields: [Option<u32>; 3]| {
                fields
                    .into_iter()
                    .try_fold(0_u32, |sum, field| Some(sum.wrapping_add(field?)))
            };
            word(*offset) == Some(HEADER_MAGIC)
                && sum([word(*offset), word(offset + 4), word(offset + 8)]) == Some(0)
        };
        let Some(offset) = (0..head.len()).step_by(4).find(is_header) else {
            return Ok(None);
        };
        let flags = word(offset + 4).unwrap_or(0);
        let unknown =
            flags & Self::REQUIRED & !(Self::PAGE_ALIGN | Self::MEMORY_INFO | Self::VIDEO);
        if unknown != 0 {
            return Err(format!("it demands unknown Multiboot features ({unknown:#x})").into());
        }
        if flags & Self::VIDEO != 0 {
            log::warn!("the Multiboot kernel asks for a video mode, and gets none");
        }
        let addresses = if flags & Self::ADDRESSES != 0 {
            let field = |index: usize| {
                word(offset + 12 + 4 * index)
                    .ok_or_else(|| Problem::from("its Multiboot header is cut off"))
            };
            Some(Addresses {
                header: field(0)?,
                load: field(1)?,
                load_end: field(2)?,
                bss_end: field(3)?,
                entry: field(4)?,
            })
        } else {
            None
        };
        Ok(Some(Self {
            offset: offset as u32,
            flags,
            addresses,
        }))
    }
}

impl Addresses {
    /// What to copy for a header at `header_offset` of a file of `file_len` bytes: offset in the
    /// file and length, then the length in memory, bytes.
    ///
    /// # Errors
    /// The addresses contradict each other or the file.
    pub fn extent(&self, header_offset: u32, file_len: u64) -> Result<(u64, u64, u64), Problem> {
        let before = self
            .header
            .checked_sub(self.load)
            .ok_or("its header is loaded before its load address")?;
        let offset = u64::from(
            header_offset
                .checked_sub(before)
                .ok_or("its load address lies before the file's beginning")?,
        );
        let rest = file_len.saturating_sub(offset);
        let len = match self.load_end {
            0 => rest,
            end => end
                .checked_sub(self.load)
                .ok_or("its load_end_addr lies before its load_addr")?
                .into(),
        };
        if len > rest {
            return Err(format!(
                "it is cut off: {file_len} bytes, and its Multiboot header says {}",
                offset + len
            )
            .into());
        }
        let memory_len = match self.bss_end {
            0 => len,
            end => u64::from(end)
                .checked_sub(u64::from(self.load) + len)
                .map(|bss| len + bss)
                .ok_or("its bss_end_addr lies before its load_end_addr")?,
        };
        Ok((offset, len, memory_len))
    }
}

fn load_by_addresses(
    loader: &mut Loader,
    header: &Header,
    addresses: &Addresses,
) -> Result<u64, BoardError> {
    let kernel = loader.request.kernel;
    let (offset, len, memory_len) = addresses
        .extent(header.offset, kernel.len())
        .map_err(|problem| problem.of(loader.request.kernel_name, "Multiboot kernel"))?;
    let base = u64::from(addresses.load);
    loader.check_kernel(base, memory_len)?;
    kernel.load(offset, len, loader.ram, base, "kernel")?;
    loader.zero("the kernel's BSS", base + len, memory_len - len)?;
    loader.record("kernel", base, memory_len);
    Ok(base + memory_len)
}

pub(super) fn load(
    mut loader: Loader,
    header: &Header,
    elf: Option<&Elf>,
) -> Result<BootPlan, BoardError> {
    let (kernel_end, entry_point) = match (&header.addresses, elf) {
        (Some(addresses), _) => {
            let end = load_by_addresses(&mut loader, header, addresses)?;
            (end, u64::from(addresses.entry))
        }
        (None, Some(elf)) => {
            elf.load(&mut loader)?;
            (elf.end(), elf.physical_entry())
        }
        (None, None) => {
            return Err(Problem::from("nothing says where it is to be loaded")
                .of(loader.request.kernel_name, "Multiboot kernel"));
        }
    };
    if entry_point >= mem::FOUR_GIB {
        return Err(
            Problem::from(format!("its entry point {entry_point:#x} is above 4 GiB"))
                .of(loader.request.kernel_name, "Multiboot kernel"),
        );
    }
    let module = loader.load_initrd(Place {
        kernel_end: kernel_end.max(mem::HIGH),
        limit: mem::FOUR_GIB,
        low: true,
    })?;
    // The first word of the command line is the kernel's name, as with GRUB and QEMU.
    let cmdline = [loader.request.kernel_name, loader.request.cmdline].join(" ");
    loader.write_cmdline(cmdline.trim_end(), usize::MAX)?;
    write_information(&mut loader, module)?;
    let regs = Regs {
        rip: entry_point,
        rax: LOADER_MAGIC.into(),
        rbx: layout::MULTIBOOT,
        ..Regs::default()
    };
    let cpu = entry::protected(&loader, regs)?;
    Ok(loader.plan(Protocol::Multiboot, cpu))
}

/// The information structure (section 3.3) and what it points to.
fn write_information(loader: &mut Loader, module: Option<bus::Range>) -> Result<(), BoardError> {
    const MEMORY: u32 = 1 << 0;
    const CMDLINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MEMORY_MAP: u32 = 1 << 6;
    const LOADER_NAME: u32 = 1 << 9;
    const INFORMATION_LEN: u64 = 116;
    const MODULE_LEN: u64 = 16;
    const NAME: &[u8] = b"Vireo\0";
    const NAME_SLOT: u64 = 8;
    // Bytes of a map entry that follow its size field.
    const ENTRY_LEN: u32 = 20;

    let module_list = layout::MULTIBOOT + INFORMATION_LEN;
    let name = module_list + MODULE_LEN;
    let map = name + NAME_SLOT;
    let entries = loader.e820();
    let map_len = entries.len() as u32 * (ENTRY_LEN + 4);

    let mut flags = MEMORY | CMDLINE | MEMORY_MAP | LOADER_NAME;
    if module.is_some() {
        flags |= MODULES;
    }
    let mut words = [0_u32; INFORMATION_LEN as usize / 4];
    words[0] = flags;
    words[1] = (mem::EBDA >> 10) as u32;
    words[2] = (loader.ram_end.saturating_sub(mem::HIGH) >> 10) as u32;
    words[4] = layout::CMDLINE as u32;
    words[5] = module.is_some().into();
    words[6] = module_list as u32;
    words[11] = map_len;
    words[12] = map as u32;
    words[16] = name as u32;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();

    let (start, end) = module.map_or((0, 0), |m| (m.base, m.base + m.size));
    for word in [start as u32, end as u32, name as u32, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(NAME);
    bytes.resize((map - layout::MULTIBOOT) as usize, 0);
    for entry in &entries {
        bytes.extend_from_slice(&ENTRY_LEN.to_le_bytes());
        bytes.extend_from_slice(&entry.base.to_le_bytes());
        bytes.extend_from_slice(&entry.size.to_le_bytes());
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
    }
    loader.record(
        "Multiboot information",
        layout::MULTIBOOT,
        bytes.len() as u64,
    );
    loader.write("the Multiboot information", layout::MULTIBOOT, &bytes)
}
