//! Cases with known results: what the host cannot run for us, and instructions that must change
//! nothing because they fault.

use x86::cr::rflags::{self, AF, CF, DF, IF, IOPL, NT, OF, PF, RF, SF, TF, VM, ZF};

use super::guest::{Guest, Registers};
use super::host::STATUS;
use crate::state::{Mode, Seg, reg, seg};
use crate::{Exception, Stop};

const PAGE: u64 = 0x40_0000;
/// 64-bit mode with two pages, and nothing around them.
fn long() -> Guest {
    let mut guest = Guest::long(&[(PAGE, 0x1_0000), (PAGE + 0x1000, 0x1_1000)]);
    guest.cpu.gpr[reg::RSP] = PAGE + 0x800;
    guest.cpu.rip = 0x1000;
    guest
}

fn fault(result: Result<(), Stop>) -> Exception {
    match result {
        Err(Stop::Exception(e)) => e,
        other => panic!("no exception: {other:?}"),
    }
}

const GP: Exception = Exception::gp(0);
const SS: Exception = Exception::with_code(Exception::SS, 0);
const DE: Exception = Exception::plain(Exception::DE);

/// Status flags from the letters that are set.
fn status(letters: &str) -> u64 {
    letters.chars().fold(0, |all, letter| {
        all | match letter {
            'o' => OF,
            's' => SF,
            'z' => ZF,
            'a' => AF,
            'p' => PF,
            _ => CF,
        }
    })
}

#[test]
fn arithmetic_flags() {
    // AL, BL, opcode with modrm AL <- AL op BL, result, flags.
    let cases: &[(u8, u8, [u8; 2], u8, &str)] = &[
        (0x7f, 0x01, [0x00, 0xd8], 0x80, "osa"),
        (0xff, 0x01, [0x00, 0xd8], 0x00, "zapc"),
        (0x80, 0x80, [0x00, 0xd8], 0x00, "ozpc"),
        (0x00, 0x01, [0x28, 0xd8], 0xff, "sapc"),
        (0x80, 0x01, [0x28, 0xd8], 0x7f, "oa"),
        (0xf0, 0x0f, [0x20, 0xd8], 0x00, "zp"),
        (0x81, 0x02, [0x08, 0xd8], 0x83, "s"),
        (0x55, 0x55, [0x30, 0xd8], 0x00, "zp"),
    ];
    for (al, bl, code, result, flags) in cases {
        let mut guest = long();
        guest.cpu.gpr[reg::RAX] = u64::from(*al) | 0x1200;
        guest.cpu.gpr[reg::RBX] = u64::from(*bl);
        guest.run(code).unwrap();
        assert_eq!(guest.cpu.gpr[reg::RAX], u64::from(*result) | 0x1200);
        assert_eq!(
            guest.cpu.rflags & STATUS,
            status(flags),
            "{al:x} {bl:x} {code:x?}"
        );
    }
}

/// The examples of the manual's pages of DAA and DAS.
#[test]
fn decimal_examples() {
    let run = |al: u64, flags: &str, code: u8| {
        let mut guest = Guest::flat();
        guest.cpu.gpr[reg::RAX] = al;
        guest.cpu.rflags |= status(flags);
        guest.run(&[code]).unwrap();
        (guest.cpu.gpr[reg::RAX], guest.cpu.rflags & STATUS & !OF)
    };
    assert_eq!(run(0xae, "os", 0x27), (0x14, status("apc")));
    assert_eq!(run(0x2e, "os", 0x27), (0x34, status("a")));
    assert_eq!(run(0xee, "sapc", 0x2f), (0x88, status("sapc")));
    // AAA and AAS carry into AH.
    assert_eq!(run(0x010b, "", 0x37).0, 0x0201);
    assert_eq!(run(0x02ff, "a", 0x3f).0, 0x0109);
}

