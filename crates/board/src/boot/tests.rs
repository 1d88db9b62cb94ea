use std::io::Write;
use std::sync::OnceLock;

use memory::{GuestAddressSpace, RamSnapshot};
use proptest::prelude::*;
use x86::cr::{cr0, cr4, efer};

use super::*;
use crate::memory_map::MemoryMapConfig;

const MIB: u64 = 1 << 20;

struct Guest {
    map: MemoryMap,
    ram: RamSnapshot,
    acpi: Option<AcpiArea>,
    decompress: Decompress,
}

impl Guest {
    fn new(mib: u64) -> Self {
        let map = MemoryMap::new(&MemoryMapConfig {
            ram: mib * MIB,
            hotplug: 0,
            phys_bits: 40,
        })
        .unwrap();
        let options = memory::Options {
            huge: memory::HugePages::Never,
            ..memory::Options::default()
        };
        let ram = memory::allocate(&map.ram_ranges(), &options).unwrap();
        Self {
            acpi: Some(AcpiArea {
                base: map.low_ram_end - 0x1_0000,
                rsdp: mem::RSDP,
            }),
            ram: ram.memory(),
            map,
            decompress: Decompress::Guest,
        }
    }

    fn boot(
        &self,
        kernel: &dyn Image,
        initrd: Option<&dyn Image>,
        cmdline: &str,
    ) -> Result<BootPlan, BoardError> {
        let request = BootRequest {
            kernel,
            kernel_name: "vmlinuz",
            initrd,
            cmdline,
            memory: &self.map,
            acpi: self.acpi,
            decompress: self.decompress,
        };
        load(&self.ram, &request)
    }

    fn error(&self, kernel: &[u8]) -> String {
        self.boot(&kernel.to_vec(), None, "")
            .unwrap_err()
            .to_string()
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }
}

fn set(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// A bzImage of 1 setup sector and 8 KiB of code, protocol 2.15, 64-bit entry, preferred at 16 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 8192];
    file[1024..].fill(0xcc);
    set(&mut file, 0x1f1, &[1]);
    set(&mut file, 0x1f4, &(8192_u32 / 16).to_le_bytes());
    set(&mut file, 0x1fe, b"\x55\xaa\xeb\x66HdrS");
    set(&mut file, 0x206, &0x020f_u16.to_le_bytes());
    set(&mut file, 0x211, &[1]);
    set(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    set(&mut file, 0x234, &[1]);
    set(&mut file, 0x236, &1_u16.to_le_bytes());
    set(&mut file, 0x238, &2047_u32.to_le_bytes());
    set(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
    set(&mut file, 0x260, &0x20_0000_u32.to_le_bytes());
    file
}

struct ElfSpec {
    wide: bool,
    entry: u64,
    vaddr: u64,
    paddr: u64,
    code: Vec<u8>,
    bss: u64,
    notes: Vec<u8>,
}

impl Default for ElfSpec {
    fn default() -> Self {
        Self {
            wide: true,
            entry: 0x100_0000,
            vaddr: 0xffff_ffff_8100_0000,
            paddr: 0x100_0000,
            code: vec![0x90; 5000],
            bss: 3000,
            notes: Vec::new(),
        }
    }
}

impl ElfSpec {
    fn build(&self) -> Vec<u8> {
        let width = if self.wide { 8 } else { 4 };
        let (header_len, entry_len) = if self.wide { (64, 56) } else { (52, 32) };
        let word = |value: u64| value.to_le_bytes()[..width].to_vec();
        let mut file = vec![0; header_len];
        set(&mut file, 0, b"\x7fELF");
        file[4..7].copy_from_slice(&[if self.wide { 2 } else { 1 }, 1, 1]);
        set(&mut file, 16, &2_u16.to_le_bytes());
        set(&mut file, 18, &[if self.wide { 62 } else { 3 }, 0]);
        set(&mut file, 24, &word(self.entry));
        set(&mut file, 24 + width, &word(header_len as u64));
        set(&mut file, header_len - 10, &[entry_len as u8, 0, 2, 0]);

        let code = (header_len + 2 * entry_len) as u64;
        let notes = code + self.code.len() as u64;
        let mut segment = |kind: u32, offset, len: usize, bss| {
            let mut fields = vec![kind.to_le_bytes().to_vec()];
            if self.wide {
                fields.push(vec![0; 4]);
            }
            let size = len as u64;
            for value in [offset, self.vaddr, self.paddr, size, size + bss] {
                fields.push(word(value));
            }
            if !self.wide {
                fields.push(vec![0; 4]);
            }
            fields.push(word(4));
            file.extend(fields.concat());
        };
        segment(1, code, self.code.len(), self.bss);
        segment(4, notes, self.notes.len(), 0);
        file.extend_from_slice(&self.code);
        file.extend_from_slice(&self.notes);
        file
    }
}

fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, value.len() as u32, kind] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, value] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn pvh() -> ElfSpec {
    let notes = [
        note(b"Linux\0", 0x100, b"salt"),
        note(b"Xen\0", 18, &0x100_0040_u64.to_le_bytes()),
    ];
    ElfSpec {
        notes: notes.concat(),
        ..ElfSpec::default()
    }
}

