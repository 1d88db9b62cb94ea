use bus::{IrqLine, IrqSink, SharedLine};
use std::sync::{Arc, Mutex, PoisonError};

/// One of the four interrupt pins of a device (PCI Local Bus 3.0 section 2.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IntxPin {
    /// INTA#
    A,
    /// INTB#
    B,
    /// INTC#
    C,
    /// INTD#
    D,
}

impl IntxPin {
    /// The pins in order.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// 0 for INTA# to 3 for INTD#, as in ACPI's `_PRT`.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// 1 for INTA# to 4 for INTD#, as in the Interrupt Pin register.
    #[must_use]
    pub const fn register(self) -> u8 {
        self as u8 + 1
    }

    /// The pin of the bridge to which this pin of `device` on the bridge's secondary bus is
    /// connected (PCI-to-PCI Bridge 1.2 table 9-1).
    #[must_use]
    pub const fn swizzle(self, device: u8) -> Self {
        Self::ALL[(self as usize + device as usize) % 4]
    }
}

/// First global system interrupt of PIRQA..PIRQH: the I/O APIC's pins 16 to 23.
pub const PIRQ_GSI_BASE: u32 = 16;

/// The PIRQ line (0 for A to 7 for H) to which `pin` of `device` on the root bus is connected.
///
/// The wiring of QEMU's q35: devices 0 to 24 turn through E..H, so that neighbours do not share;
/// devices 25 to 29 and 31 are the chipset's own and use A..D as the reset values of the D*n*IR
/// registers say (Intel ICH9 datasheet, chipset configuration registers); device 30 uses E..H without turning.
#[must_use]
pub const fn intx_pirq(device: u8, pin: IntxPin) -> usize {
    match device {
        0..=24 => 4 + pin.swizzle(device).index(),
        30 => 4 + pin.index(),
        _ => pin.index(),
    }
}

/// The global system interrupt of `pin` of `device` on the root bus when the guest uses the
/// I/O APIC: what ACPI's `_PRT` says. A function behind bridges goes through
/// [`IntxPin::swizzle`] once for each of them first.
#[must_use]
pub const fn intx_gsi(device: u8, pin: IntxPin) -> u32 {
    PIRQ_GSI_BASE + intx_pirq(device, pin) as u32
}

/// Eight PIRQ inputs that appear at the I/O APIC's pins 16 to 23 and, where the guest has
/// routed them so by the LPC bridge's PIRQ*n*_ROUT registers, also at an ISA interrupt
/// (Intel ICH9 datasheet, LPC bridge registers).
///
/// ```text
///   INTx ─ swizzle ─▶ PIRQA..H ─┬────────────▶ I/O APIC 16..23
///                               └─ PIRQn_ROUT ▶ ISA IRQ 3..15
/// ```
pub struct PirqRouter {
    apic: Arc<dyn IrqSink>,
    wires: Mutex<Wires>,
}

struct Wires {
    /// For each PIRQ and ISA interrupt a holder: two PIRQs may be routed to one ISA interrupt.
    isa: Vec<Vec<SharedLine>>,
    routes: [Option<u8>; 8],
    levels: [bool; 8],
}

impl PirqRouter {
    /// A router into `apic`, whose pins are global system interrupts, and into the lines of
    /// ISA interrupts 0 to 15 (an ISA interrupt beyond the end of `isa` goes nowhere).
    /// Nothing is routed to ISA at first.
    #[must_use]
    pub fn new(apic: Arc<dyn IrqSink>, isa: &[SharedLine]) -> Arc<Self> {
        let holders = || isa.iter().map(SharedLine::holder).collect();
        Arc::new(Self {
            apic,
            wires: Mutex::new(Wires {
                isa: (0..8).map(|_| holders()).collect(),
                routes: [None; 8],
                levels: [false; 8],
            }),
        })
    }

    /// Sets where PIRQA..H go: an ISA interrupt or nowhere. Levels move along.
    pub fn set_routes(&self, routes: [Option<u8>; 8]) {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        for (pirq, new) in routes.iter().enumerate() {
            if wires.routes[pirq] != *new && wires.levels[pirq] {
                wires.set_isa(pirq, false);
                wires.routes[pirq] = *new;
                wires.set_isa(pirq, true);
            }
        }
        wires.routes = routes;
    }

    /// The eight inputs as wires that many functions share.
    #[must_use]
    pub fn lines(self: &Arc<Self>) -> [SharedLine; 8] {
        std::array::from_fn(|pirq| {
            SharedLine::new(IrqLine::new(
                Arc::clone(self) as Arc<dyn IrqSink>,
                pirq as u32,
            ))
        })
    }
}

impl Wires {
    fn set_isa(&self, pirq: usize, level: bool) {
        let line = self.routes[pirq].and_then(|irq| self.isa[pirq].get(usize::from(irq)));
        if let Some(line) = line {
            line.set(level);
        }
    }
}

impl IrqSink for PirqRouter {
    fn set_level(&self, pin: u32, level: bool) {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        let pirq = pin as usize;
        if pirq >= wires.levels.len() {
            return;
        }
        wires.levels[pirq] = level;
        wires.set_isa(pirq, level);
        self.apic.set_level(PIRQ_GSI_BASE + pin, level);
    }
}

#[cfg(test)]
#[path = "intx_tests.rs"]
mod tests;
