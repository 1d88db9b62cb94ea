//! Compiled code: functions of this very test, run by the interpreter in user mode. Every page of
//! them comes from the process at the first access to it, so each kind of instruction faults and
//! starts again now and then. What a function returns here is what it returns on the host.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use x86::cr::cr4;

use super::guest::{Guest, TABLES};
use crate::state::{reg, seg};
use crate::testing::Nothing;
use crate::{Exception, Stop};

/// Top of a stack of zeros, where no process has anything.
const STACK: u64 = 0x20_0010_0000;
const STACK_SIZE: u64 = 1 << 20;
/// Where functions return to.
const RETURN: u64 = 0x30_0000_0000;
/// Guest-physical pages from here to the page tables are for copies.
const COPIES: u64 = 0x2000;
const LIBRARY_PAGE: u64 = 0x1000;

type Function = extern "C" fn(u64) -> u64;

/// What stands for functions of the C library, which would use whatever processor they find.
const LIBRARY: u64 = 0x30_0010_0000;

/// `memcpy` and `memset` by their addresses, and code that does the same.
fn library() -> [(u64, &'static [u8]); 2] {
    [
        // mov rax,rdi; mov rcx,rdx; rep movsb; ret
        (
            libc::memcpy as *const () as u64,
            &[0x48, 0x89, 0xf8, 0x48, 0x89, 0xd1, 0xf3, 0xa4, 0xc3],
        ),
        // push rdi; mov eax,esi; mov rcx,rdx; rep stosb; pop rax; ret
        (
            libc::memset as *const () as u64,
            &[0x57, 0x89, 0xf0, 0x48, 0x89, 0xd1, 0xf3, 0xaa, 0x58, 0xc3],
        ),
    ]
}

/// Runs a function that takes a number, makes no system calls and calls nothing of the C library
/// but `memcpy` and `memset`.
fn interpreted(function: Function, argument: u64) -> u64 {
    let identity: Vec<_> = (0..1024).map(|n| (n << 12, n << 12)).collect();
    let mut guest = Guest::long(&[]);
    guest.cpu.cr0 &= !x86::cr::cr0::PG;
    guest.cpu.update_mode();
    for (linear, physical) in identity {
        guest.map(linear, physical, 3);
    }
    let cpu = &mut guest.cpu;
    cpu.cr0 |= x86::cr::cr0::PG;
    cpu.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    for segment in [seg::CS, seg::SS] {
        cpu.segs[segment].attributes |= 3 << 5;
    }
    cpu.update_mode();
    cpu.rip = function as usize as u64;
    cpu.gpr[reg::RDI] = argument;
    cpu.gpr[reg::RSP] = STACK - 8;

    let process = File::open("/proc/self/mem").expect("this process's memory");
    let mut free = COPIES;
    let mut bring = |guest: &mut Guest, address: u64| {
        let page = address & !0xfff;
        let mut bytes = [0; 4096];
        if !(STACK - STACK_SIZE..STACK).contains(&page) {
            let read = process.read_exact_at(&mut bytes, page);
            read.unwrap_or_else(|e| panic!("{address:x} at {:x}: {e}", guest.cpu.rip));
        }
        assert!(free < TABLES, "too many pages");
        guest.put(free, &bytes);
        guest.map(page, free, 7);
        free += 0x1000;
    };
    // The return address.
    bring(&mut guest, STACK - 8);
    guest.put(STACK - 8, &RETURN.to_le_bytes());
    let library = library();
    guest.map(LIBRARY, LIBRARY_PAGE, 5);
    for (n, (_, code)) in library.iter().enumerate() {
        guest.put(LIBRARY_PAGE + 64 * n as u64, code);
    }
    loop {
        if let Some(n) = library.iter().position(|(at, _)| *at == guest.cpu.rip) {
            guest.cpu.rip = LIBRARY + 64 * n as u64;
        }
        match guest.cpu.step(&mut Nothing) {
            Ok(()) => {}
            Err(Stop::Exception(e)) if e.vector == Exception::PF => {
                if guest.cpu.rip == RETURN {
                    return guest.cpu.gpr[reg::RAX];
                }
                bring(&mut guest, e.payload);
            }
            Err(stop) => panic!("{stop:?} at {:x}", guest.cpu.rip),
        }
    }
}

fn check(function: Function, arguments: &[u64]) {
    for argument in arguments {
        assert_eq!(
            interpreted(function, *argument),
            function(*argument),
            "{argument}"
        );
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Heap sort, and a digest of the order.
extern "C" fn sorted(seed: u64) -> u64 {
    fn sift(heap: &mut [u32], mut root: usize) {
        loop {
            let mut child = 2 * root + 1;
            if child >= heap.len() {
                return;
            }
            if child + 1 < heap.len() && heap[child] < heap[child + 1] {
                child += 1;
            }
            if heap[root] >= heap[child] {
                return;
            }
            heap.swap(root, child);
            root = child;
        }
    }
    let mut seed = seed;
    let mut numbers = [0_u32; 500];
    for number in &mut numbers {
        *number = next(&mut seed) as u32;
    }
    for root in (0..250).rev() {
        sift(&mut numbers, root);
    }
    for end in (1..500).rev() {
        numbers.swap(0, end);
        sift(&mut numbers[..end], 0);
    }
    let mut digest = 0_u64;
    for pair in numbers.windows(2) {
        assert!(pair[0] <= pair[1]);
        digest = digest.rotate_left(5) ^ u64::from(pair[0]);
    }
    digest
}

/// Rotations, additions and logic, as hashes and ciphers have them.
extern "C" fn mixed(seed: u64) -> u64 {
    let mut seed = seed;
    let mut state = [0_u32; 16];
    for word in &mut state {
        *word = next(&mut seed) as u32;
    }
    let quarter = |s: &mut [u32; 16], [a, b, c, d]: [usize; 4]| {
        s[a] = s[a].wrapping_add(s[b]);
        s[d] = (s[d] ^ s[a]).rotate_left(16);
        s[c] = s[c].wrapping_add(s[d]);
        s[b] = (s[b] ^ s[c]).rotate_left(12);
        s[a] = s[a].wrapping_add(s[b]);
        s[d] = (s[d] ^ s[a]).rotate_left(8);
        s[c] = s[c].wrapping_add(s[d]);
        s[b] = (s[b] ^ s[c]).rotate_left(7);
    };
    for _ in 0..40 {
        for n in 0..4 {
            quarter(&mut state, [n, n + 4, n + 8, n + 12]);
        }
        for n in 0..4 {
            let around = |m: usize| (n + m) % 4 + 4 * m;
            quarter(&mut state, [n, around(1), around(2), around(3)]);
        }
    }
    state
        .iter()
        .fold(0, |all, word| all.rotate_left(9) ^ u64::from(*word))
}

/// Numbers of 128 bits: multiplication, division and remainder, signed and unsigned.
extern "C" fn wide(seed: u64) -> u64 {
    let mut seed = seed;
    let mut digest = 0_u64;
    for n in 0..60 {
        let a = u128::from(next(&mut seed)) << 64 | u128::from(next(&mut seed));
        let b = (u128::from(next(&mut seed)) << 64 | 1) >> (n * 2);
        let (quotient, remainder) = (a / b, a % b);
        let signed = (a as i128).wrapping_div(-(b as i128 >> 1) | 1);
        assert_eq!(quotient * b + remainder, a);
        let all = quotient ^ remainder ^ signed as u128;
        digest = digest.rotate_left(3) ^ all as u64 ^ (all >> 64) as u64;
    }
    digest
}

/// Floating point: an orbit, with square roots, comparisons and conversions.
extern "C" fn floating(steps: u64) -> u64 {
    let (mut x, mut y, mut vx, mut vy) = (1.0_f64, 0.0_f64, 0.0_f64, 1.1_f64);
    let mut turns = 0_i32;
    for n in 0..steps {
        let distance = (x * x + y * y).sqrt();
        let pull = -0.01 / (distance * distance * distance);
        vx += x * pull;
        vy += y * pull;
        let before = y;
        x += vx * 0.01;
        y += vy * 0.01;
        if before < 0.0 && y >= 0.0 {
            turns += 1;
        }
        x += f64::from(n as u32 as f32) * 1e-12;
    }
    x.to_bits() ^ y.to_bits().rotate_left(1) ^ (f64::from(turns) + 0.5) as u64
}

/// Calls through tables, jumps by tables, recursion, and atomic operations.
extern "C" fn structured(seed: u64) -> u64 {
    trait Node {
        fn value(&self, depth: u64) -> u64;
    }
    struct Leaf(u64);
    struct Sum<'a>(&'a dyn Node, &'a dyn Node);
    struct Product<'a>(&'a dyn Node, &'a AtomicU64);
    impl Node for Leaf {
        fn value(&self, depth: u64) -> u64 {
            match (self.0 ^ depth) % 9 {
                0 => depth,
                1 => self.0,
                2 => self.0.count_ones().into(),
                3 => self.0.leading_zeros().into(),
                4 => self.0.swap_bytes(),
                5 => self.0.reverse_bits(),
                6 => !self.0,
                7 => self.0.trailing_zeros().into(),
                _ => self.0.isqrt(),
            }
        }
    }
    impl Node for Sum<'_> {
        fn value(&self, depth: u64) -> u64 {
            self.0
                .value(depth + 1)
                .wrapping_add(self.1.value(depth + 1))
        }
    }
    impl Node for Product<'_> {
        fn value(&self, depth: u64) -> u64 {
            let count = self.1.fetch_add(depth, Ordering::SeqCst);
            let swap = self
                .1
                .compare_exchange(7, 1000, Ordering::SeqCst, Ordering::Relaxed);
            let own = self.0.value(depth + 1).wrapping_mul(count | 1);
            match swap {
                Ok(_) if depth < 20 => own ^ self.value(depth + 1),
                _ => own ^ self.1.swap(count + 1, Ordering::AcqRel),
            }
        }
    }
    let mut seed = seed;
    let mut digest = 0_u64;
    let counter = AtomicU64::new(1);
    for _ in 0..40 {
        let leaves = [0; 3].map(|_: u8| Leaf(next(&mut seed)));
        let product = Product(&leaves[0], &counter);
        let inner = Sum(&product, &leaves[1]);
        let outer = Sum(&inner, &leaves[2]);
        let twice = Sum(&outer, &product);
        digest = digest.rotate_left(11) ^ twice.value(seed % 5);
    }
    digest ^ counter.load(Ordering::SeqCst)
}

#[test]
fn sorting() {
    check(sorted, &[1, 0xdead_beef]);
}

#[test]
fn mixing() {
    check(mixed, &[1, 2, 0x1234_5678_9abc_def0]);
}

#[test]
fn wide_numbers() {
    check(wide, &[3, 0xffff_ffff_0000_0001]);
}

#[test]
fn floating_point() {
    check(floating, &[2, 300]);
}

#[test]
fn structures() {
    check(structured, &[5, 77]);
}
