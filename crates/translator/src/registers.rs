//! Which host register has which guest register.
//!
//! | guest | host |
//! |-------|------|
//! | RAX RDX RBX RBP RSI RDI R8 to R11 | the same |
//! | RSP | R12 |
//! | RCX | R13 |
//! | R12 to R15 | in the frame |
//! | vector registers, arithmetic flags, DF | the same |
//!
//! Host RCX (JRCXZ and counts in CL need it), R14 and R15 are scratch; host RSP points at the
//! frame and the `Cpu`.

use iced_x86::Register;

use crate::emit::{Reg, host};

/// Guest RCX.
pub(crate) const RCX: Reg = 1;
/// Guest RSP.
pub(crate) const RSP: Reg = 4;

/// Where a guest register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// In this host register.
    Host(Reg),
    /// In this word of `Frame::high`.
    Frame(u8),
}

/// Where the guest's general register of this number is.
pub(crate) fn home(guest: u8) -> Home {
    match guest {
        RSP => Home::Host(host::R12),
        RCX => Home::Host(host::R13),
        12..=15 => Home::Frame(guest - 12),
        _ => Home::Host(guest & 15),
    }
}

/// A general register by number and size, or one of AH to BH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gpr {
    /// The low `size` bytes of a register.
    Low { number: u8, size: usize },
    /// AH, CH, DH, BH by the number of the register they are in.
    High { number: u8 },
}

/// A general register of an instruction.
pub(crate) fn gpr(register: Register) -> Option<Gpr> {
    let high = |number| Some(Gpr::High { number });
    match register {
        Register::AH => high(0),
        Register::CH => high(1),
        Register::DH => high(2),
        Register::BH => high(3),
        _ if register.is_gpr() => {
            let full = register.full_register();
            Some(Gpr::Low {
                number: (full as u32).wrapping_sub(Register::RAX as u32) as u8 & 15,
                size: register.size(),
            })
        }
        _ => None,
    }
}

/// The register of this number and size.
pub(crate) fn sized(number: Reg, size: usize) -> Register {
    let number = u32::from(number & 15);
    match size {
        1 if number < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// Number of the general register that this one is part of.
pub(crate) fn number(register: Register) -> Option<u8> {
    gpr(register).map(|gpr| match gpr {
        Gpr::Low { number, .. } | Gpr::High { number } => number,
    })
}
