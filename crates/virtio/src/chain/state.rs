use serde::{Deserialize, Serialize};

use super::{Chain, Segment, Segments, Token};

/// A chain that was popped and not marked used, as it is saved: the driver may have written over
/// its descriptors, which a packed ring reuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChainState {
    /// What tells it from the others in flight.
    pub(crate) id: u16,
    /// Descriptors that it takes in the ring.
    pub(crate) descriptors: u16,
    /// Guest-physical address and length in bytes of what the device reads.
    pub(crate) readable: Vec<(u64, u32)>,
    /// The same of what it writes.
    pub(crate) writable: Vec<(u64, u32)>,
}

impl Chain {
    pub(crate) fn save(&self) -> ChainState {
        let list = |segments: &[Segment]| segments.iter().map(|s| (s.address, s.len)).collect();
        ChainState {
            id: self.token.id,
            descriptors: self.token.descriptors,
            readable: list(self.readable()),
            writable: list(self.writable()),
        }
    }

    /// The chain that was saved; `None` when it cannot have been one. Whether it is in RAM shows
    /// when it is used.
    pub(crate) fn restore(state: &ChainState) -> Option<Self> {
        let mut segments = Segments::new();
        let mut lengths = [0u32; 2];
        for (length, list) in lengths.iter_mut().zip([&state.readable, &state.writable]) {
            for &(address, len) in list {
                address.checked_add(len.into())?;
                *length = length.checked_add(len)?;
                segments.push((len != 0).then_some(Segment { address, len })?);
            }
        }
        let [readable_len, writable_len] = lengths;
        readable_len.checked_add(writable_len)?;
        (state.descriptors != 0).then_some(Self {
            token: Token {
                id: state.id,
                descriptors: state.descriptors,
            },
            segments,
            readable: state.readable.len(),
            readable_len,
            writable_len,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ChainState {
        ChainState {
            id: 7,
            descriptors: 3,
            readable: vec![(0x1000, 16), (0x2000, 512)],
            writable: (0..20).map(|i| (0x10000 + i * 4096, 100)).collect(),
        }
    }

    #[test]
    fn a_chain_comes_back_as_it_was() {
        let chain = Chain::restore(&state()).unwrap();
        assert_eq!((chain.readable_len(), chain.writable_len()), (528, 2000));
        assert_eq!((chain.readable().len(), chain.writable().len()), (2, 20));
        assert_eq!(chain.save(), state());
    }

    #[test]
    fn impossible_chains_are_refused() {
        let refused = |change: fn(&mut ChainState)| {
            let mut state = state();
            change(&mut state);
            Chain::restore(&state).is_none()
        };
        assert!(refused(|s| s.descriptors = 0));
        assert!(refused(|s| s.readable[0].1 = 0));
        assert!(refused(|s| s.readable[0].0 = u64::MAX));
        assert!(refused(|s| s.writable[0].1 = u32::MAX));
        assert!(refused(|s| s.readable[0].1 = u32::MAX - 2000));
    }
}
