//! The complete state of a processor, in and out: the core's part, and what is around it.

use accel::AccelError;
use x86::msr;
use x86::{CpuState, LapicState, MpState};

use crate::clock;
use crate::host;
use crate::vcpu::SoftVcpu;

/// How far a promised frequency may be from the host's, as a fraction: what two measurements of
/// one counter differ by.
const TSC_TOLERANCE: u32 = 1000;

impl SoftVcpu {
    pub(crate) fn read_state(&mut self) -> CpuState {
        self.take_mail();
        self.around.sync_eoi();
        let now = self.around.now();
        let mut state = self.cpu.state();
        self.around.pmu.set_retired(self.cpu.retired);
        let counters = self.around.pmu.state(host::tsc());
        let around = &self.around;
        let lapic = around.lapic.state(now);
        state.sregs.apic_base = around.lapic.base();
        state.sregs.cr8 = u64::from(lapic.get(LapicState::TPR) >> 4 & 0xf);
        state.lapic = Some(lapic);
        let tsc = host::tsc().wrapping_add(self.cpu.tsc_offset);
        state.msrs.insert(msr::TSC, tsc);
        let kept = around
            .paravirt
            .state()
            .chain(around.stored.iter().map(|(index, value)| (*index, *value)))
            .chain(counters)
            .chain([(msr::TSC_DEADLINE, around.lapic.tsc_deadline())]);
        state
            .msrs
            .extend(kept.filter(|(index, value)| *value != msr::reset_value(*index)));
        state.mp_state = self.mp_state;
        state.tsc_khz = Some(clock::tsc_khz());
        let events = &mut state.events;
        if let Some(vector) = self.injected {
            events.interrupt.injected = true;
            events.interrupt.nr = vector;
        }
        events.nmi.pending = around.nmis != 0;
        if self.mp_state == MpState::SipiReceived {
            events.sipi_vector = self.sipi_vector.into();
        }
        state
    }

    pub(crate) fn write_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        if let Some(khz) = state.tsc_khz {
            let here = clock::tsc_khz();
            if khz.abs_diff(here) > here / TSC_TOLERANCE {
                return Err(AccelError::State(format!(
                    "the time stamp counter is to run at {khz} kHz, and the host's runs at {here} kHz"
                )));
            }
        }
        self.around.mailbox.clear();
        self.forget_access();
        self.cpu.set_state(state);
        let host_tsc = host::tsc();
        let offset = self
            .around
            .shared
            .agree_on_tsc(state.msr(msr::TSC), host_tsc);
        self.set_tsc_offset(offset);
        let now = self.around.now();
        let around = &mut self.around;
        let base = state.sregs.apic_base;
        around.lapic.set_state(base, state.lapic.as_ref(), now);
        if state.lapic.is_none() {
            around
                .lapic
                .set_task_priority((state.sregs.cr8 as u8 & 0xf) << 4);
        }
        around.lapic.set_tsc_deadline(state.msr(msr::TSC_DEADLINE));
        around.mailbox.set_address(around.lapic.address());
        around.paravirt.reset();
        around.pmu.reset();
        around.stored.clear();
        for (&index, &value) in &state.msrs {
            self.set_msr(index, value)?;
        }
        let events = &state.events;
        self.injected = events.interrupt.injected.then_some(events.interrupt.nr);
        self.around.nmis = u8::from(events.nmi.pending) + u8::from(events.nmi.injected);
        self.mp_state = state.mp_state;
        self.unhalted = false;
        self.sipi_vector = events.sipi_vector as u8;
        self.around.arm_anew();
        self.around
            .mailbox
            .attend(crate::mailbox::bits::CLOCK | crate::mailbox::bits::SELF);
        Ok(())
    }

    /// Sets an MSR that is not the core's.
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), AccelError> {
        let around = &mut self.around;
        let taken = match index {
            msr::TSC | msr::TSC_DEADLINE => true,
            msr::ARCH_CAPABILITIES | msr::HWCR | msr::MCG_CTL => {
                around.stored.insert(index, value);
                true
            }
            _ if (msr::MC0_CTL..msr::MC0_CTL + 4 * 32).contains(&index) => {
                around.stored.insert(index, value);
                true
            }
            _ if around.pmu.owns(index) => around.pmu.set_state(index, value, host::tsc()).is_ok(),
            _ if self.cpu.msrs.get(index).is_some() => true,
            _ => around.paravirt.set_state(index, value).is_ok(),
        };
        if taken || value == msr::reset_value(index) {
            return Ok(());
        }
        Err(AccelError::State(format!(
            "the processor has no model-specific register {index:#x} for the value {value:#x}"
        )))
    }

    /// Takes what is in the mailbox into the registers, so that the state is complete.
    fn take_mail(&mut self) {
        let mailbox = self.mailbox();
        let lapic = &mut self.around.lapic;
        mailbox.take_requests(|vector, level| lapic.accept(vector, level));
        self.around.nmis = (self.around.nmis + mailbox.take_nmis()).min(2);
    }
}
