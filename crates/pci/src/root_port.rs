use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::Action;
use serde::{Deserialize, Serialize};
use state::{Payload, StateError, Stateful};

use crate::host_bridge::NoBars;
use crate::regs::*;
use crate::{
    BarHandler, BarKind, Bridge, BusNumbers, ConfigBuilder, ConfigSpace, Endpoint, EndpointState,
    Express, Function, Identity, IntxPin, MsixLayout, PciBus, PciError, SlotResources,
};

const KIND: &str = "pcie-root-port";

/// Registers of the PCI Express capability, from its start (PCI Express 4.0 section 7.5.3).
const LINK_STATUS: u16 = 0x12;
const SLOT_CONTROL: u16 = 0x18;
const SLOT_STATUS: u16 = 0x1a;

/// Link Status: Data Link Layer Link Active.
const LINK_ACTIVE: u16 = 1 << 13;

/// Slot Control: the enables of the first five events stand at the events' own bits.
const EVENT_ENABLES: u16 = 0x1f;
/// Slot Control: Hot-Plug Interrupt Enable.
const INTERRUPT_ENABLE: u16 = 1 << 5;
/// Slot Control: both indicators' fields.
const INDICATORS: u16 = 0xf << 6;
/// Slot Control: attention indicator off, power indicator off.
const INDICATORS_OFF: u16 = 0xf << 6;
/// Slot Control: attention indicator off, power indicator on.
const INDICATORS_POWERED: u16 = 0b01_11 << 6;
/// Slot Control: Power Indicator Control; all ones is off.
const POWER_INDICATOR: u16 = 0x3 << 8;
/// Slot Control: Power Indicator Control, blinking.
const POWER_INDICATOR_BLINKS: u16 = 0x2 << 8;
/// Slot Control: Power Controller Control; 1 is off.
const POWER_OFF: u16 = 1 << 10;
/// Slot Control: Data Link Layer State Changed Enable.
const LINK_EVENT_ENABLE: u16 = 1 << 12;

/// Slot Status: Attention Button Pressed.
const BUTTON_PRESSED: u16 = 1 << 0;
/// Slot Status: Presence Detect Changed.
const PRESENCE_CHANGED: u16 = 1 << 3;
/// Slot Status: Command Completed.
const COMMAND_COMPLETED: u16 = 1 << 4;
/// Slot Status: Presence Detect State.
const PRESENT: u16 = 1 << 6;
/// Slot Status: Data Link Layer State Changed.
const LINK_CHANGED: u16 = 1 << 8;

/// What a root port is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPortConfig {
    /// Port number, unique within the root complex.
    pub port: u8,
    /// Physical slot number, 0 to 8191, unique within the machine.
    pub slot: u16,
    /// Several ports share a device number.
    pub multifunction: bool,
}

/// Learns what the guest did with a slot.
pub trait SlotHandler: Send + Sync {
    /// The guest has powered the slot off after an unplug request (or on its own), and
    /// `function` is out of the slot: it may now be taken apart.
    fn ejected(&self, function: Arc<dyn Function>);
}

/// A PCI Express root port with a hot-plug slot: QEMU's `pcie-root-port`, 1b36:000c.
///
/// The slot behaves as PCI Express 4.0 section 6.7 says, with attention button, power
/// controller and indicators:
///
/// ```text
///   insert  cold: present, powered, link up
///   plug    ─▶ present ─ event ─▶ guest powers on ─▶ link up ─▶ the function answers
///   request_unplug ─ button ─▶ guest powers off, indicator off ─▶ link down ─▶ ejected
/// ```
///
/// The function behind the port answers only while the link is up. The port's memory and I/O
/// windows are registers; a BAR behind the port is decoded wherever it lies, as no guest puts
/// one outside of its windows.
pub struct RootPort {
    pci: Endpoint,
    express: u16,
    secondary: PciBus,
    slot: Mutex<Slot>,
    bars: Arc<dyn BarHandler>,
    handler: Option<Arc<dyn SlotHandler>>,
}

/// What the slot knows beyond the registers. Its lock is held during every change of the port,
/// and never while the handler runs.
#[derive(Default)]
struct Slot {
    resources: Option<SlotResources>,
    /// Whether some enabled event is set: its rise is what sends a message.
    interrupt: bool,
    unplug_pending: bool,
}

