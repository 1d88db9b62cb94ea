//! One virtual processor: the run loop.
//!
//! ```text
//!        ┌──────────────────────────────────────────────────────────────┐
//!        ▼                                                              │
//!   attention? ── mailbox: interrupts, INIT, code pages, memory map     │
//!        │        kicked ──────────────────────────────▶ Interrupted    │
//!   access asked for and answered? ── run that instruction again        │
//!        │                                                              │
//!   NMI, interrupt to deliver? ── deliver; masked: Cpu::awaited         │
//!        │                                                              │
//!   halted, or waiting for start-up? ── sleep ──────────────────────────┤
//!        │                                                              │
//!   engine.run ──▶ Stop ── Attention ───────────────────────────────────┤
//!                       ── Halt ── halted ──────────────────────────────┘
//!                       ── Device ── ask ────▶ PortRead, MemoryWrite, ...
//!                       ── TripleFault ──────▶ TripleFault
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel::{AccelError, Exit, Kick, Vcpu, VcpuSetup, X86Vcpu};
use processor::state::{attention, awaited};
use processor::{CpuBox, CpuSetup, DeviceRequest, Stop};
use x86::{CpuState, MpState};

use crate::engine::Engine;
use crate::host;
use crate::lapic::Lapic;
use crate::mailbox::{CodeEvent, Mailbox, Startup, bits};
use crate::platform::Around;
use crate::vm::Shared;

pub(crate) struct SoftVcpu {
    pub(crate) cpu: CpuBox,
    pub(crate) around: Around,
    engine: Engine,
    pub(crate) mp_state: MpState,
    pub(crate) sipi_vector: u8,
    /// An interrupt that was acknowledged at the PIC, to be delivered.
    pub(crate) injected: Option<u8>,
    window_wanted: bool,
    /// Another processor asked this one not to sleep in HLT; kept if it comes just before.
    pub(crate) unhalted: bool,
    /// The access that the machine carries out now, or has carried out.
    asked: Option<DeviceRequest>,
    /// The instruction at RIP has had answers and must run before anything else happens.
    incomplete: bool,
    data: [u8; 8],
}

/// Why the loop ends.
enum End {
    Device(DeviceRequest),
    Ended(u8),
    Window,
    Interrupted,
    TripleFault,
    Failed(String),
}

/// Whether the loop goes on.
type Step = std::ops::ControlFlow<End>;
use std::ops::ControlFlow::{Break, Continue};

impl SoftVcpu {
    pub(crate) fn new(shared: Arc<Shared>, setup: VcpuSetup) -> Result<Self, AccelError> {
        let VcpuSetup {
            index,
            apic_id,
            cpuid,
        } = setup;
        let bootstrap = index == 0;
        let mailbox = Mailbox::new(Lapic::new(apic_id, bootstrap).address());
        let engine = Engine::new(&shared.options);
        let around = Around::new(
            index,
            apic_id,
            Arc::clone(&shared),
            Arc::clone(&mailbox),
            &cpuid,
        );
        let cpu = CpuBox::new(CpuSetup {
            cpuid,
            attention: Arc::clone(&mailbox.attention),
            ram: shared.map(),
            code: Arc::clone(&shared.code),
        })
        .map_err(|e| AccelError::Unusable {
            accelerator: crate::NAME,
            why: match std::error::Error::source(&e) {
                Some(source) => format!("{e}: {source}"),
                None => e.to_string(),
            },
        })?;
        Ok(Self {
            cpu,
            around,
            engine,
            mp_state: match bootstrap {
                true => MpState::Runnable,
                false => MpState::Uninitialized,
            },
            sipi_vector: 0,
            injected: None,
            window_wanted: false,
            unhalted: false,
            asked: None,
            incomplete: false,
            data: [0; 8],
        })
    }

    pub(crate) fn mailbox(&self) -> Arc<Mailbox> {
        Arc::clone(&self.around.mailbox)
    }

