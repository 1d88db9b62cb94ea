use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{Action, Bus, Device, Range, SharedLine, Space};
use serde::{Deserialize, Serialize};
use state::StateError;

use crate::waiting::{SharedWaiting, Waiter};
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
    inner: Arc<Inner>,
}

struct Inner {
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
        let inner = Inner {
            config: Mutex::new(config),
            msix,
            intx: Mutex::default(),
            mapping: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Reads configuration space.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.inner.config().read(offset, data);
    }

    /// Writes configuration space and does what follows from it: moves BARs, masks interrupts.
    /// What is left to the device is in the [`Effects`].
    pub fn config_write(&self, offset: u16, data: &[u8]) -> Effects {
        let effects = self.inner.config().write(offset, data);
        if effects.decode {
            self.inner.map();
        }
        if effects.msix {
            self.inner.refresh_msix();
        }
        if effects.intx || effects.msix {
            self.inner.refresh_intx();
        }
        effects
    }

    /// Uses configuration space directly. `f` must not call other methods of this endpoint.
    /// Changes to the command register or BARs from here have no effect on the buses.
    pub fn with_config<T>(&self, f: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        f(&mut self.inner.config())
    }

    /// Takes a place in a slot. `handler` is behind the BARs; it is kept weakly, except by the
    /// buses while a BAR is decoded.
    pub fn attach(&self, slot: SlotResources, handler: &Arc<dyn BarHandler>) {
        self.detach();
        if let Some(msix) = &self.inner.msix {
            msix.connect(Some(Arc::clone(&slot.msi)));
        }
        let pin = self.inner.config().u8(regs::INTERRUPT_PIN);
        let pin = IntxPin::ALL.into_iter().find(|p| p.register() == pin);
        self.inner.intx().line = pin.map(|pin| slot.intx(pin).holder());
        self.inner.mapping().slot = Some(Slot {
            resources: slot,
            handler: Arc::downgrade(handler),
        });
        self.inner.refresh_intx();
        self.inner.map();
    }

    /// Leaves the slot: BARs disappear, the wire falls, vectors go nowhere.
    pub fn detach(&self) {
        let slot = {
            let mut mapping = self.inner.mapping();
            mapping.apply([None; 6], &self.inner);
            mapping.slot.take()
        };
        if let Some(slot) = slot {
            slot.resources.waiting.retry();
        }
        if let Some(line) = self.inner.intx().line.take() {
            line.set(false);
        }
        if let Some(msix) = &self.inner.msix {
            msix.connect(None);
        }
    }

    /// The MSI-X vectors, if the function has any.
    #[must_use]
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.inner.msix.as_ref()
    }

    /// Asserts or releases the INTx interrupt. The wire follows unless Interrupt Disable or
    /// MSI-X keeps it low.
    pub fn set_intx(&self, level: bool) {
        let mut intx = self.inner.intx();
        intx.level = level;
        self.inner.drive(&intx);
    }

    /// Where BAR `bar` can be reached now: `None` as well when something else is at its place.
    #[must_use]
    pub fn bar_address(&self, bar: usize) -> Option<u64> {
        let mapping = self.inner.mapping();
        let (_, range) = (*mapping.bars.get(bar)?)?;
        Some(range.base)
    }

    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> EndpointState {
        EndpointState {
            config: self.inner.config().save(),
            msix: self.inner.msix.as_ref().map(|msix| msix.save()),
            intx: self.inner.intx().level,
        }
    }

    /// Takes over a saved state and brings buses and wire in line with it.
    ///
    /// # Errors
    /// The state is another function's; the endpoint is then as after [`Endpoint::reset`].
    /// `kind` names the model in the error.
    pub fn restore(&self, kind: &'static str, state: &EndpointState) -> Result<(), StateError> {
        self.reset();
        match (&self.inner.msix, &state.msix) {
            (Some(msix), Some(saved)) => msix.restore(kind, saved)?,
            (None, None) => {}
            _ => {
                return Err(StateError::Invalid {
                    kind,
                    why: "one side has MSI-X, the other has not".to_owned(),
                });
            }
        }
        let restored = self.inner.config().restore(kind, &state.config);
        if restored.is_err() {
            self.reset();
            return restored;
        }
        self.inner.intx().level = state.intx;
        self.inner.refresh();
        Ok(())
    }

    /// Back to the state after power-on; BARs disappear, the wire falls.
    pub fn reset(&self) {
        self.inner.config().reset();
        if let Some(msix) = &self.inner.msix {
            msix.reset();
        }
        self.inner.intx().level = false;
        self.inner.refresh();
    }
}