/// 32-bit ELF with a Multiboot header, linked high and loaded at 1 MiB.
fn multiboot_elf() -> ElfSpec {
    let mut code = vec![0x90; 4096];
    set(&mut code, 16, &multiboot_header(3, &[]));
    ElfSpec {
        wide: false,
        entry: 0xc010_0080,
        vaddr: 0xc010_0000,
        paddr: 0x10_0000,
        code,
        bss: 8192,
        notes: Vec::new(),
    }
}

fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    let checksum = 0_u32.wrapping_sub(MAGIC.wrapping_add(flags));
    let words = [&[MAGIC, flags, checksum], addresses].concat();
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn e820_in(bytes: &[u8], entry_len: usize, skip: usize) -> Vec<(u64, u64, u32)> {
    let entries = bytes.chunks_exact(entry_len).map(|entry| &entry[skip..]);
    entries
        .map(|entry| {
            let word = |at: usize| u64::from_le_bytes(*entry[at..].first_chunk().unwrap());
            let kind = u32::from_le_bytes(*entry[16..].first_chunk().unwrap());
            (word(0), word(8), kind)
        })
        .collect()
}

fn expected_e820(guest: &Guest) -> Vec<(u64, u64, u32)> {
    let base = guest.acpi.unwrap().base;
    let entries = guest.map.e820(base);
    entries
        .iter()
        .map(|e| (e.base, e.size, e.kind as u32))
        .collect()
}

/// Translates through the tables that the plan brings.
fn translate(guest: &Guest, plan: &BootPlan, address: u64) -> u64 {
    let mut table = plan.cpu.sregs.cr3;
    for shift in [39, 30, 21] {
        let entry = guest.u64(table + 8 * (address >> shift & 511));
        assert_eq!(entry & 3, 3);
        table = entry & !0xfff;
        if shift == 21 {
            assert_ne!(entry & 0x80, 0);
        }
    }
    table | address & 0x1f_ffff
}

