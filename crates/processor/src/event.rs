//! Events: exceptions, interrupts and their delivery through the interrupt descriptor table (SDM
//! vol. 3A chapter 6), INIT and start-up IPIs.
//!
//! ```text
//!   exception ─┐                        ┌─ real mode: vector table
//!   interrupt ─┼─▶ raise ──▶ deliver ───┼─ protected mode: 16- and 32-bit gates   (gate)
//!   NMI ───────┘     ▲          │       └─ long mode: 16-byte gates, IST          (gate)
//!                    └── fault ─┘
//!             double fault, triple fault
//! ```
//!
//! - `gate`: delivery through gates.
//! - `iret`: the way back.
//! - `reset`: INIT and start-up IPIs.
//! - `virtual_8086`: virtual interrupt flags, and a program's own interrupts.

use x86::cr::rflags;

use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::stack::Stack;
use crate::state::{Cpu, Mode};
use crate::stop::{DeviceRequest, Exception, Stop};

mod gate;
mod iret;
mod reset;
#[cfg(test)]
mod tests;
mod virtual_8086;

/// Bits of DR6 and DR7 (SDM vol. 3B 18.2).
pub(crate) mod debug {
    /// A breakpoint register matched: four bits.
    pub(crate) const DR6_HITS: u64 = 0xf;
    /// A debug register was accessed under general detect.
    pub(crate) const DR6_BD: u64 = 1 << 13;
    /// Single step.
    pub(crate) const DR6_BS: u64 = 1 << 14;
    /// Bits that read one: also those of bus locks and restricted transactions, which are active
    /// low and are not there.
    pub(crate) const DR6_ONES: u64 = 0xffff_0ff0;
    /// General detect.
    pub(crate) const DR7_GD: u64 = 1 << 13;
    /// The bit of DR7 that reads one.
    pub(crate) const DR7_ONE: u64 = 1 << 10;
}

/// Where an event comes from; it decides on privilege checks and on error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A fault, trap or abort of the processor, and INT1.
    Exception,
    /// INT n, INT3, INTO: the gate's DPL counts.
    Software,
    /// An external interrupt.
    Interrupt,
    /// A non-maskable interrupt.
    Nmi,
}

/// An event to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code to push.
    pub error_code: Option<u32>,
    /// Where it comes from.
    pub source: Source,
    /// Instruction pointer to push.
    pub rip: u64,
    /// RF in the pushed flags (SDM vol. 3B 18.3.1.1): set for faults, so that the instruction
    /// does not meet its breakpoint again.
    pub resume: bool,
}

impl Event {
    /// EXT of the error codes of faults met on the way.
    fn ext(&self) -> u32 {
        u32::from(self.source != Source::Software)
    }
}

/// Classes of exceptions for double faults (SDM vol. 3A table 6-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        Exception::DE | Exception::TS | Exception::NP | Exception::SS | Exception::GP => {
            Class::Contributory
        }
        Exception::PF => Class::PageFault,
        Exception::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What an exception during the delivery of another one becomes (SDM vol. 3A table 6-5); None is
/// a shutdown.
fn combine(first: u8, second: Exception) -> Option<Exception> {
    match (class(first), class(second.vector)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => None,
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Some(Exception::with_code(Exception::DF, 0))
        }
        _ => Some(second),
    }
}

/// Whether the pushed image of RFLAGS has RF set: faults, but not instruction breakpoints.
fn resumes(exception: &Exception) -> bool {
    match exception.vector {
        Exception::DB => exception.payload & debug::DR6_BD != 0,
        Exception::BP | Exception::OF | Exception::DF | Exception::MC | Exception::NMI => false,
        _ => true,
    }
}

impl Cpu {
    /// Whether an external interrupt would be taken now: IF is set, neither STI nor MOV SS
    /// holds interrupts off, and no instruction waits for its devices' answers.
    #[must_use]
    pub fn interrupts_open(&self) -> bool {
        self.rflags & rflags::IF != 0 && self.interrupt_shadow == 0 && self.answers.is_empty()
    }

    /// Whether an NMI would be taken now. The instruction after STI holds it off too, which some
    /// processors do and keeps "STI; HLT" whole.
    #[must_use]
    pub fn nmi_open(&self) -> bool {
        !self.nmi_masked && self.interrupt_shadow == 0 && self.answers.is_empty()
    }

    /// Delivers an external interrupt that the local APIC (or the 8259A) has acknowledged.
    ///
    /// # Errors
    /// [`Stop::TripleFault`].
    pub fn deliver_interrupt(&mut self, p: &mut dyn Platform, vector: u8) -> Result<(), Stop> {
        let event = Event {
            vector,
            error_code: None,
            source: Source::Interrupt,
            rip: self.rip,
            resume: false,
        };
        self.deliver_or_raise(p, event)
    }

