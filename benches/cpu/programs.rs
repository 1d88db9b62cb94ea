//! Mixes of work that are like the well-known benchmarks, but are not them.

use std::hint::black_box;

use crate::{Random, Work, mix};

/// Instructions of a machine with a stack.
#[derive(Clone, Copy)]
enum Op {
    Push(i64),
    Load(usize),
    Store(usize),
    Add,
    Subtract,
    Multiply,
    Remainder,
    Less,
    JumpIfZero(usize),
    Jump(usize),
    End,
}

/// An interpreter of byte code that counts primes: indirect jumps.
pub fn bytecode() -> Work {
    use Op::*;
    // 0: candidate, 1: divisor, 2: found
    let program = [
        Push(2),
        Store(0),
        // 2: while candidate < 3000
        Load(0),
        Push(3000),
        Less,
        JumpIfZero(34),
        Push(2),
        Store(1),
        // 8: while divisor * divisor < candidate + 1
        Load(1),
        Load(1),
        Multiply,
        Load(0),
        Push(1),
        Add,
        Less,
        JumpIfZero(25),
        // 16: a divisor found ends the search
        Load(0),
        Load(1),
        Remainder,
        JumpIfZero(29),
        Load(1),
        Push(1),
        Add,
        Store(1),
        Jump(8),
        // 25: a prime
        Load(2),
        Load(0),
        Add,
        Store(2),
        // 29: the next candidate
        Load(0),
        Push(-1),
        Subtract,
        Store(0),
        Jump(2),
        // 34
        End,
    ];
    Work::new(move || {
        let program = black_box(&program[..]);
        let mut result = 0;
        for _ in 0..16 {
            result = mix(result, interpret(program));
        }
        result
    })
}

fn interpret(program: &[Op]) -> u64 {
    let mut variables = [0_i64; 4];
    let mut stack = Vec::with_capacity(16);
    let mut at = 0;
    loop {
        let op = program[at];
        at += 1;
        match op {
            Op::Push(value) => stack.push(value),
            Op::Load(number) => stack.push(variables[number]),
            Op::Store(number) => variables[number] = stack.pop().unwrap_or(0),
            Op::Jump(to) => at = to,
            Op::JumpIfZero(to) => {
                if stack.pop() == Some(0) {
                    at = to;
                }
            }
            Op::End => return variables[2] as u64,
            Op::Add | Op::Subtract | Op::Multiply | Op::Remainder | Op::Less => {
                let right = stack.pop().unwrap_or(1);
                let left = stack.pop().unwrap_or(0);
                stack.push(match op {
                    Op::Add => left + right,
                    Op::Subtract => left - right,
                    Op::Multiply => left * right,
                    Op::Remainder => left % right,
                    _ => i64::from(left < right),
                });
            }
        }
    }
}

#[derive(Clone)]
struct Record {
    next: usize,
    kind: Kind,
    number: i32,
    name: [u8; 32],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Red,
    Green,
    Blue,
}

/// Records, short strings, small procedures: what Dhrystone has.
pub fn records() -> Work {
    let names = [
        *b"THE FIRST OF SEVERAL NAMES HERE ",
        *b"THE FIRST OF SEVERAL NAMES THERE",
    ];
    let start = Record {
        next: 0,
        kind: Kind::Red,
        number: 0,
        name: names[0],
    };
    Work::new(move || {
        let mut all = vec![start.clone(); 8];
        let mut table = [[0_i32; 16]; 16];
        let mut result = 0_u64;
        for round in 0..black_box(400_000_i32) {
            let here = (round & 7) as usize;
            let there = follow(&all, here);
            assign(&mut all, here, there, round);
            fill(&mut table, (round & 15) as usize, round);
            let name = &names[usize::from(round % 3 == 0)];
            if compare(&all[here].name, name) {
                all[here].kind = turn(all[here].kind);
                all[there].name = *name;
            } else {
                all[here].name[..8].copy_from_slice(&name[24..]);
                all[there].name = names[1];
            }
            result = result.wrapping_add(all[here].number as u64);
        }
        table
            .iter()
            .flatten()
            .fold(result, |all, n| mix(all, *n as u64))
    })
}

#[inline(never)]
fn follow(all: &[Record], at: usize) -> usize {
    let next = all[at].next;
    if all[next].kind == Kind::Blue {
        at
    } else {
        next
    }
}

#[inline(never)]
fn assign(all: &mut [Record], here: usize, there: usize, round: i32) {
    all[here].next = (there + 3) & 7;
    all[here].number = all[there].number / 3 + round % 7;
    if all[here].kind != all[there].kind {
        let other = all[there].clone();
        all[here].number ^= other.number + 5;
        all[here].kind = other.kind;
    }
}

#[inline(never)]
fn fill(table: &mut [[i32; 16]; 16], row: usize, value: i32) {
    let column = (row * 5 + 3) & 15;
    table[row][column] = value;
    table[row][(column + 1) & 15] = table[(row + 7) & 15][column];
    table[(row + 9) & 15][column] += 1;
}

#[inline(never)]
fn compare(left: &[u8; 32], right: &[u8; 32]) -> bool {
    left.iter().zip(right).all(|(a, b)| black_box(a) == b)
}

