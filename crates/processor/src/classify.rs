//! Which instructions there are, and what may be done with each.
//!
//! ```text
//!   Code (of the decoder) ──▶ of ─────▶ Class     what the translator may do with it
//!   Cpu + Instruction ──────▶ check ──▶ #UD, #NM  what its unit and features say, before it runs
//!   the host's CPUID ───────▶ supported_features  what a guest of this processor can be shown
//! ```
//!
//! The table is total: what no rule names is [`Class::Undefined`] and raises #UD. It is built once
//! from the decoder's own description of each code and from the lists in `table.rs`; nothing is
//! ever copied into executable memory that these lists do not name.

mod feature;
mod host;
mod table;
#[cfg(test)]
mod tests;

use iced_x86::{Code, Instruction, Mnemonic};

pub use host::supported_features;
pub use table::{Class, Unit};

use crate::state::{Cpu, Mode};
use crate::stop::Exception;

/// What may be done with this code.
#[must_use]
pub fn of(code: Code) -> Class {
    table::entry(code).class
}

/// The unit whose state it needs.
#[must_use]
pub fn unit(code: Code) -> Unit {
    table::entry(code).unit
}

/// Whether a guest that was shown these features has this code.
#[must_use]
pub fn has_features(features: &x86::FeatureSet, code: Code) -> bool {
    feature::shown(features, table::entry(code).gates)
}

/// Whether an instruction may run at all, by the features that the guest was shown and by the
/// control bits of its unit (SDM vol. 2A 2.4 and tables 2-18 to 2-30; vol. 3A 2.5, 13.1).
///
/// # Errors
/// - #UD: there is no such instruction, or CR0.EM, CR4.OSFXSR, CR4.OSXSAVE or XCR0 forbids it.
/// - #NM: CR0.TS or CR0.EM says that the unit's state is not there.
pub fn check(cpu: &Cpu, instruction: &Instruction) -> Result<(), Exception> {
    let entry = table::entry(instruction.code());
    if entry.class == Class::Undefined {
        return Err(Exception::ud());
    }
    if !feature::shown(&cpu.features, entry.gates) {
        return Err(Exception::ud());
    }
    let mode = cpu.mode;
    let nm = || Err(Exception::plain(Exception::NM));
    match entry.unit {
        Unit::Integer => {
            if mode.has(Mode::CODE64)
                && matches!(instruction.mnemonic(), Mnemonic::Lahf | Mnemonic::Sahf)
                && !cpu.features.contains(feature::LAHF_LM)
            {
                return Err(Exception::ud());
            }
            Ok(())
        }
        Unit::Wait if mode.has(Mode::MP) && mode.has(Mode::TS) => nm(),
        Unit::Wait => Ok(()),
        Unit::X87 | Unit::Fxsave if mode.has(Mode::EM) || mode.has(Mode::TS) => nm(),
        Unit::X87 | Unit::Fxsave => Ok(()),
        Unit::Mmx if mode.has(Mode::EM) => Err(Exception::ud()),
        Unit::Sse if mode.has(Mode::EM) || !mode.has(Mode::OSFXSR) => Err(Exception::ud()),
        Unit::Mmx | Unit::Sse if mode.has(Mode::TS) => nm(),
        Unit::Mmx | Unit::Sse => Ok(()),
        Unit::VexInteger if real_or_vm86(mode) => Err(Exception::ud()),
        Unit::VexInteger => Ok(()),
        Unit::Avx if real_or_vm86(mode) || !mode.has(Mode::OSXSAVE) || !mode.has(Mode::AVX) => {
            Err(Exception::ud())
        }
        Unit::Xsave if !mode.has(Mode::OSXSAVE) => Err(Exception::ud()),
        Unit::Avx | Unit::Xsave if mode.has(Mode::TS) => nm(),
        Unit::Avx | Unit::Xsave => Ok(()),
    }
}

/// VEX prefixes do not exist there (SDM vol. 2A 2.3.1).
fn real_or_vm86(mode: Mode) -> bool {
    !mode.has(Mode::PROTECTED) || mode.has(Mode::VM86)
}
