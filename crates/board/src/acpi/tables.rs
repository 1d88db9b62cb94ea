//! Every table but the DSDT. Numbers in comments are sections of ACPI 6.5.

use super::blob::{Blob, File, checksum};
use super::{AcpiConfig, Node};
use crate::address::{command, irq, mem, port};

const OEM_ID: &[u8; 6] = b"VIREO ";
const OEM_TABLE_ID: &[u8; 8] = b"VIREOQ35";
const OEM_REVISION: u32 = 1;
const CREATOR_ID: &[u8; 4] = b"VREO";
const CREATOR_REVISION: u32 = 1;

/// Node distances (5.2.17) where nobody says otherwise.
const LOCAL_DISTANCE: u8 = 10;
const REMOTE_DISTANCE: u8 = 20;

/// Bytes of a table in the making.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A generic address in I/O space (5.2.3.2); `access` is 1 for bytes to 3 for 32 bits.
    fn io(&mut self, port: u16, bytes: u8, access: u8) -> &mut Self {
        const SYSTEM_IO: u8 = 1;
        self.u8(SYSTEM_IO)
            .u8(bytes.saturating_mul(8))
            .u8(0)
            .u8(access)
            .u64(port.into())
    }
}

/// A table from its body: header (5.2.6) and checksum.
pub(super) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    const HEADER_LEN: u32 = 36;
    let mut fields = Fields::default();
    fields
        .bytes(signature)
        .u32(HEADER_LEN + body.len() as u32)
        .u8(revision)
        .u8(0)
        .bytes(OEM_ID)
        .bytes(OEM_TABLE_ID)
        .u32(OEM_REVISION)
        .bytes(CREATOR_ID)
        .u32(CREATOR_REVISION)
        .bytes(body);
    let mut bytes = fields.0;
    bytes[9] = checksum(&bytes);
    bytes
}

/// Firmware ACPI control structure (5.2.10): no waking vector, no global lock.
pub(super) fn facs() -> Vec<u8> {
    const LEN: u32 = 64;
    const VERSION: u8 = 2;
    let mut fields = Fields::default();
    fields
        .bytes(b"FACS")
        .u32(LEN)
        .zeros(24)
        .u8(VERSION)
        .zeros(31);
    fields.0
}

/// Fixed ACPI description table (5.2.9).
pub(super) fn add_fadt(blob: &mut Blob, config: &AcpiConfig, facs: usize, dsdt: usize) -> usize {
    const REVISION: u8 = 6;
    const MINOR_REVISION: u8 = 3;
    const PROFILE_ENTERPRISE_SERVER: u8 = 4;
    // Latencies beyond these limits say that there are no C2 and C3.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    // 5.2.9.3
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    // Table 5.10
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    const NO_FIXED_SLEEP_BUTTON: u32 = 1 << 5;
    const RTC_S4: u32 = 1 << 7;
    const TIMER_32_BIT: u32 = 1 << 8;
    const RESET_REG: u32 = 1 << 10;
    const APIC_CLUSTER: u32 = 1 << 18;
    // Flat logical mode of the local APIC has eight bits for eight processors.
    const FLAT_MODE_CPUS: usize = 8;
    // Offsets of the pointers.
    const FIRMWARE_CTRL: usize = 36;
    const DSDT: usize = 40;
    const X_DSDT: usize = 140;

    let mut boot_arch = LEGACY_DEVICES;
    if config.i8042 {
        boot_arch |= HAS_8042;
    }
    if !config.vga {
        boot_arch |= NO_VGA;
    }
    let mut flags = WBINVD | PROC_C1 | NO_FIXED_SLEEP_BUTTON | RTC_S4 | RESET_REG;
    if config.pm_timer_32bit {
        flags |= TIMER_32_BIT;
    }
    if config.cpus.len() > FLAT_MODE_CPUS {
        flags |= APIC_CLUSTER;
    }

    let mut fields = Fields::default();
    fields
        .u32(0) // FIRMWARE_CTRL
        .u32(0) // DSDT
        .u8(0)
        .u8(PROFILE_ENTERPRISE_SERVER)
        .u16(irq::SCI as u16)
        .u32(port::APM_CNT.into())
        .u8(command::ACPI_ENABLE)
        .u8(command::ACPI_DISABLE)
        .zeros(2) // S4BIOS_REQ, PSTATE_CNT
        .u32(port::PM1_EVENT.into())
        .u32(0)
        .u32(port::PM1_CONTROL.into())
        .u32(0)
        .u32(0)
        .u32(port::PM_TIMER.into())
        .u32(port::GPE0.into())
        .u32(0)
        .u8(4) // PM1_EVT_LEN
        .u8(2) // PM1_CNT_LEN
        .u8(0)
        .u8(4) // PM_TMR_LEN
        .u8(port::GPE0_SIZE)
        .zeros(3) // GPE1_BLK_LEN, GPE1_BASE, CST_CNT
        .u16(NO_C2)
        .u16(NO_C3)
        .zeros(4) // FLUSH_SIZE, FLUSH_STRIDE
        .zeros(4) // DUTY_OFFSET, DUTY_WIDTH, DAY_ALRM, MON_ALRM
        .u8(command::CMOS_CENTURY)
        .u16(boot_arch)
        .u8(0)
        .u32(flags)
        .io(port::RESET_CONTROL, 1, 1)
        .u8(command::FULL_RESET)
        .u16(0) // ARM_BOOT_ARCH
        .u8(MINOR_REVISION)
        .u64(0) // X_FIRMWARE_CTRL: the 32-bit field is used
        .u64(0) // X_DSDT
        .io(port::PM1_EVENT, 4, 2)
        .zeros(12)
        .io(port::PM1_CONTROL, 2, 2)
        .zeros(12)
        .zeros(12)
        .io(port::PM_TIMER, 4, 3)
        .io(port::GPE0, port::GPE0_SIZE, 1)
        .zeros(12)
        .zeros(12) // SLEEP_CONTROL_REG
        .zeros(12) // SLEEP_STATUS_REG
        .bytes(b"VIREO   "); // hypervisor vendor identity
    blob.add_linked(
        table(b"FACP", REVISION, &fields.0),
        &[(FIRMWARE_CTRL, 4, facs), (DSDT, 4, dsdt), (X_DSDT, 8, dsdt)],
    )
}

