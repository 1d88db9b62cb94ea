//! What `dmidecode` shows: the machine as a piece of hardware (SMBIOS 3.0, DSP0134).
//!
//! ```text
//!   0xf0000: entry point (24 bytes)  ──▶  0xf0020: 0 BIOS │ 1 system │ 3 chassis │ 4 processor ...
//!                                         16 memory array │ 17 DIMM ... │ 19 range ... │ 32 │ 127
//! ```

use memory::{Bytes, GuestAddress, Ram};

use crate::BoardError;
use crate::address::mem;
use crate::memory_map::MemoryMap;

#[cfg(test)]
mod tests;

/// Length of the 64-bit entry point, bytes.
pub const ENTRY_POINT_LEN: usize = 24;
/// Name of the fw_cfg file with the entry point.
pub const ENTRY_POINT_FILE: &str = "etc/smbios/smbios-anchor";
/// Name of the fw_cfg file with the structures.
pub const TABLES_FILE: &str = "etc/smbios/smbios-tables";

/// Distance of the structures from the entry point.
const TABLES_OFFSET: u64 = 0x20;
const NO_HANDLE: u16 = 0xfffe;

/// Strings and identity of the system; an empty string is "not specified".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Manufacturer.
    pub manufacturer: String,
    /// Product name.
    pub product: String,
    /// Version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// SKU number.
    pub sku: String,
    /// Family.
    pub family: String,
    /// UUID in the order in which it is printed (RFC 9562).
    pub uuid: [u8; 16],
}

/// The processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    /// Sockets: one structure for each.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
    /// Manufacturer.
    pub manufacturer: String,
    /// Name of the model.
    pub version: String,
    /// EAX of CPUID leaf 1.
    pub signature: u32,
    /// EDX of CPUID leaf 1.
    pub features: u32,
}

/// What the structures are made from.
#[derive(Debug, Clone)]
pub struct SmbiosConfig<'a> {
    /// Identity.
    pub system: System,
    /// Version of the firmware, here the monitor's own.
    pub firmware_version: String,
    /// Release date of the firmware as mm/dd/yyyy.
    pub firmware_date: String,
    /// Processors.
    pub processors: Processors,
    /// The machine's address map.
    pub memory: &'a MemoryMap,
}

/// The structures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmbiosTables {
    structures: Vec<u8>,
}

impl SmbiosTables {
    /// Builds the structures.
    ///
    /// # Errors
    /// They are too large for the area below 1 MiB.
    pub fn build(config: &SmbiosConfig) -> Result<Self, BoardError> {
        let mut out = Writer::default();
        bios(&mut out, config);
        system(&mut out, &config.system);
        chassis(&mut out, &config.system);
        for socket in 0..config.processors.sockets {
            processor(&mut out, socket, &config.processors);
        }
        memory_array(&mut out, config.memory);
        boot_status(&mut out);
        out.structure(127, 0x7f00).end();

        let size = out.bytes.len() as u64;
        let room = mem::SMBIOS_END - mem::SMBIOS - TABLES_OFFSET;
        if size > room {
            return Err(BoardError::TablesTooLarge {
                what: "SMBIOS",
                size,
                room,
            });
        }
        Ok(Self {
            structures: out.bytes,
        })
    }

    /// The structures, content of [`TABLES_FILE`].
    #[must_use]
    pub fn structures(&self) -> &[u8] {
        &self.structures
    }

    /// The entry point for structures at `address`; content of [`ENTRY_POINT_FILE`] with address
    /// 0, which firmware fills in.
    #[must_use]
    pub fn entry_point(&self, address: u64) -> [u8; ENTRY_POINT_LEN] {
        const CHECKSUM: usize = 5;
        const MAJOR: u8 = 3;
        const MINOR: u8 = 0;
        const REVISION: u8 = 1;
        let mut entry = [0; ENTRY_POINT_LEN];
        entry[..5].copy_from_slice(b"_SM3_");
        entry[6] = ENTRY_POINT_LEN as u8;
        entry[7] = MAJOR;
        entry[8] = MINOR;
        entry[10] = REVISION;
        entry[12..16].copy_from_slice(&(self.structures.len() as u32).to_le_bytes());
        entry[16..24].copy_from_slice(&address.to_le_bytes());
        entry[CHECKSUM] = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
        entry
    }

