//! Random instructions with random registers and memory: the interpreter must leave what the
//! host's processor leaves, but for what the manual leaves undefined.
#![allow(unsafe_code, reason = "runs instructions of its own choice natively")]

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};
use x86::cr::rflags;

use super::guest::{Guest, Registers};
use super::host::{DATA, Host, STATUS, Sealed, runs_32_bit};
use crate::Exception;
use crate::interpret::ops;
use crate::stop::Stop;

/// Memory operands lie around the boundary of the two pages of data, within so many bytes.
const REACH: usize = 1024;
const FIRST: usize = DATA / 2 - REACH;
const WINDOW: usize = 2 * REACH;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.roll() as u8
    }

    /// A value of a register: anything, small, or near a power of two.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.roll(),
            1 => self.below(80).wrapping_sub(16),
            2 => (1_u64 << self.below(64)).wrapping_sub(self.below(3)),
            _ => self.roll() & self.roll() & self.roll(),
        }
    }
}

/// An instruction with all that it starts from.
struct Case {
    bytes: Vec<u8>,
    i: Instruction,
    gpr: [u64; 16],
    flags: u64,
}

fn vex(dice: &mut Dice, bits: u32) -> Vec<u8> {
    const OPCODES: [u8; 5] = [0xf2, 0xf3, 0xf5, 0xf6, 0xf7];
    let map = if dice.one_in(8) { 3 } else { 2 };
    let opcode = if map == 3 {
        0xf0
    } else {
        OPCODES[dice.below(5) as usize]
    };
    // In 32-bit code the two upper bits tell VEX from LES.
    let upper = if bits == 32 { 0xc0 } else { 0 };
    vec![
        0xc4,
        dice.byte() & 0xe0 | upper | map,
        dice.byte() & 0xfb,
        opcode,
        dice.byte(),
    ]
}

fn legacy(dice: &mut Dice, bits: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if dice.one_in(5) {
        bytes.push(0x66);
    }
    if dice.one_in(8) {
        bytes.push(0x67);
    }
    match dice.below(16) {
        0 => bytes.push(0xf0),
        1 | 2 => bytes.push(0xf2),
        3 | 4 => bytes.push(0xf3),
        _ => {}
    }
    if bits == 64 && dice.one_in(2) {
        bytes.push(0x40 | dice.byte() & 15);
    }
    match dice.below(8) {
        0..=3 => bytes.push(dice.byte()),
        4..=6 => bytes.extend([0x0f, dice.byte()]),
        _ => bytes.extend([0x0f, 0x38, 0xf0 | dice.byte() & 7]),
    }
    bytes.push(dice.byte());
    bytes
}

