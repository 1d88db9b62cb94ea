//! Every address and port of the board, in one place.
//!
//! What a guest finds by itself (PCI functions, BARs) is not here. The chipset's numbers are
//! Intel's for the ICH9 (I/O Controller Hub 9 datasheet, order number 316972) with the base
//! addresses that QEMU's q35 programs into it; firmware and libvirt know those.

/// Guest-physical addresses.
pub mod mem {
    /// End of the memory that real-mode programs may use: the extended BIOS data area begins.
    pub const EBDA: u64 = 0x9_fc00;
    /// Legacy VGA frame buffer, 128 KiB.
    pub const VGA: u64 = 0xa_0000;
    /// End of the legacy VGA frame buffer: option ROMs begin.
    pub const OPTION_ROMS: u64 = 0xc_0000;
    /// Area that operating systems search for the RSDP (ACPI 6.5 section 5.2.5.1).
    pub const RSDP_AREA: u64 = 0xe_0000;
    /// Where direct boot puts the RSDP.
    pub const RSDP: u64 = RSDP_AREA;
    /// Area that operating systems search for the SMBIOS entry point (SMBIOS 3.7 section 5.2.2);
    /// the tables follow it.
    pub const SMBIOS: u64 = 0xf_0000;
    /// End of the area for SMBIOS. Linkers put the ELF headers of a kernel at 1 MiB on the page
    /// before it, so the last pages are left to kernels.
    pub const SMBIOS_END: u64 = 0xf_c000;
    /// 1 MiB: memory that needs protected mode.
    pub const HIGH: u64 = 0x10_0000;

    /// Guests with this much RAM or more get a hole below 4 GiB that begins at [`LOW_RAM_MAX`].
    pub const LOW_RAM_SPLIT: u64 = 0xb000_0000;
    /// End of the RAM below 4 GiB of large guests.
    pub const LOW_RAM_MAX: u64 = 0x8000_0000;
    /// PCI Express configuration space (ECAM), one MiB for each bus.
    pub const ECAM: u64 = 0xb000_0000;
    /// Size of the ECAM with all 256 buses.
    pub const ECAM_SIZE: u64 = 0x1000_0000;
    /// Window for 32-bit BARs.
    pub const PCI32: u64 = 0xc000_0000;
    /// End of the window for 32-bit BARs.
    pub const PCI32_END: u64 = IO_APIC;
    /// I/O APIC.
    pub const IO_APIC: u64 = 0xfec0_0000;
    /// Size of the I/O APIC's page.
    pub const IO_APIC_SIZE: u64 = 0x1000;
    /// HPET, which this board does not have; nothing else is put there.
    pub const HPET: u64 = 0xfed0_0000;
    /// TPM (TCG PC Client Platform TPM Profile section 6).
    pub const TPM: u64 = 0xfed4_0000;
    /// Local APICs; also where MSIs are written to.
    pub const LOCAL_APIC: u64 = 0xfee0_0000;
    /// Size of the MSI window.
    pub const LOCAL_APIC_SIZE: u64 = 0x10_0000;
    /// Four pages that KVM needs for real mode on Intel processors without unrestricted guests:
    /// first the identity-mapped page table (KVM_SET_IDENTITY_MAP_ADDR) ...
    pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
    /// ... then three pages for a task state segment (KVM_SET_TSS_ADDR).
    pub const KVM_TSS: u64 = 0xfeff_d000;
    /// End of KVM's pages.
    pub const KVM_PAGES_END: u64 = 0xff00_0000;
    /// Firmware flash ends here; its start depends on its size.
    pub const FLASH_END: u64 = FOUR_GIB;
    /// 4 GiB: where RAM goes on.
    pub const FOUR_GIB: u64 = 0x1_0000_0000;
    /// AMD processors with an IOMMU do not translate from here to 1 TiB (HyperTransport): no BAR
    /// is put there.
    pub const HYPER_TRANSPORT: u64 = 0xfd_0000_0000;
}