    /// Writes entry point and structures at [`mem::SMBIOS`].
    ///
    /// # Errors
    /// `ram` has no memory there.
    pub fn install(&self, ram: &Ram) -> Result<(), BoardError> {
        let tables = mem::SMBIOS + TABLES_OFFSET;
        let entry_point = self.entry_point(tables);
        let write = |what, address, bytes: &[u8]| {
            ram.write_slice(bytes, GuestAddress(address))
                .map_err(|source| BoardError::GuestMemory {
                    what,
                    address,
                    source,
                })
        };
        write("the SMBIOS entry point", mem::SMBIOS, &entry_point)?;
        write("the SMBIOS structures", tables, &self.structures)
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

/// One structure in the making: fixed fields, then the strings they refer to (section 6.1).
struct Structure<'w> {
    out: &'w mut Vec<u8>,
    start: usize,
    strings: Vec<u8>,
    string_count: u8,
}

impl Writer {
    fn structure(&mut self, kind: u8, handle: u16) -> Structure<'_> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[kind, 0]);
        self.bytes.extend_from_slice(&handle.to_le_bytes());
        Structure {
            out: &mut self.bytes,
            start,
            strings: Vec::new(),
            string_count: 0,
        }
    }
}

impl Structure<'_> {
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

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// The number of a string, 0 for an empty one. A zero byte would end it, so there is none.
    fn string(&mut self, text: &str) -> &mut Self {
        let number = if text.is_empty() {
            0
        } else {
            self.strings.extend(text.bytes().filter(|b| *b != 0));
            self.strings.push(0);
            self.string_count += 1;
            self.string_count
        };
        self.u8(number)
    }

    fn end(&mut self) {
        // No structure here has fixed fields of more than 48 bytes.
        self.out[self.start + 1] = (self.out.len() - self.start) as u8;
        if self.strings.is_empty() {
            self.out.push(0);
        }
        self.out.append(&mut self.strings);
        self.out.push(0);
    }
}

/// Section 7.1.
fn bios(out: &mut Writer, config: &SmbiosConfig) {
    const START_SEGMENT: u16 = 0xe800;
    const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    const NO_CONTROLLER: u8 = 0xff;
    let mut release = config
        .firmware_version
        .split('.')
        .map(|part| part.parse().unwrap_or(0));
    out.structure(0, 0)
        .string(&config.system.manufacturer)
        .string(&config.firmware_version)
        .u16(START_SEGMENT)
        .string(&config.firmware_date)
        .u8(0)
        .u64(CHARACTERISTICS_NOT_SUPPORTED)
        .u8(0)
        .u8(VIRTUAL_MACHINE)
        .u8(release.next().unwrap_or(0))
        .u8(release.next().unwrap_or(0))
        .u8(NO_CONTROLLER)
        .u8(NO_CONTROLLER)
        .end();
}

/// Section 7.2.
fn system(out: &mut Writer, system: &System) {
    const POWER_SWITCH: u8 = 6;
    // The first three fields of the UUID are little-endian numbers (section 7.2.1).
    let mut uuid = system.uuid;
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    out.structure(1, 0x100)
        .string(&system.manufacturer)
        .string(&system.product)
        .string(&system.version)
        .string(&system.serial)
        .bytes(&uuid)
        .u8(POWER_SWITCH)
        .string(&system.sku)
        .string(&system.family)
        .end();
}

/// Section 7.4.
fn chassis(out: &mut Writer, system: &System) {
    const OTHER: u8 = 1;
    const UNKNOWN: u8 = 2;
    const SAFE: u8 = 3;
    out.structure(3, 0x300)
        .string(&system.manufacturer)
        .u8(OTHER)
        .string(&system.version)
        .string(&system.serial)
        .u8(0)
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        .u32(0)
        .bytes(&[0, 0, 0, 0])
        .string(&system.sku)
        .end();
}

