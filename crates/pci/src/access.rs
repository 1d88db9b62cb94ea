/// Part of an access that lies within one 32-bit register.
pub(crate) struct Piece {
    /// Offset of the register.
    pub register: u64,
    /// First byte within the register.
    pub shift: usize,
    /// The piece's place in the access's data.
    pub data: std::ops::Range<usize>,
}

impl Piece {
    /// Offset of the piece's first byte.
    pub fn offset(&self) -> u64 {
        self.register + self.shift as u64
    }
}

/// Cuts an access of `len` bytes at `offset` at the borders of 32-bit registers.
pub(crate) fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let rest = len.checked_sub(done).filter(|rest| *rest > 0)?;
        let here = offset.checked_add(done as u64)?;
        let shift = (here % 4) as usize;
        let end = done + rest.min(4 - shift);
        let data = done..end;
        done = end;
        Some(Piece {
            register: here - shift as u64,
            shift,
            data,
        })
    })
}
