use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{Action, Bus, Device, DoorbellHost, MsiHost, SharedLine, fill_ones};
use serde::{Deserialize, Serialize};
use state::{Payload, StateError, Stateful};

use crate::access::pieces;
use crate::waiting::SharedWaiting;
use crate::{Bdf, Function, IntxPin, IsRam, PciBus, PciError, SlotResources, intx_pirq};

const KIND: &str = "pci-root-complex";

/// First of the 8 ports of [`RootComplex::config_ports`]: CONFIG_ADDRESS at 0xcf8, the Reset
/// Control register at 0xcf9, CONFIG_DATA at 0xcfc.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Where q35 firmware puts the ECAM window.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// Size of an ECAM window for 256 buses, in bytes.
pub const ECAM_SIZE: u64 = 256 << 20;

/// Reset Control: System Reset and Full Reset, which the register keeps.
const RESET_CONTROL_KEPT: u8 = 0x0a;
/// Reset Control: Reset CPU, whose rise resets the machine.
const RESET_CONTROL_CPU: u8 = 0x04;

/// What the board gives to the root complex.
pub struct HostResources {
    /// Guest-physical addresses, for memory BARs and the ECAM window.
    pub memory: Arc<Bus>,
    /// I/O ports, for I/O BARs.
    pub ports: Arc<Bus>,
    /// Takes message-signalled interrupts.
    pub msi: Arc<dyn MsiHost>,
    /// Takes doorbells within BARs.
    pub doorbells: Arc<dyn DoorbellHost>,
    /// Knows where RAM is.
    pub is_ram: Arc<IsRam>,
    /// PIRQA to PIRQH, for example [`crate::PirqRouter::lines`].
    pub pirqs: [SharedLine; 8],
}

/// Bus 0 and the two ways to configuration space (PCI Express 4.0 section 7.2).
///
/// A configuration cycle for bus 0 goes to the function there; for another bus it follows the
/// bridges whose secondary and subordinate bus numbers enclose that bus. Where nothing answers
/// it reads as all ones.
///
/// The buses hold it only weakly (it holds them): the machine keeps it alive.
pub struct RootComplex {
    bus: PciBus,
    resources: HostResources,
    waiting: SharedWaiting,
    ports: Mutex<Ports>,
    this: Weak<Self>,
}

/// The root complex's own registers, to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Ports {
    /// CONFIG_ADDRESS.
    address: u32,
    /// Reset Control.
    reset_control: u8,
}

impl std::fmt::Debug for RootComplex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootComplex")
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}

impl RootComplex {
    /// A root complex without functions.
    #[must_use]
    pub fn new(resources: HostResources) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            bus: PciBus::new(),
            resources,
            waiting: SharedWaiting::default(),
            ports: Mutex::default(),
            this: Weak::clone(this),
        })
    }

    /// Puts `function` at `bdf` on bus 0 and attaches it.
    ///
    /// # Errors
    /// The place is taken, or not on bus 0: a device on another bus is plugged into the root
    /// port that leads there ([`crate::RootPort::insert`]).
    pub fn add(&self, bdf: Bdf, function: Arc<dyn Function>) -> Result<(), PciError> {
        if bdf.bus() != 0 {
            return Err(PciError::NotRootBus(bdf));
        }
        let device = bdf.device();
        let host = &self.resources;
        let slot = SlotResources {
            memory: Arc::clone(&host.memory),
            ports: Arc::clone(&host.ports),
            msi: Arc::clone(&host.msi),
            doorbells: Arc::clone(&host.doorbells),
            is_ram: Arc::clone(&host.is_ram),
            intx: IntxPin::ALL.map(|pin| host.pirqs[intx_pirq(device, pin)].holder()),
            waiting: Arc::clone(&self.waiting),
        };
        if !self.bus.insert(bdf.devfn(), Arc::clone(&function)) {
            return Err(PciError::Taken(bdf));
        }
        function.attach(slot);
        Ok(())
    }

    /// Takes the function at `bdf` on bus 0 away and detaches it.
    pub fn remove(&self, bdf: Bdf) -> Option<Arc<dyn Function>> {
        if bdf.bus() != 0 {
            return None;
        }
        let function = self.bus.remove(bdf.devfn())?;
        function.detach();
        Some(function)
    }

    /// The function that answers at `bdf` now.
    #[must_use]
    pub fn function(&self, bdf: Bdf) -> Option<Arc<dyn Function>> {
        self.bus.route(0, bdf.bus(), bdf.devfn())
    }

    /// All functions with the addresses at which the guest reaches them; bus 0 first. Functions
    /// behind a bridge that the guest has not numbered are left out.
    #[must_use]
    pub fn functions(&self) -> Vec<(Bdf, Arc<dyn Function>)> {
        let mut found = Vec::new();
        self.bus.list(0, &mut found);
        found
    }

    /// Reads configuration space: 1 to 4 bytes within one 32-bit register.
    pub fn config_read(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        match self.function(bdf) {
            Some(function) => function.config_read(offset, data),
            None => fill_ones(data),
        }
    }

    /// Writes configuration space: 1 to 4 bytes within one 32-bit register.
    pub fn config_write(&self, bdf: Bdf, offset: u16, data: &[u8]) -> Action {
        match self.function(bdf) {
            Some(function) => function.config_write(offset, data),
            None => Action::None,
        }
    }

    /// The ECAM window as a device of [`ECAM_SIZE`] bytes. The host bridge puts it on the
    /// memory bus where PCIEXBAR says.
    #[must_use]
    pub fn ecam(&self) -> Arc<dyn Device> {
        Arc::new(Ecam(Weak::clone(&self.this)))
    }

    /// The 8 ports from [`CONFIG_PORTS`] on as a device.
    #[must_use]
    pub fn config_ports(&self) -> Arc<dyn Device> {
        Arc::new(ConfigPorts(Weak::clone(&self.this)))
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stateful for RootComplex {
    /// CONFIG_ADDRESS and the Reset Control register; the functions save themselves.
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, 1, &*self.ports())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        self.reset();
        *self.ports() = payload.decode(KIND, 1)?;
        Ok(())
    }

    fn reset(&self) {
        *self.ports() = Ports::default();
    }
}

