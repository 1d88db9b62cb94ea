//! Starting a kernel without firmware.
//!
//! ```text
//!   kernel file ─▶ Kernel::detect ─┬─ bzImage ────────▶ boot_params, 64-bit (or 32-bit) entry
//!                                  ├─ ELF, PVH note ──▶ hvm_start_info, 32-bit entry
//!                                  ├─ ELF, Linux ─────▶ boot_params, 64-bit entry
//!                                  └─ Multiboot 1 ────▶ multiboot information, 32-bit entry
//!
//!   low memory:  0x1000 GDT │ 0x6000 PVH │ 0x7000 zero page │ 0x9000 page tables (6)
//!                0x10000 Multiboot │ 0x20000 command line │ 0x9fc00 EBDA
//!   1 MiB ..     kernel ... initrd │ ACPI tables │ end of low RAM
//! ```
//!
//! Files go straight into guest memory by large reads. The parsers take any bytes whatsoever.

use bus::Range;
use memory::{Bytes, GuestAddress, GuestMemoryError, Ram};
use x86::CpuState;

use crate::BoardError;
use crate::acpi::AcpiArea;
use crate::address::mem;
use crate::memory_map::{E820Entry, MemoryMap};

pub mod bzimage;
pub mod elf;
mod entry;
mod image;
mod linux;
pub mod multiboot;
pub mod payload;
mod pvh;
#[cfg(test)]
mod tests;

pub use image::{FileImage, Image};

use bzimage::SetupHeader;
use elf::Elf;
use multiboot::Header;

/// Where things stand below 1 MiB.
mod layout {
    pub const GDT: u64 = 0x1000;
    pub const PVH: u64 = 0x6000;
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Top of a page of stack that a kernel may use until it has its own.
    pub const STACK_TOP: u64 = 0x9000;
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const MULTIBOOT: u64 = 0x1_0000;
    pub const CMDLINE: u64 = 0x2_0000;
    pub const CMDLINE_SIZE: u64 = 0x1_0000;
    /// First address behind all that.
    pub const END: u64 = CMDLINE + CMDLINE_SIZE;
}

const PAGE: u64 = 4096;

/// MSRs as firmware leaves them on every processor, to be set on the application processors too:
/// memory is cached (write-back by default, MTRRs enabled). Without it Linux does not use the PAT.
pub const FIRMWARE_MSRS: [(u32, u64); 1] = [(x86::msr::MTRR_DEF_TYPE, 1 << 11 | 6)];

/// As much of a file as tells what it is: the Multiboot header is in the first 8 KiB, ISO 9660
/// says its name at 32 KiB.
const HEAD_LEN: usize = 0x8010;

/// What to boot.
pub struct BootRequest<'a> {
    /// The kernel.
    pub kernel: &'a dyn Image,
    /// Its name for messages and for Multiboot kernels.
    pub kernel_name: &'a str,
    /// The initial RAM disk, a module under Multiboot.
    pub initrd: Option<&'a dyn Image>,
    /// Command line.
    pub cmdline: &'a str,
    /// The machine's address map.
    pub memory: &'a MemoryMap,
    /// Where [`crate::acpi::AcpiTables::install`] has put the tables.
    pub acpi: Option<AcpiArea>,
    /// Who decompresses a bzImage.
    pub decompress: Decompress,
}

/// Who decompresses a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decompress {
    /// The kernel itself, as on real machines. It may choose its own address (KASLR).
    #[default]
    Guest,
    /// We, straight into guest memory; the kernel is entered as a vmlinux, at the address it was
    /// linked for. Faster where the guest's instructions are slow. A payload in an unknown
    /// format is left to the guest.
    Host,
}

/// A kernel that is loaded, ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// Which protocol was used.
    pub protocol: Protocol,
    /// State of the bootstrap processor: MSRs are those of a reset and [`FIRMWARE_MSRS`], the
    /// XSAVE area is that of a reset. There is no state of the local APIC; it should have LINT0
    /// as ExtINT, as firmware leaves it.
    pub cpu: CpuState,
    /// What was written, for messages and debuggers.
    pub loaded: Vec<Loaded>,
}

/// A boot protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux x86 boot protocol, entered in 64-bit mode.
    Linux64,
    /// Linux x86 boot protocol, entered in 32-bit mode.
    Linux32,
    /// PVH.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// A piece of guest memory that was filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// What it is.
    pub what: &'static str,
    /// Where.
    pub range: Range,
}

/// A kernel by its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// Linux bzImage.
    BzImage(SetupHeader),
    /// ELF with this PVH entry point.
    Pvh(Elf, u32),
    /// ELF of a 64-bit Linux without PVH.
    LinuxElf(Elf),
    /// Multiboot 1: its header, and the ELF file if the header leaves the addresses to that.
    Multiboot(Header, Option<Elf>),
}

