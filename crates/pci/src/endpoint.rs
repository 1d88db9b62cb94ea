use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{Action, Bus, Device, Range, SharedLine, Space};
use serde::{Deserialize, Serialize};
use state::StateError;

use crate::{BarHandler, ConfigSpace, ConfigState, Effects, IntxPin, Msix, MsixState};
use crate::{SlotResources, regs};

/// The part that every function shares: configuration space, BARs on the buses, MSI-X and the
/// INTx wire. A device owns one, hands its [`crate::Function`] calls to it, and adds what is its own.
///
/// ```text
///   config write ─▶ ConfigSpace ─ Effects ─┬▶ BARs: Bus::insert / remove ─▶ BarHandler
///                                          ├▶ Msix::set_control
///                                          └▶ INTx wire
/// ```
pub struct Endpoint {
    config: Mutex<ConfigSpace>,
    msix: Option<Arc<Msix>>,
    /// Taken before `config`, never after it.
    intx: Mutex<Intx>,
    /// Taken before `config`, never after it. It keeps changes of the mapping in order.
    mapping: Mutex<Mapping>,
}

#[derive(Default)]
struct Intx {
    level: bool,
    line: Option<SharedLine>,
}

#[derive(Default)]
struct Mapping {
    slot: Option<Slot>,
    bars: [Option<(Space, Range)>; 6],
    /// The last place at which a BAR did not fit, so that it is told only once.
    refused: [Option<(Space, Range)>; 6],
}

struct Slot {
    resources: SlotResources,
    handler: Weak<dyn BarHandler>,
}

/// The state of an [`Endpoint`], to be put into the device's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// Configuration space.
    pub config: ConfigState,
    /// The MSI-X vectors, if the function has any.
    pub msix: Option<MsixState>,
    /// Whether the function asserts its INTx interrupt.
    pub intx: bool,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

impl Endpoint {
    /// A function with this configuration space, not yet in a slot.
    #[must_use]
    pub fn new(config: ConfigSpace) -> Self {
        let msix = config.msix_layout().map(Msix::new);
        Self {
            config: Mutex::new(config),
            msix,
            intx: Mutex::default(),
            mapping: Mutex::default(),
        }
    }

    /// Reads configuration space.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes configuration space and does what follows from it: moves BARs, masks interrupts.
    /// What is left to the device is in the [`Effects`].
    pub fn config_write(&self, offset: u16, data: &[u8]) -> Effects {
        let effects = self.config().write(offset, data);
        if effects.decode {
            self.map();
        }
        if effects.msix {
            self.refresh_msix();
        }
        if effects.intx || effects.msix {
            self.refresh_intx();
        }
        effects
    }

    /// Uses configuration space directly. `f` must not call other methods of this endpoint.
    /// Changes to the command register or BARs from here have no effect on the buses.
    pub fn with_config<T>(&self, f: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        f(&mut self.config())
    }

    /// Takes a place in a slot. `handler` is behind the BARs; it is kept weakly, except by the
    /// buses while a BAR is decoded.
    pub fn attach(&self, slot: SlotResources, handler: &Arc<dyn BarHandler>) {
        self.detach();
        if let Some(msix) = &self.msix {
            msix.connect(Some(Arc::clone(&slot.msi)));
        }
        let pin = self.config().u8(regs::INTERRUPT_PIN);
        let pin = IntxPin::ALL.into_iter().find(|p| p.register() == pin);
        self.intx().line = pin.map(|pin| slot.intx(pin).holder());
        self.mapping().slot = Some(Slot {
            resources: slot,
            handler: Arc::downgrade(handler),
        });
        self.refresh_intx();
        self.map();
    }

    /// Leaves the slot: BARs disappear, the wire falls, vectors go nowhere.
    pub fn detach(&self) {
        let mut mapping = self.mapping();
        mapping.apply([None; 6], self.msix.as_ref());
        mapping.slot = None;
        drop(mapping);
        if let Some(line) = self.intx().line.take() {
            line.set(false);
        }
        if let Some(msix) = &self.msix {
            msix.connect(None);
        }
    }

