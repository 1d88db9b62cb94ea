//! Branches, calls, arithmetic, short loads and stores.

use std::hint::black_box;

use crate::{Random, Work, mix};

/// Data-dependent branches, then a bit-serial CRC.
pub fn collatz_crc() -> Work {
    Work::new(|| {
        let mut steps = 0_u64;
        for start in 1..black_box(40_000_u64) {
            let mut n = start;
            while n != 1 {
                n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
                steps += 1;
            }
        }
        let mut crc = u32::MAX;
        for byte in 0..black_box(200_000_u32) {
            crc ^= byte & 0xff;
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        mix(steps, u64::from(crc))
    })
}

/// SHA-256 (FIPS 180-4) of a few hundred kilobytes, with no special instructions.
pub fn sha256() -> Work {
    let mut random = Random::new(2);
    let data: Vec<u8> = (0..64 * 6000).map(|_| random.byte()).collect();
    let constants = round_constants();
    Work::new(move || {
        let mut state = initial_state();
        for block in black_box(&data).chunks_exact(64) {
            compress(&mut state, block, &constants);
        }
        state.iter().fold(0, |all, word| mix(all, u64::from(*word)))
    })
}

const PRIMES: [u32; 64] = [
    2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193,
    197, 199, 211, 223, 227, 229, 233, 239, 241, 251, 257, 263, 269, 271, 277, 281, 283, 293, 307,
    311,
];

/// The first 32 bits of the fraction of a root.
fn fraction(root: impl Fn(u128) -> u128, prime: u32) -> u32 {
    root(u128::from(prime)) as u32
}

/// The largest number whose `power`th power is not above `value`.
fn integer_root(value: u128, power: u32) -> u128 {
    let (mut low, mut high) = (0_u128, 1_u128 << 37);
    while low + 1 < high {
        let middle = low.midpoint(high);
        let fits = middle.checked_pow(power).is_some_and(|p| p <= value);
        if fits { low = middle } else { high = middle }
    }
    low
}

fn round_constants() -> [u32; 64] {
    PRIMES.map(|prime| fraction(|p| integer_root(p << 96, 3), prime))
}

fn initial_state() -> [u32; 8] {
    std::array::from_fn(|i| fraction(|p| integer_root(p << 64, 2), PRIMES[i]))
}

fn compress(state: &mut [u32; 8], block: &[u8], constants: &[u32; 64]) {
    let mut schedule = [0_u32; 64];
    for (word, bytes) in schedule.iter_mut().zip(block.chunks_exact(4)) {
        *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    for t in 16..64 {
        let (a, b) = (schedule[t - 15], schedule[t - 2]);
        let small0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
        let small1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
        schedule[t] = schedule[t - 16]
            .wrapping_add(small0)
            .wrapping_add(schedule[t - 7])
            .wrapping_add(small1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (word, constant) in schedule.iter().zip(constants) {
        let big1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let first = h
            .wrapping_add(big1)
            .wrapping_add(choice)
            .wrapping_add(*constant)
            .wrapping_add(*word);
        let big0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let second = big0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e) = (g, f, e, d.wrapping_add(first));
        (d, c, b, a) = (c, b, a, first.wrapping_add(second));
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *old = old.wrapping_add(new);
    }
}

/// Quicksort that compares through a pointer, as C's does.
pub fn quicksort() -> Work {
    let mut random = Random::new(3);
    let numbers: Vec<u32> = (0..150_000).map(|_| random.next() as u32).collect();
    Work::new(move || {
        let mut numbers = numbers.clone();
        let compare: fn(&u32, &u32) -> bool = black_box(|a, b| a < b);
        sort(&mut numbers, compare);
        numbers
            .iter()
            .step_by(97)
            .fold(0, |all, n| mix(all, u64::from(*n)))
    })
}

fn sort(part: &mut [u32], less: fn(&u32, &u32) -> bool) {
    if part.len() < 2 {
        return;
    }
    let pivot = part[part.len() / 2];
    let (mut left, mut right) = (0, part.len() - 1);
    loop {
        while less(&part[left], &pivot) {
            left += 1;
        }
        while less(&pivot, &part[right]) {
            right -= 1;
        }
        if left >= right {
            break;
        }
        part.swap(left, right);
        left += 1;
        right -= 1;
    }
    let (low, high) = part.split_at_mut(left);
    sort(low, less);
    sort(high, less);
}

/// Numbers, words and quoted strings out of a text, byte by byte.
pub fn parse() -> Work {
    let mut random = Random::new(4);
    let mut text = String::new();
    for line in 0..20_000 {
        let key = random.below(1000);
        let value = random.next() >> (random.below(60) as u32);
        text.push_str(&format!("key{key} = {value}, \"item {line}\"; # note\n"));
    }
    let text = text.into_bytes();
    Work::new(move || {
        let text = black_box(&text[..]);
        let (mut at, mut result) = (0, 0_u64);
        while let Some(&byte) = text.get(at) {
            match byte {
                b'0'..=b'9' => {
                    let mut number = 0_u64;
                    while let Some(digit @ b'0'..=b'9') = text.get(at) {
                        number = number
                            .wrapping_mul(10)
                            .wrapping_add(u64::from(digit - b'0'));
                        at += 1;
                    }
                    result = mix(result, number);
                }
                b'a'..=b'z' => {
                    let mut hash = 5381_u32;
                    while let Some(letter @ (b'a'..=b'z' | b'0'..=b'9')) = text.get(at) {
                        hash = hash.wrapping_mul(33) ^ u32::from(*letter);
                        at += 1;
                    }
                    result = mix(result, u64::from(hash));
                }
                b'"' => {
                    let begin = at;
                    at += 1;
                    while text.get(at).is_some_and(|b| *b != b'"') {
                        at += 1;
                    }
                    at += 1;
                    result ^= (at - begin) as u64;
                }
                b'#' => {
                    while text.get(at).is_some_and(|b| *b != b'\n') {
                        at += 1;
                    }
                }
                _ => at += 1,
            }
        }
        result
    })
}

/// Calls and returns.
pub fn fib() -> Work {
    #[inline(never)]
    fn fib(n: u32) -> u64 {
        if black_box(n) < 2 {
            return u64::from(n);
        }
        fib(n - 1) + fib(n - 2)
    }
    Work::new(|| fib(black_box(30)))
}
