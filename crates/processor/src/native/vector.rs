//! Vector registers in the XSAVE area.

use iced_x86::Register;

use crate::state::{Cpu, Mode, XsaveArea};

/// Where the 16 bytes are that hold this byte of a vector register.
fn place(register: Register, byte: usize) -> usize {
    let half = if byte < 16 {
        XsaveArea::XMM
    } else {
        XsaveArea::YMM_HIGH
    };
    half + 16 * (register.number() & 15) + byte % 16
}

/// One element of `size` bytes, 4 or 8; sign-extended, as indices are.
pub(super) fn element(area: &XsaveArea, register: Register, index: usize, size: usize) -> u64 {
    let at = place(register, index * size);
    if size == 4 {
        let bytes = [area.0[at], area.0[at + 1], area.0[at + 2], area.0[at + 3]];
        i64::from(i32::from_le_bytes(bytes)) as u64
    } else {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&area.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }
}

/// One byte.
pub(super) fn byte(area: &XsaveArea, register: Register, index: usize) -> u8 {
    area.0[place(register, index)]
}

/// Replaces a register by the first `len` bytes of a value; the rest of all 32 is zero, as VEX
/// instructions do.
pub(super) fn replace(area: &mut XsaveArea, register: Register, value: &[u8; 32], len: usize) {
    for (index, &byte) in value.iter().enumerate() {
        area.0[place(register, index)] = if index < len { byte } else { 0 };
    }
}

/// Clears one half of the vector registers that the mode reaches: [`XsaveArea::XMM`] or
/// [`XsaveArea::YMM_HIGH`].
pub(super) fn zero(cpu: &mut Cpu, half: usize) {
    let count = if cpu.mode.has(Mode::CODE64) { 16 } else { 8 };
    cpu.fpu.0[half..half + 16 * count].fill(0);
}