#[test]
fn decimal_radix() {
    let mut guest = Guest::flat();
    guest.cpu.gpr[reg::RAX] = 73;
    guest.run(&[0xd4, 10]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 0x0703);
    guest.run(&[0xd5, 10]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 73);
    assert_eq!(fault(guest.run(&[0xd4, 0])), DE);
}

#[test]
fn division_errors_change_nothing() {
    // RDX, RAX, RCX, bytes.
    let cases: &[(u64, u64, u64, &[u8])] = &[
        (0, 1, 0, &[0x48, 0xf7, 0xf1]),
        (1, 0, 1, &[0x48, 0xf7, 0xf1]),
        (u64::MAX, 1 << 63, u64::MAX, &[0x48, 0xf7, 0xf9]),
        (1 << 63, 0, u64::MAX, &[0x48, 0xf7, 0xf9]),
        (0, 0x8000_0000, 1, &[0xf7, 0xf9]),
        (0, 0x100, 1, &[0xf6, 0xf1]),
        (0, 0x80, 1, &[0xf6, 0xf9]),
        (0x10, 0, 0x10, &[0x66, 0xf7, 0xf1]),
    ];
    for (rdx, rax, rcx, code) in cases {
        let mut guest = long();
        guest.cpu.gpr[reg::RDX] = *rdx;
        guest.cpu.gpr[reg::RAX] = *rax;
        guest.cpu.gpr[reg::RCX] = *rcx;
        let before = Registers::of(&guest.cpu);
        assert_eq!(fault(guest.run(code)), DE, "{code:x?}");
        assert_eq!(Registers::of(&guest.cpu), before);
    }
}

/// Instructions with a memory operand at RBX, or with the stack at RSP.
const READERS: &[&[u8]] = &[
    &[0x8b, 0x03],       // mov eax,[rbx]
    &[0x03, 0x03],       // add eax,[rbx]
    &[0x3b, 0x03],       // cmp eax,[rbx]
    &[0x0f, 0xb6, 0x03], // movzx eax,byte [rbx]
    &[0xff, 0x33],       // push qword [rbx]
    &[0xff, 0x23],       // jmp [rbx]
    &[0xff, 0x13],       // call [rbx]
    &[0x0f, 0x44, 0x03], // cmove eax,[rbx]
    &[0x0f, 0xa3, 0x03], // bt [rbx],eax
    &[0xf7, 0x23],       // mul dword [rbx]
    &[0xd7],             // xlat
];
const WRITERS: &[&[u8]] = &[
    &[0x89, 0x03],             // mov [rbx],eax
    &[0x01, 0x03],             // add [rbx],eax
    &[0xf0, 0x01, 0x03],       // lock add [rbx],eax
    &[0xff, 0x03],             // inc dword [rbx]
    &[0xf7, 0x1b],             // neg dword [rbx]
    &[0xd3, 0x23],             // shl dword [rbx],cl
    &[0x0f, 0xa5, 0x03],       // shld [rbx],eax,cl
    &[0x87, 0x03],             // xchg [rbx],eax
    &[0x0f, 0xb1, 0x0b],       // cmpxchg [rbx],ecx
    &[0xf0, 0x0f, 0xb1, 0x0b], // lock cmpxchg [rbx],ecx
    &[0x0f, 0xc7, 0x0b],       // cmpxchg8b [rbx]
    &[0x48, 0x0f, 0xc7, 0x0b], // cmpxchg16b [rbx]
    &[0x0f, 0xc1, 0x03],       // xadd [rbx],eax
    &[0x0f, 0xab, 0x03],       // bts [rbx],eax
    &[0x0f, 0x94, 0x03],       // sete [rbx]
    &[0x0f, 0x38, 0xf1, 0x03], // movbe [rbx],eax
    &[0x8f, 0x03],             // pop qword [rbx]
    &[0x8c, 0x1b],             // mov [rbx],ds
];

