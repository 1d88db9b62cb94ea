//! Loads that depend on each other, and copies.

use std::hint::black_box;
use std::ptr;

use crate::{Random, Work, mix};

/// A cache line that names the next one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Node {
    next: usize,
}

/// Follows a chain through all lines of `bytes` in an order that cannot be foreseen.
pub fn chase(bytes: usize, steps: u32) -> Work {
    let count = bytes / size_of::<Node>();
    let mut random = Random::new(5);
    // Sattolo's shuffle: one cycle through all.
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last));
    }
    let nodes: Vec<Node> = order.into_iter().map(|next| Node { next }).collect();
    Work::new(move || {
        let nodes = black_box(&nodes[..]);
        (0..steps).fold(0, |at, _| nodes[at].next) as u64
    })
}

/// Copies 256 KiB `times` times, element by element.
pub fn copy<T: Copy + Default + 'static>(times: u32) -> Work {
    const BYTES: usize = 256 << 10;
    let count = BYTES / size_of::<T>();
    let mut random = Random::new(6);
    let mut source = vec![T::default(); count];
    let bytes: Vec<u8> = (0..BYTES).map(|_| random.byte()).collect();
    // SAFETY: both have this many bytes, and every bit pattern is a value of u8 and u64.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), source.as_mut_ptr().cast(), BYTES) };
    let mut target = vec![T::default(); count];
    Work::new(move || {
        for _ in 0..times {
            for (to, from) in target.iter_mut().zip(&source) {
                // SAFETY: both are references. Volatile, so that it stays a loop of these loads
                // and stores.
                unsafe { ptr::write_volatile(to, ptr::read_volatile(from)) };
            }
        }
        // SAFETY: as above, the target has this many bytes.
        let bytes = unsafe { std::slice::from_raw_parts(target.as_ptr().cast::<u8>(), BYTES) };
        sample(bytes)
    })
}

/// The C library's memcpy, pieces of 1 MiB within 32 MiB.
pub fn memcpy() -> Work {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 16;
    let mut random = Random::new(7);
    let mut memory: Vec<u8> = (0..PIECE * PIECES).map(|_| random.byte()).collect();
    memory.resize(2 * PIECE * PIECES, 0);
    let mut work = Work::new(move || {
        let (from, to) = black_box(&mut memory).split_at_mut(PIECE * PIECES);
        for (to, from) in to.chunks_exact_mut(PIECE).zip(from.chunks_exact(PIECE)) {
            to.copy_from_slice(from);
        }
        sample(to)
    });
    work.things = (PIECE * PIECES) as f64;
    work
}

fn sample(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(1021)
        .fold(0, |all, byte| mix(all, u64::from(*byte)))
}
