use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Action, Device, Range};
use state::{Payload, StateError, Stateful};

use crate::{BarHandler, Bridge, ConfigBuilder, Endpoint, Function, Identity, SlotResources};

const KIND: &str = "q35-host-bridge";

/// PCI Express Register Range Base Address, 64 bits (Intel 3 Series chipset datasheet, host bridge
/// registers).
const PCIEXBAR: u16 = 0x60;
/// Programmable Attribute Map 0 to 6, 8 bits each.
const PAM0: u16 = 0x90;
/// System Management RAM Control, 8 bits.
const SMRAM: u16 = 0x9d;
/// Extended System Management RAM Control, 8 bits.
const ESMRAMC: u16 = 0x9e;
/// SMRAM: locked until reset.
const SMRAM_LOCK: u16 = 1 << 4;
/// SMRAM: open outside of system management mode.
const SMRAM_OPEN: u16 = 1 << 6;

/// What accesses to a piece of the area from 768 KiB to 1 MiB reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PamSegment {
    /// First guest-physical address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
    /// Reads reach RAM; otherwise the ROM behind it.
    pub read: bool,
    /// Writes reach RAM; otherwise they are lost.
    pub write: bool,
}

/// Takes changes of the PAM registers: shadowing of firmware.
pub trait PamHandler: Send + Sync {
    /// The 13 segments in ascending order are now so.
    fn pam_changed(&self, segments: &[PamSegment; 13]);
}

/// What PAM0 to PAM6 say: PAM1 to PAM6 are pairs of 16 KiB from 0xc0000 on, the upper half of
/// PAM0 is the 64 KiB below 1 MiB.
#[must_use]
pub fn pam_segments(registers: [u8; 7]) -> [PamSegment; 13] {
    std::array::from_fn(|i| {
        let (base, size, bits) = match i {
            12 => (0xf_0000, 0x1_0000, registers[0] >> 4),
            _ => {
                let pair = registers[1 + i / 2];
                let bits = if i % 2 == 0 { pair } else { pair >> 4 };
                (0xc_0000 + 0x4000 * i as u64, 0x4000, bits)
            }
        };
        PamSegment {
            base,
            size,
            read: bits & 1 != 0,
            write: bits & 2 != 0,
        }
    })
}

/// The q35's memory controller hub, 8086:29c0: the function at 00:00.0. It places the ECAM
/// window and switches the firmware area between ROM and RAM.
pub struct HostBridge {
    pci: Endpoint,
    ecam: Arc<dyn Device>,
    ecam_at_reset: Option<u64>,
    pam: Option<Arc<dyn PamHandler>>,
    decoded: Mutex<Decoded>,
}

#[derive(Default)]
struct Decoded {
    slot: Option<SlotResources>,
    ecam: Option<Range>,
    pam: [u8; 7],
}

impl std::fmt::Debug for HostBridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostBridge").finish_non_exhaustive()
    }
}

