//! The tables that describe the machine to an operating system (ACPI 6.5).
//!
//! ```text
//!   AcpiConfig ─▶ AcpiTables::build ─┬─▶ install: into the top of low RAM, RSDP at 0xe0000
//!                                    └─▶ blob, rsdp_blob, loader: fw_cfg files for firmware
//!
//!   RSDP ─▶ XSDT ─┬─▶ FADT ─┬─▶ FACS
//!     └──▶ RSDT ──┤         └─▶ DSDT: PCI host bridge, ISA devices, processors, S5
//!                 ├─▶ MADT  MCFG  WAET
//!                 └─▶ SRAT  SLIT   (only with NUMA nodes)
//! ```
//!
//! The hardware model is the ICH9's fixed hardware with one block of general-purpose events.
//! There is no HPET: guests that find one spend time on calibrating it.

use bus::Range;
use memory::{Bytes, GuestAddress, Ram};

use crate::BoardError;
use crate::address::mem;
use crate::memory_map::MemoryMap;

mod blob;
mod dsdt;
mod tables;
#[cfg(test)]
mod tests;

use blob::Blob;

/// Length of the root pointer (revision 2), bytes.
pub const RSDP_LEN: usize = 36;
/// Name of the fw_cfg file with the tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// Name of the fw_cfg file with the root pointer.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// Name of the fw_cfg file that tells firmware how to link the two.
pub const LOADER_FILE: &str = "etc/table-loader";

/// A processor that the tables tell about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// Local APIC ID: one of 255 or more makes an x2APIC entry.
    pub apic_id: u32,
    /// NUMA node, an index into [`AcpiConfig::nodes`].
    pub node: u32,
    /// Present at the start; otherwise it may be plugged in later.
    pub present: bool,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its memory; [`MemoryMap::split`] makes these.
    pub memory: Vec<Range>,
    /// Distance to each node, itself included (10 is local); missing ones are 20.
    pub distances: Vec<u8>,
}

/// A 16550 at an ISA address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// ISA interrupt, 0 to 15.
    pub irq: u8,
}

/// What the tables are made from.
#[derive(Debug, Clone)]
pub struct AcpiConfig<'a> {
    /// The machine's address map.
    pub memory: &'a MemoryMap,
    /// Processors in the order of their UIDs; at most 4096.
    pub cpus: Vec<Cpu>,
    /// NUMA nodes; empty for a machine without NUMA.
    pub nodes: Vec<Node>,
    /// The last PCI bus number: one for each root port, and 0 for a machine without. Linux probes
    /// every device of every bus up to this one, two port accesses each, so a number that is
    /// larger than need be costs boot time.
    pub last_bus: u8,
    /// The global system interrupt of a root bus device's pin (device 0 to 31, pin 0 to 3).
    pub intx_gsi: fn(device: u8, pin: u8) -> u32,
    /// Serial ports in order: the first one is COM1.
    pub serial: Vec<SerialPort>,
    /// There is a keyboard controller with keyboard and mouse. Without one Linux does not probe.
    pub i8042: bool,
    /// The power management timer counts 32 bits, not 24.
    pub pm_timer_32bit: bool,
    /// There is a VGA device. Without one Linux does not probe.
    pub vga: bool,
    /// Port of pvpanic.
    pub pvpanic: Option<u16>,
    /// First port of fw_cfg.
    pub fw_cfg: Option<u16>,
}

/// The tables, not yet tied to an address.
#[derive(Debug, Clone)]
pub struct AcpiTables {
    blob: Blob,
}

/// Where [`AcpiTables::install`] has put the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiArea {
    /// First address of the tables; they and padding go up to the end of low RAM. What
    /// [`MemoryMap::e820`] wants to know.
    pub base: u64,
    /// Address of the root pointer.
    pub rsdp: u64,
}

impl AcpiTables {
    /// Builds the tables.
    ///
    /// # Errors
    /// There are more processors than names for them.
    pub fn build(config: &AcpiConfig) -> Result<Self, BoardError> {
        if config.cpus.len() > dsdt::MAX_CPUS {
            return Err(BoardError::TooManyCpus {
                cpus: config.cpus.len(),
                max: dsdt::MAX_CPUS,
            });
        }
        let mut blob = Blob::default();
        // FACS first: it has to be 64-byte aligned.
        let facs = blob.add(tables::facs());
        let dsdt = blob.add(dsdt::dsdt(config));
        let mut listed = vec![tables::add_fadt(&mut blob, config, facs, dsdt)];
        listed.push(blob.add(tables::madt(config)));
        listed.push(blob.add(tables::mcfg(config)));
        if !config.nodes.is_empty() {
            listed.push(blob.add(tables::srat(config)));
            listed.push(blob.add(tables::slit(&config.nodes)));
        }
        listed.push(blob.add(tables::waet()));
        tables::add_roots(&mut blob, &listed);
        Ok(Self { blob })
    }

    /// Bytes of all tables but the root pointer.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blob.tables.len() as u64
    }

    /// Writes the tables to the top of low RAM and the root pointer to [`mem::RSDP`].
    ///
    /// # Errors
    /// They do not fit, or `ram` has no memory there.
    pub fn install(&self, ram: &Ram, map: &MemoryMap) -> Result<AcpiArea, BoardError> {
        const PAGE: u64 = 4096;
        let room = map.low_ram_end.saturating_sub(mem::HIGH);
        let too_large = BoardError::TablesTooLarge {
            what: "ACPI",
            size: self.size(),
            room,
        };
        let base = map
            .low_ram_end
            .checked_sub(self.size().next_multiple_of(PAGE))
            .filter(|base| *base >= mem::HIGH)
            .ok_or(too_large)?;
        let (tables, rsdp) = self.blob.placed(base);
        let write = |what, address, bytes: &[u8]| {
            ram.write_slice(bytes, GuestAddress(address))
                .map_err(|source| BoardError::GuestMemory {
                    what,
                    address,
                    source,
                })
        };
        write("the ACPI tables", base, &tables)?;
        write("the ACPI root pointer", mem::RSDP, &rsdp)?;
        Ok(AcpiArea {
            base,
            rsdp: mem::RSDP,
        })
    }

    /// Content of [`TABLES_FILE`]: pointers are offsets until firmware links them.
    #[must_use]
    pub fn tables_blob(&self) -> &[u8] {
        &self.blob.tables
    }

    /// Content of [`RSDP_FILE`].
    #[must_use]
    pub fn rsdp_blob(&self) -> &[u8] {
        &self.blob.rsdp
    }

    /// Content of [`LOADER_FILE`]: commands that allocate memory, link pointers and compute
    /// checksums.
    #[must_use]
    pub fn loader_blob(&self) -> Vec<u8> {
        self.blob.loader()
    }
}
