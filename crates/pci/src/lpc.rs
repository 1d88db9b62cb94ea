use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::Action;
use state::{Payload, StateError, Stateful};

use crate::host_bridge::NoBars;
use crate::{BarHandler, Bridge, ConfigBuilder, Endpoint, Function, Identity, SlotResources};

const KIND: &str = "ich9-lpc";

/// ACPI Base Address, 32 bits (Intel ICH9 datasheet, LPC bridge registers).
const PMBASE: u16 = 0x40;
/// ACPI Control, 8 bits.
const ACPI_CNTL: u16 = 0x44;
/// ACPI Control: the block at PMBASE is decoded.
const ACPI_EN: u8 = 1 << 7;
/// PIRQA to PIRQD Routing Control, 8 bits each.
const PIRQA_ROUT: u16 = 0x60;
/// PIRQE to PIRQH Routing Control, 8 bits each.
const PIRQE_ROUT: u16 = 0x68;
/// PIRQ*n* Routing Control: not routed to an ISA interrupt.
const PIRQ_DISABLED: u8 = 1 << 7;
/// Serial IRQ Control, 8 bits.
const SIRQ_CNTL: u16 = 0x64;
/// Root Complex Base Address, 32 bits.
const RCBA: u16 = 0xf0;

/// What the LPC bridge's registers mean for the rest of the chipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LpcSettings {
    /// First port of the ACPI PM block (128 ports), if it is decoded.
    pub pm_base: Option<u16>,
    /// Global system interrupt of the ACPI SCI: 9, 10, 11 or 20 to 23.
    pub sci: u32,
    /// ISA interrupts to which PIRQA to PIRQH are routed, for [`crate::PirqRouter::set_routes`].
    pub pirq_routes: [Option<u8>; 8],
    /// Address of the chipset's memory-mapped registers (16 KiB), if they are decoded.
    pub rcba: Option<u32>,
}

/// Takes changes of the LPC bridge's registers.
pub trait LpcHandler: Send + Sync {
    /// The settings are now so. It is called once when the bridge is attached, then after each
    /// change, never twice at once.
    fn settings_changed(&self, settings: &LpcSettings);
}

/// The ICH9's LPC bridge, 8086:2918: the function at 00:1f.0. Its devices (ACPI PM block,
/// interrupt routing) are elsewhere and learn about its registers through the [`LpcHandler`].
pub struct Lpc {
    pci: Endpoint,
    pm_base_at_reset: Option<u16>,
    handler: Arc<dyn LpcHandler>,
    told: Mutex<Option<LpcSettings>>,
}

impl std::fmt::Debug for Lpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lpc").finish_non_exhaustive()
    }
}

impl Lpc {
    /// The LPC bridge. `pm_base_at_reset` is the first port of an ACPI PM block that is decoded
    /// right after reset, a multiple of 128: for a kernel that is started without firmware.
    #[must_use]
    pub fn new(pm_base_at_reset: Option<u16>, handler: Arc<dyn LpcHandler>) -> Arc<Self> {
        let mut config = ConfigBuilder::endpoint(Identity {
            vendor: 0x8086,
            device: 0x2918,
            revision: 2,
            class: 0x06_0100,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config
            .multifunction()
            .device_registers()
            .put(PMBASE, &[1])
            .writable(PMBASE, &[0x80, 0xff])
            .writable(ACPI_CNTL, &[0x87])
            .put(PIRQA_ROUT, &[PIRQ_DISABLED; 4])
            .writable(PIRQA_ROUT, &[0x8f; 4])
            .put(SIRQ_CNTL, &[0x10])
            .writable(SIRQ_CNTL, &[0xff])
            .put(PIRQE_ROUT, &[PIRQ_DISABLED; 4])
            .writable(PIRQE_ROUT, &[0x8f; 4])
            .writable(RCBA, &0xffff_c001_u32.to_le_bytes());
        let this = Self {
            pci: Endpoint::new(config.build()),
            pm_base_at_reset,
            handler,
            told: Mutex::default(),
        };
        this.preset();
        Arc::new(this)
    }

    /// What the registers mean now.
    #[must_use]
    pub fn settings(&self) -> LpcSettings {
        self.pci.with_config(|config| {
            let control = config.u8(ACPI_CNTL);
            let pm_base = config.u16(PMBASE) & 0xff80;
            let rcba = config.u32(RCBA);
            LpcSettings {
                pm_base: (control & ACPI_EN != 0 && pm_base != 0).then_some(pm_base),
                sci: match control & 7 {
                    n @ 0..=2 => 9 + u32::from(n),
                    n @ 4..=7 => 16 + u32::from(n),
                    // Reserved.
                    _ => 9,
                },
                pirq_routes: std::array::from_fn(|pirq| {
                    let register = match pirq as u16 {
                        n @ 0..4 => PIRQA_ROUT + n,
                        n => PIRQE_ROUT + n - 4,
                    };
                    let route = config.u8(register);
                    let possible = matches!(route, 3..=7 | 9..=12 | 14..=15);
                    possible.then_some(route)
                }),
                rcba: (rcba & 1 != 0).then_some(rcba & !1),
            }
        })
    }

    /// Does what firmware would do after reset.
    fn preset(&self) {
        if let Some(base) = self.pm_base_at_reset {
            self.pci.config_write(PMBASE, &base.to_le_bytes());
            self.pci.config_write(ACPI_CNTL, &[ACPI_EN]);
        }
    }

    /// Tells the handler, if it has not heard of these settings.
    fn tell(&self) {
        let mut told = self.told();
        let settings = self.settings();
        if *told != Some(settings) {
            *told = Some(settings);
            self.handler.settings_changed(&settings);
        }
    }

    fn told(&self) -> MutexGuard<'_, Option<LpcSettings>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for Lpc {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.pci.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        self.pci.config_write(offset, data);
        self.tell();
        Action::None
    }

    fn attach(self: Arc<Self>, slot: SlotResources) {
        let handler: Arc<dyn BarHandler> = Arc::new(NoBars);
        self.pci.attach(slot, &handler);
        *self.told() = None;
        self.tell();
    }

    fn detach(&self) {
        self.pci.detach();
    }

    fn as_bridge(&self) -> Option<&dyn Bridge> {
        None
    }
}

impl Stateful for Lpc {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, 1, &self.pci.save())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let restored = payload
            .decode(KIND, 1)
            .and_then(|state| self.pci.restore(KIND, &state));
        match restored {
            Ok(()) => self.tell(),
            Err(_) => self.reset(),
        }
        restored
    }

    fn reset(&self) {
        self.pci.reset();
        self.preset();
        self.tell();
    }
}

#[cfg(test)]
mod tests;
