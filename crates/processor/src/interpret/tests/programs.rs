//! Programs through the run loop: decoding, execution and advance together.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::guest::Guest;
use crate::state::reg;
use crate::testing::Nothing;
use crate::{DeviceRequest, Stop};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
/// Pages of data.
const PAGES: u64 = 16;
const STACK: u64 = 0x60_0000;
/// Linear address of a page that is no RAM, and where it leads.
const DEVICE: u64 = 0x70_0000;
const DEVICE_PHYSICAL: u64 = 0xfe00_0000;

/// A guest in 64-bit mode with code, data, a stack and a device.
fn guest() -> Guest {
    let mut pages = vec![(DEVICE, DEVICE_PHYSICAL)];
    pages.extend((0..2).map(|n| (CODE + n * 0x1000, 0x1_0000 + n * 0x1000)));
    // Data is scattered over physical memory.
    pages.extend((0..PAGES).map(|n| (DATA + n * 0x1000, 0x4_0000 + (n * 7 % PAGES) * 0x1000)));
    pages.extend((0..16).map(|n| (STACK - 0x1_0000 + n * 0x1000, 0x2_0000 + n * 0x1000)));
    Guest::long(&pages)
}

fn assemble(
    bits: u32,
    at: u64,
    program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("an assembler");
    program(&mut a).expect("instructions that exist");
    a.assemble(at).expect("labels in reach")
}

/// Runs a program, which ends with HLT; returns how many instructions that took.
fn run(guest: &mut Guest, program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
    let code = assemble(64, CODE, program);
    guest.put(CODE, &code);
    start(guest)
}

fn start(guest: &mut Guest) -> u64 {
    guest.cpu.rip = CODE;
    guest.cpu.gpr[reg::RSP] = STACK;
    let before = guest.cpu.retired;
    // A small budget: it stops and goes on often.
    loop {
        match guest.cpu.advance(&mut Nothing, 1000) {
            Stop::Attention => {}
            Stop::Halt => return guest.cpu.retired - before,
            stop => panic!("{stop:?} at {:x}", guest.cpu.rip),
        }
    }
}

/// Numbers that look random.
fn numbers(count: u32) -> Vec<u32> {
    (0..count)
        .map(|n| n.wrapping_mul(0x9e37_79b9).rotate_left(n % 31) ^ 0x5bd1_e995)
        .collect()
}

fn bytes_of(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// CRC-32 with a table that the program makes itself.
#[test]
fn crc() {
    let mut guest = guest();
    let input = bytes_of(&numbers(1000));
    let (table, buffer) = (DATA, DATA + 0xff1);
    guest.put(buffer, &input);
    run(&mut guest, |a| {
        let (mut entry, mut bit, mut next) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rdi, table)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut entry)?;
        a.mov(eax, ecx)?;
        a.mov(edx, 8)?;
        a.set_label(&mut bit)?;
        a.mov(ebx, eax)?;
        a.and(ebx, 1)?;
        a.neg(ebx)?;
        a.and(ebx, 0xedb8_8320_u32 as i32)?;
        a.shr(eax, 1)?;
        a.xor(eax, ebx)?;
        a.dec(edx)?;
        a.jnz(bit)?;
        a.stosd()?;
        a.inc(cl)?;
        a.jnz(entry)?;

        a.mov(rsi, buffer)?;
        a.mov(r8, buffer + input.len() as u64)?;
        a.mov(rdi, table)?;
        a.or(edx, -1)?;
        a.xor(eax, eax)?;
        a.set_label(&mut next)?;
        a.lodsb()?;
        a.movzx(ecx, dl)?;
        a.xor(cl, al)?;
        a.shr(edx, 8)?;
        a.xor(edx, dword_ptr(rdi + rcx * 4))?;
        a.cmp(rsi, r8)?;
        a.jb(next)?;
        a.not(edx)?;
        a.hlt()
    });
    let mut crc = u32::MAX;
    for byte in input {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    assert_eq!(guest.cpu.gpr[reg::RDX], u64::from(!crc));
}

