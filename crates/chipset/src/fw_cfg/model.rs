use super::items::Items;
use super::state::State;
use crate::ChipsetError;

/// First port: the selector.
pub const BASE: u16 = 0x510;
/// Number of ports.
pub const PORTS: u16 = 12;

/// Selector register, 16 bits, little-endian.
const SELECTOR: u64 = 0;
/// Data register, 8 bits.
const DATA: u64 = 1;
/// DMA address, 64 bits, big-endian; a write of the lower half starts.
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;

/// What the DMA address register reads as: the interface is there.
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;

/// Bits of the selector that are flags.
const SELECT_WRITE: u16 = 0x4000;

/// Longest piece of an item of zeroes or of a copy that goes at once.
const PIECE: usize = 4096;

mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// Guest memory, for the DMA interface.
pub trait GuestMemoryAccess: Send + Sync {
    /// Reads guest memory at a guest-physical address.
    ///
    /// # Errors
    /// [`ChipsetError::GuestAddress`] when not all of it is memory.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), ChipsetError>;

    /// Writes guest memory at a guest-physical address, and tells its watch
    /// (`memory::written`).
    ///
    /// # Errors
    /// [`ChipsetError::GuestAddress`] when not all of it is memory that can be written.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), ChipsetError>;
}

/// QEMU's firmware configuration device (docs/specs/fw_cfg.rst) with the DMA interface.
pub struct Model {
    state: State,
    items: Items,
}

impl Model {
    /// A device that offers `items`.
    #[must_use]
    pub fn new(items: Items) -> Self {
        Self {
            state: State::default(),
            items,
        }
    }

    /// The items.
    pub fn items(&mut self) -> &mut Items {
        &mut self.items
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            written: self.items.all_writable(),
            ..self.state.clone()
        }
    }

    /// Takes over a state.
    ///
    /// # Errors
    /// The reason, when its files are not this device's.
    pub fn set_state(&mut self, state: State) -> Result<(), String> {
        self.items.restore_writable(&state.written)?;
        self.state = State {
            written: Vec::new(),
            ..state
        };
        Ok(())
    }

    /// After power-on, with the same items.
    pub fn reset(&mut self) {
        self.state = State::default();
        self.items.reset_writable();
    }

    /// Reads ports from `offset` on.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (SELECTOR, 1) | (DATA, _) => {
                for byte in data {
                    *byte = self.next_byte();
                }
            }
            (DMA_HIGH..=DMA_LOW_LAST, _) => {
                let signature = DMA_SIGNATURE.to_be_bytes();
                let mut bytes = signature.iter().skip((offset - DMA_HIGH) as usize);
                for byte in data {
                    *byte = bytes.next().copied().unwrap_or(0xff);
                }
            }
            _ => bus::fill_ones(data),
        }
    }

    /// Writes ports from `offset` on. Writes to the data register do nothing.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &dyn GuestMemoryAccess) {
        match (offset, data) {
            (SELECTOR, [low, high]) => self.select(u16::from_le_bytes([*low, *high])),
            (DMA_HIGH, [a, b, c, d]) => {
                self.state.dma_high = u32::from_be_bytes([*a, *b, *c, *d]);
            }
            (DMA_HIGH, [a, b, c, d, e, f, g, h]) => {
                self.state.dma_high = 0;
                let address = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                self.dma(address, memory);
            }
            (DMA_LOW, [a, b, c, d]) => {
                let high = std::mem::take(&mut self.state.dma_high);
                let low = u32::from_be_bytes([*a, *b, *c, *d]);
                self.dma(u64::from(high) << 32 | u64::from(low), memory);
            }
            _ => (),
        }
    }

    fn select(&mut self, key: u16) {
        self.state.selected = key & !SELECT_WRITE;
        self.state.offset = 0;
    }

    fn next_byte(&mut self) -> u8 {
        let item = self.items.get(self.state.selected);
        let byte = item.get(self.state.offset as usize).copied();
        self.state.offset = self.state.offset.saturating_add(1);
        byte.unwrap_or(0)
    }

    /// Carries out the command at `address`: control, length and buffer address, big-endian.
    fn dma(&mut self, address: u64, memory: &dyn GuestMemoryAccess) {
        let mut command = [0; 16];
        if memory.read(address, &mut command).is_err() {
            // There is nowhere to tell.
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, buffer @ ..] = command;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let buffer = u64::from_be_bytes(buffer);
        if control & control::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & control::READ != 0 {
            self.dma_read(buffer, length, memory)
        } else if control & control::WRITE != 0 {
            self.dma_write(buffer, length, memory)
        } else {
            if control & control::SKIP != 0 {
                self.state.offset = self.state.offset.saturating_add(length);
            }
            true
        };
        let result = if done { 0 } else { control::ERROR };
        // A command in read-only memory cannot be answered; the guest then waits for ever.
        _ = memory.write(address, &result.to_be_bytes());
    }

    /// Copies the item, and zeroes after its end.
    fn dma_read(&mut self, buffer: u64, length: u32, memory: &dyn GuestMemoryAccess) -> bool {
        let item = self.items.get(self.state.selected);
        let item = item.get(self.state.offset as usize..).unwrap_or(&[]);
        let length = length as usize;
        let (data, zeroes) = (length.min(item.len()), length.saturating_sub(item.len()));
        let pieces =
            item.get(..data)
                .unwrap_or(&[])
                .chunks(PIECE)
                .chain((0..zeroes).step_by(PIECE).map(|at| {
                    let piece: &[u8] = &[0; PIECE];
                    piece.get(..PIECE.min(zeroes - at)).unwrap_or(piece)
                }));
        let mut at = Some(buffer);
        for piece in pieces {
            let Some(address) = at else { return false };
            if memory.write(address, piece).is_err() {
                return false;
            }
            at = address.checked_add(piece.len() as u64);
        }
        self.state.offset = self.state.offset.saturating_add(length as u32);
        true
    }

    fn dma_write(&mut self, buffer: u64, length: u32, memory: &dyn GuestMemoryAccess) -> bool {
        let (key, offset) = (self.state.selected, self.state.offset as usize);
        let Some(target) = self.items.writable(key, offset, length as usize) else {
            return false;
        };
        // A copy in between, so that a bad address does not leave half of it.
        let mut data = vec![0; target.len()];
        if memory.read(buffer, &mut data).is_err() {
            return false;
        }
        target.copy_from_slice(&data);
        self.state.offset = self.state.offset.saturating_add(length);
        self.items.written(key);
        true
    }
}

const DMA_LOW_LAST: u64 = DMA_LOW + 3;