/// A page fault leaves all registers as they were, and says whether it was a write.
#[test]
fn page_faults_change_nothing() {
    let missing = PAGE + 0x2000;
    let table = READERS.iter().map(|code| (code, 0));
    for (code, error) in table.chain(WRITERS.iter().map(|code| (code, 2))) {
        let mut guest = long();
        guest.cpu.gpr[reg::RAX] = 0;
        guest.cpu.gpr[reg::RCX] = 3;
        guest.cpu.gpr[reg::RBX] = missing;
        let before = Registers::of(&guest.cpu);
        let expected = Exception::page_fault(missing, error);
        assert_eq!(fault(guest.run(code)), expected, "{code:x?}");
        assert_eq!(Registers::of(&guest.cpu), before, "{code:x?}");
    }
}

/// The stack instructions' turn.
#[test]
fn stack_faults_change_nothing() {
    let writers: &[&[u8]] = &[
        &[0x50],
        &[0x6a, 0x01],
        &[0x68, 0, 0, 0, 0],
        &[0x9c],
        &[0xe8, 0, 0, 0, 0],
        &[0xc8, 0x10, 0, 0],
        &[0xc8, 0x10, 0, 5],
        &[0x0f, 0xa0],
    ];
    let readers: &[&[u8]] = &[
        &[0x58],
        &[0x5c],
        &[0x9d],
        &[0xc3],
        &[0xc2, 8, 0],
        &[0xc9],
        &[0x8f, 0x04, 0x24],
    ];
    for (code, error) in writers
        .iter()
        .map(|code| (code, 2))
        .chain(readers.iter().map(|code| (code, 0)))
    {
        let mut guest = long();
        guest.cpu.gpr[reg::RSP] = PAGE + if error == 2 { 0 } else { 0x2000 };
        guest.cpu.gpr[reg::RBP] = PAGE + 0x2000;
        let before = Registers::of(&guest.cpu);
        let e = fault(guest.run(code));
        assert_eq!(
            (e.vector, e.error_code),
            (Exception::PF, Some(error)),
            "{code:x?}"
        );
        assert_eq!(Registers::of(&guest.cpu), before, "{code:x?}");
    }
}

/// PUSHA writes all or nothing.
#[test]
fn pusha_across_a_hole() {
    let mut guest = Guest::compatible(&[(PAGE, 0x1_0000)]);
    guest.cpu.gpr[reg::RSP] = PAGE + 16;
    guest.put(PAGE, &[7; 16]);
    let before = Registers::of(&guest.cpu);
    assert_eq!(fault(guest.run(&[0x60])).vector, Exception::PF);
    assert_eq!(Registers::of(&guest.cpu), before);
    assert_eq!(guest.get::<16>(PAGE), [7; 16]);
}

#[test]
fn push_and_pop_of_the_stack_pointer() {
    let mut guest = long();
    let top = guest.cpu.gpr[reg::RSP];
    guest.run(&[0x54]).unwrap();
    assert_eq!(guest.get::<8>(top - 8), top.to_le_bytes());
    guest.put(top - 8, &0x1234_u64.to_le_bytes());
    guest.run(&[0x5c]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RSP], 0x1234);
    // The address of POP's operand is computed after the pop.
    guest.cpu.gpr[reg::RSP] = top - 8;
    guest.run(&[0x8f, 0x44, 0x24, 0x10]).unwrap();
    assert_eq!(guest.get::<8>(top + 0x10), 0x1234_u64.to_le_bytes());
}

#[test]
fn a_stack_of_16_bits_wraps() {
    let mut guest = Guest::real();
    guest.cpu.gpr[reg::RSP] = 0xaaaa_0000;
    guest.cpu.gpr[reg::RAX] = 0xbeef;
    guest.run(&[0x50]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RSP], 0xaaaa_fffe);
    assert_eq!(guest.get::<2>(0xfffe), [0xef, 0xbe]);
    guest.run(&[0x5b]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RSP], 0xaaaa_0000);
    assert_eq!(guest.cpu.gpr[reg::RBX], 0xbeef);
    // A word does not fit around the end.
    guest.cpu.gpr[reg::RSP] = 1;
    assert_eq!(fault(guest.run(&[0x50])), SS);
    assert_eq!(guest.cpu.gpr[reg::RSP], 1);
}