/// Quicksort by recursion.
#[test]
fn sort() {
    const COUNT: u32 = 3000;
    let mut guest = guest();
    let mut expected = numbers(COUNT);
    // Elements lie across pages.
    let array = DATA + 2;
    guest.put(array, &bytes_of(&expected));
    run(&mut guest, |a| {
        let mut sort = a.create_label();
        let mut done = a.create_label();
        let (mut partition, mut smaller, mut split) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(rdi, array)?;
        a.mov(rsi, array + u64::from(COUNT - 1) * 4)?;
        a.call(sort)?;
        a.hlt()?;

        // Sorts from [rdi] to [rsi], pivot [rsi].
        a.set_label(&mut sort)?;
        a.cmp(rdi, rsi)?;
        a.jae(done)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.push(rdi)?;
        a.push(rsi)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(rdx, rdi)?;
        a.set_label(&mut partition)?;
        a.cmp(rdi, rsi)?;
        a.jae(split)?;
        a.cmp(dword_ptr(rdi), eax)?;
        a.jb(smaller)?;
        a.add(rdi, 4)?;
        a.jmp(partition)?;
        a.set_label(&mut smaller)?;
        a.mov(ecx, dword_ptr(rdi))?;
        a.xchg(dword_ptr(rdx), ecx)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.add(rdx, 4)?;
        a.add(rdi, 4)?;
        a.jmp(partition)?;
        a.set_label(&mut split)?;
        a.mov(ecx, dword_ptr(rdx))?;
        a.mov(dword_ptr(rsi), ecx)?;
        a.mov(dword_ptr(rdx), eax)?;
        a.push(rdx)?;
        a.mov(rdi, qword_ptr(rbp - 8))?;
        a.lea(rsi, qword_ptr(rdx - 4))?;
        a.call(sort)?;
        a.pop(rdx)?;
        a.lea(rdi, qword_ptr(rdx + 4))?;
        a.mov(rsi, qword_ptr(rbp - 16))?;
        a.call(sort)?;
        a.leave()?;
        a.set_label(&mut done)?;
        a.ret()
    });
    expected.sort_unstable();
    assert!(guest.get::<{ COUNT as usize * 4 }>(array)[..] == bytes_of(&expected));
    assert_eq!(guest.cpu.gpr[reg::RSP], STACK);
}

/// The sieve of Eratosthenes in a bit string, and a count of what it leaves.
#[test]
fn sieve() {
    const LIMIT: u32 = 20_000;
    let mut guest = guest();
    run(&mut guest, |a| {
        let (mut outer, mut inner, mut composite) =
            (a.create_label(), a.create_label(), a.create_label());
        let (mut count, mut not_prime) = (a.create_label(), a.create_label());
        a.mov(rdi, DATA)?;
        a.mov(ebx, 2)?;
        a.set_label(&mut outer)?;
        a.bt(dword_ptr(rdi), ebx)?;
        a.jc(composite)?;
        a.mov(eax, ebx)?;
        a.mul(eax)?;
        a.cmp(eax, LIMIT)?;
        a.jae(composite)?;
        a.set_label(&mut inner)?;
        a.bts(qword_ptr(rdi), rax)?;
        a.add(eax, ebx)?;
        a.cmp(eax, LIMIT)?;
        a.jb(inner)?;
        a.set_label(&mut composite)?;
        a.inc(ebx)?;
        a.cmp(ebx, 150)?;
        a.jb(outer)?;

        a.mov(ecx, LIMIT - 2)?;
        a.mov(ebx, 2)?;
        a.xor(edx, edx)?;
        a.set_label(&mut count)?;
        a.btc(dword_ptr(rdi), ebx)?;
        a.jc(not_prime)?;
        a.inc(edx)?;
        a.set_label(&mut not_prime)?;
        a.inc(ebx)?;
        a.loop_(count)?;
        a.hlt()
    });
    assert_eq!(guest.cpu.gpr[reg::RDX], 2262);
}

/// Strings: length, copy, comparison, reversal.
#[test]
fn strings() {
    let mut guest = guest();
    let text: Vec<u8> = (0..5000_u32).map(|n| b'a' + (n * n % 26) as u8).collect();
    let (from, to, back) = (DATA + 0xff8, DATA + 0x4003, DATA + 0x8001);
    guest.put(from, &text);
    run(&mut guest, |a| {
        let mut again = a.create_label();
        a.mov(rdi, from)?;
        a.or(rcx, -1)?;
        a.xor(eax, eax)?;
        a.repne().scasb()?;
        a.not(rcx)?;
        a.lea(r8, qword_ptr(rcx - 1))?;
        a.mov(rsi, from)?;
        a.mov(rdi, to)?;
        a.mov(rcx, r8)?;
        a.shr(rcx, 3)?;
        a.rep().movsq()?;
        a.mov(ecx, r8d)?;
        a.and(ecx, 7)?;
        a.rep().movsb()?;
        a.mov(rsi, from)?;
        a.mov(rdi, to)?;
        a.mov(rcx, r8)?;
        a.repe().cmpsb()?;
        a.sete(r9b)?;
        a.lea(rsi, qword_ptr(rsi - 1))?;
        a.mov(rdi, back)?;
        a.mov(rcx, r8)?;
        a.set_label(&mut again)?;
        a.std()?;
        a.lodsb()?;
        a.cld()?;
        a.stosb()?;
        a.loop_(again)?;
        a.hlt()
    });
    assert_eq!(guest.cpu.gpr[8], 5000);
    assert_eq!(guest.cpu.gpr[9] & 0xff, 1);
    assert!(guest.get::<5000>(to)[..] == text);
    let reversed: Vec<u8> = text.into_iter().rev().collect();
    assert!(guest.get::<5000>(back)[..] == reversed);
}

