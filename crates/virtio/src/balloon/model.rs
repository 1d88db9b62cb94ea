//! The configuration space (VIRTIO 1.3 section 5.5.4): a pure register model.

use bus::{read_le, write_le};

/// Pages of the balloon are of 4 KiB, whatever those of the guest and the host are.
pub(super) const PAGE_SHIFT: u32 = 12;
pub(super) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

pub(super) const F_STATS_VQ: u64 = 1 << 1;
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
pub(super) const F_PAGE_POISON: u64 = 1 << 4;
pub(super) const F_PAGE_REPORTING: u64 = 1 << 5;

const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
const POISON_VAL: usize = 12;
const SIZE: usize = 16;

/// The registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Model {
    /// Pages that the host wants in the balloon.
    pub(super) num_pages: u32,
    /// Pages that the guest has put into the balloon.
    pub(super) actual: u32,
    /// What the guest fills free pages with.
    pub(super) poison_val: u32,
}

impl Model {
    fn image(&self) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        for (offset, value) in [
            (NUM_PAGES, self.num_pages),
            (ACTUAL, self.actual),
            (POISON_VAL, self.poison_val),
        ] {
            write_le(&mut image[offset..offset + 4], value.into());
        }
        image
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let rest = usize::try_from(offset).ok().and_then(|at| image.get(at..));
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    /// A write by the driver; tells whether `actual` changed.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let mut image = self.image();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| image.get_mut(at..));
        for (byte, value) in rest.unwrap_or_default().iter_mut().zip(data) {
            *byte = *value;
        }
        let before = self.actual;
        self.actual = read_le(&image[ACTUAL..ACTUAL + 4]) as u32;
        self.poison_val = read_le(&image[POISON_VAL..]) as u32;
        before != self.actual
    }
}
