//! What surrounds a processor and answers at once: its local APIC, its clock, KVM's paravirtual
//! interface, its performance counters.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus::Space;
use processor::{Exception, Platform};
use x86::cpuid::{Cpuid, Feature};
use x86::msr;

use crate::clock;
use crate::host::{self, ThreadTimer};
use crate::hypercall;
use crate::lapic::{Deadline, Effect, Lapic, Local, Now, Refused};
use crate::mailbox::{Mailbox, bits};
use crate::paravirt::Paravirt;
use crate::pmu::Pmu;
use crate::vm::Shared;

/// Machine-check banks that a processor shows where it has any: control, status, address and
/// miscellaneous registers that store what is written.
const MACHINE_CHECK_REGISTERS: std::ops::Range<u32> = msr::MC0_CTL..msr::MC0_CTL + 4 * 32;

/// MSRs that read as a constant, and ignore writes: what kernels of either vendor look at without
/// asking CPUID first.
const CONSTANT: &[(u32, u64)] = &[
    (0x17, 0),  // IA32_PLATFORM_ID
    (0x2a, 0),  // EBL_CR_POWERON
    (0x33, 0),  // TEST_CTRL
    (0x79, 0),  // IA32_BIOS_UPDT_TRIG
    (0xcd, 3),  // FSB_FREQ
    (0xce, 0),  // PLATFORM_INFO
    (0x140, 0), // MISC_FEATURES_ENABLES
    (0x199, 0), // PERF_CTL
    (msr::PERF_STATUS, 0x400_0000_03e8),
    (0x19b, 0), // IA32_THERM_INTERRUPT
    (0x1a2, 0), // TEMPERATURE_TARGET
    (0x1fc, 0), // POWER_CTL
    (0x3f1, 0), // PEBS_ENABLE
    (0xc000_0103, 0),
    (msr::SYSCFG, 0),
    (0xc001_001a, 0), // TOP_MEM
    (0xc001_001d, 0), // TOP_MEM2
    (0xc001_001f, 0), // NB_CFG
    (0xc001_0055, 0), // INT_PENDING_MSG
    (0xc001_0058, 0), // MMIO_CONF_BASE
    (0xc001_0114, 0), // VM_CR
    (0xc001_0140, 0), // OSVW_ID_LENGTH
    (0xc001_0141, 0), // OSVW_STATUS
    (0xc001_1020, 0), // LS_CFG
    (0xc001_1022, 0), // DC_CFG
    (0xc001_102a, 0), // BU_CFG2
    (0xc001_0299, 0), // RAPL_POWER_UNIT
    (msr::DE_CFG, 2),
];

/// What surrounds one processor.
pub(crate) struct Around {
    pub(crate) index: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) lapic: Lapic,
    pub(crate) paravirt: Paravirt,
    pub(crate) pmu: Pmu,
    /// The guest's time stamp counter is so far ahead of the host's.
    pub(crate) tsc_offset: u64,
    /// Level-triggered interrupts that ended, and that the I/O APIC must hear of.
    pub(crate) ended: VecDeque<u8>,
    /// Non-maskable interrupts that wait.
    pub(crate) nmis: u8,
    /// MSRs that just store.
    pub(crate) stored: BTreeMap<u32, u64>,
    timer: Option<ThreadTimer>,
    /// When the timer fires, on the clock of [`Now::ns`].
    armed: Option<u64>,
    /// For which of the local APIC's deadlines.
    armed_for: Option<Deadline>,
    phys_bits: u8,
    x2apic_offered: bool,
    deadline_offered: bool,
    arch_capabilities_offered: bool,
}

impl Around {
    pub(crate) fn new(
        index: u32,
        apic_id: u32,
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        cpuid: &Cpuid,
    ) -> Self {
        Self {
            index,
            shared,
            mailbox,
            lapic: Lapic::new(apic_id, index == 0),
            paravirt: Paravirt::new(cpuid),
            pmu: Pmu::new(cpuid),
            tsc_offset: 0,
            ended: VecDeque::new(),
            nmis: 0,
            stored: BTreeMap::new(),
            timer: None,
            armed: None,
            armed_for: None,
            phys_bits: cpuid.phys_bits(),
            x2apic_offered: cpuid.feature(const { Feature::of("x2apic") }),
            deadline_offered: cpuid.feature(const { Feature::of("tsc-deadline") }),
            arch_capabilities_offered: cpuid.feature(const { Feature::of("arch-capabilities") }),
        }
    }

