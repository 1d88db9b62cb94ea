//! The run loop of one processor: an instruction at a time, and the exceptions between them.
//!
//! - [`breakpoint`]: single steps and the breakpoint registers.

use std::sync::atomic::Ordering;

use iced_x86::Instruction;
use x86::cr::rflags;

use crate::decode::DecodeCache;
use crate::interpret;
use crate::interpret::Flow;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, attention, awaited};
use crate::stop::Stop;

#[cfg(test)]
pub(crate) mod bench;
mod breakpoint;
#[cfg(test)]
mod tests;

/// DEBUGCTL.BTF: TF traps after branches only.
pub(crate) const DEBUGCTL_BTF: u64 = 1 << 1;

impl Cpu {
    /// Runs until something other than an exception stops the processor: at most `budget`
    /// instructions and exceptions, but at least one, so that every call gets on.
    ///
    /// Returns [`Stop::Attention`] when the budget is used or [`Cpu::attention`] is not zero
    /// between two instructions; never [`Stop::Exception`].
    pub fn advance(&mut self, p: &mut dyn Platform, budget: u32) -> Stop {
        if let Some(exception) = self.pending.take()
            && let Err(stop) = self.raise(p, exception)
        {
            return stop;
        }
        let mut left = budget.max(1);
        loop {
            match self.step(p) {
                Ok(()) => {}
                Err(Stop::Exception(exception)) => {
                    if let Err(stop) = self.raise(p, exception) {
                        return stop;
                    }
                }
                Err(stop) => return stop,
            }
            left -= 1;
            if left == 0 || self.attention.load(Ordering::Acquire) != 0 {
                return Stop::Attention;
            }
        }
    }

    /// Executes one instruction, or one iteration of a repeated string instruction.
    ///
    /// # Errors
    /// [`Stop::Exception`]: what [`Cpu::raise`] is to deliver. A fault left the state as it was
    /// before the instruction, a trap (#DB) as it is after it. [`Stop::Device`]: answer, and run
    /// again. [`Stop::Halt`]: HLT has completed.
    pub fn step(&mut self, p: &mut dyn Platform) -> Result<(), Stop> {
        let result = if self.mode.has(Mode::STEP) {
            self.step_debugged(p)
        } else {
            self.begin();
            self.step_plain(p)
        };
        if let Err(Stop::Exception(_)) = result {
            self.forget_answers();
        }
        result
    }

    fn step_plain(&mut self, p: &mut dyn Platform) -> Result<(), Stop> {
        // Taken out, so that the instruction need not be copied.
        let mut cache = std::mem::take(&mut self.decoded);
        let result = self.step_in(p, &mut cache);
        self.decoded = cache;
        result
    }

    #[inline]
    fn step_in(&mut self, p: &mut dyn Platform, cache: &mut DecodeCache) -> Result<(), Stop> {
        let instruction = self.decode_in(p, cache)?;
        let flow = self.execute(p, instruction)?;
        if flow == Flow::Jumped && self.mode.has(Mode::STEP) {
            return self.trap_of_return(instruction);
        }
        Ok(())
    }

    /// Executes a decoded instruction and commits it.
    fn execute(&mut self, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
        let start = self.rip;
        let resume = self.rflags & rflags::RF;
        self.rflags &= !rflags::RF;
        match interpret::execute(self, p, i) {
            Ok(Flow::Next) => {
                self.rip = self.next_rip(i);
                self.commit();
                Ok(Flow::Next)
            }
            Ok(Flow::Jumped) => {
                if self.rip == start && i.is_string_instruction() {
                    // More iterations are to come: no breakpoint before them.
                    self.rflags |= rflags::RF;
                    self.retired = self.retired.wrapping_sub(1);
                }
                self.commit();
                Ok(Flow::Jumped)
            }
            Err(Stop::Halt) => {
                self.rip = self.next_rip(i);
                self.commit();
                Err(Stop::Halt)
            }
            Err(stop) => {
                self.rflags |= resume;
                self.interrupt_shadow &= 0xf;
                Err(stop)
            }
        }
    }

    /// Where the instruction at RIP ends.
    pub(crate) fn next_rip(&self, i: &Instruction) -> u64 {
        let next = self.rip.wrapping_add(i.len() as u64);
        if self.code64() {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    fn commit(&mut self) {
        // The upper half is what this instruction has set for the next.
        self.interrupt_shadow >>= 4;
        self.retired = self.retired.wrapping_add(1);
        self.forget_answers();
        if self.awaited != 0 && self.lets_in_awaited() {
            self.attention.fetch_or(attention::OPEN, Ordering::SeqCst);
        }
    }

    #[cold]
    fn lets_in_awaited(&self) -> bool {
        self.awaited & awaited::INTERRUPT != 0 && self.interrupts_open()
            || self.awaited & awaited::NMI != 0 && self.nmi_open()
    }
}