impl Kernel {
    /// Finds out what a file is and reads its headers.
    ///
    /// # Errors
    /// It is no kernel (the error says what it looks like), a damaged one, or one that this
    /// machine cannot run.
    pub fn detect(image: &dyn Image, name: &str) -> Result<Self, BoardError> {
        let head = image::read_up_to(image, "kernel", 0, HEAD_LEN)?;
        if SetupHeader::is_bzimage(&head) {
            let header = SetupHeader::parse(&head, image.len())
                .map_err(|problem| problem.of(name, "bzImage"))?;
            return Ok(Self::BzImage(header));
        }
        let multiboot = Header::find(&head).map_err(|p| p.of(name, "Multiboot kernel"))?;
        if head.starts_with(elf::MAGIC) {
            return Self::elf(image, name, multiboot);
        }
        match multiboot {
            Some(header) if header.addresses.is_some() => Ok(Self::Multiboot(header, None)),
            Some(_) => Err(Problem::from(
                "its Multiboot header gives no load addresses, and it is no ELF file",
            )
            .of(name, "Multiboot kernel")),
            None => Err(BoardError::NotAKernel {
                name: name.to_owned(),
                found: describe(&head, image.len()),
            }),
        }
    }

    fn elf(image: &dyn Image, name: &str, multiboot: Option<Header>) -> Result<Self, BoardError> {
        let elf = Elf::read(image, name)?;
        if let Some(entry) = elf.pvh_entry {
            return Ok(Self::Pvh(elf, entry));
        }
        if let Some(header) = multiboot {
            let elf = header.addresses.is_none().then_some(elf);
            return Ok(Self::Multiboot(header, elf));
        }
        if elf.looks_like_linux64() {
            return Ok(Self::LinuxElf(elf));
        }
        Err(Problem::from(
            "it has neither a PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY) nor a Multiboot 1 header, and does not look like a 64-bit Linux",
        )
        .of(name, "ELF file"))
    }
}

/// Loads a kernel and what it wants to know into guest memory.
///
/// # Errors
/// The files are not what they should be or do not fit.
pub fn load(ram: &Ram, request: &BootRequest) -> Result<BootPlan, BoardError> {
    if let Some(position) = request.cmdline.bytes().position(|byte| byte == 0) {
        return Err(BoardError::CmdlineZero { position });
    }
    let kernel = Kernel::detect(request.kernel, request.kernel_name)?;
    let mut loader = Loader::new(ram, request);
    match &kernel {
        Kernel::BzImage(header) => {
            if request.decompress == Decompress::Host
                && let Some(elf) = payload::load(&mut loader, header)?
            {
                return start_vmlinux(loader, &elf);
            }
            linux::load_bzimage(loader, header)
        }
        Kernel::Pvh(elf, _) | Kernel::LinuxElf(elf) => {
            elf.load(&mut loader)?;
            start_vmlinux(loader, elf)
        }
        Kernel::Multiboot(header, elf) => multiboot::load(loader, header, elf.as_ref()),
    }
}

fn start_vmlinux(loader: Loader, elf: &Elf) -> Result<BootPlan, BoardError> {
    match elf.pvh_entry {
        Some(entry) => pvh::start(loader, elf, entry),
        None => linux::start_elf(loader, elf),
    }
}

/// What is wrong with a kernel, in words that follow "cannot boot the KIND NAME: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(String);

impl Problem {
    fn of(self, name: &str, kind: &'static str) -> BoardError {
        BoardError::Kernel {
            name: name.to_owned(),
            kind,
            problem: self.0,
        }
    }
}

impl<T: Into<String>> From<T> for Problem {
    fn from(text: T) -> Self {
        Problem(text.into())
    }
}

/// Guest memory being filled.
struct Loader<'a> {
    ram: &'a Ram,
    request: &'a BootRequest<'a>,
    loaded: Vec<Loaded>,
    /// End of the low RAM that kernels may use.
    ram_end: u64,
}

impl<'a> Loader<'a> {
    fn new(ram: &'a Ram, request: &'a BootRequest<'a>) -> Self {
        let low = request.memory.low_ram_end;
        Self {
            ram,
            request,
            loaded: Vec::new(),
            ram_end: request.acpi.map_or(low, |acpi| acpi.base.min(low)),
        }
    }

    fn e820(&self) -> Vec<E820Entry> {
        self.request.memory.e820(self.ram_end)
    }

    fn rsdp(&self) -> u64 {
        self.request.acpi.map_or(0, |acpi| acpi.rsdp)
    }

    fn record(&mut self, what: &'static str, base: u64, size: u64) {
        let range = Range::new(base, size);
        self.loaded.push(Loaded { what, range });
    }

