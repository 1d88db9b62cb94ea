//! The blocks that exist, by what they were made of and by page.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use processor::Mode;

/// What a block's code depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// With the offset in the page, which is that of the linear address.
    pub(crate) physical: u64,
    pub(crate) mode: Mode,
}

/// A block in the cache.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// Bytes of guest code.
    pub(crate) len: u16,
    /// Physical address of the next page, if the code goes on there.
    pub(crate) second: Option<u64>,
    /// Offset in the cache for entries that have to poll.
    pub(crate) entry: u32,
    /// Offset in the cache for direct jumps.
    pub(crate) body: u32,
    /// Jumps that lead here: their operand, and where it leads without the block.
    incoming: Vec<(u32, u32)>,
}

/// Keys are addresses: one multiplication spreads them.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct AddressHasher(u64);

impl Block {
    /// Whether it was made of any of these bytes.
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.ranges()
            .iter()
            .flatten()
            .any(|(first, len)| *first < end && start < first + len)
    }

    /// Physical addresses and lengths of its code.
    fn ranges(&self) -> [Option<(u64, u64)>; 2] {
        let (first, len) = (self.key.physical, u64::from(self.len));
        match self.second {
            None => [Some((first, len)), None],
            Some(second) => {
                let here = 4096 - first % 4096;
                [
                    Some((first, here)),
                    Some((second, len.saturating_sub(here))),
                ]
            }
        }
    }
}

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map by addresses.
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// The blocks of a physical page.
#[derive(Debug, Default)]
struct Page {
    /// Pieces of 64 bytes that blocks were made of.
    lines: u64,
    blocks: Vec<u32>,
    /// Stores into it that hit no block.
    vain: u32,
}

/// With so many stores that hit no block, a page is one of data rather than of code: its blocks
/// go, and stores to it are fast again.
const VAIN: u32 = 128;

/// Numbers of blocks that are found without the map.
const RECENT: usize = 1 << 16;

/// All blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// By a hash of the key, the block that was found there last.
    recent: Box<[Recent]>,
    list: Vec<Option<Block>>,
    by_key: Map<Key, u32>,
    pages: Map<u64, Page>,
}

fn recent(key: &Key) -> usize {
    (key.physical ^ key.physical >> 16 ^ u64::from(key.mode.0) << 5) as usize % RECENT
}

/// What a look-up finds, in one piece.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
struct Recent {
    key: Key,
    found: Found,
}

/// A block that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) number: u32,
    /// Offset for entries that have to poll; the lowest bit: it goes on in the next page.
    entry: u32,
}

impl Found {
    fn new(number: u32, block: &Block) -> Self {
        Found {
            number,
            entry: block.entry & !1 | u32::from(block.second.is_some()),
        }
    }

    /// Offset in the cache for entries that have to poll.
    pub(crate) fn entry(self) -> usize {
        (self.entry & !1) as usize
    }

    /// Whether its code goes on in the next page.
    pub(crate) fn crosses(self) -> bool {
        self.entry & 1 != 0
    }
}

/// No block.
const NOTHING: Recent = Recent {
    key: Key {
        physical: u64::MAX,
        mode: Mode(0),
    },
    found: Found {
        number: 0,
        entry: 0,
    },
};

impl Default for Blocks {
    fn default() -> Self {
        Blocks {
            recent: vec![NOTHING; RECENT].into_boxed_slice(),
            list: Vec::new(),
            by_key: Map::default(),
            pages: Map::default(),
        }
    }
}

fn lines(physical: u64, len: u64) -> u64 {
    let first = physical % 4096 / 64;
    let last = ((physical % 4096 + len.max(1) - 1) / 64).min(63);
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

impl Blocks {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// A block by its key.
    pub(crate) fn find(&mut self, key: Key) -> Option<Found> {
        let recent = self.recent.get_mut(recent(&key))?;
        if recent.key == key {
            return Some(recent.found);
        }
        let number = self.by_key.get(&key).copied()?;
        let block = self.list.get(number as usize)?.as_ref()?;
        let found = Found::new(number, block);
        *recent = Recent { key, found };
        Some(found)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Block> {
        self.list.get(number as usize)?.as_ref()
    }

    /// Whether a physical page has blocks.
    pub(crate) fn has_page(&self, physical: u64) -> bool {
        self.pages.contains_key(&(physical >> 12))
    }

    /// Enters a new block at these offsets, entry and body.
    pub(crate) fn insert(
        &mut self,
        key: Key,
        len: usize,
        second: Option<u64>,
        (entry, body): (usize, usize),
    ) -> Found {
        let number = self.list.len() as u32;
        let block = Block {
            key,
            len: len as u16,
            second,
            entry: entry as u32,
            body: body as u32,
            incoming: Vec::new(),
        };
        for (first, len) in block.ranges().into_iter().flatten() {
            let page = self.pages.entry(first >> 12).or_default();
            page.lines |= lines(first, len);
            page.blocks.push(number);
        }
        let found = Found::new(number, &block);
        self.recent[recent(&key)] = Recent { key, found };
        self.list.push(Some(block));
        self.by_key.insert(key, number);
        found
    }

    /// Takes out one block; its code goes on in another page than it did.
    pub(crate) fn discard(&mut self, number: u32) {
        if let Some(slot) = self.list.get_mut(number as usize)
            && let Some(block) = slot.take()
        {
            self.by_key.remove(&block.key);
            self.recent[recent(&block.key)] = NOTHING;
        }
    }

    /// A jump leads to this block now.
    pub(crate) fn linked(&mut self, number: u32, operand: u32, stub: u32) {
        if let Some(Some(block)) = self.list.get_mut(number as usize) {
            // Likely jumps come again in each epoch.
            if !block.incoming.contains(&(operand, stub)) {
                block.incoming.push((operand, stub));
            }
        }
    }

    /// Takes out the blocks of a page that were made of these bytes of it, and calls `f` with
    /// each and with the jumps that lead to it. Tells whether the page has no blocks any longer.
    pub(crate) fn remove(
        &mut self,
        physical: u64,
        len: u64,
        mut f: impl FnMut(&Block, &[(u32, u32)]),
    ) -> bool {
        let Some(page) = self.pages.get_mut(&(physical >> 12)) else {
            return false;
        };
        let (mut start, mut end) = (physical, physical.saturating_add(len));
        if page.lines & lines(physical, len) == 0 {
            page.vain += 1;
            if page.vain < VAIN {
                return false;
            }
            start = physical & !0xfff;
            end = start + 4096;
        }
        page.lines = 0;
        let (list, by_key) = (&mut self.list, &mut self.by_key);
        let recents = &mut self.recent;
        let mut left = 0;
        page.blocks.retain(|number| {
            let Some(slot) = list.get_mut(*number as usize) else {
                return false;
            };
            let Some(block) = slot else {
                return false;
            };
            if block.overlaps(start, end) {
                by_key.remove(&block.key);
                recents[recent(&block.key)] = NOTHING;
                f(block, &block.incoming);
                *slot = None;
                return false;
            }
            for (first, len) in block.ranges().into_iter().flatten() {
                if first >> 12 == physical >> 12 {
                    left |= lines(first, len);
                }
            }
            true
        });
        page.lines = left;
        let empty = page.blocks.is_empty();
        if empty {
            self.pages.remove(&(physical >> 12));
        }
        empty
    }

    /// Physical addresses of the pages that have blocks.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().map(|page| page << 12)
    }

    /// Takes out all.
    pub(crate) fn clear(&mut self) {
        self.recent.fill(NOTHING);
        self.list.clear();
        self.by_key.clear();
        self.pages.clear();
    }
}