    /// What was under way is void: the state is set anew.
    pub(crate) fn forget_access(&mut self) {
        self.asked = None;
        self.incomplete = false;
        self.around.ended.clear();
        self.around.nmis = 0;
    }

    /// Sets the offset of the time stamp counter, which the local APIC's timer counts with.
    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.cpu.tsc_offset = offset;
        self.around.tsc_offset = offset;
    }

    fn run_loop(&mut self) -> End {
        let mailbox = self.mailbox();
        loop {
            if let Break(end) = self.turn(&mailbox) {
                return end;
            }
        }
    }

    fn turn(&mut self, mailbox: &Mailbox) -> Step {
        let attention = mailbox.attention.swap(0, Ordering::SeqCst);
        if attention != 0 {
            self.attend(attention, mailbox);
            if attention & bits::KICK != 0 {
                return Break(End::Interrupted);
            }
        }
        if self.asked.is_some() || self.incomplete {
            return self.complete();
        }
        if let Some(vector) = self.around.ended.pop_front() {
            if !self.around.ended.is_empty() {
                mailbox.attention.fetch_or(bits::SELF, Ordering::SeqCst);
            }
            return Break(End::Ended(vector));
        }
        if let MpState::Uninitialized | MpState::InitReceived = self.mp_state {
            mailbox.sleep();
            return Continue(());
        }
        if self.mp_state == MpState::SipiReceived {
            self.cpu.sipi(self.sipi_vector);
            self.mp_state = MpState::Runnable;
        }
        self.deliver_events()?;
        if self.mp_state == MpState::Halted && std::mem::take(&mut self.unhalted) {
            self.mp_state = MpState::Runnable;
        }
        if self.mp_state == MpState::Halted {
            self.sleep_halted(mailbox);
            return Continue(());
        }
        let stop = self.engine.run(&mut self.cpu, &mut self.around);
        self.stopped(stop)
    }

    fn stopped(&mut self, stop: Stop) -> Step {
        match stop {
            Stop::Attention => Continue(()),
            Stop::Halt => {
                self.mp_state = MpState::Halted;
                Continue(())
            }
            Stop::Device(request) => {
                self.asked = Some(request);
                Break(End::Device(request))
            }
            Stop::TripleFault => Break(End::TripleFault),
            Stop::Exception(exception) => match self.cpu.raise(&mut self.around, exception) {
                Ok(()) => Continue(()),
                Err(Stop::TripleFault) => Break(End::TripleFault),
                Err(other) => Break(End::Failed(format!(
                    "an exception's delivery ended in {other:?} ({})",
                    self.registers_as_text()
                ))),
            },
        }
    }

    /// Acts on the attention word.
    fn attend(&mut self, attention: u32, mailbox: &Mailbox) {
        if attention & bits::INTERRUPT != 0 {
            let lapic = &mut self.around.lapic;
            mailbox.take_requests(|vector, level| lapic.accept(vector, level));
        }
        if self.around.pmu.is_active() {
            self.around.count(self.cpu.retired);
        }
        if attention & host::TIMER != 0 {
            self.around.timer_expired();
            let now = self.around.now().ns;
            self.around
                .paravirt
                .update_steal(&self.around.shared.ram, now);
        }
        if attention & bits::STARTUP != 0 {
            self.around.nmis = (self.around.nmis + mailbox.take_nmis()).min(2);
            while let Some(message) = mailbox.take_startup() {
                self.start_up(message);
            }
        }
        if attention & bits::CODE != 0 {
            for event in mailbox.take_code() {
                match event {
                    CodeEvent::Written { physical, len } => {
                        self.engine.code_written(physical, len);
                    }
                    CodeEvent::Lost => {
                        self.cpu.flush_tlb();
                        self.engine.flush();
                    }
                    CodeEvent::Marked { page } => {
                        if self.cpu.drop_writes(page) {
                            // Stores since then may have gone past everybody.
                            self.around.shared.code.written(page, 4096);
                        }
                    }
                }
            }
        }
        if attention & bits::MEMORY != 0 {
            let map = self.around.shared.map();
            self.cpu.set_ram(map);
            self.engine.flush();
        }
        if attention & bits::CLOCK != 0 {
            self.around.write_time();
            let now = self.around.now().ns;
            self.around
                .paravirt
                .update_steal(&self.around.shared.ram, now);
        }
        if self.cpu.tsc_offset != self.around.tsc_offset {
            // The guest set its counter.
            self.around.tsc_offset = self.cpu.tsc_offset;
            self.around.write_time();
            self.around.arm_anew();
        }
        self.unhalted |= attention & bits::UNHALT != 0;
    }

    fn start_up(&mut self, message: Startup) {
        match message {
            Startup::Init => {
                self.cpu.init();
                self.around.lapic.init();
                self.around.mailbox.set_address(self.around.lapic.address());
                self.forget_access();
                self.injected = None;
                self.unhalted = false;
                self.mp_state = match self.around.index {
                    0 => MpState::Runnable,
                    _ => MpState::InitReceived,
                };
            }
            Startup::Sipi(vector) if self.mp_state == MpState::InitReceived => {
                self.sipi_vector = vector;
                self.mp_state = MpState::SipiReceived;
            }
            Startup::Sipi(_) => (),
        }
    }

    /// The instruction that accessed a device runs again, and finds the answer.
    fn complete(&mut self) -> Step {
        if let Some(request) = self.asked.take() {
            self.cpu.answer(request, u64::from_le_bytes(self.data));
        }
        self.incomplete = true;
        match self.cpu.step(&mut self.around) {
            Ok(()) => {
                self.incomplete = false;
                Continue(())
            }
            Err(stop) => {
                self.incomplete = matches!(stop, Stop::Device(_));
                self.stopped(stop)
            }
        }
    }

    /// Delivers what the processor takes now, and notes what waits.
    fn deliver_events(&mut self) -> Step {
        self.around.sync_eoi();
        loop {
            let open = self.cpu.interrupts_open();
            let delivered = if self.around.nmis != 0 && self.cpu.nmi_open() {
                self.around.nmis -= 1;
                self.cpu.deliver_nmi(&mut self.around)
            } else if let (true, Some(vector)) = (open, self.injected) {
                self.injected = None;
                self.cpu.deliver_interrupt(&mut self.around, vector)
            } else if self.window_wanted && open && self.around.lapic.takes_external() {
                return Break(End::Window);
            } else if let (true, Some(vector)) = (open, self.around.lapic.pending()) {
                self.around.lapic.acknowledge(vector);
                let delivered = self.cpu.deliver_interrupt(&mut self.around, vector);
                if self.around.lapic.end_is_quiet() {
                    self.around.paravirt.offer_eoi(&self.around.shared.ram);
                }
                delivered
            } else {
                break;
            };
            self.mp_state = MpState::Runnable;
            if delivered.is_err() {
                return Break(End::TripleFault);
            }
        }
        let interrupt = self.injected.is_some()
            || self.around.lapic.pending().is_some()
            || self.window_wanted && self.around.lapic.takes_external();
        let nmi = self.around.nmis != 0;
        self.cpu.awaited =
            if interrupt { awaited::INTERRUPT } else { 0 } | if nmi { awaited::NMI } else { 0 };
        Continue(())
    }

    /// Sleeps in HLT until there is something to look at.
    fn sleep_halted(&mut self, mailbox: &Mailbox) {
        let ram = &self.around.shared.ram;
        self.around.paravirt.sleeps(ram);
        self.around.pmu.set_retired(self.cpu.retired);
        self.around.pmu.set_asleep(true, host::tsc());
        mailbox.sleep();
        self.around.pmu.set_asleep(false, host::tsc());
        if self.around.paravirt.wakes(ram) {
            self.cpu.flush_tlb();
        }
    }

    fn exit(&mut self, end: End) -> Exit<'_> {
        match end {
            End::Device(request) => {
                let (DeviceRequest::MemoryRead { size, .. }
                | DeviceRequest::MemoryWrite { size, .. }
                | DeviceRequest::PortRead { size, .. }
                | DeviceRequest::PortWrite { size, .. }) = request;
                let size = usize::from(size).clamp(1, self.data.len());
                self.data = match request {
                    DeviceRequest::MemoryWrite { value, .. } => value.to_le_bytes(),
                    DeviceRequest::PortWrite { value, .. } => u64::from(value).to_le_bytes(),
                    _ => [0; 8],
                };
                let data = &mut self.data[..size];
                match request {
                    DeviceRequest::MemoryRead { address, .. } => Exit::MemoryRead { address, data },
                    DeviceRequest::MemoryWrite { address, .. } => {
                        Exit::MemoryWrite { address, data }
                    }
                    DeviceRequest::PortRead { port, .. } => Exit::PortRead { port, size, data },
                    DeviceRequest::PortWrite { port, .. } => Exit::PortWrite { port, size, data },
                }
            }
            End::Ended(vector) => Exit::EndOfInterrupt { vector },
            End::Window => Exit::InterruptWindow,
            End::Interrupted => Exit::Interrupted,
            End::TripleFault => Exit::TripleFault,
            End::Failed(why) => Exit::Failed { why },
        }
    }

    pub(crate) fn registers_as_text(&self) -> String {
        let cpu = &self.cpu;
        format!(
            "rip={:#x} rsp={:#x} rflags={:#x} cs={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
            cpu.rip,
            cpu.gpr[4],
            cpu.rflags,
            cpu.segs[1].selector,
            cpu.cr0,
            cpu.cr2,
            cpu.cr3,
            cpu.cr4,
            cpu.efer
        )
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        log::debug!(
            "processor {}: {} instructions; {:?}",
            self.around.index,
            self.cpu.retired,
            self.engine
        );
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit<'_>, AccelError> {
        self.around
            .enter_thread()
            .map_err(|source| AccelError::Host {
                what: format!("create the timer of processor {}", self.around.index),
                source,
            })?;
        self.around.tsc_offset = self.cpu.tsc_offset;
        let end = self.run_loop();
        if let End::TripleFault = end {
            log::debug!(
                "processor {}: triple fault ({})",
                self.around.index,
                self.registers_as_text()
            );
        }
        Ok(self.exit(end))
    }

    fn finish_exit(&mut self) -> Result<(), AccelError> {
        if self.asked.is_none() && !self.incomplete {
            return Ok(());
        }
        if let Break(End::TripleFault) = self.complete() {
            // The next run meets it again.
            self.incomplete = true;
        }
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.mailbox()
    }

    fn x86(&mut self) -> &mut dyn X86Vcpu {
        self
    }
}

impl X86Vcpu for SoftVcpu {
    fn state(&mut self) -> Result<CpuState, AccelError> {
        Ok(self.read_state())
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.write_state(state)
    }

    fn ready_for_interrupt(&mut self) -> bool {
        let executes = matches!(self.mp_state, MpState::Runnable | MpState::Halted);
        executes
            && self.asked.is_none()
            && !self.incomplete
            && self.injected.is_none()
            && self.cpu.interrupts_open()
            && self.around.lapic.takes_external()
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<(), AccelError> {
        self.injected = Some(vector);
        Ok(())
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
        if wanted && self.cpu.interrupts_open() {
            self.around
                .mailbox
                .attention
                .fetch_or(attention::OPEN, Ordering::SeqCst);
        }
    }

    fn inject_nmi(&mut self) -> Result<(), AccelError> {
        self.around.nmis = (self.around.nmis + 1).min(2);
        Ok(())
    }
}