    /// Makes the timer this thread's. Timers need the thread that they interrupt.
    pub(crate) fn enter_thread(&mut self) -> std::io::Result<()> {
        if self.timer.as_ref().is_some_and(ThreadTimer::is_mine) {
            return Ok(());
        }
        self.timer = Some(ThreadTimer::new(&self.mailbox.attention)?);
        self.armed = None;
        self.arm();
        Ok(())
    }

    pub(crate) fn now(&self) -> Now {
        let tsc = host::tsc();
        Now {
            ns: clock::ticks_to_ns(tsc),
            tsc: tsc.wrapping_add(self.tsc_offset),
        }
    }

    /// Sees to it that the signal comes in time for the local APIC's timer. It may come too
    /// early, which costs less than to set it anew at each change.
    pub(crate) fn arm(&mut self) {
        let Some(timer) = &self.timer else { return };
        let deadline = self.lapic.deadline();
        if self.armed.is_some() && deadline == self.armed_for && !self.pmu.is_active() {
            return;
        }
        self.armed_for = deadline;
        let now = self.now();
        let deadline = match deadline {
            None => None,
            Some(Deadline::Ns(ns)) => Some(ns),
            Some(Deadline::Tsc(tsc)) => {
                let left = clock::ticks_to_ns(tsc.saturating_sub(now.tsc));
                Some(now.ns.saturating_add(left))
            }
        };
        let deadline = deadline.into_iter().chain(self.pmu.deadline_ns(now)).min();
        let Some(deadline) = deadline else { return };
        if deadline <= now.ns {
            self.attend_later(host::TIMER);
        } else if self.armed.is_none_or(|armed| deadline < armed) {
            timer.set(Some(deadline - now.ns));
            self.armed = Some(deadline);
        }
    }

    /// The same after the counter was set: what the timer waits for is another moment now.
    pub(crate) fn arm_anew(&mut self) {
        self.armed = None;
        self.arm();
    }

    /// The signal came, or it is time.
    pub(crate) fn timer_expired(&mut self) {
        // Whatever the counter says: the signal does not come again by itself, and the host's two
        // clocks do not agree to the nanosecond.
        self.armed = None;
        let now = self.now();
        self.lapic.tick(now);
        self.arm();
    }

    /// Lets the processor's loop look at this instruction's end. No other thread is concerned.
    fn attend_later(&self, bit: u32) {
        self.mailbox.attention.fetch_or(bit, Ordering::SeqCst);
    }

    /// After a change of the local APIC: what it lets in, whom it is for, when its timer fires.
    fn lapic_changed(&mut self) {
        self.mailbox.set_address(self.lapic.address());
        if self.lapic.pending().is_some() {
            self.attend_later(bits::SELF);
        }
        self.arm();
    }

    pub(crate) fn act(&mut self, effect: Effect) {
        match effect {
            Effect::None => (),
            Effect::Ipi(message) => {
                self.shared.deliver(message, Some(self.index));
            }
            Effect::EndOfInterrupt(vector) => {
                self.ended.push_back(vector);
                self.attend_later(bits::SELF);
            }
        }
    }

    /// The guest ended an interrupt by the flag in memory, if it was offered that.
    pub(crate) fn sync_eoi(&mut self) {
        if self.paravirt.take_eoi(&self.shared.ram)
            && let Some(vector) = self.lapic.end_of_interrupt()
        {
            self.ended.push_back(vector);
        }
    }

    /// Looks whether a performance counter overflowed that interrupts then.
    pub(crate) fn count(&mut self, retired: u64) {
        self.pmu.set_retired(retired);
        if self.pmu.count(host::tsc())
            && self.lapic.performance_counter(self.pmu.masks_interrupt()) == Local::Nmi
        {
            self.nmis = (self.nmis + 1).min(2);
        }
    }

    /// Writes the paravirtual clock's page again.
    pub(crate) fn write_time(&mut self) {
        let stable = self.shared.counts_in_step(self.tsc_offset);
        let base = self.shared.clock.base();
        self.paravirt
            .write_time(&self.shared.ram, base, self.tsc_offset, stable);
    }

    fn read(&mut self, index: u32) -> Result<u64, Refused> {
        match index {
            msr::APIC_BASE => Ok(self.lapic.base()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let now = self.now();
                self.lapic.read_msr(index, now)
            }
            msr::TSC_DEADLINE if self.deadline_offered => Ok(self.lapic.tsc_deadline()),
            msr::UCODE_REV => Ok(1 << 32),
            msr::ARCH_CAPABILITIES if !self.arch_capabilities_offered => Err(Refused),
            msr::ARCH_CAPABILITIES | msr::HWCR | msr::MCG_CTL => Ok(self.stored(index)),
            _ if MACHINE_CHECK_REGISTERS.contains(&index) => Ok(self.stored(index)),
            _ if is_paravirtual(index) => self.paravirt.read_msr(index),
            _ if self.pmu.owns(index) => self.pmu.read_msr(index, host::tsc()),
            _ => CONSTANT
                .iter()
                .find(|(constant, _)| *constant == index)
                .map(|(_, value)| *value)
                .ok_or(Refused),
        }
    }

