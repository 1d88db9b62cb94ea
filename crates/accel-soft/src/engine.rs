//! What executes instructions.

use processor::{Cpu, Platform, Stop};

use crate::options::Options;

/// Instructions of the interpreter between two looks at the engine's caller.
const BUDGET: u32 = 1 << 20;

/// One processor's engine.
pub(crate) enum Engine {
    Interpret,
}

impl Engine {
    pub(crate) fn new(_options: &Options) -> Self {
        Self::Interpret
    }

    /// Executes until something stops it: never [`Stop::Exception`].
    pub(crate) fn run(&mut self, cpu: &mut Cpu, p: &mut dyn Platform) -> Stop {
        match self {
            Self::Interpret => cpu.advance(p, BUDGET),
        }
    }

    /// Bytes of a code page changed.
    pub(crate) fn code_written(&mut self, _physical: u64, _len: u64) {}
}