/// Whether the test can run this: it falls through, and reads and writes only what the test
/// controls.
fn wanted(i: &Instruction) -> bool {
    use Mnemonic as M;
    let plain = matches!(
        i.mnemonic(),
        M::Aaa
            | M::Aad
            | M::Aam
            | M::Aas
            | M::Adc
            | M::Adcx
            | M::Add
            | M::Adox
            | M::And
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bound
            | M::Bsf
            | M::Bsr
            | M::Bswap
            | M::Bt
            | M::Btc
            | M::Btr
            | M::Bts
            | M::Bzhi
            | M::Cbw
            | M::Cdq
            | M::Cdqe
            | M::Clc
            | M::Cld
            | M::Cmc
            | M::Cmp
            | M::Cmpsb
            | M::Cmpsd
            | M::Cmpsq
            | M::Cmpsw
            | M::Cmpxchg
            | M::Cmpxchg16b
            | M::Cmpxchg8b
            | M::Cqo
            | M::Crc32
            | M::Cwd
            | M::Cwde
            | M::Daa
            | M::Das
            | M::Dec
            | M::Div
            | M::Enter
            | M::Idiv
            | M::Imul
            | M::Inc
            | M::Lahf
            | M::Lea
            | M::Leave
            | M::Lodsb
            | M::Lodsd
            | M::Lodsq
            | M::Lodsw
            | M::Lzcnt
            | M::Mov
            | M::Movbe
            | M::Movsb
            | M::Movsd
            | M::Movsq
            | M::Movsw
            | M::Movsx
            | M::Movsxd
            | M::Movzx
            | M::Mul
            | M::Mulx
            | M::Neg
            | M::Nop
            | M::Not
            | M::Or
            | M::Pdep
            | M::Pext
            | M::Pop
            | M::Popa
            | M::Popad
            | M::Popcnt
            | M::Push
            | M::Pusha
            | M::Pushad
            | M::Rcl
            | M::Rcr
            | M::Rol
            | M::Ror
            | M::Rorx
            | M::Sahf
            | M::Sal
            | M::Salc
            | M::Sar
            | M::Sarx
            | M::Sbb
            | M::Scasb
            | M::Scasd
            | M::Scasq
            | M::Scasw
            | M::Shl
            | M::Shld
            | M::Shlx
            | M::Shr
            | M::Shrd
            | M::Shrx
            | M::Stc
            | M::Std
            | M::Stosb
            | M::Stosd
            | M::Stosq
            | M::Stosw
            | M::Sub
            | M::Test
            | M::Tzcnt
            | M::Xadd
            | M::Xchg
            | M::Xlatb
            | M::Xor
    ) || format!("{:?}", i.mnemonic()).starts_with("Cmov")
        || format!("{:?}", i.mnemonic()).starts_with("Set");
    let general = |r: Register| r.is_gpr8() || r.is_gpr16() || r.is_gpr32() || r.is_gpr64();
    let registers = (0..i.op_count())
        .filter(|n| i.op_kind(*n) == OpKind::Register)
        .all(|n| general(i.op_register(n)));
    let sse = matches!(
        i.code(),
        Code::Movsd_xmm_xmmm64 | Code::Cmpsd_xmm_xmmm64_imm8
    );
    let undefined = i.code() == Code::Bswap_r16;
    plain
        && registers
        && !sse
        && !undefined
        && !matches!(
            i.segment_prefix(),
            Register::CS | Register::FS | Register::GS
        )
        && host_has(i)
}

fn host_has(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    i.cpuid_features().iter().all(|feature| match feature {
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        F::CET_SS | F::CET_IBT | F::MOVDIRI | F::MOVDIR64B => false,
        _ => true,
    })
}

