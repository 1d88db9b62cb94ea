//! Performance counters: architectural performance monitoring, version 2 (SDM vol. 3B 20.2), or
//! AMD's four (APM vol. 2 13.2.1), as the guest's processor has it.
//!
//! There are two things to count: instructions, which the processor counts anyway, and time, for
//! which cycles and reference cycles are the host's time stamp counter while the guest executes.
//! Both count at all privilege levels: a counter that is enabled for one of them counts.

use x86::cpuid::{Cpuid, CpuidEntry, Vendor};
use x86::msr;

use crate::clock;
use crate::lapic::{Now, Refused};

/// Leaf of architectural performance monitoring.
const LEAF: u32 = 0xa;
const GENERAL: usize = 4;
const FIXED: usize = 3;
/// Bits of a counter.
const WIDTH: u32 = 48;
const MASK: u64 = (1 << WIDTH) - 1;

/// Event select: user, kernel, interrupt, enabled (SDM vol. 3B 20.2.1.1).
const SELECT_LEVELS: u64 = 3 << 16;
const SELECT_INTERRUPT: u64 = 1 << 20;
const SELECT_ENABLED: u64 = 1 << 22;
const SELECT_RESERVED: u64 = !0xffff_ffff;

/// Writing here clears overflows (SDM vol. 3B 20.2.2).
const PERF_GLOBAL_OVF_CTRL: u32 = 0x390;
const GLOBAL_CONTROL: u64 = ((1 << GENERAL) - 1) | (((1 << FIXED) - 1) << 32);
/// Each fixed counter has four bits: kernel, user, any thread, interrupt.
const FIXED_CONTROL: u64 = 0xbbb;

/// AMD: first event select and first counter.
const AMD_SELECT: u32 = 0xc001_0000;
const AMD_COUNTER: u32 = 0xc001_0004;
/// Bits that nothing uses.
const AMD_SELECT_RESERVED: u64 = 0xffff_fff0_0028_0000;

/// What leaf 0xA says: version 2; of the seven events core cycles, instructions and reference
/// cycles are there.
pub(crate) fn leaf() -> CpuidEntry {
    let absent = 0b111_1000;
    CpuidEntry::leaf(
        LEAF,
        [
            2 | (GENERAL as u32) << 8 | WIDTH << 16 | 7 << 24,
            absent,
            0,
            FIXED as u32 | WIDTH << 5,
        ],
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Instructions,
    Cycles,
}

/// Event and unit mask of a general counter (SDM vol. 3B table 20-1; AMD's processor programming
/// references, PMCx076 and PMCx0C0).
fn event(amd: bool, select: u64) -> Option<Event> {
    match (amd, select & 0xf_0000_ffff) {
        (_, 0x00c0) => Some(Event::Instructions),
        (false, 0x003c | 0x013c) | (true, 0x0076) => Some(Event::Cycles),
        _ => None,
    }
}

/// How far things were at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Marks {
    instructions: u64,
    ticks: u64,
}

/// The counters of one processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pmu {
    shown: bool,
    /// AMD's counters: no fixed ones, no global registers.
    amd: bool,
    selects: [u64; GENERAL],
    general: [u64; GENERAL],
    fixed: [u64; FIXED],
    fixed_control: u64,
    global_control: u64,
    status: u64,
    /// Up to here everything is counted.
    counted: Marks,
    /// Instructions so far, as last told.
    retired: u64,
    /// Since when the processor sleeps, by the host's counter.
    asleep: Option<u64>,
    /// An interrupt that is due at the next look.
    interrupt: bool,
}

/// The counters by their bit in the global registers.
const COUNTERS: usize = GENERAL + FIXED;

fn bit(counter: usize) -> u64 {
    match counter {
        0..GENERAL => 1 << counter,
        _ => 1 << (32 + counter - GENERAL),
    }
}

impl Pmu {
    pub(crate) fn new(cpuid: &Cpuid) -> Self {
        let shown = cpuid.get(LEAF, 0).is_some_and(|leaf| leaf.eax & 0xff != 0);
        Self {
            shown,
            amd: cpuid.vendor().is_some_and(Vendor::is_amd_like),
            selects: [0; GENERAL],
            general: [0; GENERAL],
            fixed: [0; FIXED],
            fixed_control: 0,
            global_control: 0,
            status: 0,
            counted: Marks::default(),
            retired: 0,
            asleep: None,
            interrupt: false,
        }
    }

    pub(crate) fn reset(&mut self) {
        let marks = (self.counted, self.retired);
        *self = Self {
            shown: self.shown,
            amd: self.amd,
            ..Self::new(&Cpuid::default())
        };
        (self.counted, self.retired) = marks;
    }

