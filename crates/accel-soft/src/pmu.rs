//! Performance counters: architectural performance monitoring (SDM vol. 3B 20.2).

use x86::cpuid::Cpuid;

use crate::lapic::{Now, Refused};

/// The counters of one processor. None are shown yet.
#[derive(Debug)]
pub(crate) struct Pmu;

impl Pmu {
    pub(crate) fn new(_cpuid: &Cpuid) -> Self {
        Self
    }

    pub(crate) fn owns(&self, _index: u32) -> bool {
        false
    }

    pub(crate) fn read_msr(&self, _index: u32, _tsc: u64) -> Result<u64, Refused> {
        Err(Refused)
    }

    pub(crate) fn write_msr(&mut self, _index: u32, _value: u64, _tsc: u64) -> Result<(), Refused> {
        Err(Refused)
    }

    pub(crate) fn read_pmc(&self, _counter: u32, _tsc: u64) -> Result<u64, Refused> {
        Err(Refused)
    }

    pub(crate) fn reset(&mut self) {}

    pub(crate) fn state(&self, _tsc: u64) -> impl Iterator<Item = (u32, u64)> + use<> {
        std::iter::empty()
    }

    pub(crate) fn set_state(&mut self, _index: u32, _value: u64) -> Result<(), Refused> {
        Err(Refused)
    }

    pub(crate) fn deadline_ns(&self, _now: Now) -> Option<u64> {
        None
    }
}