/// Changes displacement, immediates and registers so that the operands lie in the window. False:
/// this one cannot be used.
fn place(dice: &mut Dice, case: &mut Case, bits: u32, ip: u64, data: u64) -> bool {
    use Mnemonic as M;
    let middle = data + (FIRST + REACH) as u64;
    let near = |dice: &mut Dice| middle + dice.below(512) - 256;
    let mut decoder = Decoder::with_ip(bits, &case.bytes, ip, DecoderOptions::NONE);
    let offsets = {
        let i = decoder.decode();
        decoder.get_constant_offsets(&i)
    };
    let mnemonic = case.i.mnemonic();

    // Room for a level-31 frame below, and frames above.
    if case.i.is_stack_instruction() || matches!(mnemonic, M::Enter | M::Leave) {
        case.gpr[4] = near(dice);
        case.gpr[5] = near(dice);
    }
    if mnemonic == M::Enter {
        case.bytes[offsets.immediate_offset() + 1] &= 1;
    }
    if case.i.is_string_instruction() {
        // Nothing is mapped where 16 bits of address reach.
        if case
            .i
            .op_kinds()
            .any(|kind| matches!(kind, OpKind::MemorySegSI | OpKind::MemoryESDI))
        {
            return false;
        }
        let low = (case.i.op_kinds())
            .any(|kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI));
        let high = if low { dice.roll() << 32 } else { 0 };
        case.gpr[6] = near(dice) | high;
        case.gpr[7] = near(dice) | high;
        case.gpr[1] = dice.below(80) | high;
        case.flags ^= case.flags & rflags::DF & dice.roll();
        return true;
    }
    if mnemonic == M::Cmpxchg16b {
        case.gpr[0] = dice.value();
    }

    let uses_memory = case.i.op_kinds().any(|kind| kind == OpKind::Memory);
    if !uses_memory || matches!(mnemonic, M::Lea | M::Nop) {
        return true;
    }
    let mut target = near(dice);
    if mnemonic == M::Cmpxchg16b {
        target &= !15;
    }
    let (base, index) = (case.i.memory_base(), case.i.memory_index());
    let number = |r: Register| r.full_register() as usize - Register::RAX as usize;
    if matches!(mnemonic, M::Bt | M::Btc | M::Btr | M::Bts) && case.i.op1_kind() == OpKind::Register
    {
        let register = case.i.op1_register();
        if [base, index]
            .iter()
            .any(|r| r.full_register() == register.full_register())
        {
            return false;
        }
        let small = dice.below(1024).wrapping_sub(512);
        case.gpr[number(register)] = match register.size() {
            2 => dice.roll() & !0xffff | small & 0xffff,
            4 => dice.roll() << 32 | small & 0xffff_ffff,
            _ => small,
        };
    }
    let patch = |case: &mut Case, value: u64| {
        let at = offsets.displacement_offset();
        let size = offsets.displacement_size();
        if size >= 4 {
            case.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        size >= 4
    };
    let scale = u64::from(case.i.memory_index_scale());
    let displacement = case.i.memory_displacement64();
    match (base, index) {
        (Register::RIP | Register::EIP, _) => patch(case, target.wrapping_sub(case.i.next_ip())),
        (Register::None, Register::None) => patch(case, target),
        (Register::None, _) => {
            case.gpr[number(index)] = dice.below(1024);
            patch(case, target - case.gpr[number(index)] * scale)
        }
        (base, index) if base == index => {
            case.gpr[number(base)] = dice.below(1024);
            patch(case, target - case.gpr[number(base)] * (scale + 1))
        }
        (base, index) => {
            let scaled = match index {
                Register::None => 0,
                Register::AL => case.gpr[0] & 0xff,
                _ => case.gpr[number(index)].wrapping_mul(scale),
            };
            let value = target.wrapping_sub(scaled).wrapping_sub(displacement);
            case.gpr[number(base)] = if base.is_gpr32() {
                value & 0xffff_ffff | dice.roll() << 32
            } else {
                value
            };
            true
        }
    }
}

/// A random instruction for this address.
fn case(dice: &mut Dice, bits: u32, ip: u64, data: u64) -> Option<Case> {
    let mut bytes = if dice.one_in(8) {
        vex(dice, bits)
    } else {
        legacy(dice, bits)
    };
    bytes.resize_with(bytes.len() + 10, || dice.byte());
    if dice.one_in(2) {
        // Small immediates.
        for byte in bytes.iter_mut().skip(4) {
            *byte &= dice.byte();
        }
    }
    let decode = |bytes: &mut Vec<u8>| {
        let i = Decoder::with_ip(bits, bytes, ip, DecoderOptions::NONE).decode();
        if !i.is_invalid() {
            bytes.truncate(i.len());
        }
        i
    };
    let i = decode(&mut bytes);
    if i.is_invalid() || !wanted(&i) {
        return None;
    }
    let mut gpr = [0; 16];
    gpr.fill_with(|| dice.value());
    let mut case = Case {
        bytes,
        i,
        gpr,
        flags: dice.roll() & STATUS,
    };
    if case.i.is_string_instruction() {
        case.flags |= dice.roll() & rflags::DF;
    }
    if !place(dice, &mut case, bits, ip, data) {
        return None;
    }
    if bits == 32 {
        case.gpr[8..].fill(0);
        for value in &mut case.gpr {
            *value &= 0xffff_ffff;
        }
    }
    case.i = decode(&mut case.bytes);
    // The address of the memory operand may have taken the stack pointer.
    let stack = data + (FIRST + REACH) as u64;
    if case.i.is_stack_instruction() && case.gpr[4].abs_diff(stack) > 256 {
        return None;
    }
    reaches_only_window(&case, data).then_some(case)
}