#[test]
fn bzimage_is_entered_in_64_bit_mode() {
    let guest = Guest::new(128);
    let initrd = vec![0xab_u8; 5000];
    let plan = guest
        .boot(&bzimage(), Some(&initrd), "console=ttyS0")
        .unwrap();
    assert_eq!(plan.protocol, Protocol::Linux64);
    let sregs = &plan.cpu.sregs;
    assert_eq!(plan.cpu.regs.rip, 0x100_0200);
    assert_eq!(plan.cpu.regs.rflags, 2);
    assert!(sregs.cs.l && !sregs.cs.db);
    assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
    assert_eq!(sregs.cr0, cr0::PE | cr0::PG | cr0::ET);
    assert_eq!(sregs.cr4, cr4::PAE);
    assert_eq!(plan.cpu.msr(x86::msr::MTRR_DEF_TYPE), 0x806);
    assert_eq!(sregs.efer, efer::LME | efer::LMA);
    for address in [0, 0x100_0200, 0x7fff_ffff, 0xffff_fff0] {
        assert_eq!(translate(&guest, &plan, address), address);
    }
    let gdt = sregs.gdt;
    assert_eq!(guest.u64(gdt.base + 0x10), sregs.cs.descriptor());
    assert_eq!(guest.u64(gdt.base + 0x18), sregs.ds.descriptor());
    assert_eq!(gdt.limit, 47);

    assert_eq!(guest.bytes(0x100_0000, 8192), vec![0xcc; 8192]);
    let zero_page = plan.cpu.regs.rsi;
    assert_eq!(guest.u32(zero_page + 0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(guest.bytes(zero_page + 0x210, 1), [0xff]);
    assert_eq!(guest.bytes(zero_page + 0x1ef, 1), [0], "sentinel");
    assert_eq!(guest.u64(zero_page + 0x70), mem::RSDP);
    let image = guest.u32(zero_page + 0x218);
    assert_eq!(guest.u32(zero_page + 0x21c), 5000);
    assert_eq!(guest.bytes(image.into(), 5000), initrd);
    assert_eq!(image % 4096, 0);
    let end = u64::from(image) + 5000;
    assert!((guest.acpi.unwrap().base - 8192..=guest.acpi.unwrap().base).contains(&end));
    let cmdline = guest.u32(zero_page + 0x228);
    assert_eq!(guest.bytes(cmdline.into(), 14), b"console=ttyS0\0");
    let count = usize::from(guest.bytes(zero_page + 0x1e8, 1)[0]);
    let entries = guest.bytes(zero_page + 0x2d0, count * 20);
    assert_eq!(e820_in(&entries, 20, 0), expected_e820(&guest));
}

#[test]
fn older_bzimages_are_entered_in_32_bit_mode() {
    let guest = Guest::new(128);
    let mut file = bzimage();
    set(&mut file, 0x206, &0x0209_u16.to_le_bytes());
    let plan = guest.boot(&file, None, "").unwrap();
    assert_eq!(plan.protocol, Protocol::Linux32);
    assert_eq!(plan.cpu.regs.rip, 0x10_0000);
    assert_eq!(plan.cpu.sregs.cr0, cr0::PE | cr0::ET);
    assert!(plan.cpu.sregs.cs.db && !plan.cpu.sregs.cs.l);
    assert_eq!(guest.bytes(0x10_0000, 1), [0xcc]);
}

#[test]
fn bzimages_that_cannot_be_booted_say_why() {
    let guest = Guest::new(64);
    let mut zimage = bzimage();
    set(&mut zimage, 0x211, &[0]);
    assert!(guest.error(&zimage).contains("zImage"));
    let mut old = bzimage();
    set(&mut old, 0x206, &0x0200_u16.to_le_bytes());
    assert!(guest.error(&old).contains("protocol 2.00 is older"));
    let short = &bzimage()[..6000];
    assert_eq!(
        guest.error(short),
        "cannot boot the bzImage vmlinuz: it is cut off: 6000 bytes, and its header says 9216"
    );
    assert!(
        guest
            .error(&bzimage()[..0x240])
            .contains("cut off after 576")
    );
    let mut large = bzimage();
    set(&mut large, 0x260, &0x400_0000_u32.to_le_bytes());
    assert_eq!(
        guest.error(&large),
        "the kernel needs memory at 0x1000000 to 0x5000000, and the guest's memory below 4 GiB ends at 0x3ff0000: give the guest more memory"
    );
}

#[test]
fn an_initrd_or_command_line_that_does_not_fit_is_refused() {
    let guest = Guest::new(64);
    let error = |initrd: &Vec<u8>, cmdline: &str| {
        guest
            .boot(&bzimage(), Some(initrd), cmdline)
            .unwrap_err()
            .to_string()
    };
    assert!(error(&vec![0; 48 << 20], "").contains(
        "initrd of 50331648 bytes does not fit between 0x1200000 (end of the kernel) and 0x3ff0000"
    ));
    assert_eq!(
        error(&vec![], &"x".repeat(2048)),
        "the kernel's command line has 2048 bytes, and this kernel takes 2047"
    );
    assert!(error(&vec![], "a\0b").contains("position 1"));
}

#[test]
fn the_initrd_obeys_its_limit() {
    let guest = Guest::new(128);
    let mut file = bzimage();
    set(&mut file, 0x22c, &0x200_0000_u32.to_le_bytes());
    let plan = guest.boot(&file, Some(&vec![1; 4097]), "").unwrap();
    let initrd = plan.loaded.iter().find(|l| l.what == "initrd").unwrap();
    assert_eq!(
        initrd.range,
        Range::new(0x1ff_f000, 4097),
        "its last byte is at the limit"
    );
}

#[test]
fn vmlinux_is_booted_by_pvh() {
    let guest = Guest::new(64);
    // What a reset leaves behind must not show in the BSS.
    guest
        .ram
        .write_slice(&[0xff; 8000], GuestAddress(0x100_0000))
        .unwrap();
    let initrd = vec![7_u8; 100];
    let plan = guest.boot(&pvh().build(), Some(&initrd), "quiet").unwrap();
    assert_eq!(plan.protocol, Protocol::Pvh);
    assert_eq!(plan.cpu.regs.rip, 0x100_0040);
    assert_eq!(plan.cpu.sregs.cr0, cr0::PE | cr0::ET);
    assert_eq!(plan.cpu.sregs.cr4, 0);
    assert_eq!(guest.bytes(0x100_0000, 5000), vec![0x90; 5000]);
    assert_eq!(guest.bytes(0x100_0000 + 5000, 3000), vec![0; 3000]);

    let info = plan.cpu.regs.rbx;
    assert_eq!(guest.u32(info), 0x336e_c578);
    assert_eq!(guest.u32(info + 4), 1);
    assert_eq!(guest.u32(info + 12), 1);
    let module = guest.u64(info + 16);
    assert_eq!(guest.u64(module + 8), 100);
    assert_eq!(guest.bytes(guest.u64(module), 100), initrd);
    assert_eq!(guest.bytes(guest.u64(info + 24), 6), b"quiet\0");
    assert_eq!(guest.u64(info + 32), mem::RSDP);
    let entries = guest.bytes(guest.u64(info + 40), 24 * guest.u32(info + 48) as usize);
    assert_eq!(e820_in(&entries, 24, 0), expected_e820(&guest));
}

#[test]
fn vmlinux_without_pvh_is_booted_as_linux() {
    let guest = Guest::new(64);
    let plan = guest.boot(&ElfSpec::default().build(), None, "x").unwrap();
    assert_eq!(plan.protocol, Protocol::Linux64);
    assert_eq!(plan.cpu.regs.rip, 0x100_0000);
    let zero_page = plan.cpu.regs.rsi;
    assert_eq!(guest.u32(zero_page + 0x202), u32::from_le_bytes(*b"HdrS"));
    let strange = ElfSpec {
        vaddr: 0x40_0000,
        ..ElfSpec::default()
    };
    assert!(
        guest
            .error(&strange.build())
            .contains("neither a PVH entry")
    );
}

#[test]
fn multiboot_elf_kernels_get_their_information() {
    let guest = Guest::new(64);
    let module = vec![9_u8; 50];
    let plan = guest
        .boot(&multiboot_elf().build(), Some(&module), "opt")
        .unwrap();
    assert_eq!(plan.protocol, Protocol::Multiboot);
    assert_eq!(plan.cpu.regs.rax, 0x2bad_b002);
    assert_eq!(plan.cpu.regs.rip, 0x10_0080, "physical");
    let info = plan.cpu.regs.rbx;
    let flags = guest.u32(info);
    assert_eq!(flags, 1 | 4 | 8 | 64 | 512);
    assert_eq!(guest.u32(info + 4), 639);
    assert_eq!(guest.u32(info + 8), (64 << 10) - 1024 - 64);
    let cmdline = guest.u32(info + 16);
    assert_eq!(guest.bytes(cmdline.into(), 12), b"vmlinuz opt\0");
    assert_eq!(guest.u32(info + 20), 1);
    let list = u64::from(guest.u32(info + 24));
    let (start, end) = (guest.u32(list), guest.u32(list + 4));
    assert_eq!((start, end), (0x10_3000, 0x10_3000 + 50));
    assert_eq!(guest.bytes(start.into(), 50), module);
    let (len, map) = (guest.u32(info + 44), guest.u32(info + 48));
    let entries = guest.bytes(map.into(), len as usize);
    assert_eq!(e820_in(&entries, 24, 4), expected_e820(&guest));
    assert_eq!(guest.u32(map.into()), 20);
    assert_eq!(guest.bytes(guest.u32(info + 64).into(), 6), b"Vireo\0");
}

#[test]
fn elf_headers_may_lie_on_the_page_before_one_mib() {
    let guest = Guest::new(64);
    let kernel = ElfSpec {
        entry: 0xf_f080,
        vaddr: 0xf_f000,
        paddr: 0xf_f000,
        ..multiboot_elf()
    };
    let plan = guest.boot(&kernel.build(), None, "").unwrap();
    assert_eq!(plan.cpu.regs.rip, 0xf_f080);
    let tables = ElfSpec {
        paddr: mem::SMBIOS,
        ..multiboot_elf()
    };
    assert!(
        guest
            .error(&tables.build())
            .contains("it wants to be at 0xf0000")
    );
}

#[test]
fn multiboot_addresses_load_flat_files() {
    let guest = Guest::new(64);
    let mut file = vec![0x11_u8; 4096];
    let addresses = [0x20_0040, 0x20_0000, 0x20_0800, 0x20_2000, 0x20_0100];
    set(&mut file, 0x140, &multiboot_header(0x1_0000, &addresses));
    set(&mut file, 0x100, b"start");
    guest
        .ram
        .write_slice(&[0xff; 0x2000], GuestAddress(0x20_0000))
        .unwrap();
    let plan = guest.boot(&file, None, "").unwrap();
    assert_eq!(plan.cpu.regs.rip, 0x20_0100);
    assert_eq!(guest.bytes(0x20_0000, 5), b"start");
    assert_eq!(guest.bytes(0x20_07ff, 2), [0x11, 0]);
    assert_eq!(guest.bytes(0x20_1fff, 1), [0]);

    let refused = |addresses: &[u32; 5]| {
        let mut file = vec![0_u8; 4096];
        set(&mut file, 0x140, &multiboot_header(0x1_0000, addresses));
        guest.error(&file)
    };
    assert!(refused(&[0x10, 0x20, 0, 0, 0]).contains("before its load address"));
    assert!(refused(&[0x20_0200, 0x20_0000, 0, 0, 0]).contains("before the file"));
    assert!(refused(&[0x20_0000, 0x20_0000, 0x30_0000, 0, 0]).contains("cut off"));
    assert!(refused(&[0x20_0000, 0x20_0000, 0, 0x20_0001, 0]).contains("bss_end_addr"));
    assert!(refused(&[0x8000, 0x8000, 0, 0, 0x8000]).contains("only 0x30000 to 0x9fc00"));
    assert!(guest.error(&multiboot_header(8, &[])).contains("(0x8)"));
    assert!(
        guest
            .error(&multiboot_header(0, &[]))
            .contains("no load addresses")
    );
}

#[test]
fn elf_files_that_are_no_kernel_say_why() {
    let guest = Guest::new(64);
    let mut arm = pvh().build();
    arm[18] = 183;
    assert_eq!(
        guest.error(&arm),
        "cannot boot the ELF file vmlinuz: it is for another processor (machine 183), not x86"
    );
    let mut object = pvh().build();
    object[16] = 1;
    assert!(guest.error(&object).contains("object file"));
    let short = pvh().build();
    assert!(guest.error(&short[..3000]).contains("cut off: 3000 bytes"));
    assert!(guest.error(&short[..100]).contains("headers are cut off"));
    assert!(guest.error(&short[..20]).contains("header is cut off"));
    let high = ElfSpec {
        paddr: 0x7fff_0000,
        ..pvh()
    };
    assert!(
        guest
            .error(&high.build())
            .contains("needs memory at 0x7fff0000")
    );
    let wrap = ElfSpec {
        paddr: u64::MAX - 10,
        ..pvh()
    };
    assert!(guest.error(&wrap.build()).contains("segment of"));
}

#[test]
fn what_is_no_kernel_is_named() {
    let guest = Guest::new(64);
    let found = |bytes: &[u8]| guest.error(bytes);
    assert_eq!(
        found(b""),
        "vmlinuz is no kernel: expected a bzImage, an ELF file (vmlinux) or a Multiboot kernel, found an empty file"
    );
    assert!(found(b"\x1f\x8b\x08\0").ends_with("found gzip data; decompress it first"));
    assert!(found(b"QFI\xfb\0\0\0\x03").contains("a qcow2 image; a disk is given with --disk"));
    assert!(found(b"070701").contains("a cpio archive"));
    assert!(found(b"hello").ends_with("5 bytes that begin with 68 65 6c 6c 6f"));
    let mut sector = vec![0; 512];
    set(&mut sector, 510, b"\x55\xaa");
    assert!(found(&sector).contains("a boot sector"));
}

#[test]
fn files_load_like_bytes() {
    let guest = Guest::new(64);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pvh().build()).unwrap();
    let mut initrd = tempfile::tempfile().unwrap();
    initrd.write_all(&[5; 70_000]).unwrap();
    let plan = guest
        .boot(
            &FileImage::new(&file).unwrap(),
            Some(&FileImage::new(&initrd).unwrap()),
            "",
        )
        .unwrap();
    assert_eq!(guest.bytes(0x100_0000, 5000), vec![0x90; 5000]);
    let initrd = plan.loaded.iter().find(|l| l.what == "initrd").unwrap();
    assert_eq!(guest.bytes(initrd.range.base, 70_000), vec![5; 70_000]);
}

#[test]
fn both_parts_of_big_files_are_loaded() {
    let guest = Guest::new(64);
    let (offset, address) = (12, 0x10_1000);
    let numbers: Vec<u8> = (0..3_000_001_u32).flat_map(u32::to_le_bytes).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&numbers).unwrap();
    let image = FileImage::new(&file).unwrap();
    let load = |len: usize| image.load(offset, len as u64, &guest.ram, address, "kernel");
    let expected = &numbers[offset as usize..];
    load(expected.len()).unwrap();
    assert!(guest.bytes(address, expected.len()) == expected);
    assert_eq!(guest.bytes(address + expected.len() as u64, 4), [0; 4]);
    // Also where the second part, or all, is beyond the end of the file or of memory.
    load(expected.len() + 1).unwrap_err();
    load(4 * expected.len()).unwrap_err();
    let len = expected.len() as u64;
    image
        .load(u64::MAX - 1, len, &guest.ram, address, "kernel")
        .unwrap_err();
    let top = 64 * MIB - (4 << 20);
    image
        .load(0, numbers.len() as u64, &guest.ram, top, "kernel")
        .unwrap_err();
}

