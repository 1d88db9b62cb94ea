//! A board of counters and recorders around the functions under test. (Feature `testing`.)

use std::sync::Arc;

use bus::testing::{RecordingHost, RecordingSink};
use bus::{Bus, IrqLine, IrqSink, Range, SharedLine};

use crate::waiting::SharedWaiting;
use crate::{HostResources, IntxPin, RootComplex, SlotResources};

/// Buses, a host of interrupts and doorbells, and wires, all of which tell what happened to
/// them. RAM ends at [`Bench::RAM_END`].
#[derive(Debug)]
pub struct Bench {
    /// Guest-physical addresses.
    pub memory: Arc<Bus>,
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Messages and doorbells.
    pub host: Arc<RecordingHost>,
    /// PIRQA..PIRQH at pins 0 to 7; a single slot's INTA..INTD at pins 8 to 11.
    pub pins: Arc<RecordingSink>,
    waiting: SharedWaiting,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// First address that is not RAM.
    pub const RAM_END: u64 = 0x100_0000;

    /// An empty board.
    #[must_use]
    pub fn new() -> Self {
        Self {
            memory: Arc::default(),
            ports: Arc::default(),
            host: Arc::default(),
            pins: Arc::default(),
            waiting: SharedWaiting::default(),
        }
    }

    /// A root complex on this board.
    #[must_use]
    pub fn root_complex(&self) -> Arc<RootComplex> {
        RootComplex::new(HostResources {
            memory: Arc::clone(&self.memory),
            ports: Arc::clone(&self.ports),
            msi: Arc::clone(&self.host) as _,
            doorbells: Arc::clone(&self.host) as _,
            is_ram: Arc::new(|range: Range| range.base < Self::RAM_END),
            pirqs: std::array::from_fn(|pirq| self.wire(pirq as u32)),
        })
    }

    /// A slot on this board.
    #[must_use]
    pub fn slot(&self) -> SlotResources {
        SlotResources {
            memory: Arc::clone(&self.memory),
            ports: Arc::clone(&self.ports),
            msi: Arc::clone(&self.host) as _,
            doorbells: Arc::clone(&self.host) as _,
            is_ram: Arc::new(|range: Range| range.base < Self::RAM_END),
            intx: IntxPin::ALL.map(|pin| self.wire(8 + pin.index() as u32)),
            waiting: Arc::clone(&self.waiting),
        }
    }

    /// The level of `pin` of the slot from [`Bench::slot`].
    #[must_use]
    pub fn intx(&self, pin: IntxPin) -> bool {
        self.pins.level(8 + pin.index() as u32)
    }

    fn wire(&self, pin: u32) -> SharedLine {
        let sink = Arc::clone(&self.pins) as Arc<dyn IrqSink>;
        SharedLine::new(IrqLine::new(sink, pin))
    }
}