/// Whether the memory operand lies in the window.
fn reaches_only_window(case: &Case, data: u64) -> bool {
    if matches!(case.i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
        return true;
    }
    let value = |r: Register, _: usize, _: usize| {
        let full = || case.gpr[r.full_register() as usize - Register::RAX as usize];
        Some(match r {
            _ if r.is_segment_register() => 0,
            Register::AL => full() & 0xff,
            _ if r.is_gpr16() => full() & 0xffff,
            _ if r.is_gpr32() => full() & 0xffff_ffff,
            _ => full(),
        })
    };
    let low = data + (FIRST + 256) as u64;
    let high = data + (FIRST + WINDOW - 256) as u64;
    (0..case.i.op_count())
        .filter(|n| case.i.op_kind(*n) == OpKind::Memory)
        .all(|n| {
            let at = case.i.virtual_address(n, 0, value);
            at.is_some_and(|at| (low..high).contains(&at))
        })
}

/// Flags that are undefined after this instruction.
fn undefined(case: &Case) -> u64 {
    const FLAGS: [(u32, u64); 6] = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    let of_code = FLAGS
        .iter()
        .filter(|(bit, _)| case.i.rflags_undefined() & bit != 0)
        .fold(0, |all, (_, flag)| all | flag);
    match shift(case) {
        None => of_code,
        Some((0, _)) => 0,
        Some((count, bits)) => {
            let rotates = matches!(
                case.i.mnemonic(),
                Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr
            );
            let overflow = if count == 1 { 0 } else { rflags::OF };
            match (rotates, count > bits) {
                (true, _) => overflow,
                (false, false) if count < bits => overflow | rflags::AF,
                _ => overflow | rflags::AF | rflags::CF,
            }
        }
    }
}

/// Count and width of a shift that sets flags.
fn shift(case: &Case) -> Option<(u64, u64)> {
    use Mnemonic as M;
    let operand = match case.i.mnemonic() {
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar => 1,
        M::Shld | M::Shrd => 2,
        _ => return None,
    };
    let count = match case.i.op_kind(operand) {
        OpKind::Register => case.gpr[1],
        _ => case.i.immediate(operand),
    };
    let bits = u64::from(ops::width(&case.i, 0).bits());
    Some((count & if bits == 64 { 63 } else { 31 }, bits))
}

/// Whether a register's or memory's new value is undefined, so that nothing can be compared.
fn is_undefined(case: &Case) -> bool {
    match case.i.mnemonic() {
        // Without a match the manual's pseudocode writes the destination, which would clear its upper
        // half; not every processor does.
        Mnemonic::Cmpxchg => case.i.code() == Code::Cmpxchg_rm32_r32 && !ops::in_memory(&case.i, 0),
        Mnemonic::Shld | Mnemonic::Shrd => shift(case).is_some_and(|(n, bits)| n > bits),
        _ => false,
    }
}

fn run(seed: u64, bits: u32, wanted: usize) -> usize {
    let mut dice = Dice(seed);
    let mut host = Host::new(bits);
    let data = host.data();
    let mut cases = Vec::new();
    while cases.len() < wanted {
        let at = host.next();
        if let Some(case) = case(&mut dice, bits, at, data) {
            host.add(&case.bytes);
            cases.push((at, case));
        }
    }
    let mut host = host.seal();
    let pages = [(data, 0x1_0000), (data + 4096, 0x1_2000)];
    let mut guest = match bits {
        64 => Guest::long(&pages),
        _ => Guest::compatible(&pages),
    };
    let compare =
        |(at, case): &(u64, Case)| compare(&mut dice, &mut host, &mut guest, *at, data, case);
    cases
        .iter()
        .map(compare)
        .filter(|compared| *compared)
        .count()
}