/// The port's state; the function behind it saves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RootPortState {
    pci: EndpointState,
    interrupt: bool,
    unplug_pending: bool,
}

impl std::fmt::Debug for RootPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootPort")
            .field("secondary", &self.secondary)
            .finish_non_exhaustive()
    }
}

impl RootPort {
    /// A root port with an empty slot. `handler` is told when the guest lets a device go.
    ///
    /// # Errors
    /// None with the registers that a port has; it is passed on from their construction.
    pub fn new(
        config: RootPortConfig,
        handler: Option<Arc<dyn SlotHandler>>,
    ) -> Result<Arc<Self>, PciError> {
        let mut builder = ConfigBuilder::bridge(Identity {
            vendor: 0x1b36,
            device: 0x000c,
            revision: 0,
            class: 0x06_0400,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        if config.multifunction {
            builder.multifunction();
        }
        builder.interrupt_pin(IntxPin::A);
        let (msix, size) = MsixLayout::own_bar(0, 1);
        let memory = BarKind::Memory32 {
            prefetchable: false,
        };
        builder.bar(0, memory, size)?;
        // Reserved (16 bits), Subsystem Vendor ID, Subsystem ID.
        builder.capability(CAP_SUBSYSTEM, &[0, 0, 0x36, 0x1b, 0, 0], &[])?;
        builder.msix(msix)?;
        let express = builder.express(Express::RootPort {
            port: config.port,
            slot: config.slot,
        })?;
        builder.aer()?;
        // Source Validation, Translation Blocking, the redirects, Upstream Forwarding and
        // Direct Translated P2P.
        let acs = 0x005f_u16.to_le_bytes();
        builder.extended_capability(EXT_CAP_ACS, 1, &[acs, [0; 2]].concat(), &[0, 0, 0x5f])?;
        let this = Self {
            pci: Endpoint::new(builder.build()),
            express,
            secondary: PciBus::new(),
            slot: Mutex::default(),
            bars: Arc::new(NoBars),
            handler,
        };
        this.power_up(&mut this.slot());
        Ok(Arc::new(this))
    }

    /// Puts `function` into the slot as if it had been there at power-on: it answers at once,
    /// and the guest gets no event.
    ///
    /// # Errors
    /// The slot is occupied, or the function is a bridge.
    pub fn insert(&self, function: Arc<dyn Function>) -> Result<(), PciError> {
        let mut slot = self.slot();
        self.occupy(&slot, function)?;
        self.power_up(&mut slot);
        Ok(())
    }

    /// Plugs `function` into the slot of a running machine: the guest gets an event, and the
    /// function answers once the guest has powered the slot on.
    ///
    /// # Errors
    /// The slot is occupied, or the function is a bridge.
    pub fn plug(&self, function: Arc<dyn Function>) -> Result<(), PciError> {
        let mut slot = self.slot();
        self.occupy(&slot, function)?;
        self.update(SLOT_STATUS, PRESENT, PRESENT);
        self.raise(PRESENCE_CHANGED | BUTTON_PRESSED);
        self.refresh_link();
        self.refresh_interrupt(&mut slot);
        Ok(())
    }

    /// Presses the attention button: the guest is asked to let the device go, and answers in
    /// its own time through [`SlotHandler::ejected`], or never. A slot that the guest has
    /// powered off already is emptied at once.
    ///
    /// # Errors
    /// The slot is empty, or the guest is working on an earlier request: its power indicator
    /// blinks, and pressing the button again would cancel that.
    pub fn request_unplug(&self) -> Result<(), PciError> {
        let ejected = {
            let mut slot = self.slot();
            if self.occupant().is_none() {
                return Err(PciError::SlotEmpty);
            }
            let control = self.register(SLOT_CONTROL);
            let ejected = if released(control) {
                // The guest may not have looked at the plugging; it is over.
                self.update(SLOT_STATUS, BUTTON_PRESSED, 0);
                self.vacate(&mut slot)
            } else if control & POWER_INDICATOR == POWER_INDICATOR_BLINKS {
                return Err(PciError::UnplugPending);
            } else {
                slot.unplug_pending = true;
                self.raise(BUTTON_PRESSED);
                None
            };
            self.refresh_interrupt(&mut slot);
            ejected
        };
        self.tell_ejected(ejected);
        Ok(())
    }

    /// Takes the device out of the slot without asking the guest, which gets an event of
    /// surprise removal.
    pub fn eject(&self) -> Option<Arc<dyn Function>> {
        let mut slot = self.slot();
        let function = self.vacate(&mut slot);
        self.refresh_interrupt(&mut slot);
        function
    }

    /// The function in the slot.
    #[must_use]
    pub fn occupant(&self) -> Option<Arc<dyn Function>> {
        self.secondary.get(0)
    }

    /// Whether the guest was asked to let the device go and has not yet done so.
    #[must_use]
    pub fn unplug_pending(&self) -> bool {
        self.slot().unplug_pending
    }

    fn occupy(&self, slot: &Slot, function: Arc<dyn Function>) -> Result<(), PciError> {
        if function.as_bridge().is_some() {
            return Err(PciError::BridgeInSlot);
        }
        if !self.secondary.insert(0, Arc::clone(&function)) {
            return Err(PciError::SlotOccupied);
        }
        if let Some(resources) = &slot.resources {
            function.attach(resources.behind_bridge(0));
        }
        Ok(())
    }

    fn vacate(&self, slot: &mut Slot) -> Option<Arc<dyn Function>> {
        let function = self.secondary.remove(0)?;
        function.detach();
        slot.unplug_pending = false;
        self.update(SLOT_STATUS, PRESENT, 0);
        self.raise(PRESENCE_CHANGED);
        self.refresh_link();
        Some(function)
    }

    /// The slot after power-on: powered if there is something in it, no events.
    fn power_up(&self, slot: &mut Slot) {
        let present = self.occupant().is_some();
        let (status, control) = if present {
            (PRESENT, INDICATORS_POWERED)
        } else {
            (0, INDICATORS_OFF | POWER_OFF)
        };
        self.update(SLOT_STATUS, 0xffff, status);
        self.update(SLOT_CONTROL, INDICATORS | POWER_OFF, control);
        self.refresh_link();
        self.update(SLOT_STATUS, LINK_CHANGED, 0);
        self.refresh_interrupt(slot);
    }

    /// The link is up while a device is present and powered.
    fn refresh_link(&self) {
        let is = self.register(SLOT_STATUS) & PRESENT != 0
            && self.register(SLOT_CONTROL) & POWER_OFF == 0;
        let was = self.register(LINK_STATUS) & LINK_ACTIVE != 0;
        if is != was {
            self.update(LINK_STATUS, LINK_ACTIVE, if is { LINK_ACTIVE } else { 0 });
            self.raise(LINK_CHANGED);
        }
    }

    /// Interrupts while an enabled event is set. A message is sent when that becomes so, the
    /// wire is high as long as it is so (PCI Express 4.0 section 6.7.3.4).
    fn refresh_interrupt(&self, slot: &mut Slot) {
        let control = self.register(SLOT_CONTROL);
        let mut enabled = control & EVENT_ENABLES;
        if control & LINK_EVENT_ENABLE != 0 {
            enabled |= LINK_CHANGED;
        }
        let is = control & INTERRUPT_ENABLE != 0 && self.register(SLOT_STATUS) & enabled != 0;
        let was = std::mem::replace(&mut slot.interrupt, is);
        if is
            && !was
            && let Some(msix) = self.pci.msix()
        {
            msix.trigger(0);
        }
        if is != was {
            self.pci.set_intx(is);
        }
    }

    /// Acts on a write to Slot Control; returns the function that it ejected.
    fn slot_control_written(&self, slot: &mut Slot, old: u16) -> Option<Arc<dyn Function>> {
        let new = self.register(SLOT_CONTROL);
        self.raise(COMMAND_COMPLETED);
        if new & !old & POWER_OFF != 0 {
            self.reset_secondary();
        }
        self.refresh_link();
        if released(new) && !released(old) {
            self.vacate(slot)
        } else {
            None
        }
    }

    fn tell_ejected(&self, function: Option<Arc<dyn Function>>) {
        if let (Some(function), Some(handler)) = (function, &self.handler) {
            handler.ejected(function);
        }
    }

    fn reset_secondary(&self) {
        for function in self.secondary.functions() {
            function.reset();
        }
    }

    fn raise(&self, events: u16) {
        self.update(SLOT_STATUS, events, events);
    }

    fn register(&self, register: u16) -> u16 {
        self.pci
            .with_config(|config| config.u16(self.express + register))
    }

    fn update(&self, register: u16, mask: u16, bits: u16) {
        self.pci
            .with_config(|config| config.update(self.express + register, mask, bits));
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an access of `len` bytes at `offset` touches the 16-bit register at `register`.
    fn touches(offset: u16, len: usize, register: u16) -> bool {
        let (offset, register) = (usize::from(offset), usize::from(register));
        offset < register + 2 && register < offset + len
    }

    fn take_over(&self, state: &RootPortState) -> Result<(), StateError> {
        self.pci.restore(KIND, &state.pci)?;
        let present = self.register(SLOT_STATUS) & PRESENT != 0;
        if present != self.occupant().is_some() {
            let (saved, here) = match present {
                true => ("occupied", "empty"),
                false => ("empty", "occupied"),
            };
            return Err(StateError::Invalid {
                kind: KIND,
                why: format!("the slot was {saved} and is {here}"),
            });
        }
        let up = self.register(LINK_STATUS) & LINK_ACTIVE != 0;
        if up != (present && self.register(SLOT_CONTROL) & POWER_OFF == 0) {
            return Err(StateError::Invalid {
                kind: KIND,
                why: "the link's state does not follow from the slot's".to_owned(),
            });
        }
        let mut slot = self.slot();
        slot.interrupt = state.interrupt;
        slot.unplug_pending = state.unplug_pending && present;
        Ok(())
    }
}

impl Function for RootPort {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.pci.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        let ejected = {
            let mut slot = self.slot();
            let old_control = self.register(SLOT_CONTROL);
            let old_bridge = self.pci.with_config(|config| config.u16(BRIDGE_CONTROL));
            self.pci.config_write(offset, data);
            let new_bridge = self.pci.with_config(|config| config.u16(BRIDGE_CONTROL));
            if new_bridge & !old_bridge & BRIDGE_CONTROL_RESET != 0 {
                self.reset_secondary();
            }
            let ejected = if Self::touches(offset, data.len(), self.express + SLOT_CONTROL) {
                self.slot_control_written(&mut slot, old_control)
            } else {
                None
            };
            self.refresh_interrupt(&mut slot);
            ejected
        };
        self.tell_ejected(ejected);
        Action::None
    }

    fn attach(self: Arc<Self>, resources: SlotResources) {
        self.pci.attach(resources.clone(), &self.bars);
        let mut slot = self.slot();
        if let Some(function) = self.occupant() {
            function.attach(resources.behind_bridge(0));
        }
        slot.resources = Some(resources);
    }

    fn detach(&self) {
        let mut slot = self.slot();
        if let Some(function) = self.occupant() {
            function.detach();
        }
        slot.resources = None;
        drop(slot);
        self.pci.detach();
    }

    fn as_bridge(&self) -> Option<&dyn Bridge> {
        Some(self)
    }
}

impl Bridge for RootPort {
    fn bus_numbers(&self) -> BusNumbers {
        self.pci.with_config(|config: &mut ConfigSpace| BusNumbers {
            primary: config.u8(PRIMARY_BUS),
            secondary: config.u8(PRIMARY_BUS + 1),
            subordinate: config.u8(PRIMARY_BUS + 2),
        })
    }

    fn secondary_bus(&self) -> Option<&PciBus> {
        let up = self.register(LINK_STATUS) & LINK_ACTIVE != 0;
        up.then_some(&self.secondary)
    }
}

impl Stateful for RootPort {
    fn save(&self) -> Result<Payload, StateError> {
        let slot = self.slot();
        let state = RootPortState {
            pci: self.pci.save(),
            interrupt: slot.interrupt,
            unplug_pending: slot.unplug_pending,
        };
        Payload::encode(KIND, 1, &state)
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let restored = payload
            .decode(KIND, 1)
            .and_then(|state| self.take_over(&state));
        if restored.is_err() {
            self.reset();
        }
        restored
    }

    /// The port alone: the machine resets the function behind it like every other.
    fn reset(&self) {
        let mut slot = self.slot();
        slot.unplug_pending = false;
        slot.interrupt = false;
        self.pci.reset();
        self.power_up(&mut slot);
    }
}

/// Whether Slot Control says that the device may go: power off and indicator off. Power off
/// alone is also what a guest does to reset the device.
fn released(control: u16) -> bool {
    control & POWER_OFF != 0 && control & POWER_INDICATOR == POWER_INDICATOR
}

#[cfg(test)]
mod tests;