impl HostBridge {
    /// The host bridge in front of `ecam` ([`crate::RootComplex::ecam`]).
    ///
    /// `ecam_at_reset` is the base of the ECAM window that is decoded right after reset, a
    /// multiple of 256 MiB: for a kernel that is started without firmware. `None` leaves it to
    /// the firmware to write PCIEXBAR. `pam` is told about shadowing, if anything cares.
    #[must_use]
    pub fn new(
        ecam: Arc<dyn Device>,
        ecam_at_reset: Option<u64>,
        pam: Option<Arc<dyn PamHandler>>,
    ) -> Arc<Self> {
        let mut config = ConfigBuilder::endpoint(Identity {
            vendor: 0x8086,
            device: 0x29c0,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config
            .device_registers()
            .put(PCIEXBAR, &crate::ECAM_BASE.to_le_bytes())
            .writable(PCIEXBAR, &0xf_fc00_0007_u64.to_le_bytes())
            .writable(PAM0, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33])
            .put(SMRAM, &[0x02])
            .writable(SMRAM, &[0x78])
            .put(ESMRAMC, &[0x38])
            .writable(ESMRAMC, &[0x87]);
        let this = Self {
            pci: Endpoint::new(config.build()),
            ecam,
            ecam_at_reset,
            pam,
            decoded: Mutex::default(),
        };
        this.preset();
        Arc::new(this)
    }

    /// Does what firmware would do after reset.
    fn preset(&self) {
        if let Some(base) = self.ecam_at_reset {
            let enabled = base & !0xfff_ffff | 1;
            self.pci.config_write(PCIEXBAR, &enabled.to_le_bytes());
        }
    }

    /// The ECAM window that PCIEXBAR asks for.
    fn ecam_range(&self) -> Option<Range> {
        let (low, high) = self
            .pci
            .with_config(|config| (config.u32(PCIEXBAR), config.u32(PCIEXBAR + 4)));
        let size: u64 = match low >> 1 & 3 {
            0 => 256 << 20,
            1 => 128 << 20,
            2 => 64 << 20,
            _ => return None,
        };
        let base = (u64::from(high) << 32 | u64::from(low)) & !(size - 1);
        (low & 1 != 0).then_some(Range::new(base, size))
    }

    fn pam_registers(&self) -> [u8; 7] {
        let mut registers = [0; 7];
        self.pci.config_read(PAM0, &mut registers);
        registers
    }

    /// Brings the memory bus and the PAM handler in line with the registers.
    fn decode(&self) {
        let mut decoded = self.decoded();
        let Decoded { slot, ecam, pam } = &mut *decoded;
        let Some(slot) = slot else {
            return;
        };
        let wanted = self.ecam_range();
        let mut freed = None;
        if *ecam != wanted {
            if let Some(old) = ecam.take() {
                slot.memory.remove(old.base);
                freed = Some(Arc::clone(&slot.waiting));
            }
            if let Some(range) = wanted {
                let refusal = if (slot.is_ram)(range) {
                    Some("RAM is there".to_owned())
                } else {
                    let inserted = slot.memory.insert(range, Arc::clone(&self.ecam));
                    inserted.err().map(|e| e.to_string())
                };
                match refusal {
                    None => *ecam = Some(range),
                    // A guest may produce any number of these, so they are no warnings.
                    Some(why) => log::debug!("ECAM at {:#x} is not decoded: {why}", range.base),
                }
            }
        }
        let registers = self.pam_registers();
        if *pam != registers {
            *pam = registers;
            if let Some(handler) = &self.pam {
                handler.pam_changed(&pam_segments(registers));
            }
        }
        drop(decoded);
        if let Some(waiting) = freed {
            waiting.retry();
        }
    }

    fn decoded(&self) -> MutexGuard<'_, Decoded> {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.pci.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        // Two registers that lock each other; the lock goes only with a reset.
        let kept = self
            .pci
            .with_config(|config| (config.u16(SMRAM) & SMRAM_LOCK != 0).then(|| config.u16(SMRAM)));
        self.pci.config_write(offset, data);
        self.pci.with_config(|config| {
            if let Some(kept) = kept {
                config.update(SMRAM, 0xffff, kept);
            } else if config.u16(SMRAM) & SMRAM_LOCK != 0 {
                config.update(SMRAM, SMRAM_OPEN, 0);
            }
        });
        self.decode();
        Action::None
    }

    fn attach(self: Arc<Self>, slot: SlotResources) {
        let handler: Arc<dyn BarHandler> = Arc::new(NoBars);
        self.pci.attach(slot.clone(), &handler);
        self.decoded().slot = Some(slot);
        self.decode();
    }

    fn detach(&self) {
        self.pci.detach();
        let mut decoded = self.decoded();
        if let (Some(slot), Some(range)) = (&decoded.slot, decoded.ecam) {
            slot.memory.remove(range.base);
        }
        decoded.slot = None;
        decoded.ecam = None;
    }

    fn as_bridge(&self) -> Option<&dyn Bridge> {
        None
    }
}

impl Stateful for HostBridge {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, 1, &self.pci.save())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let restored = payload
            .decode(KIND, 1)
            .and_then(|state| self.pci.restore(KIND, &state));
        match restored {
            Ok(()) => self.decode(),
            Err(_) => self.reset(),
        }
        restored
    }

    fn reset(&self) {
        self.pci.reset();
        self.preset();
        self.decode();
    }
}

/// For functions without BARs.
pub(crate) struct NoBars;

impl BarHandler for NoBars {
    fn bar_read(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        bus::fill_ones(data);
    }

    fn bar_write(&self, _bar: usize, _offset: u64, _data: &[u8]) -> Action {
        Action::None
    }

    fn bar_moved(&self, _bar: usize, _address: Option<u64>) {}
}

#[cfg(test)]
mod tests;
