use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// An interrupt controller's input side: numbered pins with levels.
pub trait IrqSink: Send + Sync {
    /// Sets the level of pin `pin`. A repeated level is allowed and makes no edge.
    fn set_level(&self, pin: u32, level: bool);
}

/// One wire to one pin of an interrupt controller.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    pin: u32,
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqLine({})", self.pin)
    }
}

struct Unconnected;

impl IrqSink for Unconnected {
    fn set_level(&self, _pin: u32, _level: bool) {}
}

impl IrqLine {
    /// A wire to `pin` of `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self { sink, pin }
    }

    /// A wire to nowhere, for devices built without an interrupt.
    #[must_use]
    pub fn unconnected() -> Self {
        Self::new(Arc::new(Unconnected), 0)
    }

    /// The pin's number at its controller.
    #[must_use]
    pub fn pin(&self) -> u32 {
        self.pin
    }

    /// Sets the wire's level.
    pub fn set(&self, level: bool) {
        self.sink.set_level(self.pin, level);
    }

    /// A short high pulse: one edge for an edge-triggered pin.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A wire that several level-triggered devices pull (PCI INTx, ACPI SCI): it is high while any
/// holder has asserted it.
#[derive(Debug, Clone)]
pub struct SharedLine {
    wire: Arc<Mutex<Wire>>,
    holder: u32,
}

#[derive(Debug)]
struct Wire {
    line: IrqLine,
    holders: u32,
    asserting: BTreeSet<u32>,
}

impl SharedLine {
    /// A shared wire over `line`, with this value as its first holder.
    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        let wire = Wire {
            line,
            holders: 1,
            asserting: BTreeSet::new(),
        };
        Self {
            wire: Arc::new(Mutex::new(wire)),
            holder: 0,
        }
    }

    /// Another holder of the same wire. (A `clone` is the same holder.)
    #[must_use]
    pub fn holder(&self) -> Self {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = wire.holders;
        wire.holders = wire.holders.wrapping_add(1);
        Self {
            wire: Arc::clone(&self.wire),
            holder,
        }
    }

    /// This holder asserts or releases the wire. The wire stays locked until its level is set,
    /// so that two holders on two threads cannot leave it with the loser's level.
    pub fn set(&self, level: bool) {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        let was = !wire.asserting.is_empty();
        if level {
            wire.asserting.insert(self.holder);
        } else {
            wire.asserting.remove(&self.holder);
        }
        let is = !wire.asserting.is_empty();
        if was != is {
            wire.line.set(is);
        }
    }
}
