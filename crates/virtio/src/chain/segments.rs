use std::fmt;

/// A piece of guest memory that lies within one region of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Length in bytes, at least 1.
    pub len: u32,
}

/// How many segments a chain holds without an allocation. Disks and network cards mostly need
/// two to four.
const INLINE: usize = 8;

/// A list of segments that only allocates when it is long.
pub(crate) struct Segments {
    inline: [Segment; INLINE],
    len: usize,
    /// Everything, once there are more than [`INLINE`].
    spill: Vec<Segment>,
}

impl Segments {
    pub(crate) const fn new() -> Self {
        Self {
            inline: [Segment { address: 0, len: 0 }; INLINE],
            len: 0,
            spill: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, segment: Segment) {
        match self.inline.get_mut(self.len) {
            Some(slot) => *slot = segment,
            None => {
                if self.spill.is_empty() {
                    self.spill.reserve(4 * INLINE);
                    self.spill.extend_from_slice(&self.inline);
                }
                self.spill.push(segment);
            }
        }
        self.len += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        self.inline.get(..self.len).unwrap_or(&self.spill)
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}
