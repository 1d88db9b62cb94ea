//! The Linux x86 boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst of the Linux
//! kernel).

use bus::Range;
use x86::Regs;

use super::bzimage::{HEADER_OFFSET, SetupHeader};
use super::elf::Elf;
use super::{BootPlan, Loader, Place, Protocol, entry, layout};
use crate::BoardError;

/// `COMMAND_LINE_SIZE` on x86, without the terminating zero.
pub(super) const CMDLINE_MAX: usize = 2047;
/// Last address of an initrd that every 64-bit kernel accepts.
const INITRD_ADDR_MAX: u64 = 0x7fff_ffff;
/// The 64-bit entry point behind the 32-bit one.
const ENTRY_64: u64 = 0x200;

/// The zero page, `struct boot_params`.
struct ZeroPage([u8; 4096]);

impl ZeroPage {
    const ACPI_RSDP_ADDR: usize = 0x070;
    const E820_ENTRIES: usize = 0x1e8;
    const VID_MODE: usize = 0x1fa;
    const BOOT_FLAG: usize = 0x1fe;
    const MAGIC: usize = 0x202;
    const VERSION: usize = 0x206;
    const TYPE_OF_LOADER: usize = 0x210;
    const LOADFLAGS: usize = 0x211;
    const CODE32_START: usize = 0x214;
    const RAMDISK_IMAGE: usize = 0x218;
    const RAMDISK_SIZE: usize = 0x21c;
    const CMD_LINE_PTR: usize = 0x228;
    const E820_TABLE: usize = 0x2d0;

    const LOADER_UNKNOWN: u8 = 0xff;
    const NORMAL_MODE: u16 = 0xffff;

    /// From the header of a bzImage.
    fn new(header: &SetupHeader) -> Self {
        let mut page = Self([0; 4096]);
        page.set(HEADER_OFFSET, &header.raw);
        page.set(Self::CODE32_START, &(header.load as u32).to_le_bytes());
        page
    }

    /// For a vmlinux, which has no header: as if it were of the first 64-bit protocol.
    fn without_header() -> Self {
        const VERSION_2_12: u16 = 0x020c;
        const LOADED_HIGH: u8 = 1;
        let mut page = Self([0; 4096]);
        page.set(Self::BOOT_FLAG, b"\x55\xaa");
        page.set(Self::MAGIC, b"HdrS");
        page.set(Self::VERSION, &VERSION_2_12.to_le_bytes());
        page.set(Self::LOADFLAGS, &[LOADED_HIGH]);
        page
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Fills in what the loader has to say and writes the page.
    fn write(mut self, loader: &mut Loader, initrd: Option<Range>) -> Result<(), BoardError> {
        self.set(Self::TYPE_OF_LOADER, &[Self::LOADER_UNKNOWN]);
        self.set(Self::VID_MODE, &Self::NORMAL_MODE.to_le_bytes());
        self.set(Self::CMD_LINE_PTR, &(layout::CMDLINE as u32).to_le_bytes());
        if let Some(initrd) = initrd {
            self.set(Self::RAMDISK_IMAGE, &(initrd.base as u32).to_le_bytes());
            self.set(Self::RAMDISK_SIZE, &(initrd.size as u32).to_le_bytes());
        }
        self.set(Self::ACPI_RSDP_ADDR, &loader.rsdp().to_le_bytes());
        let entries = loader.e820();
        self.set(Self::E820_ENTRIES, &[entries.len() as u8]);
        for (slot, entry) in entries.iter().enumerate() {
            let offset = Self::E820_TABLE + slot * 20;
            self.set(offset, &entry.base.to_le_bytes());
            self.set(offset + 8, &entry.size.to_le_bytes());
            self.set(offset + 16, &(entry.kind as u32).to_le_bytes());
        }
        loader.record("zero page", layout::ZERO_PAGE, self.0.len() as u64);
        loader.write("the zero page", layout::ZERO_PAGE, &self.0)
    }
}

pub(super) fn load_bzimage(
    mut loader: Loader,
    header: &SetupHeader,
) -> Result<BootPlan, BoardError> {
    loader.check_kernel(header.load, header.init_size)?;
    let kernel = loader.request.kernel;
    kernel.load(
        header.code_offset,
        header.code_len,
        loader.ram,
        header.load,
        "kernel",
    )?;
    loader.record("kernel", header.load, header.code_len);
    let initrd = loader.load_initrd(Place {
        kernel_end: header.load + header.init_size,
        limit: header.initrd_addr_max.saturating_add(1),
        low: false,
    })?;
    loader.write_cmdline(loader.request.cmdline, header.cmdline_max)?;
    ZeroPage::new(header).write(&mut loader, initrd)?;

    let regs = Regs {
        rip: header.load,
        rsi: layout::ZERO_PAGE,
        ..Regs::default()
    };
    if header.entry_64 {
        let rip = header.load + ENTRY_64;
        let cpu = entry::long(&loader, Regs { rip, ..regs })?;
        Ok(loader.plan(Protocol::Linux64, cpu))
    } else {
        let cpu = entry::protected(&loader, regs)?;
        Ok(loader.plan(Protocol::Linux32, cpu))
    }
}

/// Starts a vmlinux whose segments are in memory.
pub(super) fn start_elf(mut loader: Loader, elf: &Elf) -> Result<BootPlan, BoardError> {
    let initrd = loader.load_initrd(Place {
        kernel_end: elf.end(),
        limit: INITRD_ADDR_MAX + 1,
        low: false,
    })?;
    loader.write_cmdline(loader.request.cmdline, CMDLINE_MAX)?;
    ZeroPage::without_header().write(&mut loader, initrd)?;
    let regs = Regs {
        rip: elf.entry,
        rsi: layout::ZERO_PAGE,
        ..Regs::default()
    };
    let cpu = entry::long(&loader, regs)?;
    Ok(loader.plan(Protocol::Linux64, cpu))
}