/// Multiple APIC description table (5.2.12).
pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    const REVISION: u8 = 5;
    const PCAT_COMPAT: u32 = 1;
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const OVERRIDE: u8 = 2;
    const LOCAL_APIC_NMI: u8 = 4;
    const LOCAL_X2APIC: u8 = 9;
    const LOCAL_X2APIC_NMI: u8 = 10;
    const ENABLED: u32 = 1;
    const ONLINE_CAPABLE: u32 = 2;
    const ISA: u8 = 0;
    const BUS_DEFAULT: u16 = 0;
    const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
    const LINT1: u8 = 1;

    let mut fields = Fields::default();
    fields.u32(mem::LOCAL_APIC as u32).u32(PCAT_COMPAT);
    let mut x2apic = false;
    for (uid, cpu) in config.cpus.iter().enumerate() {
        let flags = if cpu.present { ENABLED } else { ONLINE_CAPABLE };
        // ID 255 and UID 255 mean "all" in the old entries.
        match (u8::try_from(uid), u8::try_from(cpu.apic_id)) {
            (Ok(uid @ 0..=254), Ok(id @ 0..=254)) => {
                fields.u8(LOCAL_APIC).u8(8).u8(uid).u8(id).u32(flags);
            }
            _ => {
                x2apic = true;
                fields
                    .u8(LOCAL_X2APIC)
                    .u8(16)
                    .u16(0)
                    .u32(cpu.apic_id)
                    .u32(flags)
                    .u32(uid as u32);
            }
        }
    }
    fields
        .u8(IO_APIC)
        .u8(12)
        .u8(0)
        .u8(0)
        .u32(mem::IO_APIC as u32)
        .u32(0);
    // The timer, then what PCI may be routed to while the PICs are in use, and the SCI.
    for (source, gsi, flags) in [
        (irq::PIT as u8, irq::PIT_GSI, BUS_DEFAULT),
        (5, 5, LEVEL_ACTIVE_HIGH),
        (irq::SCI as u8, irq::SCI, LEVEL_ACTIVE_HIGH),
        (10, 10, LEVEL_ACTIVE_HIGH),
        (11, 11, LEVEL_ACTIVE_HIGH),
    ] {
        fields
            .u8(OVERRIDE)
            .u8(10)
            .u8(ISA)
            .u8(source)
            .u32(gsi)
            .u16(flags);
    }
    fields
        .u8(LOCAL_APIC_NMI)
        .u8(6)
        .u8(0xff)
        .u16(BUS_DEFAULT)
        .u8(LINT1);
    if x2apic {
        fields
            .u8(LOCAL_X2APIC_NMI)
            .u8(12)
            .u16(BUS_DEFAULT)
            .u32(u32::MAX)
            .u8(LINT1)
            .zeros(3);
    }
    table(b"APIC", REVISION, &fields.0)
}

/// Memory-mapped configuration space (PCI Firmware Specification 3.3 section 4.1.2).
pub(super) fn mcfg(config: &AcpiConfig) -> Vec<u8> {
    let ecam = config.memory.ecam;
    let mut fields = Fields::default();
    fields
        .zeros(8)
        .u64(ecam.base)
        .u16(0)
        .u8(0)
        .u8(last_bus(config))
        .zeros(4);
    table(b"MCFG", 1, &fields.0)
}

