use super::{Bar, CONVENTIONAL_SIZE, ConfigSpace, EXPRESS_SIZE};
use crate::regs::*;
use crate::{IntxPin, PciError};

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass and programming interface in the lower 24 bits.
    pub class: u32,
    /// Subsystem Vendor ID (type 0 headers only).
    pub subsystem_vendor: u16,
    /// Subsystem ID (type 0 headers only).
    pub subsystem: u16,
}

/// What a base address register decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// Where a function's MSI-X structures are (PCI Local Bus 3.0 section 6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR in which both structures are.
    pub bar: usize,
    /// Offset of the table in the BAR, a multiple of 8; it takes 16 bytes per vector.
    pub table: u32,
    /// Offset of the pending bits in the BAR, a multiple of 8.
    pub pba: u32,
}

impl MsixLayout {
    /// Bytes of the table.
    #[must_use]
    pub const fn table_size(self) -> u64 {
        self.vectors as u64 * 16
    }

    /// Bytes of the pending bit array.
    #[must_use]
    pub const fn pba_size(self) -> u64 {
        (self.vectors as u64).div_ceil(64) * 8
    }

    /// Table and pending bits in a BAR of their own: the table first, the pending bits in the
    /// second half. The second value is the BAR's size, at least 4 KiB.
    #[must_use]
    pub const fn own_bar(bar: usize, vectors: u16) -> (Self, u64) {
        let half = (vectors as u64 * 16).next_power_of_two();
        let size = if half < 2048 { 4096 } else { half * 2 };
        let layout = Self {
            vectors,
            bar,
            table: 0,
            pba: (size / 2) as u32,
        };
        (layout, size)
    }
}

/// What kind of PCI Express function it is (PCI Express 4.0 section 7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Express {
    /// Behind a root port.
    Endpoint {
        /// Offers Function Level Reset.
        function_level_reset: bool,
    },
    /// On the root bus, without a link.
    IntegratedEndpoint {
        /// Offers Function Level Reset.
        function_level_reset: bool,
    },
    /// A root port with a hot-plug slot.
    RootPort {
        /// Port number in Link Capabilities.
        port: u8,
        /// Physical Slot Number, 0 to 8191.
        slot: u16,
    },
}

/// Puts a [`ConfigSpace`] together.
#[derive(Debug, Clone)]
pub struct ConfigBuilder {
    space: ConfigSpace,
    last_capability: u16,
    last_extended: Option<u16>,
    bridge: bool,
}

