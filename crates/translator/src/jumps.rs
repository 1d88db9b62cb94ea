//! The jump cache: from linear addresses to translated code, for jumps that no direct link can
//! serve.

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
pub(crate) const JUMPS: usize = 8192;

/// For PDEP: the low bits of such a sum become an offset into the table.
pub(crate) const JUMP_MASK: u64 = ((JUMPS - 1) * size_of::<Jump>()) as u64;

/// Offset of an address' entry in a table, in bytes.
pub(crate) fn offset(linear: u64) -> usize {
    index(linear) * size_of::<Jump>()
}

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
    entries: Box<[Jump]>,
    filled: Vec<u16>,
    /// By linear and physical page number: where in the page jumps have led. Once its translation
    /// is seen to hold in a new epoch, all of them are entered at once.
    pages: Map<(u64, u64), Page>,
}

/// Targets of jumps in one page.
#[derive(Debug, Default)]
struct Page {
    /// The epoch in which they were entered, and one.
    entered: u64,
    targets: Vec<(u64, u64)>,
}

/// More targets of a page than this are not noted.
const TARGETS: usize = 64;

impl Table {
    fn new(mode: Mode) -> Self {
        Table {
            mode,
            epoch: 0,
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
        let index = index(linear);
        if let Some(entry) = self.entries.get_mut(index) {
            if *entry == never(index) {
                self.filled.push(index as u16);
            }
            *entry = Jump {
                inverse: !linear,
                code,
            };
        }
    }

    /// Enters code for an address at this physical one, with all that was known of the page.
    pub(crate) fn insert_page(&mut self, linear: u64, physical: u64, code: u64) {
        let page = self
            .pages
            .entry((linear >> 12, physical >> 12))
            .or_default();
        if page.entered == self.epoch.wrapping_add(1) {
            self.note(linear, physical, code);
        } else {
            page.entered = self.epoch.wrapping_add(1);
            let targets = std::mem::take(&mut page.targets);
            for (linear, code) in &targets {
                self.insert(*linear, *code);
            }
            if let Some(page) = self.pages.get_mut(&(linear >> 12, physical >> 12)) {
                page.targets = targets;
            }
            self.note(linear, physical, code);
        }
        self.insert(linear, code);
    }

    fn note(&mut self, linear: u64, physical: u64, code: u64) {
        if let Some(page) = self.pages.get_mut(&(linear >> 12, physical >> 12))
            && page.targets.len() < TARGETS
            && page.targets.iter().all(|target| target.0 != linear)
        {
            page.targets.push((linear, code));
        }
    }

    fn remove(&mut self, linear: u64, physical: u64) {
        if let Some(page) = self.pages.get_mut(&(linear >> 12, physical >> 12)) {
            page.targets.retain(|target| target.0 != linear);
        }
        let index = index(linear);
        if let Some(entry) = self.entries.get_mut(index)
            && entry.inverse == !linear
        {
            // It stays in `filled`, which is harmless.
            entry.inverse = never(index).inverse;
        }
    }
}

/// More modes than a guest ordinarily uses; beyond them all tables are made anew.
const TABLES: usize = 24;

/// The tables of all modes.
#[derive(Debug, Default)]
pub(crate) struct Jumps {
    tables: Vec<Table>,
    /// The one that was selected last.
    last: usize,
}

impl Jumps {
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
                }
                self.tables.push(Table::new(mode));
                self.tables.len() - 1
            });
        }
        let table = &mut self.tables[self.last];
        if table.epoch != epoch {
            table.clear();
            table.epoch = epoch;
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

    /// Forgets one address, at this physical one, in all modes.
    pub(crate) fn remove(&mut self, linear: u64, physical: u64) {
        for table in &mut self.tables {
            table.remove(linear, physical);
        }
    }
}