/// Wide arithmetic: factorials by MUL and ADC, and digits of them by DIV.
#[test]
fn digits_of_a_factorial() {
    const WORDS: i32 = 8;
    let mut guest = guest();
    run(&mut guest, |a| {
        let (mut factor, mut word) = (a.create_label(), a.create_label());
        let (mut digit, mut divide, mut any) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(rdi, DATA)?;
        a.mov(qword_ptr(rdi), 1)?;
        a.mov(r8d, 2)?;
        a.set_label(&mut factor)?;
        a.xor(ecx, ecx)?;
        a.xor(r9d, r9d)?;
        a.set_label(&mut word)?;
        a.mov(rax, qword_ptr(rdi + rcx * 8))?;
        a.mul(r8)?;
        a.add(rax, r9)?;
        a.adc(rdx, 0)?;
        a.mov(qword_ptr(rdi + rcx * 8), rax)?;
        a.mov(r9, rdx)?;
        a.inc(ecx)?;
        a.cmp(ecx, WORDS)?;
        a.jne(word)?;
        a.inc(r8d)?;
        a.cmp(r8d, 51)?;
        a.jne(factor)?;

        // Digits, the last one first, pushed and popped into a string.
        a.mov(r10d, 10)?;
        a.xor(r11d, r11d)?;
        a.set_label(&mut digit)?;
        a.mov(ecx, WORDS)?;
        a.xor(edx, edx)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut divide)?;
        a.mov(rax, qword_ptr(rdi + rcx * 8 - 8))?;
        a.div(r10)?;
        a.mov(qword_ptr(rdi + rcx * 8 - 8), rax)?;
        a.or(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(divide)?;
        a.add(dl, 0x30)?;
        a.push(rdx)?;
        a.inc(r11d)?;
        a.test(rbx, rbx)?;
        a.jnz(digit)?;
        a.add(rdi, 0x100)?;
        a.set_label(&mut any)?;
        a.pop(rax)?;
        a.stosb()?;
        a.dec(r11)?;
        a.jnz(any)?;
        a.hlt()
    });
    let digits = b"30414093201713378043612608166064768844377641568960512000000000000\0";
    assert_eq!(&guest.get::<66>(DATA + 0x100), digits);
}

/// An instruction that a program changes while it runs takes effect at once.
#[test]
fn code_that_changes_itself() {
    let mut guest = guest();
    run(&mut guest, |a| {
        let (mut again, mut changed) = (a.create_label(), a.create_label());
        a.xor(edx, edx)?;
        a.mov(ecx, 10)?;
        a.set_label(&mut again)?;
        a.lea(rbx, qword_ptr(changed))?;
        // The immediate of the addition is the counter.
        a.mov(byte_ptr(rbx + 2), cl)?;
        a.set_label(&mut changed)?;
        a.add(edx, 0x7f)?;
        a.loop_(again)?;
        a.hlt()
    });
    assert_eq!(guest.cpu.gpr[reg::RDX], 55);
}