impl ConfigBuilder {
    /// A function with a type 0 header.
    #[must_use]
    pub fn endpoint(identity: Identity) -> Self {
        let mut this = Self::common(identity);
        this.put(
            SUBSYSTEM_VENDOR_ID,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        this.put(SUBSYSTEM_VENDOR_ID + 2, &identity.subsystem.to_le_bytes());
        this
    }

    /// A bridge with a type 1 header: a 16-bit I/O window, a 32-bit memory window and a 64-bit
    /// prefetchable one, all closed.
    #[must_use]
    pub fn bridge(identity: Identity) -> Self {
        let mut this = Self::common(identity);
        this.bridge = true;
        this.put(HEADER_TYPE, &[1]);
        this.writable(PRIMARY_BUS, &[0xff; 3]);
        // Windows whose base is above their limit are closed: software that finds the bridge
        // as it comes out of reset must not take them for assigned ones.
        this.put(IO_BASE, &[0xf0, 0]);
        this.writable(IO_BASE, &[0xf0, 0xf0]);
        this.clearable(SECONDARY_STATUS, &STATUS_ERRORS.to_le_bytes());
        this.put(MEMORY_BASE, &[0xf0, 0xff, 0, 0]);
        this.writable(MEMORY_BASE, &[0xf0, 0xff, 0xf0, 0xff]);
        this.put(PREFETCHABLE_BASE, &[0xf1, 0xff, 1, 0]);
        this.writable(PREFETCHABLE_BASE, &[0xf0, 0xff, 0xf0, 0xff]);
        this.writable(PREFETCHABLE_BASE_UPPER, &[0xff; 8]);
        // Parity, SERR#, ISA, VGA, VGA 16-bit decode, and reset.
        this.writable(BRIDGE_CONTROL, &0x005f_u16.to_le_bytes());
        this
    }

    fn common(identity: Identity) -> Self {
        let zero = vec![0; 0x40];
        let space = ConfigSpace {
            value: Vec::new(),
            initial: zero.clone(),
            write: zero.clone(),
            clear: zero.clone(),
            status: zero,
            bars: [None; 6],
            size: CONVENTIONAL_SIZE,
            msix: None,
            express: None,
            flr: false,
        };
        let mut this = Self {
            space,
            last_capability: 0,
            last_extended: None,
            bridge: false,
        };
        this.put(VENDOR_ID, &identity.vendor.to_le_bytes());
        this.put(DEVICE_ID, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        this.put(REVISION_ID, &class.to_le_bytes());
        let command = COMMAND_IO
            | COMMAND_MEMORY
            | COMMAND_BUS_MASTER
            | COMMAND_PARITY
            | COMMAND_SERR
            | COMMAND_INTX_DISABLE;
        this.writable(COMMAND, &command.to_le_bytes());
        this.clearable(STATUS, &STATUS_ERRORS.to_le_bytes());
        this.status(STATUS, &STATUS_INTERRUPT.to_le_bytes());
        this.writable(CACHE_LINE_SIZE, &[0xff]);
        this.writable(INTERRUPT_LINE, &[0xff]);
        this
    }

    /// The device has more functions than this one.
    pub fn multifunction(&mut self) -> &mut Self {
        self.space.initial[usize::from(HEADER_TYPE)] |= HEADER_MULTIFUNCTION;
        self
    }

    /// The function uses this interrupt pin.
    pub fn interrupt_pin(&mut self, pin: IntxPin) -> &mut Self {
        self.put(INTERRUPT_PIN, &[pin.register()])
    }

    /// Sets the value of registers after power-on.
    pub fn put(&mut self, offset: u16, bytes: &[u8]) -> &mut Self {
        overlay(&mut self.space.initial, offset, bytes, |_, new| new);
        self
    }

    /// Allows software to write these bits.
    pub fn writable(&mut self, offset: u16, mask: &[u8]) -> &mut Self {
        overlay(&mut self.space.write, offset, mask, |old, new| old | new);
        self
    }

    /// Allows software to clear these bits by writing 1 to them.
    pub fn clearable(&mut self, offset: u16, mask: &[u8]) -> &mut Self {
        overlay(&mut self.space.clear, offset, mask, |old, new| old | new);
        self
    }

    /// Says that the function itself changes these bits ([`ConfigSpace::update`]).
    pub fn status(&mut self, offset: u16, mask: &[u8]) -> &mut Self {
        overlay(&mut self.space.status, offset, mask, |old, new| old | new);
        self
    }

    /// Uses all of the 256 bytes of the conventional space for registers of its own, as
    /// chipset functions do.
    pub fn device_registers(&mut self) -> &mut Self {
        self.grow(usize::from(CONVENTIONAL_SIZE));
        self
    }

    /// Adds base address register `bar` with `size` bytes, a power of two.
    ///
    /// # Errors
    /// The size or the number is impossible, or the register is taken.
    pub fn bar(&mut self, bar: usize, kind: BarKind, size: u64) -> Result<&mut Self, PciError> {
        let bad = |why| PciError::BadBar { bar, size, why };
        let count = if self.bridge { 2 } else { 6 };
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let (low, smallest, largest) = match kind {
            BarKind::Io => (0x1, 4, 0x1_0000),
            BarKind::Memory32 { prefetchable } => (u32::from(prefetchable) << 3, 16, 1 << 31),
            BarKind::Memory64 { prefetchable } => (u32::from(prefetchable) << 3 | 4, 16, 1 << 62),
        };
        if bar + usize::from(wide) >= count {
            return Err(bad("there is no such register"));
        }
        if !size.is_power_of_two() || size < smallest || size > largest {
            return Err(bad(
                "the size is no power of two within the register's reach",
            ));
        }
        // A register is taken by its own BAR, or as the upper half of the one before.
        let taken = |i: usize| {
            self.space.bars[i].is_some()
                || i.checked_sub(1).is_some_and(|before| {
                    matches!(
                        self.space.bars[before],
                        Some(Bar {
                            kind: BarKind::Memory64 { .. },
                            ..
                        })
                    )
                })
        };
        if taken(bar) || wide && self.space.bars[bar + 1].is_some() {
            return Err(bad("the register is taken"));
        }
        self.space.bars[bar] = Some(Bar { kind, size });
        let offset = BAR0 + 4 * bar as u16;
        let mask = !(size - 1);
        self.put(offset, &low.to_le_bytes());
        // I/O BARs keep their upper 16 bits at zero once they are written so; software that
        // sizes them accepts both forms, all 32 bits writable is the plain one.
        self.writable(offset, &(mask as u32).to_le_bytes());
        if wide {
            self.writable(offset + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        Ok(self)
    }

    /// Adds a capability to the list. `body` is what follows its ID and Next fields, `writable`
    /// the bits of `body` that software writes (it may be shorter). Returns the capability's
    /// offset.
    ///
    /// # Errors
    /// There is no room below offset 0x100.
    pub fn capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, PciError> {
        let bad = |why| PciError::BadCapability {
            id: u16::from(id),
            why,
        };
        // Extended capabilities lie behind the list; it cannot grow any more then.
        if self.last_extended.is_some() {
            return Err(bad("extended capabilities come after all others"));
        }
        let at = self.space.initial.len().next_multiple_of(4);
        let end = at + 2 + body.len();
        if end > usize::from(CONVENTIONAL_SIZE) {
            return Err(bad("the list is full"));
        }
        self.grow(end.next_multiple_of(4));
        let offset = at as u16;
        self.put(offset, &[id, 0]);
        self.put(offset + 2, body);
        self.writable(offset + 2, &writable[..writable.len().min(body.len())]);
        let link = match self.last_capability {
            0 => CAPABILITIES_POINTER,
            last => last + 1,
        };
        self.put(link, &[offset as u8]);
        self.space.initial[usize::from(STATUS)] |= STATUS_CAPABILITIES as u8;
        self.last_capability = offset;
        Ok(offset)
    }

    /// Adds an extended capability. `body` is what follows its 32-bit header, `writable` the
    /// bits of `body` that software writes (it may be shorter). Returns its offset.
    ///
    /// # Errors
    /// The function is no PCI Express function yet, or configuration space is full.
    pub fn extended_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, PciError> {
        let bad = |why| PciError::BadCapability { id, why };
        if self.space.express.is_none() {
            return Err(bad("the function has no PCI Express capability"));
        }
        let at = self
            .space
            .initial
            .len()
            .max(usize::from(CONVENTIONAL_SIZE))
            .next_multiple_of(4);
        let end = at + 4 + body.len();
        if end > usize::from(EXPRESS_SIZE) {
            return Err(bad("the list is full"));
        }
        self.grow(end.next_multiple_of(4));
        let offset = at as u16;
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.put(offset, &header.to_le_bytes());
        self.put(offset + 4, body);
        self.writable(offset + 4, &writable[..writable.len().min(body.len())]);
        if let Some(last) = self.last_extended.replace(offset) {
            let version = self.space.initial[usize::from(last) + 2] & 0xf;
            let next = offset << 4 | u16::from(version);
            self.put(last + 2, &next.to_le_bytes());
        }
        Ok(offset)
    }

    /// Adds the MSI-X capability. The BAR must have been added before.
    ///
    /// # Errors
    /// The structures do not lie within the BAR, overlap, or are misaligned.
    pub fn msix(&mut self, layout: MsixLayout) -> Result<u16, PciError> {
        let bad = |why| PciError::BadCapability {
            id: u16::from(CAP_MSIX),
            why,
        };
        let Some(Some(bar)) = self.space.bars.get(layout.bar) else {
            return Err(bad("there is no such BAR"));
        };
        if bar.kind == BarKind::Io {
            return Err(bad("the structures must be in memory"));
        }
        if !(1..=2048).contains(&layout.vectors) {
            return Err(bad("a function has 1 to 2048 vectors"));
        }
        let (table, pba) = (u64::from(layout.table), u64::from(layout.pba));
        let (table_end, pba_end) = (table + layout.table_size(), pba + layout.pba_size());
        if (table | pba) & 7 != 0 || table_end > bar.size || pba_end > bar.size {
            return Err(bad("the structures must be aligned and within the BAR"));
        }
        if table < pba_end && pba < table_end {
            return Err(bad("the structures overlap"));
        }
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(layout.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(layout.table | layout.bar as u32).to_le_bytes());
        body[6..10].copy_from_slice(&(layout.pba | layout.bar as u32).to_le_bytes());
        let writable = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes();
        let offset = self.capability(CAP_MSIX, &body, &writable)?;
        self.space.msix = Some((offset, layout));
        Ok(offset)
    }

    /// Adds the PCI Express capability, version 2 (PCI Express 4.0 section 7.5.3), and with it
    /// the 4096 bytes of extended configuration space.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn express(&mut self, express: Express) -> Result<u16, PciError> {
        let (kind, link, flr) = match express {
            Express::Endpoint {
                function_level_reset,
            } => (0x0, true, function_level_reset),
            Express::IntegratedEndpoint {
                function_level_reset,
            } => (0x9, false, function_level_reset),
            Express::RootPort { .. } => (0x4, true, false),
        };
        let mut body = [0; 0x3a];
        let mut write = [0; 0x3a];
        // Offsets below count from the capability's start; its header takes the first two.
        let mut put = |at: usize, value: u32, mask: u32, width: usize| {
            body[at - 2..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
            write[at - 2..][..width].copy_from_slice(&mask.to_le_bytes()[..width]);
        };
        let slot = matches!(express, Express::RootPort { .. });
        put(0x02, 2 | kind << 4 | u32::from(slot) << 8, 0, 2);
        // Device Capabilities: payload of 128 bytes, Role-Based Error Reporting.
        put(0x04, 1 << 15 | u32::from(flr) << 28, 0, 4);
        // Device Control: error reporting, relaxed ordering, no snoop, read request size.
        put(0x08, 0, 0x781f, 2);
        if link {
            // 2.5 GT/s to 16 GT/s, x32; the link itself is up.
            let port = match express {
                // Data Link Layer Link Active is reported.
                Express::RootPort { port, .. } => 1 << 20 | u32::from(port) << 24,
                _ => 0,
            };
            put(0x0c, 4 | 32 << 4 | port, 0, 4);
            put(0x12, 4 | 32 << 4, 0, 2);
            put(0x2c, 0b1111 << 1, 0, 4);
            // Link Control 2: Target Link Speed.
            put(0x30, 4, 0xf, 2);
        }
        if let Express::RootPort { slot, .. } = express {
            // Attention button, power controller, attention and power indicator, surprise and
            // plain hot-plug.
            put(0x14, 0x7b | u32::from(slot & 0x1fff) << 19, 0, 4);
            // Event enables, indicators, power; there is no interlock (bit 11).
            put(0x18, 0, 0x17ff, 2);
            // Root Control: System Error enables. There is no PME.
            put(0x1c, 0, 0x7, 2);
        }
        let offset = self.capability(CAP_EXPRESS, &body, &write)?;
        self.clearable(offset + 0x0a, &[0x0f]);
        if slot {
            // Presence and data link state come from the slot; the events are cleared by 1.
            self.clearable(offset + 0x1a, &0x011f_u16.to_le_bytes());
            self.status(offset + 0x1a, &0x0040_u16.to_le_bytes());
            self.status(offset + 0x12, &(1_u16 << 13).to_le_bytes());
        }
        self.space.express = Some(offset);
        self.space.flr = flr;
        self.space.size = EXPRESS_SIZE;
        Ok(offset)
    }

    /// Adds the Power Management capability, version 3: D0 and D3hot, no PME, no soft reset on
    /// the way back to D0 (PCI Power Management 1.2 section 3.2).
    ///
    /// # Errors
    /// There is no room for it.
    pub fn power_management(&mut self) -> Result<u16, PciError> {
        let body = [0x03, 0x00, 0x08, 0x00, 0x00, 0x00];
        self.capability(CAP_POWER_MANAGEMENT, &body, &[0, 0, 0x03])
    }

    /// Adds a vendor-specific capability: its third byte, the length, is filled in, `body`
    /// follows it (PCI Local Bus 3.0 appendix H).
    ///
    /// # Errors
    /// There is no room for it.
    pub fn vendor_capability(&mut self, body: &[u8], writable: &[u8]) -> Result<u16, PciError> {
        let length = u8::try_from(body.len() + 3).map_err(|_| PciError::BadCapability {
            id: u16::from(CAP_VENDOR),
            why: "it is longer than its length field can say",
        })?;
        let body = [&[length], body].concat();
        let writable = [&[0], writable].concat();
        self.capability(CAP_VENDOR, &body, &writable)
    }

    /// Adds a Device Serial Number (PCI Express 4.0 section 7.9.3).
    ///
    /// # Errors
    /// As [`ConfigBuilder::extended_capability`].
    pub fn serial_number(&mut self, number: u64) -> Result<u16, PciError> {
        self.extended_capability(EXT_CAP_SERIAL_NUMBER, 1, &number.to_le_bytes(), &[])
    }

    /// Adds Advanced Error Reporting, in which no error is ever recorded
    /// (PCI Express 4.0 section 7.8.4). A root port has the root error registers too.
    ///
    /// # Errors
    /// As [`ConfigBuilder::extended_capability`].
    pub fn aer(&mut self) -> Result<u16, PciError> {
        const UNCORRECTABLE: u32 = 0x03ff_f030;
        const SEVERITY: u32 = 0x0046_2030;
        const CORRECTABLE: u32 = 0x0000_f1c1;
        const CORRECTABLE_MASK: u32 = 0x0000_e000;
        let mut body = [0; 0x44];
        let mut write = [0; 0x44];
        let mut put = |at: usize, value: u32, mask: u32| {
            body[at - 4..][..4].copy_from_slice(&value.to_le_bytes());
            write[at - 4..][..4].copy_from_slice(&mask.to_le_bytes());
        };
        put(0x08, 0, UNCORRECTABLE);
        put(0x0c, SEVERITY, UNCORRECTABLE);
        put(0x14, CORRECTABLE_MASK, CORRECTABLE);
        if self.bridge {
            // Root Error Command: reporting enables.
            put(0x2c, 0, 0x7);
        }
        let offset = self.extended_capability(EXT_CAP_AER, 2, &body, &write)?;
        self.clearable(offset + 0x04, &UNCORRECTABLE.to_le_bytes());
        self.clearable(offset + 0x10, &CORRECTABLE.to_le_bytes());
        if self.bridge {
            self.clearable(offset + 0x30, &[0x7f]);
        }
        Ok(offset)
    }

    /// The finished configuration space, in its state after power-on.
    #[must_use]
    pub fn build(&self) -> ConfigSpace {
        let mut space = self.space.clone();
        space.value = space.initial.clone();
        space
    }

    fn grow(&mut self, length: usize) {
        let space = &mut self.space;
        for bytes in [
            &mut space.initial,
            &mut space.write,
            &mut space.clear,
            &mut space.status,
        ] {
            if bytes.len() < length {
                bytes.resize(length, 0);
            }
        }
    }
}

/// Combines `bytes` into `registers` at `offset`; what lies beyond the registers is dropped.
fn overlay(registers: &mut [u8], offset: u16, bytes: &[u8], combine: impl Fn(u8, u8) -> u8) {
    let rest = registers.get_mut(usize::from(offset)..).unwrap_or_default();
    for (register, byte) in rest.iter_mut().zip(bytes) {
        *register = combine(*register, *byte);
    }
}
