//! The GSI routing table: which message each GSI sends.
//!
//! KVM replaces the table as a whole, after waiting for every reader (an SRCU grace period), so
//! a change costs. It is therefore written only when it matters: when an irqfd's message
//! changes, or when a level-triggered I/O APIC pin comes or goes.

use bus::{MsiError, MsiMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;

/// Number of I/O APIC pins, whose GSIs come first.
pub(crate) const IOAPIC_PINS: u32 = 24;
/// KVM_MAX_IRQ_ROUTES on x86.
const LIMIT: usize = 4096;
/// Trigger mode in an MSI's data: level (SDM vol. 3A 11.11.2).
const DATA_LEVEL: u32 = 1 << 15;

#[derive(Debug)]
pub(crate) struct Routes {
    messages: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Idle,
    Sends(MsiMessage),
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self {
            messages: vec![Slot::Idle; IOAPIC_PINS as usize],
        }
    }

    /// Takes a GSI; it sends nothing yet.
    pub(crate) fn open(&mut self) -> Result<u32, MsiError> {
        let index = match self.messages.iter().position(|slot| *slot == Slot::Free) {
            Some(index) => index,
            None if self.messages.len() < LIMIT => {
                self.messages.push(Slot::Free);
                self.messages.len() - 1
            }
            None => return Err(MsiError::NoRoutes(LIMIT as u32)),
        };
        self.messages[index] = Slot::Idle;
        Ok(index as u32)
    }

    /// Gives a GSI back.
    pub(crate) fn close(&mut self, gsi: u32) {
        if let Some(slot) = self.messages.get_mut(gsi as usize) {
            *slot = Slot::Free;
        }
    }

    /// Sets what a GSI sends and tells KVM if that is new.
    pub(crate) fn set(&mut self, vm: &VmFd, gsi: u32, message: MsiMessage) -> Result<(), MsiError> {
        let Some(slot) = self.messages.get_mut(gsi as usize) else {
            return Ok(());
        };
        let new = Slot::Sends(message);
        if std::mem::replace(slot, new) == new {
            Ok(())
        } else {
            self.commit(vm)
        }
    }

    /// Sets what an I/O APIC pin sends. Only level-triggered messages are in the table.
    pub(crate) fn set_pin(
        &mut self,
        vm: &VmFd,
        pin: u32,
        message: Option<MsiMessage>,
    ) -> Result<(), MsiError> {
        if pin >= IOAPIC_PINS {
            return Ok(());
        }
        let new = match message {
            Some(message) if message.data & DATA_LEVEL != 0 => Slot::Sends(message),
            _ => Slot::Idle,
        };
        let slot = &mut self.messages[pin as usize];
        if std::mem::replace(slot, new) == new {
            Ok(())
        } else {
            self.commit(vm)
        }
    }

    fn commit(&self, vm: &VmFd) -> Result<(), MsiError> {
        let entries: Vec<kvm_irq_routing_entry> = self
            .messages
            .iter()
            .enumerate()
            .filter_map(|(gsi, slot)| match slot {
                Slot::Sends(message) => Some(entry(gsi as u32, *message)),
                Slot::Free | Slot::Idle => None,
            })
            .collect();
        let host = |errno| MsiError::Host {
            what: "set KVM's interrupt routes",
            source: std::io::Error::from_raw_os_error(errno),
        };
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| host(libc::E2BIG))?;
        vm.set_gsi_routing(&table).map_err(|e| host(e.errno()))
    }
}

fn entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
            },
        },
        ..Default::default()
    }
}
