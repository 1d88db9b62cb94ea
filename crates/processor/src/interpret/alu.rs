//! Arithmetic with flags (SDM vol. 1 3.4.3.1 and the instructions' pages in vol. 2), as functions
//! of values. They take and return all of RFLAGS and operands of which only the low bits count;
//! results have no other bits.
//!
//! Flags that the manual leaves undefined: AF is cleared by logic and shifts, OF of rotates and
//! shifts by more than one is what the last step would leave, and multiplications set SF, ZF and
//! PF from the low half.

use x86::cr::rflags::{AF, CF, OF, PF, SF, ZF};

use super::ops::Width;

/// The six status flags.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// CF as a number.
pub(super) fn carry(flags: u64) -> u64 {
    flags & CF
}

/// SF, ZF and PF of a result.
pub(super) fn sign_zero_parity(width: Width, result: u64) -> u64 {
    let result = result & width.mask();
    when(result & width.sign() != 0, SF)
        | when(result == 0, ZF)
        | when((result as u8).count_ones() & 1 == 0, PF)
}

fn sum(width: Width, a: u64, b: u64, carry: u64) -> (u64, u64) {
    let mask = width.mask();
    let (a, b) = (a & mask, b & mask);
    let result = a.wrapping_add(b).wrapping_add(carry) & mask;
    let carries = a & b | (a | b) & !result;
    let flags = when(carries & width.sign() != 0, CF)
        | when((a ^ b ^ result) & 0x10 != 0, AF)
        | when((a ^ result) & (b ^ result) & width.sign() != 0, OF)
        | sign_zero_parity(width, result);
    (result, flags)
}

fn difference(width: Width, a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let mask = width.mask();
    let (a, b) = (a & mask, b & mask);
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask;
    let borrows = !a & b | (!a | b) & result;
    let flags = when(borrows & width.sign() != 0, CF)
        | when((a ^ b ^ result) & 0x10 != 0, AF)
        | when((a ^ b) & (a ^ result) & width.sign() != 0, OF)
        | sign_zero_parity(width, result);
    (result, flags)
}

fn with(old: u64, (result, status): (u64, u64)) -> (u64, u64) {
    (result, old & !STATUS | status)
}

pub(super) fn add(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    with(flags, sum(width, a, b, 0))
}

pub(super) fn adc(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    with(flags, sum(width, a, b, carry(flags)))
}

pub(super) fn sub(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    with(flags, difference(width, a, b, 0))
}

pub(super) fn sbb(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    with(flags, difference(width, a, b, carry(flags)))
}

fn logic(width: Width, result: u64, flags: u64) -> (u64, u64) {
    let result = result & width.mask();
    (result, flags & !STATUS | sign_zero_parity(width, result))
}

pub(super) fn and(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    logic(width, a & b, flags)
}

pub(super) fn or(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    logic(width, a | b, flags)
}

pub(super) fn xor(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    logic(width, a ^ b, flags)
}

/// INC leaves CF alone.
pub(super) fn inc(width: Width, a: u64, flags: u64) -> (u64, u64) {
    let (result, new) = add(width, a, 1, flags);
    (result, new & !CF | flags & CF)
}

/// DEC leaves CF alone.
pub(super) fn dec(width: Width, a: u64, flags: u64) -> (u64, u64) {
    let (result, new) = sub(width, a, 1, flags);
    (result, new & !CF | flags & CF)
}

pub(super) fn neg(width: Width, a: u64, flags: u64) -> (u64, u64) {
    sub(width, 0, a, flags)
}

/// Product of two unsigned operands: low half, high half, flags.
pub(super) fn mul(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64, u64) {
    let product = u128::from(a & width.mask()) * u128::from(b & width.mask());
    let low = product as u64 & width.mask();
    let high = (product >> width.bits()) as u64 & width.mask();
    let status = when(high != 0, CF | OF) | sign_zero_parity(width, low);
    (low, high, flags & !STATUS | status)
}

/// Product of two signed operands: low half, high half, flags.
pub(super) fn imul(width: Width, a: u64, b: u64, flags: u64) -> (u64, u64, u64) {
    let product = i128::from(width.signed(a)) * i128::from(width.signed(b));
    let low = product as u64 & width.mask();
    let high = (product >> width.bits()) as u64 & width.mask();
    let fits = i128::from(width.signed(low)) == product;
    let status = when(!fits, CF | OF) | sign_zero_parity(width, low);
    (low, high, flags & !STATUS | status)
}

