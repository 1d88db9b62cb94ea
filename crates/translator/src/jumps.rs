//! The jump cache: from linear addresses to translated code, for jumps that no direct link can
//! serve.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use processor::Mode;

use crate::blocks::Map;

/// An entry. Translated code adds the address it looks for to `inverse`, and one: zero is a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Jump {
    /// The complement of the linear address.
    pub(crate) inverse: u64,
    /// Address of the code.
    pub(crate) code: u64,
}

/// Entries of a table: the low bits of an address, plus those of its page number, are its index.
pub(crate) const JUMPS: usize = 32768;

/// For PDEP: the low bits of such a sum become an offset into the table.
pub(crate) const JUMP_MASK: u64 = ((JUMPS - 1) * size_of::<Jump>()) as u64;

fn index(linear: u64) -> usize {
    linear.wrapping_add(linear >> 12) as usize & (JUMPS - 1)
}

/// What no address in this slot matches: one that is not canonical, and would be in another.
fn never(index: usize) -> Jump {
    Jump {
        inverse: !(1 << 63 | (index as u64 ^ 1) & 0xfff),
        code: 0,
    }
}

/// The entries of one mode.
#[derive(Debug)]
pub(crate) struct Table {
    mode: Mode,
    /// [`processor::Cpu::code_epoch`] that the entries hold for.
    epoch: u64,
    /// A number that no other mode or epoch has or had.
    key: u64,
    entries: Box<[Jump]>,
    filled: Vec<u16>,
    /// By physical page: where in it jumps have led. Once its translation is seen to hold in a
    /// new epoch, all of them are entered at once.
    pages: Map<u64, Vec<Page>>,
}

/// Targets of jumps in one page, as mapped at one linear address.
#[derive(Debug)]
struct Page {
    /// Number of the linear page.
    linear: u64,
    /// The epoch in which they were entered, and one.
    entered: u64,
    targets: Vec<(u64, u64)>,
}

/// Linear pages that are noted for a physical one.
const PAGES: usize = 16;

/// More targets of a page than this are not noted.
const TARGETS: usize = 64;

impl Table {
    fn new(mode: Mode, key: u64) -> Self {
        Table {
            mode,
            epoch: 0,
            key,
            entries: (0..JUMPS).map(never).collect(),
            filled: Vec::new(),
            pages: Map::default(),
        }
    }

    fn clear(&mut self) {
        for index in self.filled.drain(..) {
            let index = usize::from(index);
            if let Some(entry) = self.entries.get_mut(index) {
                *entry = never(index);
            }
        }
    }

    /// What stands for the mode and the epoch. Where code was found is noted in the code that
    /// jumps there together with it. Keys are random, so that an address and the key of one
    /// epoch are not the sum of another address and another key, whatever addresses a guest
    /// makes up.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Where its entries lie.
    pub(crate) fn as_ptr(&self) -> *const Jump {
        self.entries.as_ptr()
    }

    /// Code for this address.
    pub(crate) fn get(&self, linear: u64) -> Option<u64> {
        let entry = self.entries.get(index(linear))?;
        (entry.inverse == !linear).then_some(entry.code)
    }

    /// Enters code for an address.
    pub(crate) fn insert(&mut self, linear: u64, code: u64) {
        enter(&mut self.entries, &mut self.filled, linear, code);
    }

    /// Enters code for an address at this physical one, with all that was known of the page.
    pub(crate) fn insert_page(&mut self, linear: u64, physical: u64, code: u64) {
        let now = self.epoch.wrapping_add(1);
        let pages = self.pages.entry(physical >> 12).or_default();
        let at = pages.iter().position(|page| page.linear == linear >> 12);
        let at = at.unwrap_or_else(|| {
            if pages.len() >= PAGES {
                pages.remove(0);
            }
            pages.push(Page {
                linear: linear >> 12,
                entered: now,
                targets: Vec::new(),
            });
            pages.len() - 1
        });
        let Some(page) = pages.get_mut(at) else {
            return;
        };
        let mut new = true;
        if page.entered == now {
            new = page.targets.iter().all(|target| target.0 != linear);
        } else {
            page.entered = now;
            for (target, code) in &page.targets {
                enter(&mut self.entries, &mut self.filled, *target, *code);
                new &= *target != linear;
            }
        }
        if new && page.targets.len() < TARGETS {
            page.targets.push((linear, code));
        }
        enter(&mut self.entries, &mut self.filled, linear, code);
    }

    /// Forgets code that was made of this physical page.
    fn remove(&mut self, physical: u64, code: u64) {
        for page in self.pages.get_mut(&(physical >> 12)).into_iter().flatten() {
            page.targets.retain(|target| target.1 != code);
        }
        for index in &self.filled {
            let index = usize::from(*index);
            if let Some(entry) = self.entries.get_mut(index)
                && entry.code == code
            {
                // It stays in `filled`, which is harmless.
                *entry = Jump {
                    code: 0,
                    ..never(index)
                };
            }
        }
    }
}

/// Enters code for an address in a table's entries, and notes which of them it is.
fn enter(entries: &mut [Jump], filled: &mut Vec<u16>, linear: u64, code: u64) {
    let index = index(linear);
    if let Some(entry) = entries.get_mut(index) {
        if *entry == never(index) {
            filled.push(index as u16);
        }
        *entry = Jump {
            inverse: !linear,
            code,
        };
    }
}

/// More modes than a guest ordinarily uses; beyond them all tables are made anew.
const TABLES: usize = 24;

/// The tables of all modes.
#[derive(Debug)]
pub(crate) struct Jumps {
    tables: Vec<Table>,
    /// The one that was selected last.
    last: usize,
    /// How often all tables were thrown out.
    generation: u64,
    keys: Keys,
}

/// Random numbers, by a secret of this process and a count.
#[derive(Debug)]
struct Keys {
    random: RandomState,
    count: u64,
}

impl Keys {
    fn next(&mut self) -> u64 {
        self.count = self.count.wrapping_add(1);
        self.random.hash_one(self.count)
    }
}

impl Jumps {
    pub(crate) fn new() -> Self {
        Jumps {
            tables: Vec::new(),
            last: 0,
            generation: 0,
            keys: Keys {
                random: RandomState::new(),
                count: 0,
            },
        }
    }

    /// Changes when tables that were selected before are gone.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The table of a mode, without entries from before this epoch.
    pub(crate) fn select(&mut self, mode: Mode, epoch: u64) -> &mut Table {
        if self
            .tables
            .get(self.last)
            .is_none_or(|table| table.mode != mode)
        {
            let at = self.tables.iter().position(|table| table.mode == mode);
            self.last = at.unwrap_or_else(|| {
                if self.tables.len() >= TABLES {
                    self.tables.clear();
                    self.generation += 1;
                }
                self.tables.push(Table::new(mode, self.keys.next()));
                self.tables.len() - 1
            });
        }
        let table = &mut self.tables[self.last];
        if table.epoch != epoch {
            table.clear();
            table.epoch = epoch;
            table.key = self.keys.next();
        }
        table
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        for table in &mut self.tables {
            table.clear();
            table.pages.clear();
        }
    }

    /// Forgets code that was made of this physical page, in all modes.
    pub(crate) fn remove(&mut self, physical: u64, code: u64) {
        for table in &mut self.tables {
            table.remove(physical, code);
        }
    }
}