#[inline(never)]
fn turn(kind: Kind) -> Kind {
    match kind {
        Kind::Red => Kind::Green,
        Kind::Green => Kind::Blue,
        Kind::Blue => Kind::Red,
    }
}

/// A linked list, a matrix of integers, a state machine, a CRC: what CoreMark has.
pub fn embedded() -> Work {
    let mut random = Random::new(11);
    let values: Vec<u16> = (0..600).map(|_| random.next() as u16).collect();
    let matrix: Vec<i16> = (0..32 * 32).map(|_| (random.next() >> 50) as i16).collect();
    let mut text = String::new();
    for _ in 0..250 {
        match random.below(4) {
            0 => text.push_str(&format!("{},", random.below(10_000))),
            1 => text.push_str(&format!("-{}.{},", random.below(99), random.below(99))),
            2 => text.push_str(&format!("{}e+{},", random.below(9), random.below(30))),
            _ => text.push_str("T0x?,"),
        }
    }
    let text = text.into_bytes();
    Work::new(move || {
        let mut crc = 0;
        for round in 0..50 {
            crc = list(black_box(&values), round, crc);
            crc = product(black_box(&matrix), round, crc);
            crc = states(black_box(&text), round, crc);
        }
        u64::from(crc)
    })
}

/// Bit by bit, polynomial 0x8005 reversed.
fn crc16(mut crc: u16, value: u16) -> u16 {
    crc ^= value;
    for _ in 0..16 {
        crc = (crc >> 1) ^ (0xa001 & (crc & 1).wrapping_neg());
    }
    crc
}

const NONE: usize = usize::MAX;

/// Makes a list, reverses it, looks for values, and sorts it by merging.
fn list(values: &[u16], round: u16, crc: u16) -> u16 {
    let mut next: Vec<usize> = (1..=values.len()).collect();
    next[values.len() - 1] = NONE;
    let (mut at, mut head) = (0, NONE);
    while at != NONE {
        (next[at], head, at) = (head, at, next[at]);
    }
    let mut crc = crc;
    for offset in 0..8 {
        let wanted = values[usize::from(round * 11 + offset * 70) % values.len()];
        let mut at = head;
        while at != NONE && values[at] != wanted {
            at = next[at];
        }
        crc = crc16(crc, at as u16);
    }
    let mut at = merge_sort(values, &mut next, head, values.len());
    let mut number = 0;
    while at != NONE {
        number += 1;
        if number % 9 == 0 {
            crc = crc16(crc, values[at]);
        }
        at = next[at];
    }
    crc
}

/// Sorts `count` of the list that begins at `head`; the last one's next is NONE.
fn merge_sort(values: &[u16], next: &mut [usize], head: usize, count: usize) -> usize {
    if count == 1 {
        next[head] = NONE;
        return head;
    }
    let half = count / 2;
    let mut middle = head;
    for _ in 0..half {
        middle = next[middle];
    }
    let mut left = merge_sort(values, next, head, half);
    let mut right = merge_sort(values, next, middle, count - half);
    let (mut first, mut last) = (NONE, NONE);
    while left != NONE || right != NONE {
        let is_left = right == NONE || (left != NONE && values[left] <= values[right]);
        let from = if is_left { &mut left } else { &mut right };
        let taken = *from;
        *from = next[taken];
        if last == NONE {
            first = taken;
        } else {
            next[last] = taken;
        }
        last = taken;
    }
    next[last] = NONE;
    first
}

fn product(matrix: &[i16], round: u16, crc: u16) -> u16 {
    const N: usize = 32;
    let mut crc = crc;
    for row in 0..N {
        for column in 0..N {
            let mut sum = i32::from(round);
            for k in 0..N {
                let (a, b) = (matrix[row * N + k], matrix[k * N + column]);
                sum = sum.wrapping_add(i32::from(a).wrapping_mul(i32::from(b)));
            }
            if column % 16 == 0 {
                crc = crc16(crc, (sum >> 3) as u16);
            }
        }
    }
    crc
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    Sign,
    Integer,
    Fraction,
    Exponent,
    Power,
    Invalid,
}

fn states(text: &[u8], round: u16, crc: u16) -> u16 {
    let mut counts = [0_u16; 7];
    let mut state = State::Start;
    for (number, &byte) in text.iter().enumerate() {
        // A few bytes are damaged, others in each round.
        let byte = if number % 61 == usize::from(round) {
            byte ^ 0x11
        } else {
            byte
        };
        state = match (state, byte) {
            (last, b',') => {
                counts[last as usize] += 1;
                State::Start
            }
            (State::Start, b'+' | b'-') => State::Sign,
            (State::Start | State::Sign | State::Integer, b'0'..=b'9') => State::Integer,
            (State::Integer, b'.') => State::Fraction,
            (State::Integer | State::Fraction, b'e') => State::Exponent,
            (State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Exponent, b'+' | b'-') => State::Power,
            (State::Exponent | State::Power, b'0'..=b'9') => State::Power,
            _ => State::Invalid,
        };
    }
    counts.iter().fold(crc, |crc, count| crc16(crc, *count))
}
