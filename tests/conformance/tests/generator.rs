//! What the generator makes.

use std::collections::BTreeSet;

use conformance::CODE;
use conformance::random::Generator;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Mnemonic};

#[test]
fn all_codes_come_and_are_what_is_encoded() {
    for bits in [32, 64] {
        let mut generator = Generator::new(bits);
        let mut seen: BTreeSet<Code> = BTreeSet::new();
        let mut jumps = 0;
        for seed in 0..6000 {
            let generated = generator.case(seed, 16);
            let code = &generated.case.code;
            let decoded: Vec<_> = Decoder::with_ip(bits, code, CODE, DecoderOptions::NONE)
                .iter()
                .collect();
            assert_eq!(decoded.len(), generated.instructions.len(), "seed {seed}");
            for (got, made) in decoded.iter().zip(&generated.instructions) {
                // Some instructions have two encodings, reserved NOPs are hints, gathers whose
                // registers are the same are none, and "xchg eax, eax" is NOP.
                let none = made.is_vsib() && got.is_invalid()
                    || matches!(made.mnemonic(), Mnemonic::Reservednop | Mnemonic::Xchg);
                assert!(
                    none || got.mnemonic() == made.mnemonic(),
                    "seed {seed}: {made}"
                );
                let jump = made.flow_control() != FlowControl::Next;
                jumps += u32::from(jump);
                if jump {
                    let target = got.near_branch_target();
                    let inside = decoded.iter().any(|i| i.ip() == target);
                    assert!(inside && target > got.ip(), "seed {seed}: {got}");
                }
                seen.insert(made.code());
            }
        }
        assert!(jumps > 2000, "{jumps} jumps");
        let share = seen.len() as f64 / generator.codes() as f64;
        assert!(generator.codes() > 1000, "{} codes", generator.codes());
        assert!(share > 0.98, "{} of {}", seen.len(), generator.codes());
    }
}

#[test]
fn seeds_tell_all() {
    let (mut a, mut b) = (Generator::new(64), Generator::new(64));
    for seed in 0..50 {
        let (one, other) = (a.case(seed, 16).case, b.case(seed, 16).case);
        assert_eq!(one.code, other.code);
        assert!(one.registers == other.registers && one.memory == other.memory);
    }
}
