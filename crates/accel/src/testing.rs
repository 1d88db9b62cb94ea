//! A processor that does what a script says, so that a machine can be tested without one.
//! (Feature `testing`.)

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bus::testing::RecordingHost;
use bus::{
    DoorbellAddress, DoorbellError, DoorbellHost, EventFd, MsiError, MsiHost, MsiMessage, MsiRoute,
};
use memory::GuestRam;
use x86::{CpuState, HostCpu};

use crate::{
    AccelError, Accelerator, Capabilities, ClockState, Exit, Kick, Vcpu, VcpuSetup, Vm, X86Vcpu,
};

/// One step of a scripted processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// IN of `size` bytes; the value goes to [`Script::reads`].
    PortRead(u16, usize),
    /// OUT.
    PortWrite(u16, Vec<u8>),
    /// Load of `size` bytes; the value goes to [`Script::reads`].
    MemoryRead(u64, usize),
    /// Store.
    MemoryWrite(u64, Vec<u8>),
    /// End of a level-triggered interrupt.
    EndOfInterrupt(u8),
    /// Shut down.
    TripleFault,
    /// The accelerator gives up.
    Fail(String),
}

/// What the fake processors do, and what became of it.
#[derive(Debug, Default)]
pub struct Script {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    steps: VecDeque<Step>,
    reads: Vec<Vec<u8>>,
    kicked: bool,
    states: Vec<CpuState>,
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends steps for processor 0.
    pub fn push(&self, steps: impl IntoIterator<Item = Step>) {
        self.lock().steps.extend(steps);
        self.changed.notify_all();
    }

    /// What the reads returned so far.
    pub fn reads(&self) -> Vec<Vec<u8>> {
        self.lock().reads.clone()
    }

    /// The states that processor 0 was given.
    pub fn states(&self) -> Vec<CpuState> {
        self.lock().states.clone()
    }

    /// Whether every step was taken.
    pub fn is_done(&self) -> bool {
        self.lock().steps.is_empty()
    }
}

/// An accelerator without a processor.
pub struct FakeAccelerator {
    capabilities: Capabilities,
    script: Arc<Script>,
}

impl FakeAccelerator {
    /// An accelerator whose processor 0 follows `script` and whose others sleep.
    #[must_use]
    pub fn new(script: Arc<Script>) -> Self {
        let capabilities = Capabilities {
            cpu: HostCpu::default(),
            max_vcpus: 288,
            max_apic_id: 4096,
        };
        Self {
            capabilities,
            script,
        }
    }
}

impl Accelerator for FakeAccelerator {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn ready(&self) -> Result<(), AccelError> {
        Ok(())
    }

    fn create_vm(&self, _ram: GuestRam) -> Result<Arc<dyn Vm>, AccelError> {
        Ok(Arc::new(FakeVm {
            host: RecordingHost::default(),
            script: Arc::clone(&self.script),
            clock: Mutex::default(),
        }))
    }
}

struct FakeVm {
    host: RecordingHost,
    script: Arc<Script>,
    clock: Mutex<ClockState>,
}

impl MsiHost for FakeVm {
    fn send(&self, message: MsiMessage) -> Result<(), MsiError> {
        self.host.send(message)
    }

    fn open_route(&self) -> Result<Arc<dyn MsiRoute>, MsiError> {
        self.host.open_route()
    }
}

impl DoorbellHost for FakeVm {
    fn attach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError> {
        self.host.attach(address, event)
    }

    fn detach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError> {
        self.host.detach(address, event)
    }
}

impl Vm for FakeVm {
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, AccelError> {
        // Processors other than the first have an empty script of their own: they sleep until
        // they are kicked.
        let script = if setup.index == 0 {
            Arc::clone(&self.script)
        } else {
            Arc::default()
        };
        Ok(Box::new(FakeVcpu {
            script,
            state: CpuState::reset_with(0, setup.index == 0),
            data: Vec::new(),
            read: false,
        }))
    }

    fn memory_changed(&self) -> Result<(), AccelError> {
        Ok(())
    }

    fn ioapic_route(&self, _pin: u32, _message: Option<MsiMessage>) {}

    fn clock(&self) -> Result<ClockState, AccelError> {
        Ok(*self.clock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_clock(&self, clock: ClockState) -> Result<(), AccelError> {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = clock;
        Ok(())
    }
}

struct FakeVcpu {
    script: Arc<Script>,
    state: CpuState,
    data: Vec<u8>,
    read: bool,
}

impl Kick for Script {
    fn kick(&self) {
        self.lock().kicked = true;
        self.changed.notify_all();
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<Exit<'_>, AccelError> {
        self.finish_exit()?;
        let script = Arc::clone(&self.script);
        let inner = script.lock();
        let mut inner = script
            .changed
            .wait_while(inner, |i| i.steps.is_empty() && !i.kicked)
            .unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut inner.kicked) {
            return Ok(Exit::Interrupted);
        }
        let Some(step) = inner.steps.pop_front() else {
            return Ok(Exit::Interrupted);
        };
        drop(inner);
        self.read = matches!(step, Step::PortRead(..) | Step::MemoryRead(..));
        match step {
            Step::PortRead(port, size) => {
                self.data = vec![0; size];
                Ok(Exit::PortRead {
                    port,
                    size,
                    data: &mut self.data,
                })
            }
            Step::PortWrite(port, data) => {
                self.data = data;
                Ok(Exit::PortWrite {
                    port,
                    size: self.data.len(),
                    data: &self.data,
                })
            }
            Step::MemoryRead(address, size) => {
                self.data = vec![0; size];
                Ok(Exit::MemoryRead {
                    address,
                    data: &mut self.data,
                })
            }
            Step::MemoryWrite(address, data) => {
                self.data = data;
                Ok(Exit::MemoryWrite {
                    address,
                    data: &self.data,
                })
            }
            Step::EndOfInterrupt(vector) => Ok(Exit::EndOfInterrupt { vector }),
            Step::TripleFault => Ok(Exit::TripleFault),
            Step::Fail(why) => Ok(Exit::Failed { why }),
        }
    }

    fn finish_exit(&mut self) -> Result<(), AccelError> {
        if std::mem::take(&mut self.read) {
            let data = std::mem::take(&mut self.data);
            self.script.lock().reads.push(data);
        }
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.script) as Arc<dyn Kick>
    }

    fn x86(&mut self) -> &mut dyn X86Vcpu {
        self
    }
}

impl X86Vcpu for FakeVcpu {
    fn state(&mut self) -> Result<CpuState, AccelError> {
        Ok(self.state.clone())
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.state = state.clone();
        self.script.lock().states.push(state.clone());
        Ok(())
    }

    fn ready_for_interrupt(&mut self) -> bool {
        false
    }

    fn inject_interrupt(&mut self, _vector: u8) -> Result<(), AccelError> {
        Ok(())
    }

    fn request_interrupt_window(&mut self, _wanted: bool) {}

    fn inject_nmi(&mut self) -> Result<(), AccelError> {
        Ok(())
    }
}
