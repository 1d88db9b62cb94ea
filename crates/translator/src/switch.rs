//! Instructions that change the mode and go on in translated code: SYSCALL, SYSRET, STAC, CLAC.
//!
//! The interpreter does each of them once. What it made of the mode is noted in the frame
//! ([`Switch`]); after that translated code does the same, as long as it comes from the same mode
//! and the registers that decide are as they were ([`Switches::check`]).

use std::mem::offset_of;

use iced_x86::Instruction;
use processor::state::seg;
use processor::{Cpu, Mode, Seg};
use x86::cr::{cr4, efer, rflags};

use crate::builder::{Builder, Refused};
use crate::emit::{Alu, Cond, Mem, host};
use crate::engine::HOST_FLAGS;
use crate::exits::Kind;
use crate::flags;
use crate::frame::{self, awaited, frame, segment_base, segment_rest};
use crate::jumps::Jumps;

/// Which instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Switching {
    Syscall,
    Sysret,
    Stac,
    Clac,
}

/// What is known of one of them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Switch {
    /// The mode that it is known from, or [`NEVER`].
    pub(crate) from: u64,
    /// Address of the jump cache of the mode that it leads to.
    pub(crate) jumps: u64,
    /// And its key.
    pub(crate) key: u64,
    /// That mode.
    pub(crate) mode: u64,
    /// All of CS and SS but their bases, which are zero.
    pub(crate) cs: u64,
    pub(crate) ss: u64,
}

/// No mode.
const NEVER: u64 = u64::MAX;

const UNKNOWN: Switch = Switch {
    from: NEVER,
    jumps: 0,
    key: 0,
    mode: 0,
    cs: 0,
    ss: 0,
};

/// Registers that decide what the instructions do, besides the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Deciding {
    star: u64,
    sfmask: u64,
    efer: u64,
    cr4: u64,
}

impl Deciding {
    fn of(cpu: &Cpu) -> Self {
        Deciding {
            star: cpu.msrs.star,
            sfmask: cpu.msrs.sfmask,
            efer: cpu.efer,
            cr4: cpu.cr4,
        }
    }
}

/// Flags that SYSRET loads from R11 (SDM vol. 2B), less those of the host's register and the one
/// that is always set.
const SYSRET_FLAGS: u64 = 0x3c_7fd7 & !HOST_FLAGS & !rflags::RESERVED_ONE;

/// With these in R11 the interpreter does SYSRET: they change the mode, or are rare.
const UNUSUAL: u64 = rflags::TF | rflags::DF | rflags::NT | rflags::AC;