/// The last bus number that a guest may use: what was asked for, as far as the configuration
/// space reaches.
pub(super) fn last_bus(config: &AcpiConfig) -> u8 {
    const BUS_SIZE_BITS: u32 = 20;
    let buses = config.memory.ecam.size >> BUS_SIZE_BITS;
    let reach = u8::try_from(buses.saturating_sub(1)).unwrap_or(u8::MAX);
    config.last_bus.min(reach)
}

/// System resource affinity table (5.2.16).
pub(super) fn srat(config: &AcpiConfig) -> Vec<u8> {
    const REVISION: u8 = 3;
    const LOCAL_APIC: u8 = 0;
    const MEMORY: u8 = 1;
    const LOCAL_X2APIC: u8 = 2;
    const ENABLED: u32 = 1;
    const HOT_PLUGGABLE: u32 = 2;

    let mut fields = Fields::default();
    fields.u32(1).zeros(8);
    for cpu in &config.cpus {
        let node = cpu.node.to_le_bytes();
        match u8::try_from(cpu.apic_id) {
            Ok(id @ 0..=254) => {
                fields
                    .u8(LOCAL_APIC)
                    .u8(16)
                    .u8(node[0])
                    .u8(id)
                    .u32(ENABLED)
                    .u8(0)
                    .bytes(&node[1..])
                    .u32(0);
            }
            _ => {
                fields
                    .u8(LOCAL_X2APIC)
                    .u8(24)
                    .u16(0)
                    .bytes(&node)
                    .u32(cpu.apic_id)
                    .u32(ENABLED)
                    .u32(0)
                    .u32(0);
            }
        }
    }
    let mut memory = |node: usize, base, size, flags| {
        fields
            .u8(MEMORY)
            .u8(40)
            .u32(node as u32)
            .u16(0)
            .u64(base)
            .u64(size)
            .u32(0)
            .u32(flags)
            .u64(0);
    };
    for (number, node) in config.nodes.iter().enumerate() {
        for range in &node.memory {
            memory(number, range.base, range.size, ENABLED);
        }
    }
    // What may be plugged in belongs to the last node until it says otherwise (_PXM).
    if let (Some(range), Some(last)) = (config.memory.hotplug, config.nodes.len().checked_sub(1)) {
        memory(last, range.base, range.size, ENABLED | HOT_PLUGGABLE);
    }
    table(b"SRAT", REVISION, &fields.0)
}

/// System locality information table (5.2.17).
pub(super) fn slit(nodes: &[Node]) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.u64(nodes.len() as u64);
    for (from, node) in nodes.iter().enumerate() {
        for to in 0..nodes.len() {
            let default = if from == to {
                LOCAL_DISTANCE
            } else {
                REMOTE_DISTANCE
            };
            fields.u8(node.distances.get(to).copied().unwrap_or(default));
        }
    }
    table(b"SLIT", 1, &fields.0)
}

/// Windows ACPI emulated devices table: the PM timer can be read once, not three times.
pub(super) fn waet() -> Vec<u8> {
    const PM_TIMER_GOOD: u32 = 1 << 1;
    table(b"WAET", 1, &PM_TIMER_GOOD.to_le_bytes())
}

/// XSDT (5.2.8), RSDT (5.2.7) for small kernels that know no other, and the root pointer (5.2.5).
pub(super) fn add_roots(blob: &mut Blob, listed: &[usize]) {
    const HEADER_LEN: usize = 36;
    let mut list = |signature, width: u8| {
        let body = vec![0; listed.len() * usize::from(width)];
        let pointers: Vec<_> = listed
            .iter()
            .enumerate()
            .map(|(i, target)| (HEADER_LEN + i * usize::from(width), width, *target))
            .collect();
        blob.add_linked(table(signature, 1, &body), &pointers)
    };
    let rsdt = list(b"RSDT", 4);
    let xsdt = list(b"XSDT", 8);

    const REVISION: u8 = 2;
    const FIRST_LEN: usize = 20;
    let len = blob.rsdp.len();
    blob.rsdp[..8].copy_from_slice(b"RSD PTR ");
    blob.rsdp[9..15].copy_from_slice(OEM_ID);
    blob.rsdp[15] = REVISION;
    blob.rsdp[20..24].copy_from_slice(&(len as u32).to_le_bytes());
    blob.point(File::Rsdp, 16, 4, rsdt);
    blob.point(File::Rsdp, 24, 8, xsdt);
    blob.checksum(File::Rsdp, 8, 0, FIRST_LEN);
    blob.checksum(File::Rsdp, 32, 0, len);
}
