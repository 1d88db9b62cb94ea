//! Loads, stores and locked instructions on guest memory by its address in this process.
#![allow(
    unsafe_code,
    reason = "guest memory is reached by address, with the very instructions the guest asked for"
)]

use std::arch::asm;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// What one access moves: u8, u16, u32, u64.
pub trait Word: Copy + Eq + sealed::Sealed {
    /// Bytes.
    const SIZE: u64;

    /// Zero-extends.
    fn widen(self) -> u64;

    /// The low bits.
    fn narrow(value: u64) -> Self;

    /// One load.
    ///
    /// # Safety
    /// The bytes at `from` are mapped and readable.
    unsafe fn load(from: *const u8) -> Self;

    /// One store.
    ///
    /// # Safety
    /// The bytes at `to` are mapped and writable, and no Rust reference to them exists.
    unsafe fn store(self, to: *mut u8);

    /// LOCK CMPXCHG: stores `new` if `old` was there. Returns what was there.
    ///
    /// # Safety
    /// As [`Word::store`].
    unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self;
}

macro_rules! word {
    ($type:ty, $class:ident, $accumulator:tt, $modifier:literal) => {
        impl Word for $type {
            const SIZE: u64 = size_of::<$type>() as u64;

            #[inline]
            fn widen(self) -> u64 {
                u64::from(self)
            }

            #[inline]
            fn narrow(value: u64) -> Self {
                value as $type
            }

            #[inline]
            unsafe fn load(from: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller's promise; the instruction touches only these bytes. Other
                // processors may change them at any time, hence no Rust load.
                unsafe {
                    asm!(
                        concat!("mov {value", $modifier, "}, [{from}]"),
                        value = lateout($class) value,
                        from = in(reg) from,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                value
            }

            #[inline]
            unsafe fn store(self, to: *mut u8) {
                // SAFETY: the caller's promise; the instruction touches only these bytes.
                unsafe {
                    asm!(
                        concat!("mov [{to}], {value", $modifier, "}"),
                        value = in($class) self,
                        to = in(reg) to,
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[inline]
            unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self {
                let was: $type;
                // SAFETY: the caller's promise; the instruction touches only these bytes.
                unsafe {
                    asm!(
                        concat!("lock cmpxchg [{at}], {new", $modifier, "}"),
                        new = in($class) new,
                        at = in(reg) at,
                        inlateout($accumulator) old => was,
                        options(nostack),
                    );
                }
                was
            }
        }
    };
}

word!(u8, reg_byte, "al", "");
word!(u16, reg, "ax", ":x");
word!(u32, reg, "eax", ":e");
word!(u64, reg, "rax", ":r");

/// LOCK CMPXCHG16B. Returns what was there.
///
/// # Safety
/// As [`Word::store`], for 16 bytes; `at` is aligned to them, and the host has the instruction
/// (every x86-64-v2 processor does).
pub unsafe fn compare_exchange_16(at: *mut u8, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller's promise. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new as u64 => _,
            in("rdi") at,
            in("rcx") (new >> 64) as u64,
            inlateout("rax") old as u64 => low,
            inlateout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Copies out of guest memory, in pieces of eight bytes as far as they go.
///
/// # Safety
/// The bytes at `from` are mapped and readable.
pub unsafe fn copy_out(from: *const u8, into: &mut [u8]) {
    let mut at = from;
    let mut pieces = into.chunks_exact_mut(8);
    for piece in &mut pieces {
        // SAFETY: the caller's promise; `at` advances with the pieces of `into`.
        let value = unsafe { u64::load(at) };
        piece.copy_from_slice(&value.to_le_bytes());
        at = at.wrapping_add(8);
    }
    for byte in pieces.into_remainder() {
        // SAFETY: as above.
        *byte = unsafe { u8::load(at) };
        at = at.wrapping_add(1);
    }
}

/// Copies into guest memory, in pieces of eight bytes as far as they go.
///
/// # Safety
/// The bytes at `to` are mapped and writable, and no Rust reference to them exists.
pub unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    let mut at = to;
    let (pieces, rest) = from.as_chunks::<8>();
    for piece in pieces {
        // SAFETY: the caller's promise; `at` advances with the pieces of `from`.
        unsafe { u64::from_le_bytes(*piece).store(at) };
        at = at.wrapping_add(8);
    }
    for byte in rest {
        // SAFETY: as above.
        unsafe { byte.store(at) };
        at = at.wrapping_add(1);
    }
}