    /// The MSI-X vectors, if the function has any.
    #[must_use]
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref()
    }

    /// Asserts or releases the INTx interrupt. The wire follows unless Interrupt Disable or
    /// MSI-X keeps it low.
    pub fn set_intx(&self, level: bool) {
        let mut intx = self.intx();
        intx.level = level;
        self.drive(&intx);
    }

    /// Where BAR `bar` can be reached now: `None` as well when something else is at its place.
    #[must_use]
    pub fn bar_address(&self, bar: usize) -> Option<u64> {
        let mapping = self.mapping();
        let (_, range) = (*mapping.bars.get(bar)?)?;
        Some(range.base)
    }

    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> EndpointState {
        EndpointState {
            config: self.config().save(),
            msix: self.msix.as_ref().map(|msix| msix.save()),
            intx: self.intx().level,
        }
    }

    /// Takes over a saved state and brings buses and wire in line with it.
    ///
    /// # Errors
    /// The state is another function's; the endpoint is then as after [`Endpoint::reset`].
    /// `kind` names the model in the error.
    pub fn restore(&self, kind: &'static str, state: &EndpointState) -> Result<(), StateError> {
        self.reset();
        match (&self.msix, &state.msix) {
            (Some(msix), Some(saved)) => msix.restore(kind, saved)?,
            (None, None) => {}
            _ => {
                return Err(StateError::Invalid {
                    kind,
                    why: "one side has MSI-X, the other has not".to_owned(),
                });
            }
        }
        let restored = self.config().restore(kind, &state.config);
        if restored.is_err() {
            self.reset();
            return restored;
        }
        self.intx().level = state.intx;
        self.refresh();
        Ok(())
    }

    /// Back to the state after power-on; BARs disappear, the wire falls.
    pub fn reset(&self) {
        self.config().reset();
        if let Some(msix) = &self.msix {
            msix.reset();
        }
        self.intx().level = false;
        self.refresh();
    }

    fn refresh(&self) {
        self.map();
        self.refresh_msix();
        self.refresh_intx();
    }

    /// Brings the buses in line with configuration space. Two processors may come here at once;
    /// whoever is last sees the newest registers.
    fn map(&self) {
        let mut mapping = self.mapping();
        let wanted = self.config().bar_ranges();
        mapping.apply(wanted, self.msix.as_ref());
    }

    fn refresh_msix(&self) {
        if let Some(msix) = &self.msix {
            // The mapping's lock keeps two processors' changes in order.
            let _order = self.mapping();
            let (enabled, masked) = self.config().msix_control();
            msix.set_control(enabled, masked);
        }
    }

    fn refresh_intx(&self) {
        let intx = self.intx();
        self.drive(&intx);
    }

    fn drive(&self, intx: &Intx) {
        let level = self.config().set_interrupt_status(intx.level);
        if let Some(line) = &intx.line {
            line.set(level);
        }
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn intx(&self) -> MutexGuard<'_, Intx> {
        self.intx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping(&self) -> MutexGuard<'_, Mapping> {
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn bus(&self, space: Space) -> &Bus {
        match space {
            Space::Memory => &self.resources.memory,
            Space::Port => &self.resources.ports,
        }
    }
}

impl Mapping {
    fn apply(&mut self, wanted: [Option<(Space, Range)>; 6], msix: Option<&Arc<Msix>>) {
        let Some(slot) = &self.slot else {
            return;
        };
        let handler = slot.handler.upgrade();
        // First everything that leaves, so that two BARs can change places.
        for (bar, wanted) in wanted.iter().enumerate() {
            if let Some((space, range)) = self.bars[bar]
                && *wanted != self.bars[bar]
            {
                slot.bus(space).remove(range.base);
                self.bars[bar] = None;
                if let Some(handler) = &handler {
                    handler.bar_moved(bar, None);
                }
            }
        }
        let Some(handler) = handler else {
            return;
        };
        for (bar, wanted) in wanted.iter().enumerate() {
            let Some((space, range)) = *wanted else {
                continue;
            };
            if self.bars[bar].is_some() {
                continue;
            }
            let window = Arc::new(BarWindow {
                bar,
                handler: Arc::clone(&handler),
                msix: msix.cloned(),
            });
            let refusal = if space == Space::Memory && (slot.resources.is_ram)(range) {
                Some("RAM is there".to_owned())
            } else {
                let inserted = slot.bus(space).insert(range, window);
                inserted.err().map(|e| e.to_string())
            };
            match refusal {
                None => {
                    self.bars[bar] = Some((space, range));
                    self.refused[bar] = None;
                    handler.bar_moved(bar, Some(range.base));
                }
                Some(why) if self.refused[bar] != Some((space, range)) => {
                    // A guest may produce any number of these, so they are no warnings.
                    self.refused[bar] = Some((space, range));
                    log::debug!("BAR {bar} at {:#x} is not decoded: {why}", range.base);
                }
                Some(_) => {}
            }
        }
    }
}

/// A decoded BAR on a bus.
struct BarWindow {
    bar: usize,
    handler: Arc<dyn BarHandler>,
    msix: Option<Arc<Msix>>,
}

impl Device for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let msix = self.msix.as_ref();
        if !msix.is_some_and(|msix| msix.bar_read(self.bar, offset, data)) {
            self.handler.bar_read(self.bar, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let msix = self.msix.as_ref();
        if msix.is_some_and(|msix| msix.bar_write(self.bar, offset, data)) {
            return Action::None;
        }
        self.handler.bar_write(self.bar, offset, data)
    }
}

#[cfg(test)]
mod tests;
