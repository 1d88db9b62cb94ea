use std::sync::Arc;

use bus::{Action, Bus, DoorbellHost, MsiHost, Range, SharedLine};
use state::Stateful;

use crate::waiting::SharedWaiting;
use crate::{IntxPin, PciBus};

/// Tells whether any byte of a range of guest-physical addresses is RAM.
pub type IsRam = dyn Fn(Range) -> bool + Send + Sync;

/// What the place in which a function sits offers to it.
#[derive(Clone)]
pub struct SlotResources {
    /// Guest-physical addresses, for memory BARs.
    pub memory: Arc<Bus>,
    /// I/O ports, for I/O BARs.
    pub ports: Arc<Bus>,
    /// Takes message-signalled interrupts.
    pub msi: Arc<dyn MsiHost>,
    /// Takes doorbells within BARs.
    pub doorbells: Arc<dyn DoorbellHost>,
    /// Knows where RAM is, so that no BAR is laid over it.
    pub is_ram: Arc<IsRam>,
    /// The wires at pins INTA# to INTD#, one holder each for this device.
    pub intx: [SharedLine; 4],
    /// Functions whose BARs found their place taken.
    pub(crate) waiting: SharedWaiting,
}

impl std::fmt::Debug for SlotResources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotResources").finish_non_exhaustive()
    }
}

impl SlotResources {
    /// The wire at `pin`.
    #[must_use]
    pub fn intx(&self, pin: IntxPin) -> &SharedLine {
        &self.intx[pin.index()]
    }

    /// What `device` on the secondary bus of a bridge in this slot gets: the same, with the
    /// pins turned as [`IntxPin::swizzle`] says.
    #[must_use]
    pub fn behind_bridge(&self, device: u8) -> Self {
        Self {
            intx: IntxPin::ALL.map(|pin| self.intx(pin.swizzle(device)).holder()),
            ..self.clone()
        }
    }
}

/// One PCI function.
///
/// Everything takes `&self`: configuration accesses come from any processor at any time.
/// [`Stateful::save`] and its companions are called at rest, except that [`Stateful::reset`]
/// also comes when the guest resets the secondary bus or takes the slot's power away.
pub trait Function: Stateful + Send + Sync {
    /// Reads 1 to 4 bytes within one 32-bit register at `offset` (0..4096) of configuration
    /// space.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes 1 to 4 bytes within one 32-bit register at `offset` (0..4096) of configuration
    /// space.
    fn config_write(&self, offset: u16, data: &[u8]) -> Action;

    /// The function was put into a slot and may now use what the slot offers.
    fn attach(self: Arc<Self>, slot: SlotResources);

    /// The function leaves its slot: its BARs disappear from the buses, its wires fall.
    fn detach(&self);

    /// The function as a bridge, if it has a secondary bus.
    fn as_bridge(&self) -> Option<&dyn Bridge>;
}

/// The side of a type 1 function that leads to more functions.
pub trait Bridge {
    /// The bus numbers that the bridge forwards, as the guest has set them.
    fn bus_numbers(&self) -> BusNumbers;

    /// The functions behind the bridge, or `None` while the link is down.
    fn secondary_bus(&self) -> Option<&PciBus>;
}

/// The bus number registers of a type 1 header (PCI-to-PCI Bridge 1.2 section 3.2.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusNumbers {
    /// Number of the bus on which the bridge is.
    pub primary: u8,
    /// Number of the bus right behind the bridge; 0 when the guest has not numbered it.
    pub secondary: u8,
    /// Highest bus number behind the bridge.
    pub subordinate: u8,
}

impl BusNumbers {
    /// Whether configuration cycles for `bus` go to the bridge's secondary side.
    #[must_use]
    pub fn forwards(self, bus: u8) -> bool {
        self.secondary != 0 && (self.secondary..=self.subordinate).contains(&bus)
    }
}

/// The registers behind a function's BARs.
pub trait BarHandler: Send + Sync {
    /// Reads at `offset` into BAR `bar`. MSI-X tables are not seen here.
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes at `offset` into BAR `bar`. MSI-X tables are not seen here.
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> Action;

    /// BAR `bar` is now decoded at this address, or nowhere: the moment to move doorbells.
    /// Calls for one function never overlap. The handler may read configuration space from
    /// within, but neither write it nor ask the [`crate::Endpoint`] for addresses.
    fn bar_moved(&self, bar: usize, address: Option<u64>);
}