#[test]
fn flags_on_the_stack() {
    let mut guest = long();
    let top = guest.cpu.gpr[reg::RSP];
    guest.cpu.rflags |= RF | CF;
    guest.run(&[0x9c]).unwrap();
    let pushed = u64::from_le_bytes(guest.get(top - 8));
    assert_eq!(pushed, CF | IF | rflags::RESERVED_ONE);

    let all = !0_u64;
    let popped = |cpl: u16, iopl: u64, bytes: &[u8]| {
        let mut guest = long();
        guest.cpu.segs[seg::SS].attributes |= cpl << 5;
        guest.cpu.rflags = rflags::RESERVED_ONE | iopl << 12;
        guest.cpu.update_mode();
        let top = guest.cpu.gpr[reg::RSP];
        guest.put(top, &all.to_le_bytes());
        guest.run(bytes).unwrap();
        guest.cpu.rflags
    };
    let always = STATUS | TF | DF | NT | rflags::AC | rflags::ID | rflags::RESERVED_ONE;
    assert_eq!(popped(0, 0, &[0x9d]), always | IF | IOPL);
    assert_eq!(popped(3, 0, &[0x9d]), always);
    assert_eq!(popped(3, 3, &[0x9d]), always | IF | IOPL);
    assert_eq!(popped(2, 1, &[0x9d]), always | 1 << 12);
    assert_eq!(popped(0, 0, &[0x66, 0x9d]), (always | IF | IOPL) & 0xffff);
}

#[test]
fn flags_in_virtual_8086_mode() {
    let mut guest = Guest::flat();
    guest.cpu.rflags |= VM;
    guest.cpu.update_mode();
    guest.bits = 16;
    guest.cpu.gpr[reg::RSP] = 0x1000;
    assert_eq!(fault(guest.run(&[0x9c])), GP);
    assert_eq!(fault(guest.run(&[0x9d])), GP);
    guest.cpu.rflags |= IOPL;
    guest.run(&[0x9c]).unwrap();
    guest.put(0xffe, &0x0000_u16.to_le_bytes());
    guest.run(&[0x9d]).unwrap();
    // IF may change, IOPL may not.
    assert_eq!(guest.cpu.rflags, VM | IOPL | rflags::RESERVED_ONE);
}

/// The mode follows POPF: TF steps.
#[test]
fn popf_updates_the_mode() {
    let mut guest = long();
    let top = guest.cpu.gpr[reg::RSP];
    guest.put(top, &TF.to_le_bytes());
    guest.run(&[0x9d]).unwrap();
    assert!(guest.cpu.mode.has(Mode::STEP));
}

#[test]
fn near_branches() {
    // Bits, bytes, RIP before and after.
    let cases: &[(u32, &[u8], u64, u64)] = &[
        (64, &[0xeb, 0xfe], 0x1000, 0x1000),
        (64, &[0xe9, 0, 1, 0, 0], 0x1000, 0x1105),
        (
            64,
            &[0xeb, 0x10],
            0xffff_ffff_8000_0000,
            0xffff_ffff_8000_0012,
        ),
        (32, &[0xeb, 0xf0], 0, 0xffff_fff2),
        (32, &[0x66, 0xe9, 0xff, 0x7f], 0x1_2345, 0xa348),
        (32, &[0xe9, 0xfb, 0xff, 0xff, 0xff], 0x5000, 0x5000),
        (16, &[0xe9, 0x00, 0x80], 0x9000, 0x1003),
        (16, &[0xeb, 0x80], 0x10, 0xff92),
        (16, &[0x66, 0xe9, 0, 0x10, 0, 0], 0x10, 0x1016),
    ];
    for (bits, code, from, to) in cases {
        let mut guest = match bits {
            64 => long(),
            32 => Guest::flat(),
            _ => Guest::real(),
        };
        guest.cpu.rip = *from;
        guest.run(code).unwrap();
        assert_eq!(guest.cpu.rip, *to, "{bits} {code:x?}");
    }
}

