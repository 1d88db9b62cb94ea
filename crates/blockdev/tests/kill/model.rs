//! What is written, and what may be there after a kill.

use crate::{BLOCK, SIZE};

/// Numbers that a seed determines (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds are far apart; never 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The writes of a seed, one after the other: the block, and the number that it is filled with; 0
/// is written as zeroes.
pub struct Writes {
    random: Random,
    seed: u64,
    number: u64,
}

impl Writes {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed ^ 0xb10c),
            seed,
            number: 0,
        }
    }
}

impl Iterator for Writes {
    type Item = (usize, u64);

    fn next(&mut self) -> Option<(usize, u64)> {
        self.number += 1;
        let block = self.random.below((SIZE / BLOCK) as u64) as usize;
        let value = match self.random.below(12) {
            0 => 0,
            _ => (self.seed << 24) ^ self.number,
        };
        Some((block, value))
    }
}

/// Checks a disk that had `before` when the writes of `seed` began: the first `flushed` of them
/// are there, unless later ones are.
pub fn check(now: &[u8], before: &[u8], seed: u64, flushed: usize) -> Result<(), String> {
    // No more than this can be on its way when there was no flush yet.
    let writes: Vec<_> = Writes::new(seed)
        .take(flushed + 2 * crate::child::EVERY)
        .collect();
    let mut allowed: Vec<Vec<u64>> = vec![Vec::new(); SIZE / BLOCK];
    let mut overwritten = vec![false; SIZE / BLOCK];
    for (index, (block, value)) in writes.into_iter().enumerate() {
        if index < flushed {
            allowed[block].clear();
            overwritten[block] = true;
        }
        allowed[block].push(value);
    }
    for block in 0..SIZE / BLOCK {
        let at = block * BLOCK;
        for sector in (at..at + BLOCK).step_by(512) {
            let bytes = &now[sector..sector + 512];
            let is_old = !overwritten[block] && bytes == &before[sector..sector + 512];
            let is_new = allowed[block].iter().any(|value| {
                let value = value.to_le_bytes();
                bytes.chunks(8).all(|chunk| chunk == value)
            });
            if !is_old && !is_new {
                let found = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
                return Err(format!(
                    "offset {sector:#x} has {found:#x}, may have {:x?}{}; {flushed} writes were \
                     flushed",
                    allowed[block],
                    if overwritten[block] {
                        ""
                    } else {
                        " or what it had"
                    },
                ));
            }
        }
    }
    Ok(())
}