/// A bzImage whose payload is `packed`, with the length that Linux appends.
fn bzimage_of(packed: &[u8], unpacked_len: usize, append: bool) -> Vec<u8> {
    let mut payload = packed.to_vec();
    if append {
        payload.extend_from_slice(&(unpacked_len as u32).to_le_bytes());
    }
    let mut file = bzimage();
    file.truncate(1024 + 512);
    file.extend_from_slice(&payload);
    file.resize(file.len().next_multiple_of(16), 0);
    let code_len = (file.len() - 1024) as u32;
    set(&mut file, 0x1f4, &(code_len / 16).to_le_bytes());
    set(&mut file, 0x248, &512_u32.to_le_bytes());
    set(&mut file, 0x24c, &(payload.len() as u32).to_le_bytes());
    file
}

fn legacy_lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = b"\x02\x21\x4c\x18".to_vec();
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
        packed.extend_from_slice(&block);
    }
    packed
}

/// A vmlinux with a pattern to recognise.
fn vmlinux_of(len: u32) -> (Vec<u8>, Vec<u8>) {
    let code: Vec<u8> = (0..len / 4).flat_map(u32::to_le_bytes).collect();
    let elf = ElfSpec {
        code: code.clone(),
        ..pvh()
    };
    (elf.build(), code)
}