    /// Delivers a non-maskable interrupt. Further ones wait for IRET.
    ///
    /// # Errors
    /// [`Stop::TripleFault`].
    pub fn deliver_nmi(&mut self, p: &mut dyn Platform) -> Result<(), Stop> {
        let event = Event {
            vector: Exception::NMI,
            error_code: None,
            source: Source::Nmi,
            rip: self.rip,
            resume: false,
        };
        self.nmi_masked = true;
        self.deliver_or_raise(p, event)
    }

    fn deliver_or_raise(&mut self, p: &mut dyn Platform, event: Event) -> Result<(), Stop> {
        match self.deliver(p, event) {
            Err(Stop::Exception(exception)) => self.raise(p, exception),
            other => other,
        }
    }

    /// Delivers an exception, and what follows from faults on the way.
    ///
    /// # Errors
    /// [`Stop::TripleFault`].
    pub fn raise(&mut self, p: &mut dyn Platform, exception: Exception) -> Result<(), Stop> {
        let mut exception = exception;
        loop {
            self.exception_effects(&exception);
            let event = Event {
                vector: exception.vector,
                error_code: exception.error_code,
                source: Source::Exception,
                rip: self.rip,
                resume: resumes(&exception),
            };
            match self.deliver(p, event) {
                Err(Stop::Exception(second)) => {
                    if second.vector == Exception::PF {
                        // CR2 tells of the last page fault, even where a double fault follows.
                        self.cr2 = second.payload;
                    }
                    exception = combine(exception.vector, second).ok_or(Stop::TripleFault)?;
                }
                other => return other,
            }
        }
    }

    /// What an exception does besides its delivery.
    fn exception_effects(&mut self, exception: &Exception) {
        match exception.vector {
            Exception::PF => self.cr2 = exception.payload,
            Exception::DB => {
                self.dr6 = self.dr6 & !debug::DR6_HITS | exception.payload | debug::DR6_ONES;
                self.dr7 &= !debug::DR7_GD;
                // Branch single-stepping is for one trap only (SDM vol. 3B 18.4.4).
                self.msrs.debugctl &= !crate::run::DEBUGCTL_BTF;
            }
            _ => {}
        }
    }

    /// Delivers one event: changes everything or, on a fault, nothing but memory below the stack
    /// pointer. Stacks and tables outside of RAM read as ones and lose what is written.
    ///
    /// # Errors
    /// The exception that the delivery met, with EXT set unless software raised the event.
    pub fn deliver(&mut self, p: &mut dyn Platform, event: Event) -> Result<(), Stop> {
        // More accesses than any delivery makes.
        for _ in 0..256 {
            self.begin();
            match self.deliver_once(p, &event) {
                Err(Stop::Device(request)) => {
                    let value = match request {
                        DeviceRequest::MemoryRead { .. } | DeviceRequest::PortRead { .. } => !0,
                        _ => 0,
                    };
                    self.answer(request, value);
                }
                Ok(()) => {
                    self.forget_answers();
                    self.interrupt_shadow = 0;
                    return Ok(());
                }
                other => {
                    self.forget_answers();
                    return other;
                }
            }
        }
        Err(Stop::TripleFault)
    }

    fn deliver_once(&mut self, p: &mut dyn Platform, event: &Event) -> Result<(), Stop> {
        if self.mode.has(Mode::LONG) {
            self.deliver_long(p, event)
        } else if self.mode.has(Mode::PROTECTED) {
            self.deliver_protected(p, event)
        } else {
            self.deliver_real(p, event)
        }
    }

    /// Real mode: the vector table holds far pointers, and there are no error codes.
    fn deliver_real(&mut self, p: &mut dyn Platform, event: &Event) -> Result<(), Stop> {
        let offset = u32::from(event.vector) * 4;
        if offset + 3 > u32::from(self.idtr.limit) {
            return Err(Exception::gp(event.ext()).into());
        }
        let at = self.system_address(self.idtr.base.wrapping_add(offset.into()));
        let entry = self.read::<u32>(p, at, As::System)?;
        let code = self.real_code((entry >> 16) as u16);
        let rip = u64::from(entry & 0xffff);
        self.check_rip(&code, rip, 0)?;
        let mut stack = Stack::for_event(self, 0);
        let back = [
            self.rflags & 0xffff,
            u64::from(self.segs[crate::state::seg::CS].selector),
            event.rip,
        ];
        stack.push(self, p, &back, 2)?;
        stack.commit(self);
        self.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.set_code_real(code);
        self.rip = rip;
        Ok(())
    }

    /// INT n, INT3, INTO and INT1: an event that returns to the next instruction.
    pub(crate) fn software_interrupt(
        &mut self,
        p: &mut dyn Platform,
        vector: u8,
        source: Source,
        next: u64,
    ) -> Result<(), Stop> {
        let event = Event {
            vector,
            error_code: None,
            source,
            rip: next,
            resume: false,
        };
        self.deliver(p, event)
    }
}