/// Section 7.5.
fn processor(out: &mut Writer, socket: u32, cpus: &Processors) {
    const CENTRAL_PROCESSOR: u8 = 3;
    const OTHER_FAMILY: u8 = 1;
    const OTHER_UPGRADE: u8 = 1;
    const POPULATED_AND_ENABLED: u8 = 0x41;
    const UNKNOWN_SPEED: u16 = 0;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_OF_64_BITS: u16 = 1 << 2;
    let narrow = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    let wide = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let threads = cpus.cores.saturating_mul(cpus.threads);
    out.structure(4, 0x400_u16.wrapping_add(wide(socket)))
        .string(&format!("CPU {socket}"))
        .u8(CENTRAL_PROCESSOR)
        .u8(OTHER_FAMILY)
        .string(&cpus.manufacturer)
        .u32(cpus.signature)
        .u32(cpus.features)
        .string(&cpus.version)
        .u8(0)
        .u16(UNKNOWN_SPEED)
        .u16(UNKNOWN_SPEED)
        .u16(UNKNOWN_SPEED)
        .u8(POPULATED_AND_ENABLED)
        .u8(OTHER_UPGRADE)
        .u16(NO_CACHE)
        .u16(NO_CACHE)
        .u16(NO_CACHE)
        .bytes(&[0, 0, 0])
        .u8(narrow(cpus.cores))
        .u8(narrow(cpus.cores))
        .u8(narrow(threads))
        .u16(CAPABLE_OF_64_BITS)
        .u16(OTHER_FAMILY.into())
        .u16(wide(cpus.cores))
        .u16(wide(cpus.cores))
        .u16(wide(threads))
        .end();
}

/// Sections 7.17, 7.18 and 7.20: one array of DIMMs and the ranges it appears at.
fn memory_array(out: &mut Writer, map: &MemoryMap) {
    const HANDLE: u16 = 0x1000;
    const DIMM_HANDLE: u16 = 0x1100;
    const RANGE_HANDLE: u16 = 0x1300;
    const LOCATION_OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const MULTI_BIT_ECC: u8 = 6;
    const CAPACITY_IS_EXTENDED: u32 = 0x8000_0000;
    const UNKNOWN_WIDTH: u16 = 0xffff;
    const SIZE_IS_EXTENDED: u16 = 0x7fff;
    const FORM_DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;

    let total = map.ram_size();
    // DIMMs of 16 GiB, larger ones where more than 64 would be needed.
    let dimm = (total / 64).next_power_of_two().max(16 << 30);
    let dimms = total.div_ceil(dimm);
    let capacity = match u32::try_from(total >> 10) {
        Ok(kib) if kib < CAPACITY_IS_EXTENDED => kib,
        _ => CAPACITY_IS_EXTENDED,
    };
    out.structure(16, HANDLE)
        .u8(LOCATION_OTHER)
        .u8(SYSTEM_MEMORY)
        .u8(MULTI_BIT_ECC)
        .u32(capacity)
        .u16(NO_HANDLE)
        .u16(dimms as u16)
        .u64(if capacity == CAPACITY_IS_EXTENDED {
            total
        } else {
            0
        })
        .end();

    for number in 0..dimms {
        let mib = (total - number * dimm).min(dimm) >> 20;
        let (size, extended) = match u16::try_from(mib) {
            Ok(mib) if mib < SIZE_IS_EXTENDED => (mib, 0),
            _ => (SIZE_IS_EXTENDED, mib as u32),
        };
        out.structure(17, DIMM_HANDLE + number as u16)
            .u16(HANDLE)
            .u16(NO_HANDLE)
            .u16(UNKNOWN_WIDTH)
            .u16(UNKNOWN_WIDTH)
            .u16(size)
            .u8(FORM_DIMM)
            .u8(0)
            .string(&format!("DIMM {number}"))
            .u8(0)
            .u8(TYPE_RAM)
            .u16(DETAIL_OTHER)
            .u16(0)
            .bytes(&[0, 0, 0, 0, 0])
            .u32(extended)
            .u16(0)
            .u16(0)
            .u16(0)
            .u16(0)
            .end();
    }

    for (handle, (base, size)) in (RANGE_HANDLE..).zip(map.ram_ranges()) {
        let last = base + size - 1;
        let structure = &mut out.structure(19, handle);
        match (u32::try_from(base >> 10), u32::try_from(last >> 10)) {
            (Ok(first), Ok(end)) if end != u32::MAX => structure.u32(first).u32(end),
            _ => structure.u32(u32::MAX).u32(u32::MAX),
        };
        structure.u16(HANDLE).u8(1);
        if last >> 10 >= u64::from(u32::MAX) {
            structure.u64(base).u64(last);
        } else {
            structure.u64(0).u64(0);
        }
        structure.end();
    }
}

/// Section 7.33.
fn boot_status(out: &mut Writer) {
    out.structure(32, 0x2000).bytes(&[0; 7]).end();
}