    fn write(&self, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), BoardError> {
        self.ram
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| memory_error(what, address, source))
    }

    fn zero(&self, what: &'static str, address: u64, len: u64) -> Result<(), BoardError> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let mut done = 0;
        while done < len {
            let chunk = (len - done).min(ZEROS.len() as u64);
            self.write(what, address + done, &ZEROS[..chunk as usize])?;
            done += chunk;
        }
        Ok(())
    }

    /// The command line with its terminating zero at [`layout::CMDLINE`].
    fn write_cmdline(&mut self, cmdline: &str, max: usize) -> Result<(), BoardError> {
        let max = max.min(layout::CMDLINE_SIZE as usize - 1);
        if cmdline.len() > max {
            return Err(BoardError::CmdlineTooLong {
                len: cmdline.len(),
                max,
            });
        }
        let mut bytes = cmdline.as_bytes().to_vec();
        bytes.push(0);
        self.record("command line", layout::CMDLINE, bytes.len() as u64);
        self.write("the command line", layout::CMDLINE, &bytes)
    }

    /// Checks that a kernel may lie there: in the RAM behind the SMBIOS area, or below the EBDA
    /// and clear of what is put there for it.
    fn check_kernel(&self, start: u64, size: u64) -> Result<(), BoardError> {
        let end = start.saturating_add(size);
        let low = start >= layout::END && end <= mem::EBDA;
        if start >= mem::SMBIOS_END && end <= self.ram_end || low {
            return Ok(());
        }
        if start >= mem::SMBIOS_END {
            return Err(BoardError::KernelBeyondRam {
                start,
                end,
                ram_end: self.ram_end,
            });
        }
        Err(BoardError::Kernel {
            name: self.request.kernel_name.to_owned(),
            kind: "kernel",
            problem: format!(
                "it wants to be at {start:#x} to {end:#x}; below 1 MiB only {:#x} to {:#x} is free",
                layout::END,
                mem::EBDA
            ),
        })
    }

    /// Loads the initrd as high as it may go, or right behind the kernel. An empty one is none.
    fn load_initrd(&mut self, place: Place) -> Result<Option<Range>, BoardError> {
        let Some(initrd) = self.request.initrd.filter(|initrd| !initrd.is_empty()) else {
            return Ok(None);
        };
        let size = initrd.len();
        let kernel_end = place.kernel_end.next_multiple_of(PAGE);
        let end = place.limit.min(self.ram_end);
        let base = end
            .checked_sub(size)
            .map(|base| base & !(PAGE - 1))
            .filter(|base| *base >= kernel_end)
            .ok_or(BoardError::InitrdTooLarge {
                size,
                start: kernel_end,
                end,
            })?;
        let base = if place.low { kernel_end } else { base };
        initrd.load(0, size, self.ram, base, "initrd")?;
        self.record("initrd", base, size);
        Ok(Some(Range::new(base, size)))
    }

    fn plan(self, protocol: Protocol, cpu: CpuState) -> BootPlan {
        BootPlan {
            protocol,
            cpu,
            loaded: self.loaded,
        }
    }
}

/// Where an initrd may go.
struct Place {
    kernel_end: u64,
    limit: u64,
    /// Right behind the kernel: small kernels map no more than the first megabytes.
    low: bool,
}

fn memory_error(what: &'static str, address: u64, source: GuestMemoryError) -> BoardError {
    BoardError::GuestMemory {
        what,
        address,
        source,
    }
}

/// What a file that is no kernel looks like.
fn describe(head: &[u8], len: u64) -> String {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|b| b.starts_with(magic));
    const PACKED: &str = "; decompress it first";
    const DISK: &str = "; a disk is given with --disk";
    let known = [
        (len == 0, "an empty file", ""),
        (at(0, b"\x1f\x8b"), "gzip data", PACKED),
        (at(0, b"\xfd7zXZ\0"), "xz data", PACKED),
        (at(0, b"\x28\xb5\x2f\xfd"), "zstd data", PACKED),
        (at(0, b"\x02\x21\x4c\x18"), "lz4 data", PACKED),
        (at(0, b"\x04\x22\x4d\x18"), "lz4 data", PACKED),
        (at(0, b"BZh"), "bzip2 data", PACKED),
        (at(0, b"QFI\xfb"), "a qcow2 image", DISK),
        (at(0x8001, b"CD001"), "an ISO 9660 image", DISK),
        (
            at(0, b"0707"),
            "a cpio archive",
            "; an initrd is given with --initrd",
        ),
        (at(0, b"!<arch>\n"), "an ar archive (a Debian package?)", ""),
        (at(0, b"#!"), "a script", ""),
        (at(0, b"MZ"), "an EFI program", "; that needs firmware"),
        (at(0x1fe, b"\x55\xaa"), "a boot sector", DISK),
    ];
    match known.iter().find(|(found, ..)| *found) {
        Some((_, what, hint)) => format!("{what}{hint}"),
        None => {
            let bytes: Vec<_> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("{len} bytes that begin with {}", bytes.join(" "))
        }
    }
}