/// The same in 32-bit code with a stack, and in real mode.
#[test]
fn smaller_code() {
    let mut guest = Guest::flat();
    let code = assemble(32, 0x1000, |a| {
        let (mut fibonacci, mut small) = (a.create_label(), a.create_label());
        a.push(20)?;
        a.call(fibonacci)?;
        a.hlt()?;
        a.set_label(&mut fibonacci)?;
        a.enter(4, 0)?;
        a.mov(eax, dword_ptr(ebp + 8))?;
        a.cmp(eax, 2)?;
        a.jb(small)?;
        a.dec(eax)?;
        a.push(eax)?;
        a.call(fibonacci)?;
        a.mov(dword_ptr(ebp - 4), eax)?;
        a.mov(eax, dword_ptr(ebp + 8))?;
        a.sub(eax, 2)?;
        a.push(eax)?;
        a.call(fibonacci)?;
        a.add(eax, dword_ptr(ebp - 4))?;
        a.set_label(&mut small)?;
        a.leave()?;
        a.ret_1(4)
    });
    guest.put(0x1000, &code);
    guest.cpu.rip = 0x1000;
    guest.cpu.gpr[reg::RSP] = 0x8_0000;
    assert_eq!(guest.cpu.advance(&mut Nothing, 1_000_000), Stop::Halt);
    assert_eq!(guest.cpu.gpr[reg::RAX], 6765);
    assert_eq!(guest.cpu.gpr[reg::RSP], 0x8_0000);

    // The decimal digits of a number, by AAM.
    let mut guest = Guest::real();
    let code = assemble(16, 0x1000, |a| {
        let (mut divide, mut print) = (a.create_label(), a.create_label());
        a.mov(ax, 60_217)?;
        a.mov(di, 0x2000)?;
        a.mov(bx, 100)?;
        a.xor(cx, cx)?;
        a.set_label(&mut divide)?;
        a.xor(dx, dx)?;
        a.div(bx)?;
        a.xchg(ax, dx)?;
        a.aam(10)?;
        a.push(ax)?;
        a.inc(cx)?;
        a.mov(ax, dx)?;
        a.test(ax, ax)?;
        a.jnz(divide)?;
        a.set_label(&mut print)?;
        a.pop(ax)?;
        a.xchg(ah, al)?;
        a.or(ax, 0x3030)?;
        a.stosw()?;
        a.loop_(print)?;
        a.hlt()
    });
    guest.put(0x1000, &code);
    guest.cpu.rip = 0x1000;
    guest.cpu.gpr[reg::RSP] = 0x4000;
    assert_eq!(guest.cpu.advance(&mut Nothing, 1_000_000), Stop::Halt);
    assert_eq!(&guest.get::<6>(0x2000), b"060217");
}

/// Answers a device's requests until the program halts, and notes them.
fn serve(guest: &mut Guest, mut read: impl FnMut(u64) -> u64) -> Vec<DeviceRequest> {
    let mut seen = Vec::new();
    guest.cpu.rip = CODE;
    loop {
        match guest.cpu.advance(&mut Nothing, 100) {
            Stop::Attention => {}
            Stop::Halt => return seen,
            Stop::Device(request) => {
                seen.push(request);
                let value = match request {
                    DeviceRequest::MemoryRead { address, .. } => read(address),
                    _ => 0,
                };
                guest.cpu.answer(request, value);
            }
            stop => panic!("{stop:?}"),
        }
    }
}

/// Instructions with more than one access to a device make each of them once.
#[test]
fn device_accesses_happen_once() {
    let mut guest = guest();
    let code = assemble(64, CODE, |a| {
        a.mov(rbx, DEVICE)?;
        a.add(dword_ptr(rbx), 5)?;
        a.mov(rsi, DEVICE + 8)?;
        a.mov(rdi, DEVICE + 16)?;
        a.mov(ecx, 2)?;
        a.rep().movsw()?;
        a.lock().xadd(word_ptr(rbx), dx)?;
        a.hlt()
    });
    guest.put(CODE, &code);
    guest.cpu.gpr[reg::RDX] = 0x100;
    let mut next = 0;
    let seen = serve(&mut guest, |_| {
        next += 1;
        next
    });
    let read = |offset, size| DeviceRequest::MemoryRead {
        address: DEVICE_PHYSICAL + offset,
        size,
    };
    let write = |offset, size, value| DeviceRequest::MemoryWrite {
        address: DEVICE_PHYSICAL + offset,
        size,
        value,
    };
    assert_eq!(
        seen,
        [
            read(0, 4),
            write(0, 4, 6),
            read(8, 2),
            write(16, 2, 2),
            read(10, 2),
            write(18, 2, 3),
            read(0, 2),
            write(0, 2, 0x104),
        ]
    );
    assert_eq!(guest.cpu.gpr[reg::RDX], 4);
    assert_eq!(guest.cpu.gpr[reg::RCX], 0);
}

/// On processors without TZCNT and LZCNT they are BSF and BSR, not #UD.
#[test]
fn counts_of_zeros_are_never_undefined() {
    let mut guest = guest();
    guest.cpu.features = x86::FeatureSet::default();
    run(&mut guest, |a| {
        a.mov(ecx, 0x80)?;
        a.tzcnt(eax, ecx)?;
        a.lzcnt(edx, ecx)?;
        a.hlt()
    });
    assert_eq!(guest.cpu.gpr[reg::RAX], 7);
    assert_eq!(guest.cpu.gpr[reg::RDX], 7);
}
