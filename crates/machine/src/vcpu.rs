//! The threads of the virtual processors.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use accel::{Exit, Vcpu};
use bus::{Action, Bus};

use crate::gate::Gate;

/// What the loop needs of the machine around it.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) ports: Arc<Bus>,
    pub(crate) memory: Arc<Bus>,
    /// The I/O APIC hears of the end of level-triggered interrupts.
    pub(crate) end_of_interrupt: Arc<dyn Fn(u8) + Send + Sync>,
    /// The PIC's output, which is wired to the bootstrap processor.
    pub(crate) external: Arc<dyn ExternalInterrupts>,
}

/// The PIC as the processor sees it.
pub(crate) trait ExternalInterrupts: Send + Sync {
    /// Whether INTR is asserted.
    fn asserted(&self) -> bool;
    /// The interrupt acknowledge cycle: the vector.
    fn acknowledge(&self) -> u8;
}

/// What a processor's thread tells control.
#[derive(Debug)]
pub(crate) enum VcpuEvent {
    /// A register access did something to the machine. The processor is held.
    Action(Action),
    /// The processor shut down by a triple fault. It is held.
    TripleFault,
    /// The processor cannot go on. It is held.
    Failed(String),
}

/// The loop: run, answer the exit, and again.
fn run(
    vcpu: &mut dyn Vcpu,
    index: u32,
    gate: &Gate,
    around: &Surroundings,
    tell: &dyn Fn(VcpuEvent),
) {
    let Surroundings {
        ports,
        memory,
        end_of_interrupt,
        external,
    } = around;
    while gate.pass(vcpu) {
        if index == 0 {
            offer_external_interrupt(vcpu, external.as_ref());
        }
        let event = match vcpu.run() {
            Ok(Exit::PortRead { port, size, data }) => {
                data.chunks_mut(size)
                    .for_each(|item| ports.read(port.into(), item));
                None
            }
            Ok(Exit::PortWrite { port, size, data }) => data
                .chunks(size)
                .map(|item| ports.write(port.into(), item))
                .find_map(as_event),
            Ok(Exit::MemoryRead { address, data }) => {
                memory.read(address, data);
                None
            }
            Ok(Exit::MemoryWrite { address, data }) => as_event(memory.write(address, data)),
            Ok(Exit::EndOfInterrupt { vector }) => {
                end_of_interrupt(vector);
                None
            }
            Ok(Exit::InterruptWindow | Exit::Interrupted) => None,
            Ok(Exit::TripleFault) => Some(VcpuEvent::TripleFault),
            Ok(Exit::Failed { why }) => Some(VcpuEvent::Failed(why)),
            Err(e) => Some(VcpuEvent::Failed(crate::error::chain(&e))),
        };
        if let Some(event) = event {
            gate.hold();
            tell(event);
        }
    }
}

fn as_event(action: Action) -> Option<VcpuEvent> {
    (action != Action::None).then_some(VcpuEvent::Action(action))
}

/// Gives the PIC's interrupt to the processor, or asks to be told when it would take one.
fn offer_external_interrupt(vcpu: &mut dyn Vcpu, external: &dyn ExternalInterrupts) {
    let asserted = external.asserted();
    let x86 = vcpu.x86();
    let inject = asserted && x86.ready_for_interrupt();
    x86.request_interrupt_window(asserted && !inject);
    if inject && let Err(e) = x86.inject_interrupt(external.acknowledge()) {
        log::warn!("processor 0: {e}");
    }
}

/// One processor and its thread.
pub(crate) struct VcpuThread {
    pub(crate) index: u32,
    pub(crate) gate: Arc<Gate>,
    tid: Arc<AtomicI32>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread; its processor waits at the gate.
    pub(crate) fn start(
        mut vcpu: Box<dyn Vcpu>,
        index: u32,
        around: Surroundings,
        tell: Arc<dyn Fn(u32, VcpuEvent) + Send + Sync>,
    ) -> io::Result<Self> {
        let gate = Gate::new(vcpu.kicker());
        let tid = Arc::new(AtomicI32::new(0));
        let (ready, started) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            // The name that virsh and QEMU's users look for.
            .name(format!("CPU {index}/KVM"))
            .stack_size(256 << 10)
            .spawn({
                let (gate, tid) = (Arc::clone(&gate), Arc::clone(&tid));
                move || {
                    tid.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
                    _ = ready.send(());
                    run(vcpu.as_mut(), index, &gate, &around, &|event| {
                        tell(index, event);
                    });
                    gate.leave();
                }
            })?;
        _ = started.recv();
        Ok(Self {
            index,
            gate,
            tid,
            thread: Some(thread),
        })
    }

    /// The kernel's number of the thread.
    pub(crate) fn tid(&self) -> i32 {
        self.tid.load(Ordering::SeqCst)
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.gate.quit();
        let outcome = self.thread.take().map(JoinHandle::join);
        if matches!(outcome, Some(Err(_))) {
            log::error!("the thread of processor {} panicked", self.index);
        }
    }
}
