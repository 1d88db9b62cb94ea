//! Forgetting translations.

use crate::mmu::{OFFSET, TLB_ENTRIES, Tlb, TlbEntry, VIEWS, slot};
use crate::state::Cpu;

const WORDS: usize = TLB_ENTRIES / 64;

/// What the soft TLB holds, so that flushes are short.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    views: [Slots; VIEWS],
    /// Large pages of which pieces were entered, in the lower and in the upper half of the
    /// address space.
    large: [Option<Large>; 2],
}

/// What one view holds.
#[derive(Debug, Clone)]
struct Slots {
    /// Words of the next that are not zero: a bit each.
    words: u128,
    /// Slots in use: a bit each.
    used: [u64; WORDS],
    /// Those among them with global pages.
    global: [u64; WORDS],
    /// Those among them with pieces of large pages.
    large: [u64; WORDS],
}

const _: () = assert!(WORDS <= 128);

impl Default for Filled {
    fn default() -> Self {
        let slots = Slots {
            words: 0,
            used: [0; WORDS],
            global: [0; WORDS],
            large: [0; WORDS],
        };
        Filled {
            views: std::array::from_fn(|_| slots.clone()),
            large: [None; 2],
        }
    }
}

/// Where large pages were: all of them agree with `base` in the bits of `mask`.
#[derive(Debug, Clone, Copy)]
struct Large {
    base: u64,
    mask: u64,
    /// Bytes of the largest.
    size: u64,
}

impl Filled {
    pub(super) fn add(&mut self, view: usize, slot: usize, global: bool, large: bool) {
        let (word, bit) = (slot / 64, slot % 64);
        let slots = &mut self.views[view];
        slots.words |= 1 << word;
        slots.used[word] |= 1 << bit;
        let put = |word: &mut u64, on: bool| *word = *word & !(1 << bit) | u64::from(on) << bit;
        put(&mut slots.global[word], global);
        put(&mut slots.large[word], large);
    }

    pub(super) fn add_large(&mut self, linear: u64, size: u64) {
        let known = &mut self.large[(linear >> 63) as usize];
        let mut mask = !(size - 1);
        let mut largest = size;
        let base = known.map_or(linear, |large| large.base);
        if let Some(large) = known {
            mask &= large.mask;
            largest = largest.max(large.size);
            while (base ^ linear) & mask != 0 {
                mask <<= 1;
            }
        }
        *known = Some(Large {
            base: base & mask,
            mask,
            size: largest,
        });
    }

    /// Bytes, a power of two, around this address that an entry may have mapped.
    fn reach(&self, linear: u64) -> u64 {
        match self.large[(linear >> 63) as usize] {
            Some(large) if (linear ^ large.base) & large.mask == 0 => large.size,
            _ => OFFSET + 1,
        }
    }
}

/// Calls `f` with all entries that are in use.
fn each(tlb: &mut Tlb, filled: &Filled, mut f: impl FnMut(usize, &mut TlbEntry)) {
    for (view, slots) in tlb.iter_mut().zip(&filled.views) {
        bits(slots.words, |word| {
            bits(slots.used[word].into(), |bit| {
                let slot = word * 64 + bit;
                f(slot, &mut view[slot]);
            });
        });
    }
}

/// Calls `f` with the numbers of the bits that are set.
#[inline]
fn bits(mut left: u128, mut f: impl FnMut(usize)) {
    while left != 0 {
        f(left.trailing_zeros() as usize);
        left &= left - 1;
    }
}

impl Cpu {
    /// Forgets all translations.
    pub fn flush_tlb(&mut self) {
        each(&mut self.tlb, &self.filled, |slot, entry| {
            *entry = TlbEntry::never(slot);
        });
        self.filled = Filled::default();
        self.fetch.flush();
    }

    /// Forgets all translations but those of global pages, as a new CR3 demands (SDM vol. 3A
    /// 4.10.4.1).
    pub fn flush_local(&mut self) {
        for (view, slots) in self.tlb.iter_mut().zip(&mut self.filled.views) {
            let Slots {
                words,
                used,
                global,
                ..
            } = slots;
            bits(*words, |word| {
                let local = used[word] & !global[word];
                bits(local.into(), |bit| {
                    let slot = word * 64 + bit;
                    view[slot] = TlbEntry::never(slot);
                });
                used[word] = global[word];
                if used[word] == 0 {
                    *words &= !(1 << word);
                }
            });
        }
        self.fetch.flush_local();
    }

    /// Forgets the translations of the page, of whatever size, that this linear address is in.
    pub fn flush_page(&mut self, linear: u64) {
        let reach = self.filled.reach(linear);
        let exact = slot(linear);
        for (view, slots) in self.tlb.iter_mut().zip(&self.filled.views) {
            if view[exact].read == linear & !OFFSET {
                view[exact] = TlbEntry::never(exact);
            }
            if reach == OFFSET + 1 {
                continue;
            }
            // Which pieces the page had is no longer known: all that it may have had.
            let first = slot(linear & !(reach - 1)) / 64;
            let words = (reach >> 12) as usize / 64;
            for word in (first..first + words.clamp(1, WORDS)).map(|word| word % WORDS) {
                bits((slots.used[word] & slots.large[word]).into(), |bit| {
                    let slot = word * 64 + bit;
                    if (view[slot].read ^ linear) & !(reach - 1) == 0 {
                        view[slot] = TlbEntry::never(slot);
                    }
                });
            }
        }
        self.fetch.flush_page(linear, reach);
    }

    /// Makes stores to this guest-physical page miss: it holds code now. Tells whether stores
    /// would have hit until now, so that some since it holds code may have gone untold
    /// ([`crate::CodePages::written`] of the whole page tells them).
    pub fn drop_writes(&mut self, page: u64) -> bool {
        let page = page & !OFFSET;
        let mut open = false;
        each(&mut self.tlb, &self.filled, |slot, entry| {
            if entry.physical == page {
                let never = TlbEntry::never(slot).write;
                open |= entry.write != never;
                entry.write = never;
            }
        });
        open
    }
}