/// Configuration space as memory: bus in bits 27:20, device and function in 19:12.
struct Ecam(Weak<RootComplex>);

fn ecam_place(offset: u64) -> (Bdf, u16) {
    let bdf = Bdf::from_devfn((offset >> 20) as u8, (offset >> 12) as u8);
    (bdf, (offset & 0xfff) as u16)
}

impl Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        fill_ones(data);
        let Some(root) = self.0.upgrade() else {
            return;
        };
        for piece in pieces(offset, data.len()) {
            let (bdf, register) = ecam_place(piece.offset());
            root.config_read(bdf, register, &mut data[piece.data]);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut action = Action::None;
        let Some(root) = self.0.upgrade() else {
            return action;
        };
        for piece in pieces(offset, data.len()) {
            let (bdf, register) = ecam_place(piece.offset());
            let done = root.config_write(bdf, register, &data[piece.data]);
            if done != Action::None {
                action = done;
            }
        }
        action
    }
}

/// Configuration mechanism #1 (PCI Local Bus 3.0 section 3.2.2.3.2), and in its middle the
/// chipset's Reset Control register (Intel ICH9 datasheet, RST_CNT).
struct ConfigPorts(Weak<RootComplex>);

impl Ports {
    /// The function and register that CONFIG_ADDRESS selects.
    fn place(self) -> Option<(Bdf, u16)> {
        let bdf = Bdf::from_devfn((self.address >> 16) as u8, (self.address >> 8) as u8);
        let register = (self.address & 0xfc) as u16;
        (self.address & 1 << 31 != 0).then_some((bdf, register))
    }
}

impl Device for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        fill_ones(data);
        let Some(root) = self.0.upgrade() else {
            return;
        };
        let ports = *root.ports();
        if offset == 1 && data.len() == 1 {
            data.fill(ports.reset_control);
            return;
        }
        for piece in pieces(offset, data.len()) {
            let part = &mut data[piece.data];
            match (piece.register, ports.place()) {
                (0, _) => {
                    let bytes = ports.address.to_le_bytes();
                    part.copy_from_slice(&bytes[piece.shift..][..part.len()]);
                }
                (4, Some((bdf, register))) => {
                    root.config_read(bdf, register + piece.shift as u16, part);
                }
                _ => {}
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let Some(root) = self.0.upgrade() else {
            return Action::None;
        };
        match (offset, data) {
            (0, [a, b, c, d]) => {
                // The lowest two bits and bits 30:24 are reserved as zero.
                root.ports().address = u32::from_le_bytes([*a, *b, *c, *d]) & 0x80ff_fffc;
                Action::None
            }
            (1, [value]) => {
                root.ports().reset_control = value & RESET_CONTROL_KEPT;
                if value & RESET_CONTROL_CPU != 0 {
                    Action::Reset
                } else {
                    Action::None
                }
            }
            (4..8, _) => {
                let place = root.ports().place();
                let Some((bdf, register)) = place else {
                    return Action::None;
                };
                // What goes past the fourth port goes nowhere.
                let shift = (offset - 4) as usize;
                let len = data.len().min(4 - shift);
                root.config_write(bdf, register + shift as u16, &data[..len])
            }
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests;
