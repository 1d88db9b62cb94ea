//! One virtual machine: its parts, and what can be done with all of them at once.

use std::sync::Arc;

use accel::{ClockState, Vm};
use blockdev::Blockdev;
use chardev::Chardev;
use memory::{GuestAddressSpace, GuestRam};
use pci::RootComplex;
use state::Payload;
use x86::model::CpuTemplate;

use crate::boot::{self, BootSource};
use crate::clock::VirtualClock;
use crate::error::MachineError;
use crate::inventory::Inventory;
use crate::legacy::Power;
use crate::plan::{Plan, uuid_text};
use crate::site::IoThreads;
use crate::vcpu::VcpuThread;

/// What [`crate::assemble::assemble`] has made. Fields are dropped in this order: processors
/// first, then the devices, then what carries them.
pub(crate) struct Parts {
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) inventory: Inventory,
    /// Kept here, as the buses hold it only weakly.
    pub(crate) _root: Arc<RootComplex>,
    /// Kept as long as the devices in front of them.
    pub(crate) _chardevs: Vec<Chardev>,
    pub(crate) power: Power,
    pub(crate) blockdev: Arc<Blockdev>,
    pub(crate) threads: IoThreads,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) boot: BootSource,
    pub(crate) cpu: CpuTemplate,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) ram: GuestRam,
    pub(crate) plan: Plan,
    pub(crate) accelerator: &'static str,
}

/// A machine whose processors are stopped or run.
pub(crate) struct Machine {
    parts: Parts,
    running: bool,
    /// The paravirtual clock at the last stop: the guest's time stands still meanwhile.
    stopped_clock: Option<ClockState>,
}

impl std::ops::Deref for Machine {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Machine {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            running: false,
            stopped_clock: None,
        }
    }

    /// Loads memory and sets every processor's state, as at power-on. The processors are
    /// stopped.
    pub(crate) fn power_on(&mut self) -> Result<(), MachineError> {
        let start = self.boot.load(&self.ram)?;
        for vcpu in &self.vcpus {
            let state = boot::initial_state(&self.cpu, vcpu.index, &start);
            vcpu.gate.release();
            vcpu.gate
                .call(move |vcpu| boot::apply(vcpu, &state))
                .ok_or_else(|| {
                    MachineError::Description(format!("processor {} has ended", vcpu.index))
                })??;
        }
        Ok(())
    }

    /// Presses the reset button: every device and processor back to power-on. Stops the
    /// processors and lets them go on if they ran.
    pub(crate) fn reset(&mut self) -> Result<(), MachineError> {
        let running = self.running;
        self.pause()?;
        self.inventory.reset();
        self.stopped_clock = None;
        self.power_on()?;
        if running { self.resume() } else { Ok(()) }
    }

    /// Whether the processors run.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Stops the processors and the clocks. Devices complete what is in flight.
    pub(crate) fn pause(&mut self) -> Result<(), MachineError> {
        if !self.running {
            return Ok(());
        }
        self.vcpus.iter().for_each(|vcpu| vcpu.gate.pause());
        self.vcpus.iter().for_each(|vcpu| vcpu.gate.wait_parked());
        self.running = false;
        self.inventory.quiesce();
        self.clock.stop();
        self.stopped_clock = Some(self.vm.clock()?);
        Ok(())
    }

    /// Ends jobs and exports, and closes the disks' images. The machine is paused, and does not go
    /// on.
    pub(crate) fn close_disks(&self) {
        self.blockdev.close();
    }

    /// Lets the processors run.
    pub(crate) fn resume(&mut self) -> Result<(), MachineError> {
        if self.running {
            return Ok(());
        }
        if let Some(clock) = self.stopped_clock.take() {
            self.vm.set_clock(clock)?;
        }
        self.clock.start();
        self.inventory.resume();
        self.vcpus.iter().for_each(|vcpu| {
            vcpu.gate.release();
            vcpu.gate.resume();
        });
        self.running = true;
        Ok(())
    }

    /// The state of every part of the board and every device, by id. The processors are stopped
    /// for as long as it takes.
    pub(crate) fn device_states(&mut self) -> Result<Vec<(String, Payload)>, MachineError> {
        let running = self.running;
        self.pause()?;
        let states = self
            .inventory
            .save()
            .map_err(MachineError::step("save the devices' state"))?;
        let states = states
            .into_iter()
            .map(|(id, payload)| (id.to_owned(), payload))
            .collect();
        if running {
            self.resume()?;
        }
        Ok(states)
    }

    /// Raises a non-maskable interrupt on every processor.
    pub(crate) fn inject_nmi(&self) -> Result<(), MachineError> {
        for vcpu in &self.vcpus {
            if let Some(result) = vcpu.gate.call(|vcpu| vcpu.x86().inject_nmi()) {
                result?;
            }
        }
        Ok(())
    }

    /// The machine's UUID in its canonical form.
    pub(crate) fn uuid(&self) -> String {
        uuid_text(&self.plan.uuid)
    }

    /// Size of the guest's memory in bytes.
    pub(crate) fn ram_size(&self) -> u64 {
        memory::total_size(&self.ram.memory())
    }
}
