//! The PVH boot protocol (Xen's docs/misc/pvh.pandoc, public header arch-x86/hvm/start_info.h).

use x86::Regs;

use super::elf::Elf;
use super::linux::CMDLINE_MAX;
use super::{BootPlan, Loader, Place, Protocol, entry, layout};
use crate::BoardError;
use crate::address::mem;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

/// Starts a kernel whose segments are in memory.
pub(super) fn start(
    mut loader: Loader,
    elf: &Elf,
    entry_point: u32,
) -> Result<BootPlan, BoardError> {
    let initrd = loader.load_initrd(Place {
        kernel_end: elf.end(),
        limit: mem::FOUR_GIB,
        low: false,
    })?;
    let max = if elf.linux_note {
        CMDLINE_MAX
    } else {
        usize::MAX
    };
    loader.write_cmdline(loader.request.cmdline, max)?;

    let modules = layout::PVH + START_INFO_LEN;
    let memory_map = modules + MODULE_LEN;
    let entries = loader.e820();
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    let module_list = if initrd.is_some() { modules } else { 0 };
    for address in [module_list, layout::CMDLINE, loader.rsdp(), memory_map] {
        info.extend_from_slice(&address.to_le_bytes());
    }
    info.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    info.extend_from_slice(&[0; 4]);
    let (base, size) = initrd.map_or((0, 0), |initrd| (initrd.base, initrd.size));
    for word in [base, size, 0, 0] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    for entry in &entries {
        info.extend_from_slice(&entry.base.to_le_bytes());
        info.extend_from_slice(&entry.size.to_le_bytes());
        info.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        info.extend_from_slice(&[0; 4]);
    }
    loader.record("PVH start info", layout::PVH, info.len() as u64);
    loader.write("the PVH start info", layout::PVH, &info)?;

    let regs = Regs {
        rip: entry_point.into(),
        rbx: layout::PVH,
        ..Regs::default()
    };
    let cpu = entry::protected(&loader, regs)?;
    Ok(loader.plan(Protocol::Pvh, cpu))
}
