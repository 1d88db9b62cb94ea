//! Which arithmetic flags are still wanted at each instruction.

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::copy::is_shift;

/// OF, SF, ZF, AF, CF, PF, as iced numbers them.
pub(crate) const ARITHMETIC: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// What an instruction does with the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Flags it reads.
    pub(crate) read: u32,
    /// Flags whose old value is gone after it, whatever its operands are.
    pub(crate) killed: u32,
}

impl Effect {
    /// Everything may be looked at.
    pub(crate) const ALL: Effect = Effect {
        read: ARITHMETIC,
        killed: 0,
    };

    /// None is read or written.
    pub(crate) const NONE: Effect = Effect { read: 0, killed: 0 };

    /// All are replaced by others.
    pub(crate) const OTHERS: Effect = Effect {
        read: 0,
        killed: ARITHMETIC,
    };

    /// Flags wanted before the instruction, from those wanted after it.
    pub(crate) fn before(self, after: u32) -> u32 {
        after & !self.killed | self.read
    }
}

/// What this instruction does with the flags.
pub(crate) fn effect(i: &Instruction) -> Effect {
    let killed = if conditional(i) {
        0
    } else {
        i.rflags_modified() & ARITHMETIC
    };
    Effect {
        read: i.rflags_read() & ARITHMETIC,
        killed,
    }
}

/// Shifts by nothing leave the flags alone.
fn conditional(i: &Instruction) -> bool {
    let count = match i.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => 2,
        mnemonic if is_shift(mnemonic) => 1,
        // Repeated string instructions may make no iteration at all.
        _ => return i.has_rep_prefix() || i.has_repne_prefix(),
    };
    match i.op_kind(count) {
        OpKind::Immediate8 => i.immediate8() & 0x1f == 0,
        OpKind::Register => i.op_register(count) == Register::CL,
        _ => true,
    }
}