#[test]
fn branch_targets_are_checked() {
    let mut guest = long();
    guest.cpu.gpr[reg::RAX] = 1 << 47;
    let before = Registers::of(&guest.cpu);
    for code in [[0xff, 0xe0], [0xff, 0xd0]] {
        assert_eq!(fault(guest.run(&code)), GP);
        assert_eq!(Registers::of(&guest.cpu), before);
    }
    let top = guest.cpu.gpr[reg::RSP];
    guest.put(top, &(1_u64 << 47).to_le_bytes());
    assert_eq!(fault(guest.run(&[0xc3])), GP);
    assert_eq!(Registers::of(&guest.cpu), before);

    let mut guest = Guest::real();
    guest.cpu.segs[seg::CS].limit = 0xfff;
    guest.cpu.rip = 0xff0;
    let before = Registers::of(&guest.cpu);
    assert_eq!(fault(guest.run(&[0xeb, 0x7f])), GP);
    // LOOP does not count when its jump faults.
    assert_eq!(fault(guest.run(&[0xe2, 0x7f])), GP);
    assert_eq!(Registers::of(&guest.cpu), before);
}

/// Every condition on every combination of the flags that conditions look at.
#[test]
fn conditions() {
    let flags = [CF, PF, ZF, SF, OF];
    for combination in 0..32 {
        let value = (0..5)
            .filter(|n| combination >> n & 1 != 0)
            .fold(0, |all, n| all | flags[n as usize]);
        let on = |flag: u64| value & flag != 0;
        let holds = [
            on(OF),
            on(CF),
            on(ZF),
            on(CF) || on(ZF),
            on(SF),
            on(PF),
            on(SF) != on(OF),
            on(ZF) || on(SF) != on(OF),
        ];
        for code in 0..16_u8 {
            let expected = holds[usize::from(code / 2)] != (code & 1 != 0);
            let mut guest = long();
            guest.cpu.rflags |= value;
            guest.run(&[0x70 | code, 0x10]).unwrap();
            let taken = guest.cpu.rip == 0x1012;
            assert_eq!(taken, expected, "jcc {code:x} {value:x}");
            guest.run(&[0x0f, 0x90 | code, 0xc0]).unwrap();
            assert_eq!(guest.cpu.gpr[reg::RAX], u64::from(expected));
            guest.cpu.gpr[reg::RCX] = 5;
            guest.run(&[0x48, 0x0f, 0x40 | code, 0xc1]).unwrap();
            let moved = if expected { 5 } else { 0 };
            assert_eq!(guest.cpu.gpr[reg::RAX], moved);
        }
    }
}

#[test]
fn loops_count_in_the_address_size() {
    // Bytes, RCX, ZF, RCX afterwards, taken.
    let high = 0xaaaa_0000_0000_0000_u64;
    let cases: &[(&[u8], u64, bool, u64, bool)] = &[
        (&[0xe2, 0x10], 2, false, 1, true),
        (&[0xe2, 0x10], 1, false, 0, false),
        (&[0xe2, 0x10], 0, false, u64::MAX, true),
        (&[0x67, 0xe2, 0x10], high | 1, false, 0, false),
        (&[0x67, 0xe2, 0x10], high, false, 0xffff_ffff, true),
        (&[0xe1, 0x10], 2, true, 1, true),
        (&[0xe1, 0x10], 2, false, 1, false),
        (&[0xe0, 0x10], 2, false, 1, true),
        (&[0xe0, 0x10], 2, true, 1, false),
        (&[0xe3, 0x10], 0, false, 0, true),
        (&[0xe3, 0x10], high, false, high, false),
        (&[0x67, 0xe3, 0x10], high, false, high, true),
    ];
    for (code, rcx, zero, after, taken) in cases {
        let mut guest = long();
        guest.cpu.gpr[reg::RCX] = *rcx;
        guest.cpu.rflags |= if *zero { ZF } else { 0 };
        guest.run(code).unwrap();
        assert_eq!(guest.cpu.gpr[reg::RCX], *after, "{code:x?} {rcx:x}");
        let jumped = guest.cpu.rip != 0x1000 + code.len() as u64;
        assert_eq!(jumped, *taken, "{code:x?} {rcx:x}");
    }
    let mut guest = Guest::real();
    guest.cpu.rip = 0;
    guest.cpu.gpr[reg::RCX] = 0x5_0001;
    guest.run(&[0xe2, 0x10]).unwrap();
    assert_eq!((guest.cpu.gpr[reg::RCX], guest.cpu.rip), (0x5_0000, 2));
    guest.run(&[0xe3, 0x10]).unwrap();
    assert_eq!(guest.cpu.rip, 0x14);
}

