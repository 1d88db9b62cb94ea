//! Random bytes as code: nothing may panic, in any mode.

use proptest::prelude::*;

use crate::run::bench::*;
use crate::state::{Seg, reg, seg};
use crate::stop::{Exception, Stop};
use x86::cr::{cr0, rflags};

fn run_random(mut b: Bench, bytes: &[u8], registers: [u64; 16]) {
    b.bytes(bytes);
    b.cpu.gpr = registers;
    go(b);
}

fn go(mut b: Bench) {
    for _ in 0..24 {
        match b.cpu.advance(&mut b.p, 1) {
            Stop::Device(request) => b.cpu.answer(request, 0x0123_4567_89ab_cdef),
            Stop::TripleFault => return,
            _ => {}
        }
    }
}

fn virtual_8086() -> Bench {
    let mut b = Bench::protected();
    b.cpu.rflags |= rflags::VM | rflags::IOPL;
    b.cpu.segs = [Seg::vm86(0x1000); 6];
    b.cpu.segs[seg::SS] = Seg::vm86(0x2000);
    b.cpu.rip = 0;
    b.cpu.update_mode();
    b
}

fn registers() -> impl Strategy<Value = [u64; 16]> {
    let value = prop_oneof![
        any::<u64>(),
        (0u64..64),
        (0u64..RAM as u64),
        (0u64..0x100).prop_map(|low| 0xc000_0000 | low),
        any::<u32>().prop_map(u64::from),
        Just(STACK),
        Just(u64::MAX),
        Just(1u64 << 63),
    ];
    proptest::array::uniform16(value)
}

fn code() -> impl Strategy<Value = Vec<u8>> {
    // System instructions live behind 0F; bytes alone would rarely meet them.
    let piece = prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 1..8),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| vec![0x0f, a, b]),
        1 => (0xf0u8..=0xff, any::<u8>()).prop_map(|(a, b)| vec![a, b]),
        1 => (0u8..4, any::<u8>()).prop_map(|(a, b)| vec![0x0f, a, b]),
        1 => any::<u8>().prop_map(|b| vec![0x0f, 0x01, b]),
        1 => any::<u8>().prop_map(|b| vec![0x0f, 0xae, b]),
        1 => (0x20u8..0x24, 0xc0u8..).prop_map(|(a, b)| vec![0x0f, a, b]),
    ];
    proptest::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nothing_panics_in_ring_0_of_long_mode(bytes in code(), registers in registers()) {
        run_random(Bench::long(), &bytes, registers);
    }

    #[test]
    fn nothing_panics_in_ring_3(bytes in code(), registers in registers(), wide: bool) {
        let mut b = Bench::long();
        b.user(wide);
        run_random(b, &bytes, registers);
    }

    #[test]
    fn nothing_panics_in_protected_mode(bytes in code(), registers in registers(), user: bool) {
        let mut b = Bench::protected();
        if user {
            b.user(false);
        }
        run_random(b, &bytes, registers);
    }

    #[test]
    fn nothing_panics_in_real_mode(bytes in code(), registers in registers()) {
        run_random(Bench::real(), &bytes, registers);
    }

    #[test]
    fn nothing_panics_in_virtual_8086_mode(bytes in code(), registers in registers()) {
        run_random(virtual_8086(), &bytes, registers);
    }

    /// What an instruction that faults would have changed stays as it was.
    #[test]
    fn faults_change_no_register(
        bytes in code(),
        registers in registers(),
        flags: u32,
        mode in 0..6,
    ) {
        let mut b = match mode {
            0 | 1 => Bench::long(),
            2 | 3 => Bench::protected(),
            4 => Bench::real(),
            _ => virtual_8086(),
        };
        match mode {
            1 => b.user(flags & 1 != 0),
            3 => b.user(false),
            _ => {}
        }
        let plain = rflags::VM | rflags::TF | rflags::RF | rflags::AC;
        b.cpu.rflags |= u64::from(flags) & 0x3f_7fd7 & !plain;
        b.cpu.gpr = registers;
        b.bytes(&bytes);
        for _ in 0..8 {
            let before = b.cpu.state();
            match b.step() {
                // Traps come after their instruction.
                Err(Stop::Exception(e)) if e.vector == Exception::DB => break,
                Err(Stop::Exception(_)) => {
                    prop_assert_eq!(b.cpu.state(), before);
                    break;
                }
                Err(Stop::Device(request)) => {
                    prop_assert_eq!(b.cpu.state(), before);
                    b.cpu.answer(request, 0x0123_4567_89ab_cdef);
                }
                _ => {}
            }
        }
    }

    /// Tables and state that no sane guest has.
    #[test]
    fn nothing_panics_with_wild_state(
        bytes in code(),
        registers in registers(),
        tables in proptest::collection::vec(any::<u64>(), 32),
        limits in any::<[u16; 2]>(),
        bases in any::<[u64; 4]>(),
        flags in any::<u32>(),
        vector in any::<u8>(),
        long: bool,
    ) {
        let mut b = if long { Bench::long() } else { Bench::protected() };
        for (n, value) in (0u64..).zip(&tables) {
            b.set(GDT + 8 + 8 * (n % 16), *value);
            b.set(IDT + 8 * n, *value);
        }
        b.cpu.gdtr.limit = limits[0];
        b.cpu.idtr.limit = limits[1];
        b.cpu.ldtr.base = bases[0];
        b.cpu.tr.base = bases[1];
        b.cpu.segs[seg::FS].base = bases[2];
        b.cpu.rflags = u64::from(flags) & 0x3f_7fd7 | 2;
        b.cpu.cr0 ^= u64::from(flags) & cr0::WP;
        if long {
            b.cpu.rflags &= !rflags::VM;
        }
        b.cpu.update_mode();
        b.bytes(&bytes);
        b.cpu.gpr = registers;
        b.cpu.gpr[reg::RSP] = bases[3];
        let _ = b.cpu.deliver_interrupt(&mut b.p, vector);
        let _ = b.cpu.deliver_nmi(&mut b.p);
        go(b);
    }
}