/// All of a flat segment but its base, as it lies in a [`Seg`].
fn rest(seg: &Seg) -> Option<u64> {
    let (low, middle, high) = (seg.limit, seg.selector, seg.attributes);
    (seg.base == 0).then(|| u64::from(low) | u64::from(middle) << 32 | u64::from(high) << 48)
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct Switches {
    known: [Switch; 4],
    deciding: Deciding,
    /// What the jump caches' addresses hold for.
    epochs: [u64; 2],
    generation: u64,
}

impl Switches {
    pub(crate) fn new() -> Self {
        Switches {
            known: [UNKNOWN; 4],
            deciding: Deciding::default(),
            epochs: [0; 2],
            generation: 0,
        }
    }

    /// What translated code may rely on.
    pub(crate) fn known(&self) -> [Switch; 4] {
        self.known
    }

    /// What SYSCALL leaves of RFLAGS without the flags of the host's register.
    pub(crate) fn kept_flags(cpu: &Cpu) -> u64 {
        !cpu.msrs.sfmask & !HOST_FLAGS & !rflags::RESERVED_ONE & !rflags::RF
    }

    /// Forgets what no longer holds. Tells whether anything changed.
    pub(crate) fn check(&mut self, cpu: &Cpu, jumps: &mut Jumps) -> bool {
        let deciding = Deciding::of(cpu);
        let epochs = cpu.code_epochs();
        let generation = jumps.generation();
        let same = (self.epochs, self.generation) == (epochs, generation);
        if deciding == self.deciding && same {
            return false;
        }
        if deciding != self.deciding {
            self.known = [UNKNOWN; 4];
        }
        for switch in &mut self.known {
            if switch.from != NEVER {
                (switch.jumps, switch.key) = table(Mode(switch.mode as u32), epochs, jumps);
            }
        }
        (self.deciding, self.epochs) = (deciding, epochs);
        // Making a table may have thrown out others.
        self.generation = generation;
        if jumps.generation() != generation {
            self.known = [UNKNOWN; 4];
            self.generation = jumps.generation();
        }
        true
    }

    /// The interpreter has done this instruction, in this mode.
    pub(crate) fn learn(&mut self, which: Switching, from: Mode, cpu: &Cpu, jumps: &mut Jumps) {
        let to = cpu.mode;
        let smap = cpu.cr4 & cr4::SMAP != 0;
        let plain = match which {
            Switching::Syscall => {
                let cleared = HOST_FLAGS | rflags::TF | rflags::AC;
                // With SCE it cannot fault from there.
                cpu.efer & efer::SCE != 0
                    && from.cpl() == 3
                    && to.cpl() == 0
                    && cpu.msrs.sfmask & cleared == cleared
            }
            Switching::Sysret => {
                from.cpl() == 0 && to.cpl() == 3 && cpu.rflags & UNUSUAL & !rflags::DF == 0
            }
            Switching::Stac => smap && from.has(Mode::SMAP) && to.0 == from.0 & !Mode::SMAP,
            Switching::Clac => smap && !from.has(Mode::SMAP) && to.0 == from.0 | Mode::SMAP,
        };
        let (cs, ss) = (rest(&cpu.segs[seg::CS]), rest(&cpu.segs[seg::SS]));
        let (Some(cs), Some(ss), true) = (cs, ss, plain && to.has(Mode::CODE64)) else {
            return;
        };
        self.check(cpu, jumps);
        let (table, key) = table(to, self.epochs, jumps);
        if jumps.generation() != self.generation {
            return;
        }
        self.known[which as usize] = Switch {
            from: from.0.into(),
            jumps: table,
            key,
            mode: to.0.into(),
            cs,
            ss,
        };
    }
}

/// Address of the jump cache of a mode, and its key.
fn table(mode: Mode, [supervisor, user]: [u64; 2], jumps: &mut Jumps) -> (u64, u64) {
    let epoch = if mode.cpl() == 3 { user } else { supervisor };
    let table = jumps.select(mode, epoch);
    (table.as_ptr() as u64, table.key())
}

impl Builder<'_> {
    /// Leaves if it is not known where this instruction leads to from the mode at hand.
    fn known_switch(&mut self, which: Switching) -> Result<(), Refused> {
        let mode = i32::try_from(self.target.mode.0).map_err(|_| Refused)?;
        self.asm
            .load(host::RCX, frame::switch(which, offset_of!(Switch, from)));
        self.asm.lea(host::RCX, Mem::at(host::RCX, -mode));
        let known = self.asm.jrcxz();
        let from = self.asm.jmp();
        self.leave_from(from, Kind::Switch(which), false);
        self.asm.land(known).then_some(()).ok_or(Refused)
    }

    /// The mode and its jump cache.
    fn change_mode(&mut self, which: Switching) {
        self.asm
            .load32(host::RCX, frame::switch(which, offset_of!(Switch, mode)));
        self.asm.store32(frame::mode(), host::RCX);
        self.asm
            .load(host::RCX, frame::switch(which, offset_of!(Switch, jumps)));
        self.asm.store(frame!(jumps), host::RCX);
        self.asm
            .load(host::RCX, frame::switch(which, offset_of!(Switch, key)));
        self.asm.store(frame!(key), host::RCX);
    }

    /// Flat CS and SS.
    fn change_segments(&mut self, which: Switching) {
        for (segment, rest) in [
            (seg::CS, frame::switch(which, offset_of!(Switch, cs))),
            (seg::SS, frame::switch(which, offset_of!(Switch, ss))),
        ] {
            self.asm.load(host::RCX, rest);
            self.asm.store_constant(segment_base(segment), 0);
            self.asm.store(segment_rest(segment), host::RCX);
        }
    }

    /// The stack's page may be out of bounds now.
    fn forget_stack(&mut self) {
        self.asm.load(host::RCX, frame!(nowhere));
        self.asm.store(frame!(stack_tag), host::RCX);
        self.asm.load(host::RCX, frame!(nowhere, 1u8));
        self.asm.store(frame!(stack_addend), host::RCX);
    }

    /// SYSCALL of 64-bit code.
    pub(crate) fn syscall(&mut self, i: &Instruction, count: u16) -> Result<(), Refused> {
        const R11: u8 = 11;
        self.known_switch(Switching::Syscall)?;
        self.asm.pushfq();
        self.asm.pop(R11);
        let host_flags = (HOST_FLAGS | rflags::RESERVED_ONE) as i32;
        self.asm.alu_constant(Alu::And, true, R11, host_flags);
        self.asm.alu_mem(Alu::Or, true, R11, frame::rflags());
        self.asm.mov(host::RCX, R11);
        self.asm
            .alu_mem(Alu::And, true, host::RCX, frame!(kept_flags));
        self.asm.store(frame::rflags(), host::RCX);
        self.linear_constant(host::R13, i.next_ip());
        self.change_segments(Switching::Syscall);
        self.change_mode(Switching::Syscall);
        self.forget_stack();
        self.asm.load(host::R14, frame::lstar());
        // All flags are clear; OF by the subtraction.
        self.asm.mov(host::RCX, host::RAX);
        self.asm.alu(Alu::Sub, false, host::RAX, host::RAX);
        self.asm.sahf();
        self.asm.bytes(&[0xfc]);
        self.asm.mov(host::RAX, host::RCX);
        self.live_target = flags::ARITHMETIC;
        self.go_indirect(count);
        Ok(())
    }

    /// SYSRET to 64-bit code. The flags are free.
    pub(crate) fn sysret(&mut self, count: u16) -> Result<(), Refused> {
        const R11: u8 = 11;
        self.known_switch(Switching::Sysret)?;
        self.asm.mov32(host::RCX, R11);
        self.asm
            .alu_constant(Alu::And, false, host::RCX, UNUSUAL as i32);
        self.interpret_if(Cond::NE);
        self.asm.mov(host::RCX, host::R13);
        self.asm.shr(host::RCX, 47);
        self.interpret_if(Cond::NE);
        self.asm.load_small(host::RCX, awaited(), 1);
        let from = self.asm.jump_if_set(host::RCX);
        self.interpret_from(from, false);
        self.asm.mov32(host::RCX, R11);
        self.asm
            .alu_constant(Alu::And, false, host::RCX, SYSRET_FLAGS as i32);
        self.asm.store(frame::rflags(), host::RCX);
        self.change_segments(Switching::Sysret);
        self.change_mode(Switching::Sysret);
        self.forget_stack();
        self.asm.mov(host::R14, host::R13);
        self.asm.mov(host::RCX, host::RAX);
        self.asm.flags_from_r11();
        self.asm.bytes(&[0xfc]);
        self.asm.mov(host::RAX, host::RCX);
        self.live_target = flags::ARITHMETIC;
        self.go_indirect(count);
        Ok(())
    }

    /// STAC and CLAC that change AC, in ring 0.
    pub(crate) fn access(
        &mut self,
        which: Switching,
        i: &Instruction,
        count: u16,
    ) -> Result<(), Refused> {
        self.known_switch(which)?;
        let ac = rflags::AC as i32;
        let change = if which == Switching::Stac { ac } else { -ac };
        self.asm.load(host::RCX, frame::rflags());
        self.asm.lea(host::RCX, Mem::at(host::RCX, change));
        self.asm.store(frame::rflags(), host::RCX);
        self.change_mode(which);
        if which == Switching::Clac {
            self.forget_stack();
        }
        self.live_target = flags::ARITHMETIC;
        self.retire(count);
        self.go_far(i.next_ip());
        Ok(())
    }
}