    /// Whether anything counts.
    pub(crate) fn is_active(&self) -> bool {
        match self.amd {
            true => self.selects.iter().any(|s| s & SELECT_ENABLED != 0),
            false => self.global_control != 0,
        }
    }

    /// Whether an interrupt masks its LVT register, as Intel's processors have it.
    pub(crate) fn masks_interrupt(&self) -> bool {
        !self.amd
    }

    /// How many instructions the processor has completed in all.
    pub(crate) fn set_retired(&mut self, count: u64) {
        self.retired = count;
    }

    /// The processor sleeps from here on, or wakes up: cycles are not counted meanwhile.
    pub(crate) fn set_asleep(&mut self, asleep: bool, tsc: u64) {
        if asleep {
            self.count_later(tsc);
            self.asleep = Some(tsc);
        } else if self.asleep.take().is_some() {
            self.counted.ticks = tsc;
        }
    }

    fn counts(&self, counter: usize) -> Option<Event> {
        if !self.amd && self.global_control & bit(counter) == 0 {
            return None;
        }
        if let Some(select) = self.selects.get(counter) {
            let on = select & SELECT_ENABLED != 0 && select & SELECT_LEVELS != 0;
            return on.then(|| event(self.amd, *select)).flatten();
        }
        let fixed = counter - GENERAL;
        let on = self.fixed_control >> (4 * fixed) & 3 != 0;
        on.then_some(match fixed {
            0 => Event::Instructions,
            _ => Event::Cycles,
        })
    }

    fn interrupts(&self, counter: usize) -> bool {
        match self.selects.get(counter) {
            Some(select) => select & SELECT_INTERRUPT != 0,
            None => self.fixed_control >> (4 * (counter - GENERAL)) & 8 != 0,
        }
    }

    fn value(&mut self, counter: usize) -> &mut u64 {
        match counter {
            0..GENERAL => &mut self.general[counter],
            _ => &mut self.fixed[(counter - GENERAL) % FIXED],
        }
    }

    /// Brings the counters up to date; an interrupt waits for the next [`Pmu::count`].
    fn count_later(&mut self, tsc: u64) {
        let interrupt = self.count(tsc);
        self.interrupt |= interrupt;
    }

    /// Brings the counters up to date. Tells whether one overflowed that interrupts then.
    pub(crate) fn count(&mut self, tsc: u64) -> bool {
        let now = Marks {
            instructions: self.retired,
            ticks: self.asleep.unwrap_or(tsc),
        };
        let before = std::mem::replace(&mut self.counted, now);
        let mut interrupt = std::mem::take(&mut self.interrupt);
        for counter in 0..COUNTERS {
            let more = match self.counts(counter) {
                Some(Event::Instructions) => now.instructions.wrapping_sub(before.instructions),
                Some(Event::Cycles) => now.ticks.saturating_sub(before.ticks),
                None => continue,
            };
            let value = self.value(counter);
            let sum = value.wrapping_add(more);
            *value = sum & MASK;
            if sum > MASK {
                self.status |= bit(counter);
                interrupt |= self.interrupts(counter);
            }
        }
        interrupt
    }

    /// When a counter overflows that interrupts then. For instructions it is the earliest time
    /// at which that can be; the time is computed anew when it has come.
    pub(crate) fn deadline_ns(&self, now: Now) -> Option<u64> {
        if !self.is_active() || self.asleep.is_some() {
            return None;
        }
        (0..COUNTERS)
            .filter(|&counter| self.interrupts(counter))
            .filter_map(|counter| {
                self.counts(counter)?;
                let value = match counter {
                    0..GENERAL => self.general[counter],
                    _ => self.fixed[counter - GENERAL],
                };
                // No processor in software completes more than an instruction in a cycle.
                Some(clock::ticks_to_ns((MASK + 1).saturating_sub(value)))
            })
            .min()
            .map(|left| now.ns.saturating_add(left.max(SHORTEST_NS)))
    }

    pub(crate) fn owns(&self, index: u32) -> bool {
        self.shown && self.place(index).is_some()
    }