#[test]
fn payloads_are_decompressed_into_place() {
    // More than two chunks, and more than one of LZ4's blocks.
    let (small, small_code) = vmlinux_of(150_000);
    let (large, large_code) = vmlinux_of(9 << 20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&small).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        small.as_slice(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    let files = [
        bzimage_of(&gzip.finish().unwrap(), small.len(), false),
        bzimage_of(&zstd, small.len(), true),
        bzimage_of(&legacy_lz4(&large), large.len(), true),
    ];
    let codes = [&small_code, &small_code, &large_code];
    for ((file, code), what) in files.iter().zip(codes).zip(["gzip", "zstd", "lz4"]) {
        let mut guest = Guest::new(64);
        guest.decompress = Decompress::Host;
        let plan = guest.boot(file, None, "").unwrap();
        assert_eq!(plan.protocol, Protocol::Pvh, "{what}");
        assert_eq!(plan.cpu.regs.rip, 0x100_0040);
        assert!(guest.bytes(0x100_0000, code.len()) == *code, "{what}");
        let piece = plan.loaded[0].range;
        assert_eq!(piece, Range::new(0x100_0000, code.len() as u64 + 3000));
    }
}

/// Made with `xz --check=crc32 --x86 --lzma2=dict=32MiB`, as Linux does.
#[test]
fn xz_payloads_are_decompressed() {
    const HELLO: &[u8] = include_bytes!("hello.xz");
    let format = payload::Format::detect(HELLO).unwrap();
    assert_eq!(format, payload::Format::Xz);
    let mut text = String::new();
    let mut stream = format.decoder(HELLO).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    assert_eq!(text, "hello, kernel\n");
}

#[test]
fn payloads_that_cannot_be_decompressed() {
    let mut guest = Guest::new(64);
    guest.decompress = Decompress::Host;
    let unknown = bzimage_of(b"BZh91AY&SY", 10, true);
    let plan = guest.boot(&unknown, None, "").unwrap();
    assert_eq!(plan.protocol, Protocol::Linux64, "the guest does it");

    let vmlinux = pvh().build();
    let mut damaged = legacy_lz4(&vmlinux);
    let end = damaged.len() - 40;
    damaged[8..end].fill(0xff);
    let error = guest.error(&bzimage_of(&damaged, vmlinux.len(), true));
    assert!(error.contains("its payload is damaged"), "{error}");
    let short = legacy_lz4(&vmlinux[..3000]);
    let error = guest.error(&bzimage_of(&short, vmlinux.len(), true));
    assert!(
        error.contains("the kernel in it: it ends too early"),
        "{error}"
    );
    let text = legacy_lz4(b"no ELF file");
    let error = guest.error(&bzimage_of(&text, 11, true));
    assert!(error.contains("the kernel in it: "), "{error}");
}

/// A file that lies about what it is, at every place that a parser reads.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let kernels = vec![
        bzimage(),
        pvh().build(),
        ElfSpec::default().build(),
        multiboot_elf().build(),
        bzimage_of(&legacy_lz4(&pvh().build()), pvh().build().len(), true),
    ];
    let damage = prop::collection::vec((0_usize..0x300, any::<u8>()), 0..12);
    (prop::sample::select(kernels), damage, 0_usize..12_000).prop_map(|(mut file, damage, len)| {
        for (offset, byte) in damage {
            if let Some(slot) = file.get_mut(offset) {
                *slot = byte;
            }
        }
        file.truncate(len.max(1));
        file
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_kernels_never_panic(file in damaged()) {
        // Guest memory is never unmapped: one guest for all cases.
        static GUEST: OnceLock<Guest> = OnceLock::new();
        let guest = GUEST.get_or_init(|| Guest {
            decompress: Decompress::Host,
            ..Guest::new(64)
        });
        if let Ok(plan) = guest.boot(&file, Some(&vec![1; 3]), "a b c") {
            for piece in &plan.loaded {
                prop_assert!(piece.range.base + piece.range.size <= guest.acpi.unwrap().base);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), len in any::<u64>()) {
        _ = SetupHeader::parse(&bytes, len);
        _ = Header::find(&bytes);
        _ = elf::Notes::parse(&bytes, len);
        if let Ok(header) = elf::FileHeader::parse(&bytes) {
            _ = header.segments(&bytes, len);
        }
        _ = Kernel::detect(&bytes, "x");
    }

    #[test]
    fn random_multiboot_addresses_never_panic(
        fields in any::<[u32; 5]>(), offset in any::<u32>(), len in any::<u64>(),
    ) {
        let [header, load, load_end, bss_end, entry] = fields;
        let addresses = multiboot::Addresses { header, load, load_end, bss_end, entry };
        if let Ok((offset, size, memory)) = addresses.extent(offset, len) {
            prop_assert!(offset.checked_add(size).is_some_and(|end| size == 0 || end <= len));
            prop_assert!(memory >= size);
        }
    }
}
