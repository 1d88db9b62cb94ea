//! Single steps and the breakpoint registers (SDM vol. 3B 18.2, 18.3).

use iced_x86::{Instruction, Mnemonic};
use x86::cr::{cr4, rflags};

use crate::event::debug;
use crate::interpret::Flow;
use crate::platform::Platform;
use crate::run::DEBUGCTL_BTF;
use crate::state::{Cpu, seg, shadow};
use crate::stop::{Exception, Stop};
use crate::system::operand;

/// What a breakpoint register waits for (R/W fields of DR7), besides data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Execute,
    Port,
}

/// An enabled breakpoint register.
#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    address: u64,
    len: u64,
}

impl Breakpoint {
    fn overlaps(&self, address: u64, len: u64) -> bool {
        let first = self.address & !(self.len - 1);
        // Distances instead of ends: nothing overflows at the top of the address space.
        address.wrapping_sub(first) < self.len || first.wrapping_sub(address) < len
    }
}

fn debug_exception(payload: u64) -> Stop {
    Stop::Exception(Exception {
        payload,
        ..Exception::plain(Exception::DB)
    })
}

impl Cpu {
    /// The enabled breakpoint registers of one kind.
    fn breakpoints_of(&self, kind: Kind) -> impl Iterator<Item = Breakpoint> + use<> {
        let (dr, dr7) = (self.dr, self.dr7);
        (0..).zip(dr).filter_map(move |(n, address)| {
            let enabled = dr7 >> (2 * n) & 3 != 0;
            let control = dr7 >> (16 + 4 * n) & 0xf;
            let wanted = match kind {
                Kind::Execute => 0,
                Kind::Port => 2,
            };
            (enabled && control & 3 == wanted).then(|| Breakpoint {
                bit: 1 << n,
                address,
                len: [1, 2, 8, 4][(control >> 2) as usize],
            })
        })
    }

    /// A step with TF set or a breakpoint register enabled.
    pub(super) fn step_debugged(&mut self, p: &mut dyn Platform) -> Result<(), Stop> {
        let inhibited = self.interrupt_shadow & shadow::MOV_SS != 0;
        // What MOV SS hit waits for the end of the instruction after it.
        let waiting = if inhibited { self.breakpoints } else { 0 };
        self.begin();
        self.breakpoints = waiting;
        if self.rflags & rflags::RF == 0 && !inhibited {
            let at = if self.code64() {
                self.rip
            } else {
                self.segs[seg::CS].base.wrapping_add(self.rip) & 0xffff_ffff
            };
            let hits = self
                .breakpoints_of(Kind::Execute)
                .filter(|b| b.address == at)
                .fold(0, |hits, b| hits | b.bit);
            if hits != 0 {
                return Err(debug_exception(hits));
            }
        }
        let instruction = self.decode(p)?;
        let mut trap = self.port_hits(&instruction);
        let stepping = self.rflags & rflags::TF != 0;
        let branches_only = self.msrs.debugctl & DEBUGCTL_BTF != 0;
        let (jumped, halted) = match self.execute(p, &instruction) {
            Ok(flow) => (flow == Flow::Jumped, false),
            Err(Stop::Halt) => (false, true),
            Err(stop) => return Err(stop),
        };
        trap |= u64::from(self.breakpoints);
        let step = match instruction.mnemonic() {
            // The handler is entered with TF clear; the trap comes after what follows its IRET.
            Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => stepping && !jumped,
            // These trap by the flags that they load.
            Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => {
                self.rflags & rflags::TF != 0
            }
            _ => stepping,
        };
        // MOV SS keeps the trap of its own single step from happening.
        if self.interrupt_shadow & shadow::MOV_SS != 0 {
            return Ok(());
        }
        if step && (!branches_only || jumped) {
            trap |= debug::DR6_BS;
        }
        if trap != 0 {
            return Err(debug_exception(trap));
        }
        if halted { Err(Stop::Halt) } else { Ok(()) }
    }

    /// SYSRET that sets TF traps at once, unlike IRET, before the first instruction of the program.
    #[cold]
    pub(super) fn trap_of_return(&self, i: &Instruction) -> Result<(), Stop> {
        let returned = matches!(i.mnemonic(), Mnemonic::Sysret | Mnemonic::Sysretq);
        if returned && self.rflags & rflags::TF != 0 {
            return Err(debug_exception(debug::DR6_BS));
        }
        Ok(())
    }

    /// Bits of the port breakpoints that this instruction is about to hit. Those of data are the
    /// memory management unit's to see.
    fn port_hits(&self, i: &Instruction) -> u64 {
        match operand::port(self, i) {
            Some((port, size)) if self.cr4 & cr4::DE != 0 => self
                .breakpoints_of(Kind::Port)
                .filter(|b| b.overlaps(port.into(), size.into()))
                .fold(0, |hits, b| hits | b.bit),
            _ => 0,
        }
    }
}