/// Quotient and remainder; `None` is #DE.
pub(super) fn div(width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let mask = width.mask();
    let dividend = u128::from(high & mask) << width.bits() | u128::from(low & mask);
    let divisor = u128::from(divisor & mask);
    let quotient = dividend.checked_div(divisor)?;
    if quotient > u128::from(mask) {
        return None;
    }
    Some((quotient as u64, (dividend % divisor) as u64))
}

/// Signed quotient and remainder; `None` is #DE.
pub(super) fn idiv(width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let dividend = i128::from(width.signed(high)) << width.bits() | i128::from(low & width.mask());
    let divisor = i128::from(width.signed(divisor));
    let quotient = dividend.checked_div(divisor)?;
    if i128::from(width.signed(quotient as u64)) != quotient {
        return None;
    }
    let remainder = dividend.checked_rem(divisor)?;
    Some((
        quotient as u64 & width.mask(),
        remainder as u64 & width.mask(),
    ))
}

/// The number of places that a shift or rotate moves.
pub(super) fn shift_count(width: Width, count: u64) -> u32 {
    let mask = if width == Width::Qword { 63 } else { 31 };
    (count & mask) as u32
}

pub(super) fn shl(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let a = a & width.mask();
    if count == 0 {
        return (a, flags);
    }
    let wide = u128::from(a) << count;
    let result = wide as u64 & width.mask();
    let carry = wide >> width.bits() & 1 != 0;
    let status = when(carry, CF)
        | when(carry != (result & width.sign() != 0), OF)
        | sign_zero_parity(width, result);
    (result, flags & !STATUS | status)
}

pub(super) fn shr(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let a = a & width.mask();
    if count == 0 {
        return (a, flags);
    }
    let wide = u128::from(a) << 64 >> count;
    let result = (wide >> 64) as u64;
    let carry = wide >> 63 & 1 != 0;
    // The top bit before the last step.
    let status = when(carry, CF)
        | when(result << 1 & width.sign() != 0, OF)
        | sign_zero_parity(width, result);
    (result, flags & !STATUS | status)
}

pub(super) fn sar(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let a = a & width.mask();
    if count == 0 {
        return (a, flags);
    }
    let wide = i128::from(width.signed(a)) << 64 >> count;
    let result = (wide >> 64) as u64 & width.mask();
    let carry = wide >> 63 & 1 != 0;
    let status = when(carry, CF) | sign_zero_parity(width, result);
    (result, flags & !STATUS | status)
}

/// CF and OF after a rotate.
fn rotated(flags: u64, carry: bool, overflow: bool) -> u64 {
    flags & !(CF | OF) | when(carry, CF) | when(overflow, OF)
}

pub(super) fn rol(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let a = a & width.mask();
    if count == 0 {
        return (a, flags);
    }
    let turn = count % width.bits();
    let result = (a << turn | a.checked_shr(width.bits() - turn).unwrap_or(0)) & width.mask();
    let carry = result & 1 != 0;
    let overflow = carry != (result & width.sign() != 0);
    (result, rotated(flags, carry, overflow))
}

pub(super) fn ror(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let a = a & width.mask();
    if count == 0 {
        return (a, flags);
    }
    let turn = count % width.bits();
    let result = (a >> turn | a.checked_shl(width.bits() - turn).unwrap_or(0)) & width.mask();
    let carry = result & width.sign() != 0;
    let overflow = (result ^ result << 1) & width.sign() != 0;
    (result, rotated(flags, carry, overflow))
}

pub(super) fn rcl(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let a = a & width.mask();
    let turn = shift_count(width, count) % (width.bits() + 1);
    if turn == 0 {
        return (a, flags);
    }
    // CF and the operand as one number that turns.
    let all = u128::from(flags & CF) << width.bits() | u128::from(a);
    let turned = all << turn | all >> (width.bits() + 1 - turn);
    let result = turned as u64 & width.mask();
    let carry = turned >> width.bits() & 1 != 0;
    let overflow = carry != (result & width.sign() != 0);
    (result, rotated(flags, carry, overflow))
}

pub(super) fn rcr(width: Width, a: u64, count: u64, flags: u64) -> (u64, u64) {
    let a = a & width.mask();
    let turn = shift_count(width, count) % (width.bits() + 1);
    if turn == 0 {
        return (a, flags);
    }
    let all = u128::from(flags & CF) << width.bits() | u128::from(a);
    let turned = all >> turn | all << (width.bits() + 1 - turn);
    let result = turned as u64 & width.mask();
    let carry = turned >> width.bits() & 1 != 0;
    let overflow = (result ^ result << 1) & width.sign() != 0;
    (result, rotated(flags, carry, overflow))
}

