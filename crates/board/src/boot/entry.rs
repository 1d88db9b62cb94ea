//! The processor's state when a kernel is entered.

use x86::cr::{cr0, cr4, efer, rflags};
use x86::{CpuState, DescriptorTable, Regs, Segment, Sregs};

use super::{FIRMWARE_MSRS, Loader, PAGE, layout};
use crate::BoardError;

/// Selectors that the Linux boot protocol asks for (`__BOOT_CS`, `__BOOT_DS`); the others are
/// content with any.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TSS: u16 = 0x20;

/// 32-bit protected mode, flat, without paging; interrupts off. Writes the GDT.
pub(super) fn protected(loader: &Loader, regs: Regs) -> Result<CpuState, BoardError> {
    flat(loader, Segment::code32_flat(CODE), regs)
}

/// 64-bit mode, the first 4 GiB identity-mapped by pages of 2 MiB; interrupts off. Writes the GDT
/// and the page tables.
pub(super) fn long(loader: &Loader, regs: Regs) -> Result<CpuState, BoardError> {
    write_page_tables(loader)?;
    let mut state = flat(loader, Segment::code64(CODE), regs)?;
    state.sregs.cr0 |= cr0::PG;
    state.sregs.cr3 = layout::PAGE_TABLES;
    state.sregs.cr4 = cr4::PAE;
    state.sregs.efer = efer::LME | efer::LMA;
    Ok(state)
}

fn flat(loader: &Loader, code: Segment, regs: Regs) -> Result<CpuState, BoardError> {
    const TSS_LIMIT: u32 = 0x67;
    let data = Segment::data(DATA);
    let tss = Segment::tss(TSS, 0, TSS_LIMIT);
    // The TSS takes two entries in 64-bit mode; its base is 0, so the second one is too.
    let table = [
        0,
        0,
        code.descriptor(),
        data.descriptor(),
        tss.descriptor(),
        0,
    ];
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    loader.write("the GDT", layout::GDT, &bytes)?;

    let mut state = CpuState::reset();
    state.msrs.extend(FIRMWARE_MSRS);
    state.regs = Regs {
        rsp: layout::STACK_TOP,
        rflags: rflags::RESERVED_ONE,
        ..regs
    };
    state.sregs = Sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: tss,
        ldt: Segment::null(),
        gdt: DescriptorTable {
            base: layout::GDT,
            limit: bytes.len() as u16 - 1,
        },
        // Nothing is delivered before the kernel has its own.
        idt: DescriptorTable::default(),
        cr0: cr0::PE | cr0::ET,
        ..state.sregs
    };
    Ok(state)
}

/// One PML4, one directory pointer table, four directories.
fn write_page_tables(loader: &Loader) -> Result<(), BoardError> {
    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;
    const LARGE: u64 = 1 << 7;
    const LARGE_SIZE: u64 = 2 << 20;
    const DIRECTORIES: u64 = 4;
    const ENTRIES: u64 = 512;
    let pointer_table = layout::PAGE_TABLES + PAGE;
    let directory = |number: u64| pointer_table + PAGE * (1 + number);

    let table = |entries: &mut dyn Iterator<Item = u64>| {
        let mut bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        bytes.resize(PAGE as usize, 0);
        bytes
    };
    let mut bytes = table(&mut std::iter::once(pointer_table | PRESENT | WRITABLE));
    bytes.extend(table(
        &mut (0..DIRECTORIES).map(|number| directory(number) | PRESENT | WRITABLE),
    ));
    bytes.extend(
        (0..DIRECTORIES * ENTRIES)
            .flat_map(|page| ((page * LARGE_SIZE) | PRESENT | WRITABLE | LARGE).to_le_bytes()),
    );
    loader.write("the page tables", layout::PAGE_TABLES, &bytes)
}