    pub(crate) fn read_msr(&mut self, index: u32, tsc: u64) -> Result<u64, Refused> {
        self.count_later(tsc);
        Ok(match self.place(index).ok_or(Refused)? {
            Place::General(n) => self.general[n],
            Place::Select(n) => self.selects[n],
            Place::Fixed(n) => self.fixed[n],
            Place::FixedControl => self.fixed_control,
            Place::Status => self.status,
            Place::Control => self.global_control,
            Place::ClearStatus => 0,
        })
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64, tsc: u64) -> Result<(), Refused> {
        self.count_later(tsc);
        match self.place(index).ok_or(Refused)? {
            Place::General(n) if self.amd => self.general[n] = value & MASK,
            // Writes of general counters are sign-extended from 32 bits (SDM vol. 3B 20.2.1.1).
            Place::General(n) => self.general[n] = value as u32 as i32 as u64 & MASK,
            Place::Select(n) if self.amd => self.selects[n] = value & !AMD_SELECT_RESERVED,
            Place::Select(n) if value & SELECT_RESERVED == 0 => self.selects[n] = value,
            Place::Fixed(n) if value & !MASK == 0 => self.fixed[n] = value,
            Place::FixedControl if value & !FIXED_CONTROL == 0 => self.fixed_control = value,
            Place::Control if value & !GLOBAL_CONTROL == 0 => self.global_control = value,
            Place::ClearStatus => self.status &= !value,
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// RDPMC: bit 30 of the number means the fixed counters.
    pub(crate) fn read_pmc(&mut self, number: u32, tsc: u64) -> Result<u64, Refused> {
        let fixed = number & 1 << 30 != 0;
        let n = (number & !(1 << 30)) as usize;
        let limit = match (fixed, self.amd) {
            (true, true) => 0,
            (true, false) => FIXED,
            (false, _) => GENERAL,
        };
        if !self.shown || n >= limit {
            return Err(Refused);
        }
        self.count_later(tsc);
        Ok(if fixed {
            self.fixed[n]
        } else {
            self.general[n]
        })
    }

    /// The MSRs that state carries.
    pub(crate) fn state(&mut self, tsc: u64) -> Vec<(u32, u64)> {
        if !self.shown {
            return Vec::new();
        }
        self.count_later(tsc);
        let run = |first: u32, values: &[u64]| {
            (first..)
                .zip(values.iter().copied())
                .collect::<Vec<(u32, u64)>>()
        };
        let (counter, select) = match self.amd {
            true => (AMD_COUNTER, AMD_SELECT),
            false => (msr::PMC0, msr::PERFEVTSEL0),
        };
        let mut all = run(counter, &self.general);
        all.extend(run(select, &self.selects));
        all.extend(run(msr::FIXED_CTR0, &self.fixed));
        all.extend([
            (msr::FIXED_CTR_CTRL, self.fixed_control),
            (msr::PERF_GLOBAL_STATUS, self.status),
            (msr::PERF_GLOBAL_CTRL, self.global_control),
        ]);
        all.retain(|(_, value)| *value != 0);
        all
    }

    /// Takes over an MSR of a state.
    ///
    /// # Errors
    /// There is none with this number, or it does not take the value.
    pub(crate) fn set_state(&mut self, index: u32, value: u64, tsc: u64) -> Result<(), Refused> {
        match self.place(index) {
            Some(Place::General(n)) => {
                self.count_later(tsc);
                self.general[n] = value & MASK;
                Ok(())
            }
            Some(Place::Status) => {
                self.status = value & GLOBAL_CONTROL;
                Ok(())
            }
            _ => self.write_msr(index, value, tsc),
        }
    }
}

/// The shortest time after which the counters are looked at again.
const SHORTEST_NS: u64 = 20_000;

/// What an MSR is.
enum Place {
    General(usize),
    Select(usize),
    Fixed(usize),
    FixedControl,
    Status,
    Control,
    ClearStatus,
}

impl Pmu {
    fn place(&self, index: u32) -> Option<Place> {
        let within = |first: u32, count: usize| {
            let n = index.checked_sub(first)? as usize;
            (n < count).then_some(n)
        };
        if self.amd {
            return within(AMD_COUNTER, GENERAL)
                .map(Place::General)
                .or_else(|| within(AMD_SELECT, GENERAL).map(Place::Select));
        }
        match index {
            msr::FIXED_CTR_CTRL => Some(Place::FixedControl),
            msr::PERF_GLOBAL_STATUS => Some(Place::Status),
            msr::PERF_GLOBAL_CTRL => Some(Place::Control),
            PERF_GLOBAL_OVF_CTRL => Some(Place::ClearStatus),
            _ => within(msr::PMC0, GENERAL)
                .map(Place::General)
                .or_else(|| within(msr::PERFEVTSEL0, GENERAL).map(Place::Select))
                .or_else(|| within(msr::FIXED_CTR0, FIXED).map(Place::Fixed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pmu() -> Pmu {
        let mut cpuid = Cpuid::default();
        cpuid.set(leaf());
        Pmu::new(&cpuid)
    }

    #[test]
    fn instructions_and_time_are_counted_while_enabled() {
        let mut pmu = pmu();
        pmu.write_msr(msr::PERFEVTSEL0, 0x43_00c0, 0).unwrap();
        pmu.write_msr(msr::FIXED_CTR_CTRL, 0x030, 0).unwrap();
        pmu.set_retired(100);
        pmu.write_msr(msr::PERF_GLOBAL_CTRL, 1 | 1 << 33, 1000)
            .unwrap();
        pmu.set_retired(350);
        assert_eq!(pmu.read_msr(msr::PMC0, 1500), Ok(250));
        assert_eq!(pmu.read_pmc(1 << 30 | 1, 1500), Ok(500));
        pmu.set_asleep(true, 1600);
        pmu.set_asleep(false, 9000);
        assert_eq!(pmu.read_pmc(1 << 30 | 1, 9100), Ok(700));
        pmu.write_msr(msr::PERF_GLOBAL_CTRL, 0, 9100).unwrap();
        pmu.set_retired(1000);
        assert_eq!(pmu.read_msr(msr::PMC0, 9999), Ok(250));
        assert_eq!(pmu.read_pmc(4, 0), Err(Refused));
    }

    #[test]
    fn an_overflow_is_noted_and_interrupts_if_asked_to() {
        let mut pmu = pmu();
        pmu.write_msr(msr::PERFEVTSEL0 + 1, 0x53_003c, 0).unwrap();
        pmu.write_msr(msr::PMC0 + 1, -1000i64 as u64, 0).unwrap();
        pmu.write_msr(msr::PERF_GLOBAL_CTRL, 2, 0).unwrap();
        let now = Now { ns: 5, tsc: 0 };
        let soon = pmu.deadline_ns(now).unwrap();
        assert!((5 + SHORTEST_NS..1_000_000).contains(&soon), "{soon}");
        assert!(!pmu.count(999));
        assert!(pmu.count(1000));
        assert_eq!(pmu.read_msr(msr::PERF_GLOBAL_STATUS, 1000), Ok(2));
        pmu.write_msr(PERF_GLOBAL_OVF_CTRL, 2, 1000).unwrap();
        assert_eq!(pmu.read_msr(msr::PERF_GLOBAL_STATUS, 1000), Ok(0));
    }

    #[test]
    fn amds_counters_have_no_global_registers() {
        let mut cpuid = Cpuid::default();
        cpuid.set(leaf());
        let [ebx, edx, ecx] = Vendor::AMD.registers();
        cpuid.set(CpuidEntry::leaf(0, [0xd, ebx, ecx, edx]));
        let mut pmu = Pmu::new(&cpuid);
        assert!(!pmu.owns(msr::PERF_GLOBAL_CTRL) && !pmu.owns(msr::PMC0));
        pmu.write_msr(AMD_COUNTER + 3, -10i64 as u64, 0).unwrap();
        pmu.write_msr(AMD_SELECT + 3, 0x53_00c0, 0).unwrap();
        pmu.write_msr(AMD_SELECT + 1, 0x43_0076, 100).unwrap();
        assert!(pmu.is_active());
        pmu.set_retired(9);
        assert!(!pmu.count(1100));
        pmu.set_retired(12);
        assert!(pmu.count(1200));
        assert_eq!(pmu.read_msr(AMD_COUNTER + 3, 1200), Ok(2));
        assert_eq!(pmu.read_pmc(1, 1200), Ok(1100));
        assert_eq!(pmu.read_pmc(1 << 30, 1200), Err(Refused));
    }

    #[test]
    fn reserved_bits_are_refused_and_registers_go_both_ways() {
        let mut pmu = pmu();
        assert_eq!(pmu.write_msr(msr::PERFEVTSEL0, 1 << 32, 0), Err(Refused));
        assert_eq!(pmu.write_msr(msr::FIXED_CTR0, 1 << 48, 0), Err(Refused));
        assert_eq!(
            pmu.write_msr(msr::PERF_GLOBAL_CTRL, 1 << 4, 0),
            Err(Refused)
        );
        assert_eq!(pmu.write_msr(msr::FIXED_CTR_CTRL, 4, 0), Err(Refused));
        assert_eq!(pmu.write_msr(msr::PERF_GLOBAL_STATUS, 1, 0), Err(Refused));
        pmu.write_msr(msr::PMC0, -5i64 as u64, 0).unwrap();
        pmu.write_msr(msr::FIXED_CTR0 + 2, 77, 0).unwrap();
        let state = pmu.state(0);
        let mut other = self::pmu();
        for (index, value) in state {
            other.set_state(index, value, 0).unwrap();
        }
        assert_eq!(other, pmu);
        pmu.reset();
        assert_eq!(pmu.state(0), []);
        assert!(!Pmu::new(&Cpuid::default()).owns(msr::PMC0));
    }
}