impl Inner {
    fn refresh(self: &Arc<Self>) {
        self.map();
        self.refresh_msix();
        self.refresh_intx();
    }

    /// Brings the buses in line with configuration space. Two processors may come here at once;
    /// whoever is last sees the newest registers.
    fn map(self: &Arc<Self>) {
        let freed = {
            let mut mapping = self.mapping();
            let wanted = self.config().bar_ranges();
            mapping.apply(wanted, self)
        };
        if let Some(waiting) = freed {
            waiting.retry();
        }
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

/// What waits for a place: a weak way back to the function.
impl Waiter for Inner {
    fn retry(self: Arc<Self>) {
        self.map();
    }
}

impl Slot {
    fn bus(&self, space: Space) -> &Bus {
        match space {
            Space::Memory => &self.resources.memory,
            Space::Port => &self.resources.ports,
        }
    }

    /// Puts a BAR on its bus, or says what is in the way.
    fn place(
        &self,
        space: Space,
        range: Range,
        window: impl Fn() -> Arc<BarWindow>,
    ) -> Result<(), String> {
        if space == Space::Memory && (self.resources.is_ram)(range) {
            return Err("RAM is there".to_owned());
        }
        let placed = self.bus(space).insert(range, window());
        placed.map_err(|e| e.to_string())
    }
}

impl Mapping {
    /// Makes the buses agree with `wanted`. When that freed a place, whoever waits for one is
    /// returned, to be woken once the mapping's lock is free.
    fn apply(
        &mut self,
        wanted: [Option<(Space, Range)>; 6],
        function: &Arc<Inner>,
    ) -> Option<SharedWaiting> {
        let slot = self.slot.as_ref()?;
        let handler = slot.handler.upgrade();
        let mut freed = false;
        // First everything that leaves, so that two BARs can change places.
        for (bar, wanted) in wanted.iter().enumerate() {
            if let Some((space, range)) = self.bars[bar]
                && *wanted != self.bars[bar]
            {
                slot.bus(space).remove(range.base);
                freed = true;
                self.bars[bar] = None;
                if let Some(handler) = &handler {
                    handler.bar_moved(bar, None);
                }
            }
        }
        for (bar, wanted) in wanted.iter().enumerate() {
            let (Some(handler), Some((space, range))) = (&handler, *wanted) else {
                continue;
            };
            if self.bars[bar].is_some() {
                continue;
            }
            let window = || {
                Arc::new(BarWindow {
                    bar,
                    handler: Arc::clone(handler),
                    msix: function.msix.clone(),
                })
            };
            let placed = slot.place(space, range, window).or_else(|why| {
                let waiter: Arc<dyn Waiter> = Arc::clone(function) as _;
                slot.resources.waiting.add(Arc::downgrade(&waiter));
                slot.place(space, range, window).map_err(|_| why)
            });
            match placed {
                Ok(()) => {
                    self.bars[bar] = Some((space, range));
                    self.refused[bar] = None;
                    handler.bar_moved(bar, Some(range.base));
                }
                Err(why) if self.refused[bar] != Some((space, range)) => {
                    // A guest may produce any number of these, so they are no warnings.
                    self.refused[bar] = Some((space, range));
                    log::debug!("BAR {bar} at {:#x} is not decoded: {why}", range.base);
                }
                Err(_) => {}
            }
        }
        freed.then(|| Arc::clone(&slot.resources.waiting))
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