#[test]
fn calls_and_returns() {
    let mut guest = long();
    let top = guest.cpu.gpr[reg::RSP];
    guest.run(&[0xe8, 0x00, 0x02, 0, 0]).unwrap();
    assert_eq!((guest.cpu.rip, guest.cpu.gpr[reg::RSP]), (0x1205, top - 8));
    guest.run(&[0xc2, 0x18, 0]).unwrap();
    assert_eq!(
        (guest.cpu.rip, guest.cpu.gpr[reg::RSP]),
        (0x1005, top + 0x18)
    );
    // Of 16 bits in real mode, and of 32 with a prefix.
    let mut guest = Guest::real();
    guest.cpu.gpr[reg::RSP] = 0x100;
    guest.cpu.rip = 0x8000;
    guest.run(&[0xe8, 0x10, 0]).unwrap();
    assert_eq!((guest.cpu.rip, guest.cpu.gpr[reg::RSP]), (0x8013, 0xfe));
    guest.run(&[0xc3]).unwrap();
    assert_eq!((guest.cpu.rip, guest.cpu.gpr[reg::RSP]), (0x8003, 0x100));
    guest.run(&[0x66, 0xe8, 0x10, 0, 0, 0]).unwrap();
    assert_eq!((guest.cpu.rip, guest.cpu.gpr[reg::RSP]), (0x8019, 0xfc));
    assert_eq!(guest.get::<4>(0xfc), 0x8009_u32.to_le_bytes());
    // CALL through the stack pointer reads its target before it pushes.
    let mut guest = long();
    guest.put(top, &0x7777_u64.to_le_bytes());
    guest.run(&[0xff, 0x14, 0x24]).unwrap();
    assert_eq!(guest.cpu.rip, 0x7777);
}

#[test]
fn addresses_of_16_bits() {
    // ModRM bytes with rm 0 to 7, and their sums.
    let (bx, bp, si, di) = (0x1100, 0x2200, 0x3300, 0x4400);
    let sums = [bx + si, bx + di, bp + si, bp + di, si, di, bp, bx];
    for (rm, sum) in sums.into_iter().enumerate() {
        let mut guest = Guest::real();
        guest.cpu.gpr[reg::RBX] = 0x9999_0000 | bx;
        guest.cpu.gpr[reg::RBP] = bp;
        guest.cpu.gpr[reg::RSI] = si;
        guest.cpu.gpr[reg::RDI] = di;
        let code = [0x8d, 0x80 | rm as u8, 0x34, 0xf2];
        guest.run(&code).unwrap();
        assert_eq!(guest.cpu.gpr[reg::RAX], (sum + 0xf234) & 0xffff, "{rm}");
        // BP goes to the stack segment.
        guest.cpu.segs[seg::SS].base = 0x8_0000;
        guest.put(sum, &[1]);
        guest.put(0x8_0000 + sum, &[2]);
        let (code, stack): (&[u8], bool) = match rm {
            6 => (&[0x8a, 0x46, 0], true),
            _ => (&[0x8a, rm as u8], matches!(rm, 2 | 3)),
        };
        guest.run(code).unwrap();
        let al = guest.cpu.gpr[reg::RAX] & 0xff;
        assert_eq!(al, if stack { 2 } else { 1 }, "{rm}");
    }
}