    fn stored(&self, index: u32) -> u64 {
        self.stored.get(&index).copied().unwrap_or(0)
    }

    fn write(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        match index {
            msr::APIC_BASE => {
                self.lapic
                    .set_base(value, self.phys_bits, self.x2apic_offered)?;
                self.lapic_changed();
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let now = self.now();
                let effect = self.lapic.write_msr(index, value, now)?;
                self.act(effect);
                self.lapic_changed();
            }
            msr::TSC_DEADLINE if self.deadline_offered => {
                self.lapic.set_tsc_deadline(value);
                self.arm();
            }
            // Nothing that speculation could tell survives a command that does nothing here.
            msr::PRED_CMD | msr::FLUSH_CMD if value & !1 == 0 => (),
            msr::UCODE_REV => (),
            msr::HWCR | msr::MCG_CTL => _ = self.stored.insert(index, value),
            _ if MACHINE_CHECK_REGISTERS.contains(&index) => {
                // A status is cleared, a control is all ones or zeros (SDM vol. 3B 16.3.2).
                _ = self.stored.insert(index, value);
            }
            _ if is_paravirtual(index) => {
                let now = self.shared.clock.now();
                self.paravirt
                    .write_msr(index, value, &self.shared.ram, now)?;
                self.attend_later(bits::CLOCK);
            }
            _ if self.pmu.owns(index) => {
                self.pmu.write_msr(index, value, host::tsc())?;
                self.arm();
            }
            _ if CONSTANT.iter().any(|(constant, _)| *constant == index) => (),
            _ => return Err(Refused),
        }
        Ok(())
    }
}

fn is_paravirtual(index: u32) -> bool {
    matches!(
        index,
        msr::KVM_WALL_CLOCK | msr::KVM_SYSTEM_TIME | msr::KVM_WALL_CLOCK_NEW
            ..=msr::KVM_MIGRATION_CONTROL
    )
}

impl Platform for Around {
    fn device_read(&mut self, address: u64, size: u8) -> Option<u64> {
        let page = self.lapic.page()?;
        let offset = address.wrapping_sub(page);
        (offset < 0x1000).then(|| {
            let now = self.now();
            self.lapic.read(offset, size, now)
        })
    }

    fn device_write(&mut self, address: u64, size: u8, value: u64) -> bool {
        if let Some(page) = self.lapic.page() {
            let offset = address.wrapping_sub(page);
            if offset < 0x1000 {
                let now = self.now();
                let effect = self.lapic.write(offset, size, value, now);
                self.act(effect);
                self.lapic_changed();
                return true;
            }
        }
        self.shared
            .doorbells
            .ring(Space::Memory, address, size, value)
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) -> bool {
        self.shared
            .doorbells
            .ring(Space::Port, port.into(), size, value.into())
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, Exception> {
        self.read(index).map_err(|Refused| {
            log::debug!("processor {}: RDMSR of {index:#x} is refused", self.index);
            Exception::gp(0)
        })
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        self.write(index, value).map_err(|Refused| {
            log::debug!(
                "processor {}: WRMSR of {value:#x} to {index:#x} is refused",
                self.index
            );
            Exception::gp(0)
        })
    }

    fn tsc(&mut self) -> u64 {
        host::tsc()
    }

    fn task_priority(&mut self) -> u8 {
        self.lapic.task_priority() >> 4
    }

    fn set_task_priority(&mut self, class: u8) {
        self.lapic.set_task_priority(class << 4);
        if self.lapic.pending().is_some() {
            self.attend_later(bits::SELF);
        }
    }

    fn read_pmc(&mut self, counter: u32) -> Result<u64, Exception> {
        self.pmu
            .read_pmc(counter, host::tsc())
            .map_err(|Refused| Exception::gp(0))
    }

    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64 {
        hypercall::execute(self, number, arguments)
    }

    fn retired(&mut self, count: u64) {
        self.pmu.set_retired(count);
    }

    fn serialize(&mut self) {
        // The interpreter compares the bytes of what it decoded each time. What translated code
        // must see is in the mailbox, and its bit ends the run at this instruction.
    }
}