/// SHLD. A 16-bit operand shifted by more than 16, which is undefined, takes bits of itself
/// behind those of the source.
pub(super) fn shld(width: Width, a: u64, source: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let (a, source) = (a & width.mask(), source & width.mask());
    if count == 0 {
        return (a, flags);
    }
    let bits = width.bits();
    let (result, carry) = if width == Width::Word {
        let wide = u64::from(a as u16) << 32 | source << 16 | a;
        let wide = u128::from(wide) << count;
        ((wide >> 32) as u64 & 0xffff, wide >> 48 & 1 != 0)
    } else {
        let wide = u128::from(a) << bits | u128::from(source);
        let result = (wide << count >> bits) as u64 & width.mask();
        (result, a >> (bits - count) & 1 != 0)
    };
    let status = when(carry, CF)
        | when((a ^ result) & width.sign() != 0, OF)
        | sign_zero_parity(width, result);
    (result, flags & !STATUS | status)
}

/// SHRD, as [`shld`].
pub(super) fn shrd(width: Width, a: u64, source: u64, count: u64, flags: u64) -> (u64, u64) {
    let count = shift_count(width, count);
    let (a, source) = (a & width.mask(), source & width.mask());
    if count == 0 {
        return (a, flags);
    }
    let bits = width.bits();
    let wide = if width == Width::Word {
        u128::from(a) << 32 | u128::from(source) << 16 | u128::from(a)
    } else {
        u128::from(source) << bits | u128::from(a)
    };
    let result = (wide >> count) as u64 & width.mask();
    let carry = wide >> (count - 1) & 1 != 0;
    let status = when(carry, CF)
        | when((a ^ result) & width.sign() != 0, OF)
        | sign_zero_parity(width, result);
    (result, flags & !STATUS | status)
}

/// Whether a condition holds (SDM vol. 1 appendix B), by its four bits in opcodes.
pub(super) fn condition(code: u8, flags: u64) -> bool {
    let on = |mask: u64| flags & mask != 0;
    let holds = match code >> 1 & 7 {
        0 => on(OF),
        1 => on(CF),
        2 => on(ZF),
        3 => on(CF | ZF),
        4 => on(SF),
        5 => on(PF),
        6 => on(SF) != on(OF),
        _ => on(ZF) || on(SF) != on(OF),
    };
    holds != (code & 1 != 0)
}

/// DAA and DAS: AL and flags.
pub(super) fn decimal_adjust(al: u64, subtract: bool, flags: u64) -> (u64, u64) {
    let mut result = al;
    let mut status = 0;
    let adjust = |value: u64, by: u64| {
        if subtract {
            value.wrapping_sub(by)
        } else {
            value.wrapping_add(by)
        }
    };
    if al & 0xf > 9 || flags & AF != 0 {
        // A borrow out of AL by the low digit counts (DAS only; DAA's carry is in the test below).
        let out = adjust(al, 6) & !0xff != 0;
        status |= AF | when(out || flags & CF != 0, CF);
        result = adjust(result, 6);
    }
    if al > 0x99 || flags & CF != 0 {
        status |= CF;
        result = adjust(result, 0x60);
    } else if !subtract {
        status &= !CF;
    }
    let result = result & 0xff;
    let status = status | sign_zero_parity(Width::Byte, result);
    // OF is undefined; it stays.
    (result, flags & !(STATUS & !OF) | status)
}

/// CRC32: the Castagnoli polynomial, bits reflected.
pub(super) fn crc32(width: Width, crc: u64, data: u64) -> u64 {
    let mut crc = crc as u32;
    for byte in 0..width.bytes() {
        crc ^= u32::from((data >> (byte * 8)) as u8);
        for _ in 0..8 {
            let out = crc & 1;
            crc = crc >> 1 ^ (0x82f6_3b78 & out.wrapping_neg());
        }
    }
    u64::from(crc)
}

/// PDEP: the low bits of `source` to the places that `mask` has.
pub(super) fn deposit(source: u64, mut mask: u64) -> u64 {
    let mut result = 0;
    let mut source = source;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= lowest & (source & 1).wrapping_neg();
        source >>= 1;
        mask ^= lowest;
    }
    result
}

/// PEXT: the bits of `source` in the places that `mask` has, packed.
pub(super) fn extract(source: u64, mut mask: u64) -> u64 {
    let mut result = 0;
    let mut place = 1_u64;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & lowest != 0 {
            result |= place;
        }
        place = place.wrapping_shl(1);
        mask ^= lowest;
    }
    result
}