#[test]
fn segments_of_64_bit_code() {
    let mut guest = long();
    guest.put(PAGE + 0x10, &[0x5a]);
    guest.cpu.segs[seg::GS].base = PAGE;
    guest.cpu.segs[seg::DS].base = 0x1234_5000;
    // mov al,gs:[0x10] and mov al,ds:[PAGE + 0x10]
    guest.run(&[0x65, 0x8a, 0x04, 0x25, 0x10, 0, 0, 0]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 0x5a);
    guest.cpu.gpr[reg::RAX] = 0;
    guest
        .run(&[0x3e, 0x8a, 0x04, 0x25, 0x10, 0, 0x40, 0])
        .unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 0x5a);
    // Addresses that are not canonical: #SS by RSP and RBP, else #GP. LEA does not mind.
    guest.cpu.gpr[reg::RBX] = 1 << 62;
    guest.cpu.gpr[reg::RBP] = 1 << 62;
    assert_eq!(fault(guest.run(&[0x8a, 0x03])), GP);
    assert_eq!(fault(guest.run(&[0x8a, 0x45, 0])), SS);
    guest.run(&[0x48, 0x8d, 0x03]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 1 << 62);
}

/// RIP-relative operands follow RIP, wherever the decoder believed the instruction to be.
#[test]
fn rip_relative_wherever_decoded() {
    let mut guest = long();
    guest.put(PAGE + 0x17, &[0x77]);
    let i = super::guest::decode(64, 0, &[0x8a, 0x05, 0x11, 0, 0, 0]);
    guest.cpu.rip = PAGE;
    guest.execute(&i).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 0x77);
    let i = super::guest::decode(64, 0, &[0xe8, 0x10, 0, 0, 0]);
    guest.cpu.rip = 0x1000;
    guest.execute(&i).unwrap();
    assert_eq!(guest.cpu.rip, 0x1015);
}

#[test]
fn wide_compare_exchange() {
    let mut guest = long();
    guest.put(PAGE, &[0x11; 16]);
    guest.cpu.gpr[reg::RBX] = PAGE + 8;
    assert_eq!(fault(guest.run(&[0x48, 0x0f, 0xc7, 0x0b])), GP);
    guest.cpu.gpr[reg::RSI] = PAGE;
    guest.cpu.gpr[reg::RBX] = 0xb;
    guest.cpu.gpr[reg::RCX] = 0xc;
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
    guest.run(&code).unwrap();
    let ones = 0x1111_1111_1111_1111;
    assert_eq!(guest.cpu.rflags & ZF, 0);
    assert_eq!(
        (guest.cpu.gpr[reg::RAX], guest.cpu.gpr[reg::RDX]),
        (ones, ones)
    );
    guest.run(&code).unwrap();
    assert_eq!(guest.cpu.rflags & ZF, ZF);
    assert_eq!(guest.get::<8>(PAGE), 0xb_u64.to_le_bytes());
    assert_eq!(guest.get::<8>(PAGE + 8), 0xc_u64.to_le_bytes());
}

#[test]
fn bounds() {
    let mut guest = Guest::flat();
    guest.put(0x100, &(-3_i32).to_le_bytes());
    guest.put(0x104, &5_i32.to_le_bytes());
    for (index, inside) in [(-4, false), (-3, true), (0, true), (5, true), (6, false)] {
        guest.cpu.gpr[reg::RAX] = u64::from(index as u32);
        // bound eax,[0x100]
        let result = guest.run(&[0x62, 0x05, 0, 1, 0, 0]);
        match inside {
            true => assert_eq!(result, Ok(())),
            false => assert_eq!(fault(result), Exception::plain(Exception::BR)),
        }
    }
}