/// I/O ports.
pub mod port {
    /// Master interrupt controller, two ports.
    pub const PIC1: u16 = 0x20;
    /// Interval timer, four ports.
    pub const PIT: u16 = 0x40;
    /// Keyboard controller, data.
    pub const I8042_DATA: u16 = 0x60;
    /// System control port B: speaker and timer 2.
    pub const SYSTEM_CONTROL_B: u16 = 0x61;
    /// Keyboard controller, command and status.
    pub const I8042_COMMAND: u16 = 0x64;
    /// Real-time clock and CMOS: index, then data.
    pub const RTC: u16 = 0x70;
    /// Power-on self test code.
    pub const POST: u16 = 0x80;
    /// System control port A: A20 and fast reset.
    pub const SYSTEM_CONTROL_A: u16 = 0x92;
    /// Slave interrupt controller, two ports.
    pub const PIC2: u16 = 0xa0;
    /// Advanced power management control, the SMI command port (ICH9 section 13.7.1).
    pub const APM_CNT: u16 = 0xb2;
    /// Advanced power management status.
    pub const APM_STS: u16 = 0xb3;
    /// Firmware debug console of SeaBIOS and OVMF.
    pub const DEBUG_CONSOLE: u16 = 0x402;
    /// Edge/level control of the two PICs, two ports.
    pub const ELCR: u16 = 0x4d0;
    /// isa-debug-exit where it is asked for without an address.
    pub const DEBUG_EXIT: u16 = 0x501;
    /// pvpanic.
    pub const PVPANIC: u16 = 0x505;
    /// fw_cfg: selector and data, then DMA at +4.
    pub const FW_CFG: u16 = 0x510;
    /// Ports of fw_cfg.
    pub const FW_CFG_SIZE: u16 = 12;
    /// ACPI power management block (PMBASE, ICH9 section 13.8.3).
    pub const PM: u16 = 0x600;
    /// Ports of the power management block.
    pub const PM_SIZE: u16 = 0x80;
    /// PM1 status, then enable, two bytes each.
    pub const PM1_EVENT: u16 = PM;
    /// PM1 control, two bytes.
    pub const PM1_CONTROL: u16 = PM + 4;
    /// Power management timer, four bytes.
    pub const PM_TIMER: u16 = PM + 8;
    /// General-purpose events: 8 bytes of status, then 8 of enables.
    pub const GPE0: u16 = PM + 0x20;
    /// Ports of the general-purpose events.
    pub const GPE0_SIZE: u8 = 16;
    /// TCO watchdog.
    pub const TCO: u16 = PM + 0x60;
    /// SMBus host controller.
    pub const SMBUS: u16 = 0x700;
    /// Registers for memory hot-plug, 24 ports.
    pub const MEMORY_HOTPLUG: u16 = 0xa00;
    /// Registers for processor hot-plug, 12 ports.
    pub const CPU_HOTPLUG: u16 = 0xcd8;
    /// PCI configuration address.
    pub const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
    /// Reset control (ICH9 section 13.7.5), inside the PCI configuration address's four ports.
    pub const RESET_CONTROL: u16 = 0xcf9;
    /// PCI configuration data.
    pub const PCI_CONFIG_DATA: u16 = 0xcfc;
    /// Serial ports COM1 to COM4, eight ports each.
    pub const COM: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
}

/// ISA interrupts, which are global system interrupts too where no override says otherwise.
pub mod irq {
    /// Interval timer; the I/O APIC's pin 2.
    pub const PIT: u32 = 0;
    /// Global system interrupt of the interval timer.
    pub const PIT_GSI: u32 = 2;
    /// Keyboard.
    pub const KEYBOARD: u32 = 1;
    /// COM1 to COM4.
    pub const COM: [u32; 4] = [4, 3, 4, 3];
    /// Real-time clock.
    pub const RTC: u32 = 8;
    /// ACPI's system control interrupt.
    pub const SCI: u32 = 9;
    /// Mouse.
    pub const MOUSE: u32 = 12;
    /// Pins of the I/O APIC.
    pub const IO_APIC_PINS: u32 = 24;
}

/// Values of the board's command ports.
pub mod command {
    /// Written to [`super::port::APM_CNT`]: switch to ACPI mode.
    pub const ACPI_ENABLE: u8 = 2;
    /// Written to [`super::port::APM_CNT`]: switch back to legacy mode.
    pub const ACPI_DISABLE: u8 = 3;
    /// Written to [`super::port::RESET_CONTROL`]: full reset (SYS_RST, RST_CPU, FULL_RST).
    pub const FULL_RESET: u8 = 0x0e;
    /// SLP_TYP of S5 (soft off) in PM1 control.
    pub const SLEEP_TYPE_S5: u8 = 0;
    /// CMOS register that holds the century.
    pub const CMOS_CENTURY: u8 = 0x32;
}

/// General-purpose events: numbers of bits in GPE0 and of the `_E*nn*` methods.
pub mod gpe {
    /// PCI hot-plug by ACPI, unused while root ports do it natively.
    pub const PCI: u8 = 1;
    /// Processor hot-plug.
    pub const CPU: u8 = 2;
    /// Memory hot-plug.
    pub const MEMORY: u8 = 3;
}
