//! How often each cluster of an image is referred to, as a check finds out.
//!
//! ```text
//!   cluster ──▶ piece ──▶ word:  31 some entry says: nobody else refers to it
//!                                30 some entry says: others may
//!                              0-29 references
//! ```
//!
//! What entries say is kept beside the count, so that no table has to be read again to compare
//! the two. Images are mostly used in order: the pieces that were used last are found at once.

use std::collections::BTreeMap;
use std::ops::Range;

/// Clusters of a piece.
const PIECE: u64 = 4096;
/// Memory for counting, in pieces of 16 KiB: enough for 16 TiB in clusters of 64 KiB.
const PIECES: usize = 1 << 16;
/// Pieces that are found without a search.
const RECENT: u64 = 64;

/// What is known about a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Word(u32);

impl Word {
    const ALONE: u32 = 1 << 31;
    const SHARED: u32 = 1 << 30;
    const COUNT: u32 = Self::SHARED - 1;

    /// References.
    pub(crate) fn count(self) -> u64 {
        u64::from(self.0 & Self::COUNT)
    }

    /// An entry contradicts the count.
    pub(crate) fn is_flagged_wrongly(self) -> bool {
        match self.count() {
            1 => self.0 & Self::SHARED != 0,
            _ => self.0 & Self::ALONE != 0,
        }
    }

    /// One more reference, from an entry with this COPIED flag if it is one that has to be right.
    fn refer(&mut self, copied: Option<bool>) {
        // As many as can be counted.
        if self.0 & Self::COUNT != Self::COUNT {
            self.0 += 1;
        }
        self.0 |= match copied {
            Some(true) => Self::ALONE,
            Some(false) => Self::SHARED,
            None => 0,
        };
    }
}

/// References to clusters.
pub(crate) struct Counts {
    pieces: Vec<Box<[Word]>>,
    /// Which piece is where in `pieces`.
    places: BTreeMap<u64, usize>,
    /// Some of `places`: a piece's number modulo [`RECENT`], the piece, and its place.
    recent: [(u64, usize); RECENT as usize],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            places: BTreeMap::new(),
            recent: [(u64::MAX, 0); RECENT as usize],
        }
    }
}

impl Counts {
    /// One more reference to each cluster; `false`: they are more than can be counted.
    pub(crate) fn add(&mut self, clusters: Range<u64>) -> bool {
        clusters
            .into_iter()
            .all(|cluster| self.add_one(cluster, None))
    }

    /// One more reference to a cluster, from an entry with this COPIED flag if it is one that has
    /// to be right; `false`: it cannot be counted.
    pub(crate) fn add_one(&mut self, cluster: u64, copied: Option<bool>) -> bool {
        let piece = cluster / PIECE;
        let (found, place) = self.recent[(piece % RECENT) as usize];
        let place = match found == piece {
            true => Some(place),
            false => self.place(piece),
        };
        let piece = place.and_then(|place| self.pieces.get_mut(place));
        let word = piece.and_then(|piece| piece.get_mut((cluster % PIECE) as usize));
        word.map(|word| word.refer(copied)).is_some()
    }

    /// Where a piece is, which is made if it is not there.
    #[cold]
    fn place(&mut self, piece: u64) -> Option<usize> {
        let place = match self.places.get(&piece) {
            Some(place) => *place,
            None if self.pieces.len() >= PIECES => return None,
            None => {
                let words = vec![Word::default(); PIECE as usize];
                self.pieces.push(words.into_boxed_slice());
                let place = self.pieces.len() - 1;
                self.places.insert(piece, place);
                place
            }
        };
        self.recent[(piece % RECENT) as usize] = (piece, place);
        Some(place)
    }

    /// References to a cluster.
    pub(crate) fn get(&self, cluster: u64) -> u64 {
        self.from(cluster, 1).iter().map(|word| word.count()).sum()
    }

    /// What is known about at most `most` clusters from `first` on, as far as their piece goes.
    pub(crate) fn from(&self, first: u64, most: u64) -> &[Word] {
        static NONE: [Word; PIECE as usize] = [Word(0); PIECE as usize];
        let place = self.places.get(&(first / PIECE));
        let piece = place.and_then(|place| self.pieces.get(*place));
        let words = piece.map_or(&NONE[..], |piece| &**piece);
        let words = words.get((first % PIECE) as usize..).unwrap_or_default();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        words.get(..most).unwrap_or(words)
    }

    fn in_order(&self) -> impl DoubleEndedIterator<Item = (u64, &[Word])> {
        self.places.iter().map(|(piece, place)| {
            let words = self.pieces.get(*place).map(|words| &**words);
            (piece * PIECE, words.unwrap_or_default())
        })
    }

    /// The clusters that are referred to, in order.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = u64> + '_ {
        self.in_order().flat_map(|(first, words)| {
            let used = words.iter().zip(first..).filter(|(word, _)| word.0 != 0);
            used.map(|(_, cluster)| cluster)
        })
    }

    /// Ranges of clusters that are referred to, in order; they do not cross pieces.
    pub(crate) fn used(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.in_order().flat_map(|(first, words)| {
            let runs = words.chunk_by(|a, b| (a.0 != 0) == (b.0 != 0));
            let mut next = first;
            runs.filter_map(move |run| {
                let clusters = next..next + run.len() as u64;
                next = clusters.end;
                run.first().filter(|word| word.0 != 0).map(|_| clusters)
            })
        })
    }

    /// The cluster behind the last one that is referred to.
    pub(crate) fn end(&self) -> u64 {
        let last = |(first, words): (u64, &[Word])| {
            let at = words.iter().rposition(|word| word.0 != 0)?;
            Some(first + at as u64 + 1)
        };
        self.in_order().rev().find_map(last).unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "counts_tests.rs"]
mod tests;