#[test]
fn requested_privilege_level() {
    let mut guest = Guest::flat();
    guest.cpu.gpr[reg::RAX] = 0x18;
    guest.cpu.gpr[reg::RBX] = 3;
    // arpl ax,bx
    guest.run(&[0x63, 0xd8]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 0x1b);
    assert_eq!(guest.cpu.rflags & ZF, ZF);
    guest.run(&[0x63, 0xd8]).unwrap();
    assert_eq!(guest.cpu.rflags & ZF, 0);
    let mut guest = Guest::real();
    assert_eq!(fault(guest.run(&[0x63, 0xd8])), Exception::ud());
}

#[test]
fn frames_of_16_bits() {
    let mut guest = Guest::real();
    guest.cpu.gpr[reg::RSP] = 0x1000;
    guest.cpu.gpr[reg::RBP] = 0x1234_0800;
    guest.put(0x7fe, &[0xcd, 0xab]);
    // enter 0x20,2: saved BP, the outer frame, the new frame.
    guest.run(&[0xc8, 0x20, 0, 2]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RBP], 0x1234_0ffe);
    assert_eq!(guest.cpu.gpr[reg::RSP], 0x1000 - 6 - 0x20);
    assert_eq!(guest.get::<6>(0xffa), [0xfe, 0x0f, 0xcd, 0xab, 0x00, 0x08]);
    guest.run(&[0xc9]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RBP], 0x1234_0800);
    assert_eq!(guest.cpu.gpr[reg::RSP], 0x1000);
}

/// Without the features, F3 before BSF and BSR means nothing.
#[test]
fn counts_of_zeros_on_old_processors() {
    let mut guest = long();
    guest.cpu.gpr[reg::RCX] = 0x10;
    guest.run(&[0xf3, 0x0f, 0xbd, 0xc1]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 27);
    guest.run(&[0xf3, 0x0f, 0xbc, 0xc1]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 4);
    guest.cpu.features = x86::FeatureSet::default();
    guest.run(&[0xf3, 0x0f, 0xbd, 0xc1]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], 4);
    // A zero leaves the destination alone.
    guest.cpu.gpr[reg::RCX] = 0;
    guest.cpu.gpr[reg::RAX] = u64::MAX;
    guest.run(&[0xf3, 0x0f, 0xbc, 0xc1]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RAX], u64::MAX);
    assert_eq!(guest.cpu.rflags & ZF, ZF);
}

#[test]
fn random_numbers_differ() {
    let mut guest = long();
    let mut seen = std::collections::HashSet::new();
    for code in [[0x48, 0x0f, 0xc7, 0xf0], [0x48, 0x0f, 0xc7, 0xf8]] {
        for _ in 0..4 {
            guest.cpu.rflags |= STATUS;
            guest.run(&code).unwrap();
            assert_eq!(guest.cpu.rflags & STATUS, CF);
            assert!(seen.insert(guest.cpu.gpr[reg::RAX]));
        }
    }
}

#[test]
fn what_is_no_instruction() {
    let mut guest = long();
    // Locked without a memory destination that may be, and opcodes that are none.
    let codes: &[&[u8]] = &[
        &[0xf0, 0x90],
        &[0xf0, 0x01, 0xc0],
        &[0xf0, 0x8b, 0x03],
        &[0x06],
    ];
    for code in codes {
        let i = super::guest::decode(64, 0, code);
        assert_eq!(fault(guest.execute(&i)), Exception::ud(), "{code:x?}");
    }
}

#[test]
fn writes_need_writable_segments() {
    let mut guest = Guest::flat();
    guest.cpu.segs[seg::DS].attributes &= !2;
    guest.cpu.gpr[reg::RBX] = 0x100;
    let before = Registers::of(&guest.cpu);
    assert_eq!(fault(guest.run(&[0x00, 0x03])), GP);
    guest.run(&[0x8a, 0x0b]).unwrap();
    guest.cpu.segs[seg::DS].attributes |= Seg::UNUSABLE;
    assert_eq!(fault(guest.run(&[0x8a, 0x03])), GP);
    assert_eq!(guest.cpu.gpr[reg::RAX], before.gpr[reg::RAX]);
}