/// Runs one case on both. False: it raised #DE or #BR in the interpreter, and cannot run natively.
fn compare(
    dice: &mut Dice,
    host: &mut Sealed,
    guest: &mut Guest,
    at: u64,
    data: u64,
    case: &Case,
) -> bool {
    let mut memory = [0; WINDOW];
    for bytes in memory.chunks_exact_mut(8) {
        bytes.copy_from_slice(&dice.value().to_le_bytes());
    }
    let window = data + FIRST as u64;
    host.put(FIRST, &memory);
    guest.put(window, &memory);
    let mut gpr = case.gpr;
    if dice.one_in(2) && case.i.mnemonic() == Mnemonic::Cmpxchg {
        // Half of them shall succeed.
        guest.cpu.gpr = gpr;
        guest.cpu.rip = at;
        if let Ok(value) = ops::read(&mut guest.cpu, &mut crate::testing::Nothing, &case.i, 0) {
            let names_rax = |r: Register| r.full_register() == Register::RAX;
            if !names_rax(case.i.memory_base()) && !names_rax(case.i.memory_index()) {
                gpr[0] = value;
            }
        }
    }
    guest.cpu.gpr = gpr;
    guest.cpu.rip = at;
    guest.cpu.rflags = case.flags | rflags::RESERVED_ONE | rflags::IF;
    let start = Registers::of(&guest.cpu);
    match guest.execute(&case.i) {
        Ok(()) => {}
        Err(Stop::Exception(e)) if matches!(e.vector, Exception::DE | Exception::BR) => {
            assert_eq!(Registers::of(&guest.cpu), start, "{}", case.i);
            return false;
        }
        Err(stop) => panic!("{}: {stop:?} from {start:x?}", case.i),
    }

    let mut flags = case.flags;
    // SAFETY: `wanted` and `place` chose instructions that fall through and access the data only.
    // Their faults, of which there are #DE and #BR, were seen in the interpreter.
    unsafe {
        host.run(at, &mut gpr, &mut flags);
    }
    if is_undefined(case) {
        return true;
    }
    let mut mask = STATUS | rflags::DF;
    mask &= !undefined(case);
    let context = || format!("{} ({:02x?}) from {start:x?}", case.i, case.bytes);
    assert_eq!(
        guest.cpu.gpr,
        gpr,
        "registers after {}:\n{:x?}\n{:x?}",
        context(),
        guest.cpu.gpr,
        gpr
    );
    assert_eq!(
        guest.cpu.rflags & mask,
        flags & mask,
        "flags {:x} {:x} after {}",
        guest.cpu.rflags,
        flags,
        context()
    );
    let left = guest.get::<WINDOW>(window);
    let right = host.get::<WINDOW>(FIRST);
    let different = (0..WINDOW).find(|n| left[*n] != right[*n]);
    assert_eq!(different, None, "memory after {}", context());
    true
}

/// More of them: `INTERPRET_SEEDS=100 cargo test -p processor random`.
fn run_all(bits: u32) {
    const COUNT: usize = 8_000;
    let seeds = std::env::var("INTERPRET_SEEDS").ok();
    let seeds = seeds.and_then(|s| s.parse().ok()).unwrap_or(1);
    for seed in 0..seeds {
        let compared = run(seed, bits, COUNT);
        assert!(
            compared > COUNT * 9 / 10,
            "only {compared} could be compared"
        );
    }
}

#[test]
fn random_64_bit_instructions_as_the_host() {
    run_all(64);
}

#[test]
fn random_32_bit_instructions_as_the_host() {
    if runs_32_bit() {
        run_all(32);
    }
}
